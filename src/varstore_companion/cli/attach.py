"""`attach --vm UUID --socket PATH`, `--interpose PATH`: have the daemon serve a VM's socket, or take over its guard's."""

import os
from functools import partial
from pathlib import Path

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, number, parser, socket_path, uuid
from varstore_companion.cli.client import control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.wire import messages
from varstore_companion.wire.limits import MAX_MODE

EXAMPLES = """\
  varstore-companion attach --vm 11111111-2222-3333-4444-555555555555 --socket /var/run/xen/varstored-root-7/vm.sock --gid 65543
  varstore-companion attach --vm 11111111-2222-3333-4444-555555555555 --socket /run/xen/vm.sock --resume
  varstore-companion attach --vm 11111111-2222-3333-4444-555555555555 --socket /run/xen/vm.sock --upstream /run/xen/guard.sock
  varstore-companion attach --vm 11111111-2222-3333-4444-555555555555 --interpose /var/run/xen/varstored-root-7/vm.sock --resume

Whoever can open the socket is taken for the VM. Repeating an attach is harmless; attached sockets come back when the daemon
is restarted. --interpose takes the place of a socket that xapi-guard serves, with its owner, group and mode, and puts the
guard's beside it; detach puts it back. Give --resume for a VM that runs already: otherwise the next read of any tool is taken
for its boot. As a service of systemd the daemon may make sockets below /run/xen; README.md says how elsewhere."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("attach", "Have the daemon make a VM's socket and serve it.", EXAMPLES)
    parse.add_argument("--vm", type=uuid, required=True, metavar="UUID", help="the VM")
    which = parse.add_mutually_exclusive_group(required=True)
    which.add_argument("--socket", type=socket_path, metavar="PATH", help="the socket to make")
    which.add_argument("--interpose", type=socket_path, metavar="PATH", help="xapi-guard's socket of the VM, to take over")
    parse.add_argument("--gid", type=number, metavar="N", help="its group")
    parse.add_argument("--mode", type=partial(number, base=8, most=MAX_MODE), metavar="OCTAL", help="its permissions (0660)")
    parse.add_argument("--upstream", type=socket_path, metavar="PATH", help="xapi-guard's socket of the VM (--toolstack guard)")
    parse.add_argument("--resume", action="store_true", help="the VM resumes, migrates or runs: no read is a cold boot")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    is_interposed = options.interpose is not None
    if is_interposed and (others := [name for name in ("gid", "mode", "upstream") if getattr(options, name) is not None]):
        parse.error(f"--{others[0]} is not for --interpose, which takes the guard's own socket as it is")
    path: Path = options.interpose if is_interposed else options.socket
    with control(options.control) as client:
        upstream = None if options.upstream is None else os.fsencode(options.upstream)
        request = messages.Attach(
            options.vm,
            os.fsencode(path),
            options.gid,
            options.mode,
            upstream,
            options.resume or None,
            is_interposed or None,
        )
        answer = client.call(request)
    already = isinstance(answer, messages.AttachAnswer) and answer.already
    if options.json:
        output.print_json({"vm": str(options.vm), "socket": str(path), "already": already})
    else:
        output.line(f"{path}: {'was attached already' if already else 'attached'}")
    return ExitCode.FINE
