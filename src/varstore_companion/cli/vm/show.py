"""`vm show UUID`: one record."""

from argparse import Namespace
from typing import TYPE_CHECKING

from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm.common import add_vm, command, opened, print_vm

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm show 11111111-2222-3333-4444-555555555555
  varstore-companion vm show 11111111-2222-3333-4444-555555555555 --json | jq -r .secureboot_certificates_state"""


def add(commands: "Commands") -> None:
    """Add the command."""
    add_vm(command(commands, "show", "show a VM", EXAMPLES, run))


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with opened(options) as operations:
        print_vm(options, operations, options.uuid)
    return ExitCode.FINE
