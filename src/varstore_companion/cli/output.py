"""What commands print: JSON for machines, tables and colour for a terminal, plain lines for everything else."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from varstore_companion.efi.names import printable
from varstore_companion.errors import CompanionError

_COLOURS = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}


class OutputError(CompanionError):
    """Standard output takes no more: a full disk, or closed."""


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON document."""
    line(json.dumps(document, indent=2))


def line(text: str = "") -> None:
    """Print one line. As all of these, raises `BrokenPipeError` when nobody reads any more, otherwise `OutputError`."""
    with _standard_output():
        sys.stdout.write(text + "\n")


def raw(data: bytes) -> None:
    """Write bytes as they are."""
    with _standard_output():
        sys.stdout.buffer.write(data)


def flush() -> None:
    """Hand over what is still buffered."""
    with _standard_output():
        sys.stdout.flush()


@contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # What is still buffered must not fail again when the interpreter exits.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"standard output: {error.strerror}") from None


def coloured(text: str, colour: str) -> str:
    """The text in a colour, on a terminal, unless NO_COLOR is set (no-color.org)."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if wanted else text


def table(rows: Sequence[Sequence[str]], headings: Sequence[str], indent: str = "") -> None:
    """Print rows in columns: aligned with headings on a terminal, separated by tabs and without them elsewhere.

    Without any headings the rows stand alone. What does not print, a tab among it, shows as U+FFFD.
    """
    cells = [[printable(text) for text in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            line("\t".join(row))
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]

    def aligned(row: Sequence[str]) -> str:
        return "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()

    if any(headings):
        line(indent + coloured(aligned(headings), "dim"))
    for row in cells:
        line(indent + aligned(row))
