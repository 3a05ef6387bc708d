"""The options that several commands share."""

from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path
from uuid import UUID

from varstore_companion.paths import CONTROL, STATE_DIR

STORE_FILE = "a store: the NVRAM's EFI-variables text (base64) or the raw bytes; - for standard input"


def parser(command: str, description: str, examples: str) -> ArgumentParser:
    """A command's parser; wrong usage exits with 2, as argparse does."""
    return ArgumentParser(
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


def uuid(text: str) -> UUID:
    """An argument that is a VM's uuid."""
    try:
        return UUID(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a uuid, found {text!r}") from None


def number(text: str, *, base: int = 10, most: int = 0xFFFF_FFFE) -> int:
    """An argument that is a whole number from 0 to `most`."""
    try:
        value = int(text, base)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise ArgumentTypeError(f"expected a whole number from 0 to {most:o}" if base == 8 else f"expected 0 to {most:,}")
    return value


def headroom(to: ArgumentParser) -> None:
    """`--headroom`."""
    to.add_argument("--headroom", type=number, metavar="BYTES", help="what must stay free for the next append to dbx (21292)")
