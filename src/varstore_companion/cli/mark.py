"""`mark --vm UUID`, `unmark --vm UUID`: whether a VM is updated at its next cold boot."""

import sys

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser, uuid
from varstore_companion.cli.client import RequestFailedError, control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.wire import messages
from varstore_companion.wire.errors import ErrorCode

_EXAMPLES = """\
  varstore-companion {0} --vm 11111111-2222-3333-4444-555555555555
  varstore-companion {0} --vm 11111111-2222-3333-4444-555555555555 --json

The daemon asks its toolstack, whether or not the VM is attached. Repeating it is harmless. The exit code is 1 when the
toolstack refuses: there is nothing to update, or it cannot be asked for that (a guard: ask xapi)."""

_TEXTS = {
    "mark": "Have a VM updated at its next cold boot.",
    "unmark": "Take back the mark for an update at the next cold boot.",
}
_REFUSALS = frozenset({ErrorCode.NOT_ALLOWED, ErrorCode.TOOLSTACK_REFUSED})


def examples(command: str) -> str:
    """The end of the help of either command."""
    return _EXAMPLES.format(command)


EXAMPLES = examples("mark")


def main(arguments: list[str]) -> ExitCode:
    """Run `mark`."""
    return run("mark", arguments)


def run(command: str, arguments: list[str]) -> ExitCode:
    """Run either command."""
    parse = parser(command, _TEXTS[command], examples(command))
    parse.add_argument("--vm", type=uuid, required=True, metavar="UUID", help="the VM")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    try:
        with control(options.control) as client:
            answer = client.call(messages.Mark(options.vm, mark=command == "mark"))
    except RequestFailedError as error:
        if error.code not in _REFUSALS:
            raise
        sys.stderr.write(f"varstore-companion {command}: {error}\n")
        return ExitCode.NO
    state = answer.state if isinstance(answer, messages.MarkAnswer) else None
    if options.json:
        output.print_json({"vm": str(options.vm), "field": state})
    else:
        output.line(f"{options.vm}: {state}")
    return ExitCode.FINE
