"""`vm mark|unmark UUID`: whether a VM is updated at its next cold boot."""

from argparse import Namespace
from typing import TYPE_CHECKING

from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm.common import add_vm, command, opened, print_vm

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm {0} 11111111-2222-3333-4444-555555555555
  varstore-companion vm {0} 11111111-2222-3333-4444-555555555555 --json

It may be repeated. From ok there is nothing to mark: that is refused with OPERATION_NOT_ALLOWED, and exit code 1."""

_TEXTS = {"mark": "update the VM at its next cold boot", "unmark": "take the mark back"}


def add(commands: "Commands") -> None:
    """Add the commands."""
    for name, text in _TEXTS.items():
        add_vm(command(commands, name, text, EXAMPLES.format(name), run))


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with opened(options) as operations:
        (operations.mark if options.command == "mark" else operations.unmark)(options.uuid)
        print_vm(options, operations, options.uuid)
    return ExitCode.FINE
