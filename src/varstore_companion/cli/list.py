"""`list`: the attached sockets."""

import json
from typing import Any

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser
from varstore_companion.cli.client import Client, control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.wire import messages

EXAMPLES = """\
  varstore-companion list
  varstore-companion list --json | jq '.attachments[] | select(.field == "update_available")'"""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("list", "List the attached sockets with what the daemon last saw of their VMs.", EXAMPLES)
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    with control(options.control) as client:
        entries = attachments(client)
    if options.json:
        output.print_json({"attachments": entries})
    else:
        headings = ["vm", "socket", "report", "field", "last verdict", "connections", "boot", "upstream"]
        output.table([_row(entry) for entry in entries], headings)
    return ExitCode.FINE


def attachments(client: Client) -> list[dict[str, Any]]:
    """Every attachment, page by page."""
    entries: list[dict[str, Any]] = []
    after: bytes | None = None
    while True:
        answer = client.call(messages.List(after))
        if not isinstance(answer, messages.ListAnswer):
            return entries
        entries += json.loads(answer.json)["attachments"]
        after = answer.next
        if after is None:
            return entries


def _row(entry: dict[str, Any]) -> list[str]:
    keys = ("vm", "path", "report", "field", "last_verdict", "connections")
    boot = "to come" if entry.get("boot_left") else None
    if entry.get("updates_at_boot") is False:
        boot = "never updates"
    values = [*(entry.get(key) for key in keys), boot, entry.get("upstream")]
    return ["-" if value is None else str(value) for value in values]
