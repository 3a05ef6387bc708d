"""`vm create`: a new VM or template."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from varstore_companion.cli import store_file
from varstore_companion.cli.arguments import STORE_FILE, uuid
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import named
from varstore_companion.cli.vm.common import command, opened, print_vm
from varstore_companion.efi.outline import FILE_LIMIT, admit
from varstore_companion.errors import OverLimitError, UnknownVersionError
from varstore_companion.toolstack.nvram import Nvram
from varstore_companion.toolstack.records import Firmware, VmKind

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm create --name web-1
  varstore-companion vm create --name web-1 --store nvram.b64 --json
  varstore-companion vm create --name old-template --kind template --firmware bios

The field is computed from the store, and the VM is marked at once when it needs an update and the pool says so."""

_KINDS = tuple(kind for kind in VmKind if kind is not VmKind.SNAPSHOT)


def add(commands: "Commands") -> None:
    """Add the command."""
    made = command(commands, "create", "add a VM; its field is computed from its store", EXAMPLES, run)
    made.add_argument("--uuid", type=uuid, metavar="UUID", help="its uuid (a new one)")
    made.add_argument("--name", default="", metavar="TEXT", help="its name")
    made.add_argument("--store", metavar="FILE", help=f"{STORE_FILE}; without it the VM's first boot is still to come")
    made.add_argument("--kind", choices=[str(kind) for kind in _KINDS], default=str(VmKind.VM), help="what it is (%(default)s)")
    made.add_argument(
        "--firmware", choices=[str(each) for each in Firmware], default=str(Firmware.UEFI), help="what boots it (%(default)s)"
    )


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    # Before the toolstack is opened: a file that cannot be used makes no database.
    store = None if options.store is None else _read(options.store)
    vm: UUID = options.uuid or uuid4()
    with opened(options, make=True) as operations:
        operations.create_vm(vm, options.name, Nvram(store), kind=VmKind(options.kind), firmware=Firmware(options.firmware))
        print_vm(options, operations, vm)
    return ExitCode.FINE


def _read(name: str) -> bytes:
    with named(name):
        store = store_file.read(name).blob
        try:
            admit(store)
        except UnknownVersionError as error:
            # As the daemon takes a write of it: what a later varstored wrote is kept, unread.
            if len(store) > FILE_LIMIT:
                raise OverLimitError(f"store: {len(store):,} bytes, at most {FILE_LIMIT:,}") from None
            sys.stderr.write(f"varstore-companion vm: {name}: kept unread: {error}\n")
    return store
