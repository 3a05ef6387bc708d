"""Taking turns, and what a figure is.

A machine drifts while it is measured: other work, heat, clocks. So nothing is timed by itself. The measured thing and
its yardstick take turns, A B A B, and each round gives one ratio; the drift is in both sides of it.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each kind of thing is repeated.

    `calls`: rounds of what takes microseconds; `exchanges`: of a request and its answer; `processes`: of starting one;
    `daemons`: daemons that are started, each with `vms` sockets; `writers`: VMs that write at once, for `seconds`; `crowd`:
    VMs of a host with many.
    """

    calls: int
    exchanges: int
    processes: int
    daemons: int
    vms: int
    writers: int
    seconds: float
    crowd: int


FULL = Effort(calls=400, exchanges=300, processes=60, daemons=5, vms=500, writers=200, seconds=10.0, crowd=1_000)
SMOKE = Effort(calls=3, exchanges=3, processes=2, daemons=1, vms=10, writers=4, seconds=1.0, crowd=10)
"""Only to see that each figure can be measured."""


class UnavailableError(Exception):
    """A figure cannot be measured here; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. `values`: one a round, in `unit`; `x` is a ratio to `yardstick`.

    `yardstick_seconds`: the median of the yardstick by itself, which says what machine this was. `target`: the most that
    is wanted, or the least where `at_least`; None for a figure that only informs.
    """

    name: str
    what: str
    values: tuple[float, ...]
    unit: str
    target: float | None = None
    at_least: bool = False
    yardstick: str | None = None
    yardstick_seconds: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, method="inclusive")
        return low, high

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.median >= self.target if self.at_least else self.median <= self.target


def ratio(
    name: str,
    what: str,
    rounds: Sequence[tuple[float, float]],
    yardstick: str,
    target: float | None = None,
    *,
    at_least: bool = False,
) -> Figure:
    """The figure of rounds in each of which both sides were measured."""
    values = tuple(measured / against for measured, against in rounds)
    return Figure(name, what, values, "x", target, at_least, yardstick, statistics.median(against for _, against in rounds))


def interleaved(rounds: int, measured: Callable[[], T], yardstick: Callable[[], T]) -> list[tuple[T, T]]:
    """Measure the two in turns, after one round that nobody counts."""
    measured(), yardstick()
    return [(measured(), yardstick()) for _ in range(rounds)]


def seconds(call: Callable[[], object], times: int = 1) -> Callable[[], float]:
    """A measurement of `call`: wall time of one, out of `times` in a row."""

    def measure() -> float:
        begun = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - begun) / times

    return measure
