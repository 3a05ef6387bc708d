"""`vm list`: every VM, snapshot and template."""

from argparse import Namespace
from typing import TYPE_CHECKING

from varstore_companion.cli import output
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm.common import cell, command, describe, opened

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm list
  varstore-companion vm list --json | jq '.vms[] | select(.secureboot_certificates_state != "ok")'

A field is stale when it was not computed from the store that is there now: somebody else wrote the file."""

_COLUMNS = ("uuid", "name", "kind", "firmware", "secureboot_certificates_state", "stale", "store_bytes")


def add(commands: "Commands") -> None:
    """Add the command."""
    command(commands, "list", "list every VM, snapshot and template", EXAMPLES, run)


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with opened(options) as operations:
        entries = [describe(vm) for vm in operations.summaries()]
    if options.json:
        output.print_json({"vms": entries})
    else:
        headings = [column.replace("_", " ") for column in _COLUMNS]
        output.table([[cell(entry[column]) for column in _COLUMNS] for entry in entries], headings)
    return ExitCode.FINE
