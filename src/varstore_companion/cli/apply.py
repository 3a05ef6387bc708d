"""`apply FILE -o OUT`: the updated store, in the form in which the old one was read."""

import os
import secrets
import sys
from pathlib import Path

from varstore_companion.cli import output, store_file
from varstore_companion.cli import plan as plan_command
from varstore_companion.cli.arguments import STORE_FILE, add_json, parser
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import InputError, named, shown
from varstore_companion.cli.rules import add_sources, load_rules, report_problems
from varstore_companion.journal import files
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
        _write(options.output, source.encode(planned.store))
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


def _write(name: str, data: bytes) -> None:
    if name == "-":
        output.raw(data)
        return
    try:
        _write_file(Path(name), data)
    except OSError as error:
        raise InputError(f"{shown(name)}: cannot be written: {error.strerror}") from None


def _write_file(path: Path, data: bytes) -> None:
    if path.exists() and not path.is_file():
        # A device or a pipe takes no rename over it.
        with path.open("wb") as file:
            file.write(data)
        return
    if path.is_symlink():
        # Somebody else may have put it there, and what it leads to is not what was named.
        raise InputError(f"{path}: is a symbolic link to {path.readlink()}: name the file itself")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    files.write(path, data, mode, new=path.with_name(f".varstore-companion-{secrets.token_hex(8)}{files.NEW}"))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
