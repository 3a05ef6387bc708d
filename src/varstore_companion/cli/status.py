"""`status`: what the daemon does, and what it knows of its VMs or of one."""

import json
from collections.abc import Iterator
from typing import Any

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser, uuid
from varstore_companion.cli.client import Client, control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.list import attachments
from varstore_companion.cli.moment import moment
from varstore_companion.wire import messages

EXAMPLES = """\
  varstore-companion status
  varstore-companion status --vm 11111111-2222-3333-4444-555555555555
  varstore-companion status --json | jq -r '.vms[] | select(.last_update.outcome == "failed") | .vm'

Without --vm it shows the totals, and then of each attached VM what the daemon last saw; with it, one VM after a look at the
toolstack, and the last verdicts on its store."""

_COLUMNS = ("delivery", "report", "field", "last_verdict", "certcheck_saved")
_TIMES = frozenset({"started_at", "rules_loaded_at", "oldest_at", "at"})


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("status", "Show what the daemon does, and what it knows of its VMs.", EXAMPLES)
    parse.add_argument("--vm", type=uuid, metavar="UUID", help="one VM, after a look at the toolstack")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    with control(options.control) as client:
        answer = client.call(messages.Status(options.vm))
        document = json.loads(answer.json) if isinstance(answer, messages.StatusAnswer) else {}
        if options.vm is None:
            document["vms"] = _vms(client)
    if options.json:
        output.print_json(document)
        return ExitCode.FINE
    vms, verdicts = document.pop("vms", []), document.pop("verdicts", [])
    output.table([list(row) for key, value in document.items() for row in _rows(key, value)], ["", ""])
    if vms:
        output.line()
        rows = [[each["vm"], *(_text(each.get(key)) for key in _COLUMNS), _update(each.get("last_update"))] for each in vms]
        output.table(rows, ["vm", *(key.replace("_", " ") for key in _COLUMNS), "last update"])
    if verdicts:
        output.line()
        rows = [
            [_text(each["last"], "at"), f"{each['count']}", each["occasion"], _text(each["verdict"]), each["reason"]]
            for each in verdicts
        ]
        output.table(rows, ["last", "times", "occasion", "update=", "reason"])
    return ExitCode.FINE


def _rows(key: str, value: object) -> Iterator[tuple[str, str]]:
    """A row for each plain value, however deep it lies: an object in a list has one, with all of it."""
    if isinstance(value, dict):
        for inner, entry in value.items():
            if isinstance(entry, dict):
                yield from _rows(f"{key} {inner}", entry)
            elif isinstance(entry, list) and entry and isinstance(entry[0], dict):
                yield from ((f"{key} {inner}".replace("_", " "), ": ".join(map(_text, each.values()))) for each in entry)
            else:
                yield f"{key} {inner}".replace("_", " "), _text(entry, inner)
    else:
        yield key.replace("_", " "), _text(value, key)


def _vms(client: Client) -> list[dict[str, Any]]:
    """What is known of each VM, once, however many sockets it has."""
    keys = ("vm", *_COLUMNS, "last_update")
    return list({each["vm"]: {key: each.get(key) for key in keys} for each in attachments(client)}.values())


def _update(last: dict[str, Any] | None) -> str:
    if last is None:
        return "-"
    return f"{_text(last['at'], 'at')} {last['outcome']}" + (f": {last['detail']}" if last["detail"] else "")


def _text(value: object, key: str = "") -> str:
    if key in _TIMES and isinstance(value, (int, float)):
        return moment(value)
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    return "-" if value is None else str(value)
