"""What commands print: JSON for machines, tables and colour for a terminal, plain lines for everything else."""

import json
import sys
from collections.abc import Mapping, Sequence

_COLOURS = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def line(text: str = "") -> None:
    """Print one line."""
    sys.stdout.write(text + "\n")


def coloured(text: str, colour: str) -> str:
    """The text in a colour, on a terminal."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if sys.stdout.isatty() else text


def table(rows: Sequence[Sequence[str]], headings: Sequence[str], indent: str = "") -> None:
    """Print rows in columns: aligned with headings on a terminal, separated by tabs and without them elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            line("\t".join(row))
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    line(indent + coloured("  ".join(f"{text:<{width}}" for text, width in zip(headings, widths, strict=True)).rstrip(), "dim"))
    for row in rows:
        line(indent + "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
