"""`vm create|show|mark|unmark`: the VMs of the embedded toolstack, with or without a running daemon."""

from argparse import Namespace
from uuid import UUID, uuid4

from varstore_companion.cli import output, store_file
from varstore_companion.cli.arguments import STORE_FILE, add_json, add_rules, add_state_dir, parser, uuid
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import InputError, named
from varstore_companion.efi.outline import admit
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.files import load_manifest
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.trust.check import State, check
from varstore_companion.trust.state import CertificatesState

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
    create = commands.add_parser("create", help="add a VM; its field is computed from its store")
    create.add_argument("--uuid", type=uuid, metavar="UUID", help="its uuid (a new one)")
    create.add_argument("--name", default="", metavar="TEXT", help="its name")
    create.add_argument("--store", metavar="FILE", help=f"{STORE_FILE}; without it the VM's first boot is still to come")
    add_rules(create)
    show = commands.add_parser("show", help="show a VM")
    mark = commands.add_parser("mark", help="update the VM at its next cold boot")
    unmark = commands.add_parser("unmark", help="take the mark back")
    for each in (show, mark, unmark):
        each.add_argument("uuid", type=uuid, metavar="UUID")
    for each in (create, show, mark, unmark):
        add_state_dir(each)
        add_json(each)
    options = parse.parse_args(arguments)
    path = options.state_dir / FILE_NAME
    if options.command != "create" and not path.exists():
        raise InputError(f"{path}: there is no embedded toolstack")
    with Database(path) as database:
        try:
            vm = _run(database, options)
        except ToolstackRefusedError as error:
            if error.code != "OPERATION_NOT_ALLOWED":
                raise
            output.line(str(error))
            return ExitCode.NO
        details = database.show(vm)
    document = {
        "uuid": str(vm),
        "name": details.name,
        "secureboot_certificates_state": details.record.state,
        "generation": details.record.generation,
        "store_bytes": None if details.record.store is None else len(details.record.store),
    }
    if options.json:
        output.print_json(document)
    else:
        output.table(
            [[key.replace("_", " "), "-" if value is None else str(value)] for key, value in document.items()], ["", ""]
        )
    return ExitCode.FINE


def _run(database: Database, options: Namespace) -> UUID:
    vm: UUID = options.uuid or uuid4()
    match options.command:
        case "create":
            _create(database, vm, options)
        case "mark":
            database.mark(vm)
        case "unmark":
            database.unmark(vm)
    return vm


def _create(database: Database, vm: UUID, options: Namespace) -> None:
    store, state = None, CertificatesState.OK
    if options.store is not None:
        with named(options.store):
            store = store_file.read(options.store).blob
            admit(store)
        if check(store, load_manifest(options.manifest)).state is State.UPDATE_AVAILABLE:
            state = CertificatesState.UPDATE_AVAILABLE
    database.create(vm, options.name, store, state)
