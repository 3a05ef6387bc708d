"""What the daemon counts since it was started."""

from dataclasses import asdict, dataclass, field

from varstore_companion.trust.state import Update


@dataclass(slots=True)
class Stats:
    """Counters, for `status`."""

    boots: int = 0
    updates: int = 0
    updates_failed: int = 0
    writes: dict[Update, int] = field(default_factory=lambda: dict.fromkeys(Update, 0))
    refused: int = 0
    journaled: int = 0
    delivered: int = 0
    set_aside: int = 0
    secure_boot_failures: int = 0
    connections_refused: int = 0
    alerts_dropped: int = 0

    def count_write(self, update: Update) -> None:
        """Count a store that the toolstack took with this verdict."""
        self.writes[update] += 1

    @property
    def certcheck_saved(self) -> int:
        """Runs of certcheck that the toolstack did not have to make: one for each write with a verdict."""
        return self.writes[Update.YES] + self.writes[Update.NO]

    def describe(self) -> dict[str, object]:
        """The counters as plain values for JSON."""
        return {**asdict(self), "certcheck_saved": self.certcheck_saved}
