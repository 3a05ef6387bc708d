"""`updates`: whether VMs of this host are updated when they boot."""

import json
from datetime import UTC, datetime

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser
from varstore_companion.cli.client import control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.efi.names import printable
from varstore_companion.wire import observing
from varstore_companion.wire.observing import UpdatesAction

EXAMPLES = """\
  varstore-companion updates
  varstore-companion updates pause --reason "waiting for the new firmware"
  varstore-companion updates resume

The daemon pauses by itself when too many VMs in a row have had trouble with their update (failures_to_pause).
While it is paused, marked VMs boot with what they have and stay marked. A pause outlives the daemon. The exit code is 1 while
updates are paused."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("updates", "Pause or resume updates at boot on this host, or show what is in force.", EXAMPLES)
    parse.add_argument("action", nargs="?", choices=[each.name.lower() for each in UpdatesAction], help="without: only show")
    parse.add_argument("--reason", help="why they are paused, for whoever looks next")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    if options.reason is not None and options.action != "pause":
        parse.error("--reason goes with pause")
    action = None if options.action is None else UpdatesAction[options.action.upper()]
    with control(options.control) as client:
        answer = client.call(observing.Updates(action, options.reason))
    document = json.loads(answer.json) if isinstance(answer, observing.UpdatesAnswer) else {}
    paused = document.get("paused")
    if options.json:
        output.print_json(document)
    else:
        since = "" if paused is None else f"{datetime.fromtimestamp(paused['at'], UTC):%Y-%m-%d %H:%M} UTC"
        output.line("made at boot" if paused is None else f"paused since {since}: {printable(paused['reason'])}")
        if paused is not None and paused.get("told") is False:
            output.line("  the alert of it is not delivered yet")
        for each in document.get("in_trouble", []):
            output.line(f"  {each['vm']}: {printable(each['reason'])}")
    return ExitCode.FINE if paused is None else ExitCode.NO
