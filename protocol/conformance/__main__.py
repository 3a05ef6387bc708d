"""Run from the folder `protocol`.

    python3 -m conformance server SOCKET [--control SOCKET]
    python3 -m conformance client COMMAND [ARGUMENT ...]

Prints a line a check; exits with 0 when all passed, 1 when one did not.
"""

import argparse
import sys

from conformance.client import client_checks
from conformance.frames import VM, Failure
from conformance.server import Server


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Hold a server or a client of the framed protocol to the vectors.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    server = kinds.add_parser("server", help=f"a server that serves the VM {VM}")
    server.add_argument("socket", help="the VM's socket")
    server.add_argument("--control", help="its control socket")
    client = kinds.add_parser("client", help="a program that makes the calls which it reads from standard input")
    client.add_argument("command", nargs=argparse.REMAINDER, help="the socket and the VM's UUID are added to it")
    options = parser.parse_args()
    if options.kind == "server":
        checks = Server({"vm": options.socket} | ({"control": options.control} if options.control else {})).checks()
    else:
        checks = client_checks(options.command)
    passed = failed = 0
    for name, check in checks:
        try:
            check()
        except (Failure, OSError) as error:
            failed += 1
            print(f"FAILED  {name}: {error}")
        else:
            passed += 1
            print(f"passed  {name}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
