"""Every target, one list; what is not here is neither fuzzed nor replayed."""

from fuzz.targets import efi, http, journal, rules, text, wire, xmlrpc

TARGETS = {
    target.name: target
    for target in (*efi.TARGETS, *wire.TARGETS, *xmlrpc.TARGETS, *http.TARGETS, *text.TARGETS, *rules.TARGETS, *journal.TARGETS)
}
