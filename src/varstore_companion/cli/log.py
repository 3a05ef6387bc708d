"""`log`: what the running daemon logs."""

import json

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser
from varstore_companion.cli.client import control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.wire import observing
from varstore_companion.wire.observing import LogLevel

EXAMPLES = """\
  varstore-companion log
  varstore-companion log debug --for daemon.upstream daemon.writer
  varstore-companion log inherit --for daemon.upstream daemon.writer

Without LEVEL it shows the levels in force. A logger without a level of its own has that of the one above it; inherit gives that
back. What is changed lasts until the daemon ends."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("log", "Change what the running daemon logs, or show it.", EXAMPLES)
    parse.add_argument("level", nargs="?", choices=[level.name.lower() for level in LogLevel], help="from which level on")
    parse.add_argument("--for", dest="loggers", nargs="+", metavar="LOGGER", help="these loggers only, as daemon.upstream")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    if options.loggers and options.level is None:
        parse.error("--for needs a LEVEL")
    level = None if options.level is None else LogLevel[options.level.upper()]
    levels: dict[str, str] = {}
    with control(options.control) as client:
        for logger in options.loggers or [None]:
            answer = client.call(observing.Log(level, logger))
            if isinstance(answer, observing.LogAnswer):
                levels = json.loads(answer.json)["levels"]
    if options.json:
        output.print_json({"levels": levels})
    else:
        output.table([[name or "everything", own] for name, own in levels.items()], ["logger", "level"])
    return ExitCode.FINE
