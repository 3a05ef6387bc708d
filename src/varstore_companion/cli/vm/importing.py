"""`vm import FILE`: a VM from an export."""

import sys
from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import named
from varstore_companion.cli.vm.common import command, opened, print_vm
from varstore_companion.files import read_file
from varstore_companion.toolstack import metadata

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm import web-1.json
  varstore-companion vm export 11111111-2222-3333-4444-555555555555 | varstore-companion vm import - --new-uuid

The field is always computed from the store, whatever the document says; a mark in it is kept when it is still right."""


def add(commands: "Commands") -> None:
    """Add the command."""
    made = command(commands, "import", "add the VM that an export holds", EXAMPLES, run)
    made.add_argument("file", metavar="FILE", help="what export wrote; - for standard input")
    made.add_argument("--new-uuid", action="store_true", help="give it a new uuid instead of the one that it had")


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with named(options.file):
        data = sys.stdin.buffer.read(metadata.LIMIT + 1) if options.file == "-" else read_file(options.file, metadata.LIMIT)
        found = metadata.parse(data)
    if options.new_uuid:
        found = replace(found, uuid=uuid4())
    with opened(options, make=True) as operations:
        operations.import_vm(found)
        print_vm(options, operations, found.uuid)
    return ExitCode.FINE
