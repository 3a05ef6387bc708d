"""`status`: what the daemon does, or what it knows of one VM."""

import json

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser, uuid
from varstore_companion.cli.client import control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.wire import messages

EXAMPLES = """\
  varstore-companion status
  varstore-companion status --vm 11111111-2222-3333-4444-555555555555 --json"""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("status", "Show what the daemon does, or what it knows of one VM.", EXAMPLES)
    parse.add_argument("--vm", type=uuid, metavar="UUID", help="one VM, after a look at the toolstack")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    with control(options.control) as client:
        answer = client.call(messages.Status(options.vm))
    document = json.loads(answer.json) if isinstance(answer, messages.StatusAnswer) else {}
    if options.json:
        output.print_json(document)
    else:
        output.table([[key.replace("_", " "), _text(value)] for key, value in document.items()], ["", ""])
    return ExitCode.FINE


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "-" if value is None else str(value)
