"""What the table says of a figure, and what a ratio is."""

import pytest

from benchmarks.harness import Figure, interleaved, ratio
from benchmarks.table import as_json, as_table


@pytest.mark.parametrize(
    ("values", "target", "at_least", "met"),
    [
        ((1.0, 2.0, 9.0), 2.0, False, True),
        ((1.0, 2.1, 2.2), 2.0, False, False),
        ((19.0, 20.0, 40.0), 20.0, True, True),
        ((19.0, 19.9, 40.0), 20.0, True, False),
        ((1.0,), None, False, None),
    ],
)
def test_the_median_decides(values: tuple[float, ...], target: float | None, *, at_least: bool, met: bool | None) -> None:
    figure = Figure("name", "what", values, "x", target, at_least)
    assert figure.is_met is met
    word = {True: "met", False: "missed", None: ""}[met]
    line = as_table([figure], {}).splitlines()[1]
    assert ("met" in line.split(), "missed" in line.split()) == (word == "met", word == "missed")


def test_what_is_missed_and_what_could_not_be_measured_is_said_plainly() -> None:
    missed = Figure("slow", "something slow", (3.0, 3.0), "x", 2.0)
    text = as_table([missed], {"other": "there is no such program"})
    assert text.endswith("\nmissed: slow\nnot measured: other: there is no such program")
    assert as_json([missed], {"other": "why"})["skipped"] == {"other": "why"}


def test_each_round_gives_one_ratio() -> None:
    figure = ratio("name", "what", [(2.0, 1.0), (30.0, 10.0), (4.0, 1.0)], "yardstick")
    assert figure.values == (2.0, 3.0, 4.0)
    assert (figure.median, figure.quartiles, figure.yardstick_seconds) == (3.0, (2.5, 3.5), 1.0)


def test_the_two_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []

    def turn(name: str) -> int:
        turns.append(name)
        return len(turns)

    assert interleaved(2, lambda: turn("a"), lambda: turn("b")) == [(3, 4), (5, 6)]
    assert turns == ["a", "b"] * 3
