"""The journal: each VM's newest store, durable, until the toolstack has taken it."""

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

import trio

from varstore_companion import threads
from varstore_companion.errors import JournalError, JournalFullError
from varstore_companion.journal import record
from varstore_companion.journal.disk import Disk
from varstore_companion.journal.entry import Damage, Entry, Recovered
from varstore_companion.journal.record import PAGE, Head, Kind, aligned
from varstore_companion.journal.segments import Place, Segments

log = logging.getLogger(__name__)

T = TypeVar("T")

TOTAL: Final = 256 * 2**20
"""Bytes of all live records: 2,000 VMs with the largest store, or 5,000 with an ordinary one."""
SEGMENT: Final = 16 * 2**20
"""Bytes after which a new segment is begun: what a start reads at a time."""
BATCH: Final = 4 * 2**20
"""Bytes after which a batch is closed, of new records or of copies: the memory that writing it takes, twice."""
LOADS_AT_ONCE: Final = 4
"""Threads that read stores."""


@dataclass(slots=True, eq=False)
class _Request:
    """A record that somebody waits for. `entry`: what an `append` leads to; `error`: why it came to nothing."""

    head: Head
    store: bytes
    is_over: trio.Event = field(default_factory=trio.Event)
    entry: Entry | None = None
    error: JournalError | None = None


