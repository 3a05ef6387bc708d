"""How long things took, counted in fixed buckets: constant memory, whatever a guest does, and sums that Prometheus can join.

Of our own: prometheus_client costs 59 ms at the start and a registry with locks, for what is one list of numbers here.
"""

from bisect import bisect_left
from types import TracebackType

import trio

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0)
"""Seconds. From a write to a toolstack in memory to what the protocol promises at most: 20 for a boot, 30 for a write."""


class Histogram:
    """Counts of durations. `counts` has one more entry than `BUCKETS`, for what is over the last."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def timed(self) -> "Timed":
        """Counts what is done inside, however it ends."""
        return Timed(self)

    def describe(self) -> dict[str, object]:
        """As plain values for JSON. `buckets`: for each upper bound how many took at most so long."""
        buckets = []
        count = 0
        for bound, more in zip(BUCKETS, self.counts, strict=False):
            count += more
            buckets.append([bound, count])
        return {"buckets": buckets, "count": sum(self.counts), "sum": round(self.total, 6)}


class Timed:
    """One duration, on trio's clock."""

    __slots__ = ("_begun", "_histogram")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        self._begun = trio.current_time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._histogram.add(trio.current_time() - self._begun)
