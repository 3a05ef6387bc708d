"""`vm revert SNAPSHOT`: a VM's NVRAM as it was."""

from argparse import Namespace
from typing import TYPE_CHECKING

from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm.common import add_vm, command, opened, print_vm

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm revert 99999999-2222-3333-4444-555555555555

The field is computed from the snapshot's store; the VM is marked if the snapshot was. What is shown is the VM."""


def add(commands: "Commands") -> None:
    """Add the command."""
    add_vm(command(commands, "revert", "take a VM back to a snapshot of it", EXAMPLES, run), "SNAPSHOT")


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with opened(options) as operations:
        print_vm(options, operations, operations.revert(options.uuid))
    return ExitCode.FINE
