"""`vm export UUID`: a VM as one JSON document."""

from argparse import Namespace
from typing import TYPE_CHECKING

from varstore_companion.cli import out_file, output
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm.common import add_vm, command, opened
from varstore_companion.toolstack import metadata

if TYPE_CHECKING:
    from varstore_companion.cli.vm.common import Commands

EXAMPLES = """\
  varstore-companion vm export 11111111-2222-3333-4444-555555555555 > web-1.json
  varstore-companion vm export 11111111-2222-3333-4444-555555555555 -o web-1.json

A file is written whole or not at all; a new one only its owner can read: a store may hold secrets of the guest's."""


def add(commands: "Commands") -> None:
    """Add the command."""
    made = command(commands, "export", "write a VM, with its store, as one JSON document", EXAMPLES, run)
    add_vm(made)
    made.add_argument("-o", "--output", default="-", metavar="FILE", help="the file to write (standard output)")


def run(options: Namespace) -> ExitCode:
    """Run the command."""
    with opened(options) as operations:
        document = metadata.build(operations.export_vm(options.uuid))
    out_file.write(options.output, document, mode=0o600)
    if options.output == "-":
        return ExitCode.FINE
    if options.json:
        output.print_json({"uuid": str(options.uuid), "file": options.output, "bytes": len(document)})
    else:
        output.line(f"{options.output}: {len(document):,} bytes")
    return ExitCode.FINE