class Journal:
    """The journal in `folder`, which it has for itself: two on one folder would ruin each other's.

    `open` first; then `run`, once, which the caller's nursery keeps going; the others at any time while it runs, from the
    event loop's thread. The index is changed when a batch has become durable, not when its waiters hear of it: after a
    cancelled `append` or `done`, `pending` tells what came of it.
    """

    def __init__(self, folder: Path, *, disk: Disk | None = None, total: int = TOTAL, segment: int = SEGMENT) -> None:
        self._folder = folder
        self._disk = disk or Disk()
        self._total = total
        self._segment = segment
        self._segments = Segments(folder, self._disk, segment)
        # By age: who is superseded goes to the end.
        self._index: dict[UUID, tuple[Entry, Place]] = {}
        self._held: Counter[int] = Counter()  # live records of each segment
        self._live = 0
        self._on_disk = 0
        self._sequence = 0
        self._damages: list[Damage] = []
        self._waiting: deque[_Request] = deque()
        # Of the VMs that have an append waiting: the room that the newest of them will take; and what all of them will add.
        self._coming: dict[UUID, int] = {}
        self._more = 0
        self._wake = trio.Event()
        self._can_tidy = False
        self._has_complained = False
        self._not_usable: str | None = "it has not been opened"
        # On a disk that hangs neither must use up the threads that everything else needs.
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(LOADS_AT_ONCE)

    def open(self) -> Recovered:
        """Make the folder, read every segment and tell what waits; blocking, for a thread.

        Damaged ranges are copied to the folder `damaged` below, as long as that holds less than 64 MiB. What was found is
        durable when this returns, but for that of which a damage says otherwise. Raises `JournalError`; it can be called
        again then.
        """
        newest: dict[UUID, tuple[Head, Place]] = {}
        ended: dict[UUID, int] = {}
        self._index.clear()
        self._held.clear()
        self._damages.clear()
        self._live = 0
        for segment, scan in self._segments.open():
            self._damages += scan.damages
            for offset, head in scan.records:
                self._sequence = max(self._sequence, head.sequence)
                if head.kind is Kind.DONE:
                    ended[head.vm] = max(head.sequence, ended.get(head.vm, 0))
                elif head.vm not in newest or newest[head.vm][0].sequence <= head.sequence:
                    newest[head.vm] = head, Place(segment.number, offset)
        # Also above those of records that could not be read today and may be readable the next time.
        self._sequence = max(self._sequence, self._segments.next_number << 32)
        waiting = [each for each in newest.values() if each[0].sequence > ended.get(each[0].vm, 0)]
        for head, place in sorted(waiting, key=lambda each: each[0].sequence):
            self._put(_entry(head, recovered=True), place)
        self._on_disk = self._segments.bytes_on_disk
        self._not_usable = None
        self._can_tidy = True
        return Recovered(tuple(self.entries()), self.damages)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what `append` and `done` ask for, until cancelled; those that wait then get `JournalError`.

        A batch that is being written is finished first.
        """
        task_status.started()
        try:
            while True:
                if self._waiting and not self._wastes(2):
                    await self._commit()
                if self._wastes(1) if self._waiting else self._is_untidy:
                    await self._tidy()
                elif not self._waiting:
                    self._wake = trio.Event()
                    await self._wake.wait()
        finally:
            self._not_usable = "it is closed"
            self._segments.finish()
            for request in self._waiting:
                request.error = self._error("not written", self._not_usable)
                request.is_over.set()

    async def append(self, vm: UUID, store: bytes, replaces: tuple[bytes, ...], at: float) -> Entry:
        """Put a VM's store into the journal, durably; it supersedes the VM's entry at that moment.

        `replaces`: at most 64 SHA-256 digests; `at`: seconds since the epoch. When cancelled it may still come to be done.

        Raises `JournalFullError`, with nothing written; `JournalError` when the disk refuses: the VM's entry before stays
        the pending one; `OverLimitError` for a store of more than 128 KiB or too many digests.
        """
        self._confirm_usable()
        head = record.store_head(self._sequence + 1, vm, at, store, replaces)
        live = self._live + self._more
        more = _room(head) - self._coming.get(vm, self._room_of(vm))
        if more > 0 and live + more > self._total:
            raise JournalFullError(more=more, live=live, total=self._total)
        self._sequence += 1
        self._expect(head)
        request = await self._written(head, store)
        if request.entry is None:
            raise AssertionError("an append without an entry")
        return request.entry

    async def done(self, entry: Entry) -> None:
        """The toolstack has taken the entry, or must never get it: end it, durably. A newer one of the VM's stays.

        An entry that is not pending any more is left as it is. Raises `JournalError`: then it stays pending.
        """
        if self._find(entry) is not None:
            await self._written(record.done_head(entry.sequence, entry.vm, entry.at), b"")

    async def load(self, entry: Entry) -> bytes:
        """The store of a pending entry, read and checked in a thread.

        Raises `JournalError`, also for an entry that is not pending any more.
        """
        head = _head(entry)
        while (place := self._find(entry)) is not None:
            try:
                read = partial(self._segments.read, place, head)
                return await threads.run_sync(read, abandon_on_cancel=True, limiter=self._reading)
            except OSError as error:  # the system gives no thread
                raise self._error("a store cannot be read", str(error)) from error
            except JournalError:
                if self._find(entry) == place:
                    raise
        raise self._error("a store cannot be read", f"{head.about} of vm={entry.vm} is not pending any more")

    def pending(self, vm: UUID) -> Entry | None:
        """The VM's entry, None when the toolstack has taken everything."""
        return self._index[vm][0] if vm in self._index else None

    def entries(self) -> Iterable[Entry]:
        """All entries as they are now, oldest first."""
        return tuple(entry for entry, _ in self._index.values())

    @property
    def pending_count(self) -> int:
        """VMs with an entry."""
        return len(self._index)

    @property
    def bytes_live(self) -> int:
        """Bytes of the entries' records, each in whole pages of 4 KiB: what `total` bounds."""
        return self._live

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all segments. At more than twice `bytes_live` and two segments nothing is written before some are gone."""
        return self._on_disk

    @property
    def fsyncs(self) -> int:
        """Times that a file or a folder was synced."""
        return self._disk.syncs

    @property
    def damages(self) -> tuple[Damage, ...]:
        """What has been found damaged in this life."""
        return tuple(self._damages)

    # The committer

    async def _written(self, head: Head, store: bytes) -> _Request:
        self._confirm_usable()
        request = _Request(head, store)
        self._waiting.append(request)
        self._wake.set()
        await request.is_over.wait()
        if request.error is not None:
            raise request.error
        return request

    async def _commit(self) -> None:
        """Write the oldest of what waits as one batch, and tell those that wait for it."""
        batch, size = [self._waiting[0]], self._waiting[0].head.room
        for request in islice(self._waiting, 1, None):
            size += request.head.room
            if size > BATCH:
                break
            batch.append(request)
        results: Sequence[Place | JournalError]
        try:
            results = await self._in_thread(partial(self._segments.write, [(each.head, each.store) for each in batch]))
        except JournalError as error:
            results = [error] * len(batch)
        for request, result in zip(batch, results, strict=True):
            # Until now it waited: were there a bug in what is above, it would be told.
            self._waiting.popleft()
            if isinstance(result, JournalError):
                request.error = result
            else:
                self._can_tidy = True
                if request.head.kind is Kind.DONE:
                    self._end(request.head.vm, request.head.sequence)
                else:
                    request.entry = _entry(request.head, recovered=False)
                    self._put(request.entry, result)
            request.is_over.set()
        self._coming.clear()
        self._more = 0
        for request in self._waiting:
            self._expect(request.head)

    def _expect(self, head: Head) -> None:
        """Count what a record that waits will take up when it has been written."""
        if head.kind is Kind.STORE:
            self._more += _room(head) - self._coming.get(head.vm, self._room_of(head.vm))
            self._coming[head.vm] = _room(head)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Have the one thread that writes make a call, and wait for it also when cancelled. Raises `JournalError`."""
        try:
            return await threads.run_sync(call, limiter=self._writing)
        except OSError as error:  # the system gives no thread
            raise self._error("nothing can be written", str(error)) from error
        finally:
            self._on_disk = self._segments.bytes_on_disk

    # Removing what nothing needs

    def _wastes(self, segments: int) -> bool:
        """Whether more is on the disk than twice what is needed and so many segments."""
        return self._can_tidy and self._on_disk > 2 * self._live + segments * self._segment

    @property
    def _is_untidy(self) -> bool:
        oldest = self._segments.oldest
        if not self._can_tidy or oldest is None:
            return False
        return self._wastes(1) or self._segments.has_damage or not self._held[oldest.number]

    async def _tidy(self) -> None:
        """Remove the oldest segment, or bring some of what it holds into the newest one."""
        oldest = self._segments.oldest
        if oldest is None:
            return
        try:
            if self._held[oldest.number]:
                await self._copy(oldest.number)
            else:
                await self._in_thread(self._segments.remove_oldest)
                del self._held[oldest.number]
            self._has_complained = False
        except JournalError as error:
            # Tried again when the disk has taken something.
            self._can_tidy = False
            if not self._has_complained:
                log.warning("the journal keeps what it does not need any more: %s", error)
            self._has_complained = True

    async def _copy(self, segment: int) -> None:
        kept, size = [], 0
        for entry, place in self._index.values():
            if place.segment == segment and size < BATCH:
                kept.append((entry, place))
                size += _room(_head(entry))
        results = await self._in_thread(partial(self._segments.copy, [(place, _head(entry)) for entry, place in kept]))
        for (entry, _), result in zip(kept, results, strict=True):
            if isinstance(result, JournalError):
                raise result
            if isinstance(result, Damage):
                log.error("vm=%s its store in the journal is lost: %s", entry.vm, result)
                self._damages.append(result)
                self._end(entry.vm, entry.sequence)
            else:
                self._move(entry, result)

    # The index

    def _find(self, entry: Entry) -> Place | None:
        there = self._index.get(entry.vm)
        return there[1] if there is not None and there[0].sequence == entry.sequence else None

    def _put(self, entry: Entry, place: Place) -> None:
        self._end(entry.vm, entry.sequence)
        self._index[entry.vm] = entry, place
        self._live += _room(_head(entry))
        self._held[place.segment] += 1

    def _move(self, entry: Entry, place: Place) -> None:
        self._held[self._index[entry.vm][1].segment] -= 1
        self._held[place.segment] += 1
        self._index[entry.vm] = entry, place

    def _end(self, vm: UUID, sequence: int) -> None:
        """Forget the VM's entry if it is not newer than `sequence`."""
        entry, place = self._index.get(vm, (None, None))
        if entry is not None and place is not None and entry.sequence <= sequence:
            del self._index[vm]
            self._live -= _room(_head(entry))
            self._held[place.segment] -= 1

    def _room_of(self, vm: UUID) -> int:
        return _room(_head(self._index[vm][0])) if vm in self._index else 0

    def _confirm_usable(self) -> None:
        if self._not_usable is not None:
            raise self._error("the journal cannot be used", self._not_usable)

    def _error(self, what: str, reason: str) -> JournalError:
        return JournalError(what, where=os.fspath(self._folder), reason=reason)


def _room(head: Head) -> int:
    """Bytes as they are counted against `total`: with the page that a record at the end of a batch leaves empty.

    So a segment of a single record and its header is never more than twice what is counted, and compaction comes to an end.
    """
    return aligned(head.size, PAGE)


def _entry(head: Head, *, recovered: bool) -> Entry:
    return Entry(head.vm, head.sequence, head.at, head.digest, head.replaces, head.length, recovered)


def _head(entry: Entry) -> Head:
    return Head(Kind.STORE, entry.sequence, entry.vm, entry.at, entry.digest, entry.replaces, entry.size)
