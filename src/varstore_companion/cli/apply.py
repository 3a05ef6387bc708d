"""`apply FILE -o OUT`: the updated store, in the form in which the old one was read."""

import sys

from varstore_companion.cli import out_file, output, store_file
from varstore_companion.cli import plan as plan_command
from varstore_companion.cli.arguments import STORE_FILE, add_json, parser
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import named
from varstore_companion.cli.rules import add_sources, load_rules, report_problems
from varstore_companion.trust.check import State
from varstore_companion.trust.describe import describe_plan
from varstore_companion.trust.plan import plan

EXAMPLES = """\
  varstore-companion apply /run/nvram.b64 -o /run/nvram.new
  varstore-companion apply - -o - < old.bin > new.bin

OUT is written whole or not at all, and may be FILE; a store without anything to do is written as it is. A symbolic link to
a file is refused rather than followed or replaced. The exit code is 0 when OUT was written, 1 when the update was refused,
and 2 for a store that varstored cannot read."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("apply", "Write the updated store to another file: base64 for base64, raw for raw.", EXAMPLES)
    parse.add_argument("file", metavar="FILE", help=STORE_FILE)
    parse.add_argument("-o", "--output", required=True, metavar="OUT", help="the file to write; - for standard output")
    add_sources(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    if options.json and options.output == "-":
        parse.error("--json and -o - would both write to standard output")
    manifest, loaded = load_rules(options)
    with named(options.file):
        source = store_file.read(options.file)
    planned = plan(source.blob, manifest, loaded.bodies, headroom=options.headroom)
    if planned.refused is None:
        out_file.write(options.output, source.encode(planned.store))
    else:
        report_problems("apply", loaded)
    described = describe_plan(planned)
    if options.json:
        output.print_json(described)
    elif options.output != "-":
        plan_command.show(options.file, described)
        if planned.refused is None:
            output.line(f"  written to {options.output}")
    elif planned.refused is not None:
        sys.stderr.write(f"varstore-companion apply: {options.file}: refused: {planned.refused}\n")
    if planned.before.state in (State.DAMAGED, State.UNKNOWN):
        return ExitCode.UNUSABLE
    return ExitCode.FINE if planned.refused is None else ExitCode.NO
