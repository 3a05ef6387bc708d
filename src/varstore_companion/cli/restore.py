"""`restore --vm UUID`: bring back a store that was kept."""

import json
import sys
from typing import Any

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser, uuid
from varstore_companion.cli.client import RequestFailedError, control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import InputError
from varstore_companion.wire import messages
from varstore_companion.wire.errors import ErrorCode

EXAMPLES = """\
  varstore-companion restore --vm 11111111-2222-3333-4444-555555555555
  varstore-companion restore --vm 11111111-2222-3333-4444-555555555555 --backup 20261122T143005Z-d7e13e43f1e6
  varstore-companion restore --vm 11111111-2222-3333-4444-555555555555 --json

The VM has to be shut down, and its socket detached; the daemon sees no other host. What the toolstack holds is kept as a
backup first, so that a restore without --backup after it takes it back. The field is computed anew, which ends a mark.
PCR 7 may change: BitLocker or systemd-cryptenroll on a vTPM will ask for its recovery key then.

The exit code is 0 when it was done, 1 when it was refused (the VM may be running, its store changed meanwhile, varstored
would not load the backup), and 2 for anything else."""

_REFUSALS = frozenset({ErrorCode.NOT_ALLOWED, ErrorCode.CONFLICT, ErrorCode.NOT_A_STORE, ErrorCode.STORE_OVER_LIMIT})


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("restore", "Bring back a store of a VM that is shut down.", EXAMPLES)
    parse.add_argument("--vm", type=uuid, required=True, metavar="UUID", help="the VM")
    parse.add_argument("--backup", metavar="ID", help="one that `backups` lists (the newest)")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    if options.backup is not None and not _may_be_id(options.backup):
        parse.error(f"--backup: expected an id that `backups` lists, found {options.backup[:80]!r}")
    with control(options.control) as client:
        try:
            answer = client.call(messages.Restore(options.vm, options.backup))
        except RequestFailedError as error:
            if error.code not in _REFUSALS:
                raise
            if options.json:
                output.print_json({"vm": str(options.vm), "restored": None, "refused": str(error)})
            else:
                sys.stderr.write(f"varstore-companion restore: {error}\n")
            return ExitCode.NO
    if not isinstance(answer, messages.RestoreAnswer):
        raise InputError(f"the daemon answered with {type(answer).__name__}")
    document = json.loads(answer.json)
    if options.json:
        output.print_json({**document, "refused": None})
    else:
        _show(document)
    return ExitCode.FINE


def _may_be_id(text: str) -> bool:
    """Whether the protocol can carry it; the daemon knows which there are."""
    return 0 < len(text) <= 64 and text.isascii() and text.isprintable()


def _show(document: dict[str, Any]) -> None:
    backup = document["restored"]
    output.line(f"vm {document['vm']}: backup {backup['id']} is back: {document['report']}, {backup['bytes']:,} bytes")
    if not document["changed"]:
        output.line("  it is the store that was there before")
    if document["kept"] is None:
        output.line("  there was no store before")
    else:
        output.line(f"  what was there is kept as {document['kept']}")
    output.line(f"  the field is now {document['field'] or 'not known: see status'}")
