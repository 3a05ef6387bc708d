"""`vm create|show|mark|unmark`: the VMs of the embedded toolstack, with or without a running daemon."""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from varstore_companion.cli import output, store_file
from varstore_companion.cli.arguments import STORE_FILE, Parser, add_json, add_rules, add_state_dir, parser, uuid
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import InputError, named
from varstore_companion.efi.outline import FILE_LIMIT, admit
from varstore_companion.errors import OverLimitError, ToolstackRefusedError, UnknownVersionError
from varstore_companion.files import load_manifest
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.trust.check import State, check
from varstore_companion.trust.state import CertificatesState

if TYPE_CHECKING:
    from argparse import _SubParsersAction

EXAMPLES = """\
  varstore-companion vm create --name web-1 --store nvram.b64
  varstore-companion vm show 11111111-2222-3333-4444-555555555555 --json
  varstore-companion vm mark 11111111-2222-3333-4444-555555555555

mark asks for an update at the VM's next cold boot, unmark takes that back; both may be repeated. From ok there is nothing to
mark: that is refused with OPERATION_NOT_ALLOWED, and exit code 1."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("vm", "Create, show, mark and unmark VMs of the embedded toolstack.", EXAMPLES)
    commands = parse.add_subparsers(dest="command", required=True, metavar="create|show|mark|unmark")
    create = _command(commands, "create", "add a VM; its field is computed from its store")
    create.add_argument("--uuid", type=uuid, metavar="UUID", help="its uuid (a new one)")
    create.add_argument("--name", default="", metavar="TEXT", help="its name")
    create.add_argument("--store", metavar="FILE", help=f"{STORE_FILE}; without it the VM's first boot is still to come")
    add_rules(create)
    show = _command(commands, "show", "show a VM")
    mark = _command(commands, "mark", "update the VM at its next cold boot")
    unmark = _command(commands, "unmark", "take the mark back")
    for each in (show, mark, unmark):
        each.add_argument("uuid", type=uuid, metavar="UUID")
    for each in (create, show, mark, unmark):
        add_state_dir(each)
        add_json(each)
    options = parse.parse_args(arguments)
    path = options.state_dir / FILE_NAME
    if options.command != "create" and not path.exists():
        raise InputError(f"{path}: there is no embedded toolstack")
    vm: UUID = options.uuid or uuid4()
    store, state = _read_store(options) if options.command == "create" else (None, CertificatesState.OK)
    refused = None
    with Database(path) as database:
        try:
            match options.command:
                case "create":
                    database.create(vm, options.name, store, state)
                case "mark":
                    database.mark(vm)
                case "unmark":
                    database.unmark(vm)
        except ToolstackRefusedError as error:
            if error.code != "OPERATION_NOT_ALLOWED":
                raise
            refused = str(error)
        details = database.show(vm)
    document = {
        "uuid": str(vm),
        "name": details.name,
        "secureboot_certificates_state": details.record.state,
        "generation": details.record.generation,
        "store_bytes": None if details.record.store is None else len(details.record.store),
        "refused": refused,
    }
    if options.json:
        output.print_json(document)
    elif refused is not None:
        sys.stderr.write(f"varstore-companion vm: {refused}\n")
    else:
        del document["refused"]
        output.table(
            [[key.replace("_", " "), "-" if value is None else str(value)] for key, value in document.items()], ["", ""]
        )
    return ExitCode.FINE if refused is None else ExitCode.NO


def _command(commands: "_SubParsersAction[Parser]", name: str, text: str) -> Parser:
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _read_store(options: Namespace) -> tuple[bytes | None, CertificatesState]:
    """The store that a new VM is to have, and its field."""
    if options.store is None:
        return None, CertificatesState.OK
    with named(options.store):
        store = store_file.read(options.store).blob
        try:
            admit(store)
        except UnknownVersionError as error:
            # As the daemon takes a write of it: what a later varstored wrote is kept, unread.
            if len(store) > FILE_LIMIT:
                raise OverLimitError(f"store: {len(store):,} bytes, at most {FILE_LIMIT:,}") from None
            sys.stderr.write(f"varstore-companion vm: {options.store}: kept unread: {error}\n")
    is_lacking = check(store, load_manifest(options.manifest)).state is State.UPDATE_AVAILABLE
    return store, CertificatesState.UPDATE_AVAILABLE if is_lacking else CertificatesState.OK
