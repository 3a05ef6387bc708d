"""`history --vm UUID`: what was done to a VM's store."""

import sys
from functools import partial

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser, uuid
from varstore_companion.cli.client import control, pages
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.moment import moment
from varstore_companion.wire import messages

EXAMPLES = """\
  varstore-companion history --vm 11111111-2222-3333-4444-555555555555
  varstore-companion history --vm 11111111-2222-3333-4444-555555555555 --json | jq '.events[-1]'

The oldest event comes first. Of each, --json has the SHA-256 of the store before and after, too. The numbers count from 1;
a gap is of events that are no longer kept."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("history", "Show what was done to a VM's store, when, by which rules.", EXAMPLES)
    parse.add_argument("--vm", type=uuid, required=True, metavar="UUID", help="the VM")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    with control(options.control) as client:
        read = list(pages(client, partial(messages.History, options.vm)))
    events = [event for page in read for event in page["events"]]
    unreadable = read[-1]["unreadable"]
    if options.json:
        output.print_json({"vm": str(options.vm), "events": events, "unreadable": unreadable})
        return ExitCode.FINE
    rows = [
        [
            str(event["number"]),
            moment(event["at"]),
            event["what"],
            event["manifest"] or "-",
            event["backup"] or "-",
            event["detail"] or "-",
        ]
        for event in events
    ]
    output.table(rows, ["number", "at", "what", "rules", "backup", "detail"])
    if unreadable:
        sys.stderr.write(f"varstore-companion history: {unreadable} of its lines cannot be read\n")
    return ExitCode.FINE
