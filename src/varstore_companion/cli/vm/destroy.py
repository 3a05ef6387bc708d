"""`vm destroy UUID`: the end of a VM."""

from argparse import Namespace
from typing import TYPE_CHECKING

from varstore_companion.cli import output
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm.common import add_vm, command, opened

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm destroy 11111111-2222-3333-4444-555555555555

Its NVRAM goes with it and cannot be had back; its snapshots stay. Control domains and default templates are refused."""


def add(commands: "Commands") -> None:
    """Add the command."""
    add_vm(command(commands, "destroy", "remove a VM with its NVRAM", EXAMPLES, run))


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with opened(options) as operations:
        operations.destroy(options.uuid)
    if options.json:
        output.print_json({"uuid": str(options.uuid), "destroyed": True, "refused": None})
    else:
        output.line(f"{options.uuid}: destroyed")
    return ExitCode.FINE
