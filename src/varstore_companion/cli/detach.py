"""`detach --socket PATH`: have the daemon stop serving a socket."""

import os
from pathlib import Path

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser, socket_path
from varstore_companion.cli.client import control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.wire import messages

EXAMPLES = "  varstore-companion detach --socket /var/run/xen/varstored-root-7/vm.sock"


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    what = "Have the daemon stop serving a socket, and remove it, or put its guard's back. Repeating it is harmless."
    parse = parser("detach", what, EXAMPLES)
    parse.add_argument("--socket", type=socket_path, required=True, metavar="PATH", help="the socket")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    path: Path = options.socket
    with control(options.control) as client:
        answer = client.call(messages.Detach(os.fsencode(path)))
    already = isinstance(answer, messages.DetachAnswer) and answer.already
    if options.json:
        output.print_json({"socket": str(path), "already": already})
    else:
        output.line(f"{path}: {'was not attached' if already else 'detached'}")
    return ExitCode.FINE
