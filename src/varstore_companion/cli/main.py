"""`varstore-companion`: finds the command and runs it; nothing of the others is loaded."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import cast

from varstore_companion import __version__
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.errors import CompanionError

PROGRAM = "varstore-companion"

COMMANDS = {
    "inspect": "report on a store: state, missing certificates, findings, variables",
    "plan": "show what an update would do to a store or to a VM",
    "apply": "write the updated store to another file",
    "serve": "run the daemon",
    "attach": "have the daemon serve a VM's socket",
    "detach": "have the daemon stop serving a socket",
    "list": "list the attached sockets",
    "status": "show what the daemon does, or what it knows of one VM",
    "vm": "look at and change the VMs of the embedded toolstack",
    "demo": "tell the whole story on the embedded toolstack, in a temporary folder",
}


def usage() -> str:
    """The text of `--help`."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"""\
usage: {PROGRAM} COMMAND ...

Keep the Secure Boot certificates in the UEFI variable stores of a Xen host's VMs up to date.

{lines}

{PROGRAM} COMMAND --help tells more, with examples. Every command that prints a result takes --json.
The exit code is 0 when all is fine, 1 when the answer is no (an update is needed, or was refused), and 2 for wrong usage or
input that cannot be read.
"""


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(usage())
        return ExitCode.FINE if arguments else ExitCode.UNUSABLE
    if arguments[0] == "--version":
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
        return ExitCode.FINE
    name, *rest = arguments
    if name not in COMMANDS:
        sys.stderr.write(f"{PROGRAM}: {name!r} is not a command: expected one of {', '.join(COMMANDS)}\n")
        return ExitCode.UNUSABLE
    command = cast("Callable[[list[str]], ExitCode]", import_module(f"varstore_companion.cli.{name}").main)
    try:
        code = command(rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FINE
    except KeyboardInterrupt:
        return 130
    except CompanionError as error:
        sys.stderr.write(f"{PROGRAM} {name}: {error}\n")
        return ExitCode.UNUSABLE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{PROGRAM} {name}: {where}{error.strerror or error}\n")
        return ExitCode.UNUSABLE
    return code


def run() -> None:
    """Entry point of the script."""
    sys.exit(main(sys.argv[1:]))
