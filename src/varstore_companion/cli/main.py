"""`varstore-companion`: finds the command and runs it; nothing of the others is loaded."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from io import TextIOWrapper
from typing import cast

from varstore_companion import __version__
from varstore_companion.cli import output
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.errors import CompanionError

PROGRAM = "varstore-companion"

COMMANDS = {
    "inspect": "report on a store: state, missing certificates, findings, variables",
    "plan": "show what an update would do to a store or to a VM",
    "apply": "write the updated store to another file, or in place",
    "serve": "run the daemon",
    "attach": "have the daemon serve a VM's socket",
    "detach": "have the daemon stop serving a socket",
    "list": "list the attached sockets",
    "status": "show what the daemon does, and what it knows of its VMs or of one",
    "mark": "have the daemon's toolstack mark a VM for an update at its next boot",
    "unmark": "have that mark taken back",
    "backups": "list the stores that were kept before something replaced them",
    "restore": "bring back a store that was kept, for a VM that is shut down",
    "history": "show what was done to a VM's store",
    "stats": "show what the daemon has counted and timed, also for Prometheus",
    "log": "change what the running daemon logs",
    "reload": "have the daemon read settings, manifest and certificates again",
    "updates": "pause or resume updates at boot on this host, or show what is in force",
    "config": "see whether the daemon could use its settings (config check)",
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
    program = f"{PROGRAM} {arguments[0]}" if arguments and arguments[0] in COMMANDS else PROGRAM
    try:
        try:
            return _run(arguments)
        finally:
            output.flush()
    except BrokenPipeError:
        return ExitCode.UNREAD
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except CompanionError as error:
        text = str(error)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    sys.stderr.write(f"{program}: {text}\n")
    return ExitCode.UNUSABLE


def _run(arguments: list[str]) -> int:
    if not arguments:
        sys.stderr.write(usage())
        return ExitCode.UNUSABLE
    name, *rest = arguments
    if name in ("-h", "--help"):
        output.line(usage().rstrip())
        return ExitCode.FINE
    if name == "--version":
        output.line(f"{PROGRAM} {__version__}")
        return ExitCode.FINE
    if name not in COMMANDS:
        sys.stderr.write(f"{PROGRAM}: {name!r} is not a command: expected one of {', '.join(COMMANDS)}\n")
        return ExitCode.UNUSABLE
    command = cast("Callable[[list[str]], ExitCode]", import_module(f"varstore_companion.cli.{name}").main)
    try:
        return command(rest)
    except SystemExit as done:
        # argparse ends so after --help and for wrong usage; its output has to be handed over like any other.
        return ExitCode.FINE if done.code is None else int(done.code)


def run() -> None:
    """Entry point of the script."""
    _prepare_streams()
    sys.exit(main(sys.argv[1:]))


def _prepare_streams() -> None:
    # A stream that was closed before the program began is None here: writing to it has to be an error like any other, and no
    # file that is opened later may get its number.
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if isinstance(sys.stdout, TextIOWrapper):
        # Paths need not be text, and not every terminal's encoding has every character.
        sys.stdout.reconfigure(errors="backslashreplace")
