"""What is counted while daemons are killed, and the table of it."""

import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

VIOLATIONS = ("lost", "turned_back", "marks_lost", "fields_untrue", "lies", "bugs", "died")

TRAIL: Final = 400
"""Of a VM's last events, those that are kept."""


@dataclass
class Tally:
    """`notes`: a line for each thing that must not have happened. Seconds are of the real clock."""

    kills: int = 0
    kills_by: Counter[str] = field(default_factory=Counter)
    to_toolstack: int = 0
    to_journal: int = 0
    past_daemon: int = 0
    reads_past: int = 0
    guards_ended: int = 0
    failed: int = 0
    cut: int = 0
    reads: int = 0
    reboots: int = 0
    updates: int = 0
    late: int = 0
    deeds: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    turned_back: int = 0
    marks_lost: int = 0
    fields_untrue: int = 0
    lies: int = 0
    bugs: int = 0
    died: int = 0
    moved: int = 0
    quarantined: int = 0
    longest_wait: float = 0.0
    longest_drain: float = 0.0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    _trails: defaultdict[UUID, deque[str]] = field(default_factory=lambda: defaultdict(partial(deque, maxlen=TRAIL)))
    _begun: float = field(default_factory=time.monotonic)

    def happened(self, vm: UUID, what: str) -> None:
        """Keep it, to be shown should anything go wrong with this VM."""
        self._trails[vm].append(f"{time.monotonic() - self._begun:9.3f} {what}")

    def violated(self, what: str, vm: UUID | None, note: str) -> None:
        """Count one of `VIOLATIONS`."""
        assert what in VIOLATIONS
        setattr(self, what, getattr(self, what) + 1)
        self.notes.append(f"{what}: {note}" if vm is None else "\n  ".join([f"{what}: vm={vm} {note}", *self._trails[vm]]))

    @property
    def acknowledged(self) -> int:
        """Writes that were answered as durable."""
        return self.to_toolstack + self.to_journal

    def table(self) -> str:
        """For people."""
        by = ", ".join(f"{count} {name}" for name, count in sorted(self.kills_by.items()))
        deeds = ", ".join(f"{count:,} {name}" for name, count in sorted(self.deeds.items()))
        rows = [
            ("kills", f"{self.kills} ({by})"),
            ("acknowledged writes", f"{self.acknowledged:,}"),
            ("  with the toolstack", f"{self.to_toolstack:,}"),
            ("    past the daemon", f"{self.past_daemon:,}"),
            ("  in the journal", f"{self.to_journal:,}"),
            ("failed writes", f"{self.failed:,}"),
            ("writes cut by a kill", f"{self.cut:,}"),
            ("reads compared", f"{self.reads:,}, of which {self.reads_past:,} past the daemon"),
            ("ends of guards", f"{self.guards_ended:,}"),
            ("reboots", f"{self.reboots:,}, of which {self.updates:,} were updated"),
            ("the toolstack's deeds", deeds or "-"),
            ("calls carried out late", f"{self.late:,}"),
            ("lost", str(self.lost)),
            ("turned back", str(self.turned_back)),
            ("marks lost", str(self.marks_lost)),
            ("fields untrue at the end", str(self.fields_untrue)),
            ("acknowledged as taken, and not", str(self.lies)),
            ("bugs in the log", str(self.bugs)),
            ("ended by itself", str(self.died)),
            ("VMs that moved on elsewhere", str(self.moved)),
            ("quarantined", str(self.quarantined)),
            ("longest wait in the journal", f"{self.longest_wait:.1f} s"),
            ("longest drain at the end", f"{self.longest_drain:.2f} s"),
            ("took", f"{self.seconds:.0f} s"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name:{width}}  {value}" for name, value in rows), *self.notes[:5]])
