"""The last verdicts on one VM's store, in memory: what an operator asks for when a field is not what was expected."""

from dataclasses import dataclass
from enum import StrEnum

from varstore_companion.trust.state import Update
from varstore_companion.wire.fields import clip

LENGTH = 16
"""Entries of one VM. With `REASON` they bound what a guest can make the daemon remember to some 6 KiB."""
REASON = 240
"""Bytes of a reason that are kept."""


class Occasion(StrEnum):
    """What a verdict was made on."""

    WRITE = "write"
    """The VM's own write."""
    UPDATE = "update"
    """A boot that was marked for an update."""
    CORRECTION = "correction"
    """A boot without a mark whose store and field disagreed."""


@dataclass(slots=True)
class Entry:
    """The same verdict, `count` times in a row. `verdict`: None where nothing was stored. Times are seconds since the epoch."""

    occasion: Occasion
    verdict: Update | None
    reason: str
    first: float
    last: float
    count: int = 1


class Verdicts:
    """A ring of the last entries. The same again only counts, so that a guest's writes do not push out what is rare."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, at: float, occasion: Occasion, verdict: Update | None, reason: str) -> None:
        """Remember a verdict of now."""
        entries = self._entries
        last = entries[-1] if entries else None
        if last is None or last.reason != reason:
            reason = clip(reason, REASON)
        if last is not None and last.reason == reason and last.occasion is occasion and last.verdict is verdict:
            last.last = at
            last.count += 1
            return
        if len(entries) == LENGTH:
            del entries[0]
        entries.append(Entry(occasion, verdict, reason, at, at))

    def describe(self) -> list[dict[str, object]]:
        """The entries, the oldest first, as plain values for JSON."""
        return [
            {
                "occasion": entry.occasion.value,
                "verdict": None if entry.verdict is None else entry.verdict.value,
                "reason": entry.reason,
                "first": entry.first,
                "last": entry.last,
                "count": entry.count,
            }
            for entry in self._entries
        ]
