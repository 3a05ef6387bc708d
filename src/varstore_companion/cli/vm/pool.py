"""`vm pool`: what holds for all VMs."""

from argparse import Namespace
from typing import TYPE_CHECKING

from varstore_companion.cli import output
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm.common import cell, command, opened

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm pool
  varstore-companion vm pool --auto-update yes

With auto-update, a VM that needs an update is marked when it is created or imported; those that are there stay as they are."""


def add(commands: "Commands") -> None:
    """Add the command."""
    made = command(commands, "pool", "show or set what holds for all VMs", EXAMPLES, run)
    made.add_argument("--auto-update", choices=["yes", "no"], help="mark VMs that need an update as they come")


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with opened(options, make=options.auto_update is not None) as operations:
        if options.auto_update is not None:
            operations.set_auto_update(value=options.auto_update == "yes")
        value = operations.auto_update()
    document = {"auto_update_vm_secureboot_certificates": value}
    if options.json:
        output.print_json(document)
    else:
        output.table([[key.replace("_", " "), cell(each)] for key, each in document.items()], ["", ""])
    return ExitCode.FINE
