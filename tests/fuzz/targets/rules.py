"""Report, verdict and plan on stores that a hostile guest has made: they raise nothing, and hold to the design."""

import json
from collections.abc import Iterator

from fuzz.contract import Target
from fuzz.scenes import CERTIFICATES, KINDS, NAMES, OWNERS, bodies, body, manifest, manifest_text, stores, whole_stores
from support import storebytes as sb
from support.oracle import Rules, report_of, update_of, verdict_of
from support.storebytes import Variable, make_store, signature_list
from support.varstored_model import VarstoredModel
from varstore_companion.efi.outline import outline
from varstore_companion.errors import MalformedError
from varstore_companion.trust.check import check
from varstore_companion.trust.describe import describe_plan, describe_report
from varstore_companion.trust.plan import plan
from varstore_companion.trust.state import CertificatesState
from varstore_companion.trust.verdict import NO_KEYS, decide, read_keys

RULES = Rules.of(manifest_text())
FIELDS = (None, *CertificatesState)
VARIABLE = 0xFF
"""In a recipe: the next byte begins another variable."""
STORE = 0xFE
"""In a recipe: what follows is of the second store."""


def report(data: bytes) -> None:
    """Whatever the bytes: a report, which is the design's, and as JSON."""
    made = check(data, manifest())
    assert made.state == report_of(data, RULES)
    described = json.dumps(describe_report(made, manifest(), len(data)))
    assert len(described) < 20_000 + 40 * len(data)
    assert len(made.reasons) <= 17


def verdict(data: bytes) -> None:
    """The first byte chooses the field and whether the store before is known; the two stores begin with their magic."""
    choice, rest = data[:1] or b"\0", data[1:]
    _judge(choice[0], *_two(rest))


def update(data: bytes) -> None:
    """The first byte chooses the headroom and which bodies there are."""
    choice, blob = data[:1] or b"\0", data[1:]
    _plan(choice[0], blob)


def recipe(data: bytes) -> None:
    """As the two before, on stores that are put together from `data`, so that nearly all of them can be read."""
    choice, rest = data[:1] or b"\0", data[1:]
    first, _, second = rest.partition(bytes([STORE]))
    before, after = cooked(first), cooked(second)
    _judge(choice[0], before, after)
    _plan(choice[0], after)


def _judge(choice: int, before: bytes | None, after: bytes) -> None:
    field = FIELDS[choice & 3]
    try:
        new = outline(after)
    except MalformedError:
        return
    keys, is_known = None, not choice & 4
    if is_known and before is not None:
        try:
            old = outline(before)
        except MalformedError:
            is_known = False
        else:
            is_known = old.damage is None
            keys = read_keys(old) if is_known else None
    elif is_known:
        keys = NO_KEYS
    made = decide(keys, read_keys(new, keys), new, field, manifest())
    assert made.update == verdict_of(before, after, field, RULES, is_known=is_known)
    assert made.reason


def _plan(choice: int, blob: bytes) -> None:
    headroom = (None, 0, 100_000, 130_000)[choice & 3]
    there = dict(list(bodies().items())[choice >> 2 & 1 :])
    made = plan(blob, manifest(), there, headroom=headroom)
    assert json.dumps(describe_plan(made))
    expected = update_of(blob, RULES, there, headroom)
    assert (made.refused is None) == (expected is not None), made.refused
    assert made.store == (blob if expected is None else expected)
    if expected is None:
        return
    # Invariants 2 and 3, twice = once.
    VarstoredModel.load(made.store)
    again = plan(made.store, manifest(), there, headroom=headroom)
    assert (again.refused, again.changes, again.store) == (None, (), made.store)


def _two(data: bytes) -> tuple[bytes | None, bytes]:
    at = data.find(b"VARS", 1)
    return (None, data) if at < 0 else (data[:at], data[at:])


def cooked(data: bytes) -> bytes:
    """A store by a recipe of bytes, none of which is wrong: variables, and in them lists of certificates and single bytes."""
    version = data[0] % 3 if data else 1
    made = []
    for one in data[1:].split(bytes([VARIABLE]))[:24]:
        if not one:
            continue
        name, guid = NAMES[one[0] % len(NAMES)]
        content = bytearray()
        at = 1
        while at < len(one):
            byte = one[at]
            at += 1
            if byte < 0x80:
                # Which certificate, under which owner, and whether in a list of its own kind.
                owner = OWNERS[byte >> 3 & 3]
                kind = KINDS[byte >> 5 & 3]
                one_body = body(CERTIFICATES[byte & 7])
                size = {sb.CERT_SHA256: 32, sb.CERT_X509_SHA256: 48, sb.CERT_SHA1: 20}.get(kind)
                content += signature_list(kind, [(owner, one_body if size is None else one_body[:size].ljust(size, b"."))])
            else:
                content += one[at : at + (byte & 0x3F)]
                at += byte & 0x3F
        made.append(Variable(name, guid, bytes(content) or b"\0"))
    return make_store(made, version)


def _reports() -> Iterator[bytes]:
    yield from (each for each in stores() if len(each) <= 2_048)


def _pairs() -> Iterator[bytes]:
    whole = whole_stores()
    for number, (before, after) in enumerate(zip(whole, [*whole[2:], *whole[:2]], strict=True)):
        yield bytes([number & 7]) + before + after
        yield bytes([number & 7]) + after


def _single() -> Iterator[bytes]:
    for number, each in enumerate(whole_stores()):
        yield bytes([number & 7]) + each


def _recipes() -> Iterator[bytes]:
    split, next_store = bytes([VARIABLE]), bytes([STORE])
    old = split.join((b"\1\0\x1f", b"\1\0", b"\2\2\5", b"\6\x84abcd"))
    new = split.join((b"\1\0\x1f", b"\1\0\1", b"\2\2\3\4\5\6"))
    wrong = split.join((b"\0\0\x1f", b"\1\x08\x09", b"\2\x0a\x0b\x14", b"\3\x20\x40"))
    for choice, first, second in ((1, old, new), (2, old, old), (3, new, wrong), (4, wrong, old), (5, b"\2", wrong)):
        yield bytes([choice]) + first + next_store + second


TARGETS = (
    Target("report", report, _reports, calls_per_byte=20),
    Target("verdict", verdict, _pairs, calls_per_byte=20),
    Target("plan", update, _single, calls_per_byte=40),
    Target("recipe", recipe, _recipes, limit=256, calls_per_byte=800, memory_per_byte=2_000),
)
