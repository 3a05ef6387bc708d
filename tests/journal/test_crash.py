"""The journal after a crash at every step of random runs: all acknowledged writes, nothing older, nothing invented.

Invariants 6 and 9. `VARSTORE_COMPANION_CRASH_RUNS` is how many runs of each kind there are, 2 when it is not set.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
import trio

from support.journal_oracle import Oracle
from support.simulated_disk import Crash, SimulatedDisk, Tree, crashed
from varstore_companion.errors import JournalError
from varstore_companion.journal.entry import Entry, Recovered
from varstore_companion.journal.journal import Journal, _head

RUNS = int(os.environ.get("VARSTORE_COMPANION_CRASH_RUNS", "2"))
PARENT = Path("/state")
FOLDER = PARENT / "journal"
SEGMENT = 20_000
VMS = [UUID(int=number) for number in range(1, 6)]
CRASHES = (Crash.KILLED, Crash.LOST, *[Crash.TORN] * 3)


@dataclass
class Run:
    """One life of a journal on a simulated disk; what the disk was, and what had been said, before each step."""

    disk: SimulatedDisk
    oracle: Oracle
    chance: Random
    fault: Callable[[str], OSError | None] = lambda _step: None
    moments: list[tuple[Tree, int]] = field(default_factory=list)
    steps: set[str] = field(default_factory=set)
    faults: int = 0

    def live(self, actions: int) -> None:
        """Open the journal and use it, by several VMs at once."""
        self.disk.before = self._before
        journal = Journal(FOLDER, disk=self.disk, segment=SEGMENT)
        found = self._opened(journal)
        self.oracle.confirm(len(self.oracle.log), found)
        if not self.faults:
            # Else the disk may have refused to sync what was found.
            self.oracle.recovered(found)
        trio.run(self._use, journal, actions)
        self.moments.append((self.disk.tree, len(self.oracle.log)))

    def _opened(self, journal: Journal) -> Recovered:
        for _ in range(100):
            with suppress(JournalError):
                return journal.open()
        raise AssertionError("the journal cannot be opened")

    def _before(self, step: str, path: Path) -> None:
        self.moments.append((self.disk.tree, len(self.oracle.log)))
        self.steps.add(f"{step} {path.suffix or path.name}")
        error = self.fault(step)
        if error is not None:
            self.faults += 1
            raise error

    async def _use(self, journal: Journal, actions: int) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            for _ in range(actions):
                async with trio.open_nursery() as together:
                    for _ in range(self.chance.choice((1, 1, 2, 5))):
                        self._act(journal, together)
            nursery.cancel_scope.cancel()

    def _act(self, journal: Journal, nursery: trio.Nursery) -> None:
        vm = self.chance.choice(VMS)
        entry = journal.pending(vm)
        if entry is not None and self.chance.random() < 0.45:
            nursery.start_soon(self._done, journal, entry)
        else:
            nursery.start_soon(self._append, journal, vm, self.chance.random() < 0.1)

    async def _append(self, journal: Journal, vm: UUID, is_cancelled: bool) -> None:
        # Only here: trio starts tasks in any order.
        append = self.oracle.begin(vm, self.chance, self.chance.choice((40, 3_000, 9_000)))
        with trio.CancelScope() as scope:
            if is_cancelled:
                scope.cancel()
            try:
                entry = await journal.append(append.vm, append.store, append.replaces, append.at)
            except JournalError:
                return
            self.oracle.acknowledged(append, entry)

    async def _done(self, journal: Journal, entry: Entry) -> None:
        self.oracle.done_begun(entry)
        try:
            await journal.done(entry)
        except JournalError:
            return
        self.oracle.done_acknowledged(entry)


def recover(tree: Tree, moment: int, oracle: Oracle) -> None:
    """Open what a crash has left, compare it with what was said, and read each store."""
    disk = SimulatedDisk(tree)
    journal = Journal(FOLDER, disk=disk, segment=SEGMENT)
    found = journal.open()
    oracle.confirm(moment, found)
    for entry, place in journal._index.values():
        assert journal._segments.read(place, _head(entry)) == oracle.find(entry).store
    # What was found is on the disk: the next crash does not take it back.
    later = Journal(FOLDER, disk=SimulatedDisk(crashed(disk.tree, Crash.LOST, Random(0))), segment=SEGMENT).open()
    assert later.entries == found.entries


def prove(run: Run) -> int:
    """Crash at every step of a run, in every way. Returns how many states were opened."""
    states = 0
    for tree, moment in run.moments:
        for crash in CRASHES:
            recover(crashed(tree, crash, run.chance), moment, run.oracle)
            states += 1
    return states


def next_life(run: Run) -> Run:
    """The machine crashes at any step; a new life begins with what is left."""
    tree, moment = run.chance.choice(run.moments)
    left = crashed(tree, run.chance.choice(CRASHES), run.chance)
    oracle = Oracle(dict(run.oracle.appends), run.oracle.log[:moment])
    return Run(SimulatedDisk(left), oracle, run.chance, run.fault)


@pytest.mark.parametrize("seed", range(RUNS))
def test_nothing_acknowledged_is_lost_or_turned_back_by_a_crash_at_any_step(seed: int) -> None:
    run = Run(SimulatedDisk.new(PARENT), Oracle(), Random(seed))
    run.live(50)
    assert prove(run) > 400
    # The run has met everything that the journal does.
    assert {"create .segment", "unlink .segment", "sync .segment", "sync_folder journal", "make_folder journal"} <= run.steps


@pytest.mark.parametrize("seed", range(RUNS))
def test_nor_by_crashes_in_one_life_after_another(seed: int) -> None:
    run = Run(SimulatedDisk.new(PARENT), Oracle(), Random(1000 + seed))
    run.live(25)
    for _ in range(6):
        run = next_life(run)
        run.live(8)
        prove(run)


@pytest.mark.parametrize("seed", range(RUNS))
def test_nor_on_a_disk_that_fails_now_and_then(seed: int) -> None:
    chance = Random(2000 + seed)

    def fault(_step: str) -> OSError | None:
        number = chance.choice((errno.EIO, errno.ENOSPC, errno.EROFS))
        return OSError(number, os.strerror(number)) if chance.random() < 0.08 else None

    run = Run(SimulatedDisk.new(PARENT), Oracle(), Random(seed), fault)
    run.live(40)
    prove(run)
    for _ in range(3):
        run = next_life(run)
        run.live(10)
        prove(run)
