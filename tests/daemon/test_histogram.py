"""Durations in fixed buckets."""

import pytest
import trio
from trio.testing import MockClock

from varstore_companion.daemon.histogram import BUCKETS, Histogram


def buckets(histogram: Histogram) -> dict[float, int]:
    found = histogram.describe()["buckets"]
    assert isinstance(found, list)
    return {float(bound): int(count) for bound, count in found}


def test_nothing_was_counted() -> None:
    histogram = Histogram()
    assert histogram.describe() == {"buckets": [[bound, 0] for bound in BUCKETS], "count": 0, "sum": 0.0}


def test_bounds_are_inclusive_and_counts_add_up() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 1.0, 30.0, 30.1, 1e9):
        histogram.add(seconds)
    so_far = buckets(histogram)
    assert (so_far[0.001], so_far[0.0025], so_far[0.5], so_far[1.0], so_far[30.0]) == (2, 3, 3, 4, 5)
    assert histogram.describe()["count"] == 7
    assert list(so_far.values()) == sorted(so_far.values())
    assert histogram.describe()["sum"] == pytest.approx(1e9 + 61.1021)


def test_the_bounds_have_what_is_promised() -> None:
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert {5.0, 20.0, 30.0} <= set(BUCKETS)


async def test_what_fails_or_is_cancelled_is_timed_too(autojump_clock: MockClock) -> None:
    histogram = Histogram()

    async def fails() -> None:
        with histogram.timed():
            await trio.sleep(2)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        await fails()
    with trio.move_on_after(3), histogram.timed():
        await trio.sleep_forever()
    assert histogram.describe()["count"] == 2
    assert histogram.describe()["sum"] == pytest.approx(5.0)
    assert autojump_clock.current_time() == pytest.approx(5.0)
