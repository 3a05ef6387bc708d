"""What the daemon counts since it was started."""

from dataclasses import dataclass, field, fields

from varstore_companion.daemon.histogram import Histogram
from varstore_companion.trust.state import Update

CALLS = ("read", "write", "mark", "alert")
"""The calls of `Toolstack`."""
FAILURES = ("unavailable", "refused", "unclear", "conflict", "bug")
"""How one of them can end, apart from well."""


@dataclass(slots=True)
class Stats:
    """Counters, for `status` and `stats`. Each is told to Prometheus by `metrics`, which has its meaning."""

    boots: int = 0
    updates: int = 0
    updates_failed: int = 0
    writes: dict[Update, int] = field(default_factory=lambda: dict.fromkeys(Update, 0))
    updates_held_back: int = 0
    refused: int = 0
    journaled: int = 0
    delivered: int = 0
    set_aside: int = 0
    secure_boot_failures: int = 0
    connections_refused: int = 0
    alerts_dropped: int = 0
    reloads: int = 0
    reloads_refused: int = 0
    boot_seconds: Histogram = field(default_factory=Histogram)
    write_seconds: Histogram = field(default_factory=Histogram)
    call_seconds: dict[str, Histogram] = field(default_factory=lambda: {call: Histogram() for call in CALLS})
    call_failures: dict[str, dict[str, int]] = field(
        default_factory=lambda: {call: dict.fromkeys(FAILURES, 0) for call in CALLS}
    )

    def count_write(self, update: Update) -> None:
        """Count a store that the toolstack took with this verdict."""
        self.writes[update] += 1

    @property
    def certcheck_saved(self) -> int:
        """Runs of certcheck that the toolstack did not have to make: one for each write with a verdict."""
        return self.writes[Update.YES] + self.writes[Update.NO]

    @property
    def counters(self) -> dict[str, int]:
        """The plain counters by name."""
        return {each.name: value for each in fields(self) if isinstance(value := getattr(self, each.name), int)}

    def describe(self) -> dict[str, object]:
        """The counters as plain values for JSON."""
        writes = {update.value: count for update, count in self.writes.items()}
        return {**self.counters, "writes": writes, "certcheck_saved": self.certcheck_saved}
