"""`reload`: have the daemon read its settings, manifest and certificates again."""

import json
import sys

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser
from varstore_companion.cli.client import control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.efi.names import printable
from varstore_companion.wire import observing

EXAMPLES = """\
  varstore-companion reload
  varstore-companion reload --json

SIGHUP does the same. Of the settings, headroom, limits and where the files are count at once; those that need a restart are
named. Either everything that was read comes into force, or nothing: the exit code is then 1, and the daemon goes on with what
it had."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("reload", "Have the daemon read settings, manifest and certificates again.", EXAMPLES)
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    with control(options.control) as client:
        answer = client.call(observing.Reload())
    document = json.loads(answer.json) if isinstance(answer, observing.ReloadAnswer) else {}
    error = document.get("error")
    if options.json:
        output.print_json(document)
    elif error is not None:
        sys.stderr.write(f"varstore-companion reload: {printable(error)}; {document['manifest']} stays in force\n")
    else:
        output.line(f"reloaded: manifest {document['manifest']}")
        for warning in document["warnings"]:
            output.line(f"  warning: {printable(warning)}")
        if document["needs_restart"]:
            output.line(f"  needs a restart: {', '.join(document['needs_restart'])}")
    return ExitCode.FINE if error is None else ExitCode.NO
