"""Figures for people and for programs."""

from collections.abc import Mapping, Sequence

from benchmarks.harness import Figure

_HEADINGS = ("figure", "median", "quartiles", "target", "", "against", "which took")


def as_table(measured: Sequence[Figure], skipped: Mapping[str, str]) -> str:
    """One line a figure, then those that could not be measured, with the reason."""
    rows = [_HEADINGS, *map(_row, measured)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    missed = [figure.name for figure in measured if figure.is_met is False]
    lines += ["", f"missed: {', '.join(missed)}" if missed else "every target that was measured is met"]
    lines += [f"not measured: {name}: {reason}" for name, reason in skipped.items()]
    return "\n".join(lines)


def as_json(measured: Sequence[Figure], skipped: Mapping[str, str]) -> dict[str, object]:
    """The same as plain values."""
    return {
        "figures": [
            {
                "name": figure.name,
                "what": figure.what,
                "median": figure.median,
                "quartiles": figure.quartiles,
                "rounds": len(figure.values),
                "unit": figure.unit,
                "target": figure.target,
                "at_least": figure.at_least,
                "met": figure.is_met,
                "yardstick": figure.yardstick,
                "yardstick_seconds": figure.yardstick_seconds,
            }
            for figure in measured
        ],
        "skipped": dict(skipped),
    }


def _row(figure: Figure) -> tuple[str, ...]:
    low, high = figure.quartiles
    target = "-" if figure.target is None else f"{'at least' if figure.at_least else 'at most'} {figure.target:g} {figure.unit}"
    met = {True: "met", False: "missed", None: ""}[figure.is_met]
    took = "" if figure.yardstick_seconds is None else f"{figure.yardstick_seconds * 1e3:.3f} ms"
    return (
        figure.what,
        f"{figure.median:.2f} {figure.unit}",
        f"{low:.2f} to {high:.2f}",
        target,
        met,
        figure.yardstick or "",
        took,
    )
