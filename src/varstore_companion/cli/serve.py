"""`serve`: the daemon."""

import sys
from pathlib import Path

import trio

from varstore_companion import paths
from varstore_companion.cli.arguments import headroom, parser
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.daemon import config, log
from varstore_companion.daemon import main as daemon
from varstore_companion.daemon.config import Source

EXAMPLES = """\
  varstore-companion serve
  varstore-companion serve --config /etc/varstore-companion/config.toml
  varstore-companion serve --control /tmp/vc/control.sock --state-dir /tmp/vc/state
  varstore-companion serve --toolstack guard
  varstore-companion serve --xapi-socket /run/varstore-companion/xapi

It runs until SIGTERM or SIGINT. SIGHUP reads settings, manifest and certificates again, as the command reload does, and puts
manifest, certificates, headroom and limits in force. Log lines go to standard error. On the socket for xapi's clients the
embedded toolstack answers as xapi does; the package XenAPI spells / in a socket's path as _, so it reaches none that has a _ in
its own."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("serve", "Run the daemon between varstored and the toolstack.", EXAMPLES)
    parse.add_argument("--config", type=Path, metavar="FILE", help=f"settings as TOML; options go before it ({paths.CONFIG})")
    parse.add_argument("--control", type=Path, metavar="SOCKET", help=f"the control socket ({paths.CONTROL})")
    parse.add_argument("--state-dir", type=Path, metavar="DIR", help=f"what is kept over a restart ({paths.STATE_DIR})")
    parse.add_argument("--toolstack", choices=config.TOOLSTACKS, help="what keeps the VMs' NVRAM (embedded)")
    parse.add_argument("--xapi", type=Path, metavar="SOCKET", help=f"xapi's own socket, for --toolstack xapi ({paths.XAPI})")
    parse.add_argument("--xapi-socket", type=Path, metavar="SOCKET", help="answer xapi's clients there; no _ in its path")
    parse.add_argument("--manifest", type=Path, metavar="FILE", help="rules to use instead of the shipped ones")
    parse.add_argument("--certificates", type=Path, metavar="DIR", help="a folder with more certificates (DER or PEM)")
    parse.add_argument("--auth-dir", type=Path, metavar="DIR", help="varstored's .auth files")
    headroom(parse)
    options = parse.parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if name != "config" and value is not None}
    source = Source.of(options.config, given)
    settings = source.read()
    log.begin(sys.stderr)
    trio.run(daemon.serve, settings, source)
    return ExitCode.FINE
