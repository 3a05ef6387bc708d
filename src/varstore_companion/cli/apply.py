"""`apply FILE -o OUT`, `apply --in-place FILE`: the updated store, in the form in which the old one was read."""

import sys
import time
from argparse import Namespace
from pathlib import Path

from varstore_companion.cli import in_place, out_file, output, store_file
from varstore_companion.cli import plan as plan_command
from varstore_companion.cli.arguments import STORE_FILE, add_json, parser
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import named
from varstore_companion.cli.rules import add_sources, load_rules, report_problems
from varstore_companion.cli.store_file import StoreFile
from varstore_companion.trust.check import State
from varstore_companion.trust.describe import describe_plan, describe_report
from varstore_companion.trust.manifest import Manifest
from varstore_companion.trust.plan import Plan, plan

EXAMPLES = """\
  varstore-companion apply /run/nvram.b64 -o /run/nvram.new
  varstore-companion apply - -o - < old.bin > new.bin
  varstore-companion apply --in-place /run/nvram.b64
  varstore-companion apply --in-place --backup-dir /var/backups /run/nvram.b64

OUT is written whole or not at all, and may be FILE; a store without anything to do is written as it is. A symbolic link to
a file is refused rather than followed or replaced. The exit code is 0 when OUT was written, 1 when the update was refused,
and 2 for a store that varstored cannot read.

In place, FILE is replaced whole or not at all, and only when there is something to do. Before that its exact bytes go to
FILE.TIME-DIGEST.bak, with report and plan in FILE.TIME-DIGEST.json; nothing removes these but you. To go back, copy the
.bak over FILE."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("apply", "Write the updated store, base64 for base64, raw for raw: to another file, or in place.", EXAMPLES)
    parse.add_argument("file", metavar="FILE", help=STORE_FILE)
    where = parse.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--output", metavar="OUT", help="the file to write; - for standard output")
    where.add_argument("--in-place", action="store_true", help="replace FILE, and keep what it was beside it")
    parse.add_argument("--backup-dir", type=Path, metavar="DIR", help="with --in-place: keep it in this folder instead")
    add_sources(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    if options.json and options.output == "-":
        parse.error("--json and -o - would both write to standard output")
    if options.in_place and options.file == "-":
        parse.error("--in-place needs a file, and standard input is none")
    if options.backup_dir is not None and not options.in_place:
        parse.error("--backup-dir is for --in-place: -o leaves FILE as it is")
    manifest, loaded = load_rules(options)
    with named(options.file):
        if options.in_place:
            in_place.refuse_unless_file(options.file)
        source = store_file.read(options.file)
    planned = plan(source.blob, manifest, loaded.bodies, headroom=options.headroom)
    described = describe_plan(planned)
    if options.in_place:
        described["backup"] = None
    if planned.refused is None:
        _write(options, source, planned, manifest, described)
    else:
        report_problems("apply", loaded)
    if options.json:
        output.print_json(described)
    elif options.output != "-":
        plan_command.show(options.file, described)
        if planned.refused is None:
            _show_written(options, described)
    elif planned.refused is not None:
        sys.stderr.write(f"varstore-companion apply: {options.file}: refused: {planned.refused}\n")
    if planned.before.state in (State.DAMAGED, State.UNKNOWN):
        return ExitCode.UNUSABLE
    return ExitCode.FINE if planned.refused is None else ExitCode.NO


def _write(options: Namespace, source: StoreFile, planned: Plan, manifest: Manifest, described: dict[str, object]) -> None:
    if not options.in_place:
        out_file.write(options.output, source.encode(planned.store))
        return
    if not planned.changes:
        return
    about = {"report": describe_report(planned.before, manifest, len(source.blob)), "plan": describe_plan(planned)}
    with named(options.file):
        described["backup"] = str(in_place.keep(options.file, source.data, about, options.backup_dir, time.time()))
    out_file.write(options.file, source.encode(planned.store))


def _show_written(options: Namespace, described: dict[str, object]) -> None:
    if not options.in_place:
        output.line(f"  written to {options.output}")
    elif described["backup"] is not None:
        output.line(f"  written in place; what it was is kept as {described['backup']}")
