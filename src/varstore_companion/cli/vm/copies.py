"""`vm clone|copy|snapshot UUID`: a new record that is like another one."""

from argparse import Namespace
from typing import TYPE_CHECKING

from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm.common import add_vm, command, opened, print_vm

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm {0} 11111111-2222-3333-4444-555555555555 --name web-2
  varstore-companion vm {0} 11111111-2222-3333-4444-555555555555 --json | jq -r .uuid

The field is copied. A control domain cannot be copied, and a clone of a template or a snapshot is a template."""

_TEXTS = {
    "clone": "make a new VM that is like another one",
    "copy": "make a new VM that is like another one, as clone does",
    "snapshot": "take a snapshot of a VM",
}


def add(commands: "Commands") -> None:
    """Add the commands."""
    for name, text in _TEXTS.items():
        made = command(commands, name, text, EXAMPLES.format(name), run)
        add_vm(made)
        made.add_argument("--name", metavar="TEXT", help="its name (that of the VM)")


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with opened(options) as operations:
        do = {"clone": operations.clone, "copy": operations.copy, "snapshot": operations.snapshot}[options.command]
        name = operations.record(options.uuid).name if options.name is None else options.name
        print_vm(options, operations, do(options.uuid, name))
    return ExitCode.FINE
