"""`config check`: whether the daemon could start with its settings."""

from pathlib import Path

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_json, parser
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.daemon import foresee, rules
from varstore_companion.daemon.config import Source
from varstore_companion.errors import ConfigurationError
from varstore_companion.paths import CONFIG

EXAMPLES = """\
  varstore-companion config check
  varstore-companion config check config.toml.new --json

The manifest and the certificates that the settings name are read, too, and the other places looked at; nothing is made or
changed. The exit code is 0 when the daemon could use all of it, as far as that can be told, and 2 otherwise. Ask as root: for
anybody else it cannot be told what root may write to. Warnings are about updates that will be refused."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("config", "See whether the daemon could use its settings.", EXAMPLES)
    parse.add_argument("action", choices=("check",), metavar="check")
    parse.add_argument("file", type=Path, metavar="FILE", nargs="?", help=f"the settings ({CONFIG}, if it is there)")
    add_json(parse)
    options = parse.parse_args(arguments)
    source = Source.of(options.file, {})
    path = None if source.may_be_absent else source.path
    try:
        settings = source.read()
        foresee.confirm(settings, source.error)
        found = rules.load(settings, source.error)
    except ConfigurationError as error:
        if not options.json:
            raise
        output.print_json({"file": None if path is None else str(path), "error": str(error), "rules": None, "warnings": []})
        return ExitCode.UNUSABLE
    warnings = list(found.warnings())
    if options.json:
        file = None if path is None else str(path)
        output.print_json({"file": file, "error": None, "rules": found.describe(), "warnings": warnings})
        return ExitCode.FINE
    output.line(f"{path or f'{CONFIG} is not there, the defaults'}: {output.coloured('fine', 'good')}: {found.describe()}")
    for warning in warnings:
        output.line(f"  {output.coloured('warning', 'warn')}: {warning}")
    return ExitCode.FINE
