"""The options that several commands share."""

from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from uuid import UUID

from varstore_companion.cli import output
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.paths import CONTROL, STATE_DIR

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

STORE_FILE = "a store: the NVRAM's EFI-variables text (base64) or the raw bytes; - for standard input"


class Parser(ArgumentParser):
    """A parser that says what is wrong in one line, as every other error is said, and prints its help as all output."""

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> None:
        """Print the help; argparse itself would not notice that it could not."""
        if file is None:
            output.line(self.format_help().rstrip())
        else:
            file.write(self.format_help())

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(ExitCode.UNUSABLE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser(command: str, description: str, examples: str) -> Parser:
    """A command's parser. Wrong usage ends the program with 2, and so does `Parser.error`."""
    return Parser(
        prog=f"varstore-companion {command}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_json(to: ArgumentParser) -> None:
    """`--json`."""
    to.add_argument("--json", action="store_true", help="print the result as JSON")


def add_control(to: ArgumentParser) -> None:
    """`--control`."""
    to.add_argument("--control", type=Path, default=CONTROL, metavar="SOCKET", help="the daemon's control socket (%(default)s)")


def add_state_dir(to: ArgumentParser) -> None:
    """`--state-dir`."""
    to.add_argument("--state-dir", type=Path, default=STATE_DIR, metavar="DIR", help="the daemon's state folder (%(default)s)")


def add_rules(to: ArgumentParser) -> None:
    """`--manifest`."""
    to.add_argument("--manifest", type=Path, metavar="FILE", help="rules to use instead of the shipped ones")


def socket_path(text: str) -> Path:
    """An argument that is a socket to make or to remove, in the one form in which the daemon remembers it."""
    path = Path(text)
    return path.parent.resolve() / path.name


def uuid(text: str) -> UUID:
    """An argument that is a VM's uuid, in the form in which everybody prints it: UUID itself takes nearly any digits."""
    try:
        value = UUID(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a uuid, found {text[:80]!r}") from None
    if str(value) != text.lower():
        raise ArgumentTypeError(f"expected a uuid as {value}, found {text[:80]!r}")
    return value


def number(text: str, *, base: int = 10, most: int = 0xFFFF_FFFE) -> int:
    """An argument that is a whole number from 0 to `most`."""
    digits = "01234567" if base == 8 else "0123456789"
    if not text or text.strip(digits) or len(text) > 16 or int(text, base) > most:
        limit = f"{most:o} (octal)" if base == 8 else f"{most:,}"
        raise ArgumentTypeError(f"expected a whole number from 0 to {limit}, found {text[:40]!r}")
    return int(text, base)


def headroom(to: ArgumentParser) -> None:
    """`--headroom`."""
    to.add_argument("--headroom", type=number, metavar="BYTES", help="what must stay free for the next append to dbx (21292)")
