"""The journal's files: batches are written behind each other, the oldest file goes first. Blocking.

`NUMBER.segment` in the journal's folder; the numbers grow. A process begins a segment of its own and never writes to one of
an earlier process: the end of that one may be torn. After a write or a sync that failed, too, a new one is begun, and the
old one is cut back to what had been acknowledged: nobody knows what the system still has of the rest.

A segment is removed only when no older one is left, and the folder is synced in between. So the record that ends a store
never goes before the store.
"""

import errno
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from varstore_companion.errors import JournalError, UnknownVersionError
from varstore_companion.journal import record
from varstore_companion.journal.aside import Aside
from varstore_companion.journal.disk import Disk
from varstore_companion.journal.entry import Damage
from varstore_companion.journal.files import PASSING
from varstore_companion.journal.record import PAGE, Head, Kind, Scan, aligned

RESERVE: Final = 256 * 2**10
"""Bytes kept on the disk for DONEs, so that a full disk can be emptied: room for 60 batches of them."""
RESERVE_NAME: Final = "reserve"
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_NAME = re.compile(r"([0-9a-f]{8})\.segment")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies: its segment's number, and its offset there in bytes."""

    segment: int
    offset: int


@dataclass(slots=True, eq=False)
class Segment:
    """A file of the journal. `size`: its bytes; `is_unreadable`: it is put aside whole when its turn comes."""

    number: int
    size: int
    damages: tuple[Damage, ...] = ()
    is_unreadable: bool = False

    @property
    def name(self) -> str:
        """The file's name in the journal's folder."""
        return f"{self.number:08x}.segment"


@dataclass(frozen=True, slots=True)
class _Current:
    """The segment that is being written; its id stays in memory only as long as that."""

    segment: Segment
    descriptor: int
    segment_id: bytes


class Segments:
    """The files in `folder`. Its methods are called from one thread at a time, `read` from any.

    `limit`: bytes after which a new segment is begun. Every `OSError` comes out as `JournalError`.
    """

    def __init__(self, folder: Path, disk: Disk, limit: int) -> None:
        self._folder = folder
        self._disk = disk
        self._limit = limit
        self._aside = Aside(folder / "damaged", disk)
        self._all: deque[Segment] = deque()
        self._next = 1
        self._current: _Current | None = None
        self._parent_is_synced = False
        self._has_reserve = False
        # What a failed write has left behind: bytes to cut each file back to, 0 to remove it.
        self._to_cut: dict[Path, int] = {}

    @property
    def next_number(self) -> int:
        """The number of the next segment."""
        return self._next

    @property
    def oldest(self) -> Segment | None:
        """The segment that has to go first."""
        return self._all[0] if self._all else None

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._all)

    @property
    def has_damage(self) -> bool:
        """Whether a segment is there that is not as it was written."""
        return any(segment.damages or segment.is_unreadable for segment in self._all)

    # The start

    def open(self) -> Iterator[tuple[Segment, Scan]]:
        """Read all segments, oldest first. What is given out is durable, but for that of which a damage says otherwise.

        An earlier process may have been killed between writing and syncing: what it wrote is synced before it is believed,
        or a later crash could take back what this process has built on.
        """
        self._all.clear()
        try:
            self._make_folder()
            _tolerating_read_only(self._disk.sync_folder, self._folder)
            names = self._disk.names(self._folder)
            numbers = sorted(int(match[1], 16) for name in names if (match := _NAME.fullmatch(name)))
            self._next = max([*numbers, self._aside.newest()], default=0) + 1
        except OSError as error:
            raise self._error("the journal cannot be read", self._folder, error) from None
        self._has_reserve = RESERVE_NAME in names
        for number in numbers:
            segment, scan = self._scan(number)
            self._all.append(segment)
            for damage in segment.damages:
                # It is tried again before the segment is removed.
                with suppress(OSError):
                    self._aside.keep(self._path(segment), damage)
            yield segment, scan
        if not self._all:
            self._free_reserve()

    def _scan(self, number: int) -> tuple[Segment, Scan]:
        segment = Segment(number, 0)
        path = self._path(segment)
        try:
            data = self._disk.read(path)
        except OSError as error:
            if error.errno in PASSING:
                # Put aside, an acknowledged store would be delivered by nobody.
                raise self._error("the journal cannot be read", path, error) from None
            segment.is_unreadable = True
            damage = Damage(segment.name, 0, 0, f"the file cannot be read: {_reason(error)}")
            return segment, Scan((), (damage,))
        try:
            scan = record.scan(segment.name, data)
        except UnknownVersionError as error:
            raise JournalError("the journal cannot be read", where=os.fspath(path), reason=str(error)) from None
        try:
            _tolerating_read_only(self._disk.sync_file, path)
        except OSError as error:
            # Believed all the same, and soon copied: it may be all that there is.
            damage = Damage(segment.name, 0, 0, f"what it holds cannot be synced: {_reason(error)}")
            scan = replace(scan, damages=(damage, *scan.damages))
        segment.size = len(data)
        segment.damages = scan.damages
        return segment, scan

    # Writing

    def write(self, records: Sequence[tuple[Head, bytes]]) -> list[Place | JournalError]:
        """Write records with their stores, durably: all of them, or none but the DONEs, or none."""
        try:
            return [*self._write(records)]
        except OSError as error:
            failure = error
        endings = [each for each in records if each[0].kind is Kind.DONE]
        places: Iterator[Place] = iter(())
        if endings:
            if failure.errno in FULL:
                self._free_reserve()
            with suppress(OSError):
                places = iter(self._write(endings))
        return [
            (next(places, None) if head.kind is Kind.DONE else None) or self._error("not written", self._folder, failure)
            for head, _ in records
        ]

    def _write(self, records: Sequence[tuple[Head, bytes]]) -> list[Place]:
        size = aligned(sum(head.room for head, _ in records), PAGE)
        if self._current is not None and self._current.segment.size + size > self._limit:
            self.finish()
        if any(head.kind is Kind.STORE for head, _ in records):
            self._fill_reserve()
        if self._current is None:
            return self._begin(records)
        current, segment = self._current, self._current.segment
        batch, places = _batch(records, current)
        path = self._path(segment)
        try:
            self._disk.write(current.descriptor, batch)
            self._disk.sync(current.descriptor)
            self._confirm(current.descriptor, path)
        except OSError:
            self._failed(path, segment.size)
            raise
        segment.size += len(batch)
        return places

    def _begin(self, records: Sequence[tuple[Head, bytes]]) -> list[Place]:
        """Begin a segment with its first batch."""
        self._make_folder()
        with suppress(OSError):
            self._take_back()
        segment = Segment(self._next, PAGE)
        self._next += 1
        path = self._path(segment)
        descriptor = self._disk.create(path)
        self._current = _Current(segment, descriptor, os.urandom(record.ID_BYTES))
        batch, places = _batch(records, self._current)
        try:
            self._disk.write(descriptor, record.segment_header(self._current.segment_id) + batch)
            self._disk.sync(descriptor)
            self._disk.sync_folder(self._folder)
            self._confirm(descriptor, path)
        except OSError:
            self._failed(path, 0)
            raise
        segment.size += len(batch)
        self._all.append(segment)
        return places

    def _confirm(self, descriptor: int, path: Path) -> None:
        """What was written must be found again: somebody may have removed or moved the folder meanwhile."""
        if not self._disk.is_at(descriptor, path):
            raise FileNotFoundError(errno.ENOENT, "it was removed while it was written", os.fspath(path))

    def finish(self) -> None:
        """Write no more to the current segment."""
        if self._current is not None:
            descriptor = self._current.descriptor
            self._current = None
            # All that counts has been synced, or is reported as not written.
            with suppress(OSError):
                self._disk.close(descriptor)

    def _failed(self, path: Path, length: int) -> None:
        """A write to the current segment has failed, of which the first `length` bytes count."""
        self.finish()
        self._to_cut[path] = length
        with suppress(OSError):
            self._take_back()

    def _take_back(self) -> None:
        """Cut off what failed writes have left, durably. Raises `OSError`; what is left then is tried again the next time.

        Nothing may be copied or removed before: a DONE that was reported as not written would else go before the copy of
        the store that it ends, and a store that nobody knows of would stay behind when the one that supersedes it goes.
        """
        for path, length in list(self._to_cut.items()):
            with suppress(FileNotFoundError):
                if length:
                    self._disk.cut(path, length)
                else:
                    self._disk.unlink(path)
                    self._disk.sync_folder(self._folder)
            del self._to_cut[path]

    # Reading and removing

    def read(self, place: Place, head: Head) -> bytes:
        """The store of a record, as it was written. Raises `JournalError`."""
        path = self._folder / f"{place.segment:08x}.segment"
        try:
            store = self._disk.read(path, place.offset + head.store_offset, head.length)
        except OSError as error:
            raise self._error("a store cannot be read", path, error) from None
        if not head.matches(store):
            reason = f"not what was written at offset {place.offset}"
            raise JournalError("a store cannot be read", where=os.fspath(path), reason=reason)
        return store

    def copy(self, kept: Iterable[tuple[Place, Head]]) -> list[Place | Damage | JournalError]:
        """Write records of the oldest segment anew, durably; a `Damage` for each that the disk has lost."""
        if self._current is not None and self._current.segment is self.oldest:
            self.finish()
        try:
            self._take_back()
        except OSError as error:
            raise self._error("what a failed write has left cannot be taken back", self._folder, error) from None
        found: list[tuple[Head, bytes] | Damage] = [self._take(place, head) for place, head in kept]
        written = iter(self.write([each for each in found if not isinstance(each, Damage)]))
        return [each if isinstance(each, Damage) else next(written) for each in found]

    def remove_oldest(self) -> None:
        """Remove the oldest segment, durably, when what is damaged in it has been put aside. Raises `JournalError`."""
        segment = self._all[0]
        path = self._path(segment)
        if self._current is not None and self._current.segment is segment:
            self.finish()
        try:
            self._take_back()
            if self._is_kept(segment):
                self._disk.unlink(path)
            else:
                self._aside.move(path)
            self._disk.sync_folder(self._folder)
        except OSError as error:
            # Somebody else may have removed it.
            if not isinstance(error, FileNotFoundError) or segment.name in self._names():
                raise self._error("a segment cannot be removed", path, error) from None
        self._all.popleft()
        with suppress(OSError):
            if self._all:
                self._fill_reserve()
            else:
                self._free_reserve()

    def _is_kept(self, segment: Segment) -> bool:
        """Copy what is damaged; False when that cannot be done, so that the file has to be put aside as it is."""
        path = self._path(segment)
        try:
            for damage in segment.damages:
                self._aside.keep(path, damage)
        except OSError:
            return False
        return not segment.is_unreadable

    def _take(self, place: Place, head: Head) -> tuple[Head, bytes] | Damage:
        path = self._folder / f"{place.segment:08x}.segment"
        reason = "not what was written"
        try:
            store = self._disk.read(path, place.offset + head.store_offset, head.length)
        except OSError as error:
            if error.errno != errno.EIO and path.name in self._names():
                raise self._error("a store cannot be read", path, error) from None
            reason, store = _reason(error), None
        if store is not None and head.matches(store):
            return head, store
        damage = Damage(path.name, place.offset, head.size, f"{head.about}: {reason}", head.vm)
        if damage not in self._all[0].damages:
            self._all[0].damages += (damage,)
        return damage

    def _names(self) -> list[str]:
        try:
            return self._disk.names(self._folder)
        except OSError as error:
            raise self._error("the journal cannot be read", self._folder, error) from None

    # The folder and the reserve

    def _make_folder(self) -> None:
        if self._disk.make_folder(self._folder):
            self._parent_is_synced = self._has_reserve = False
        if not self._parent_is_synced:
            _tolerating_read_only(self._disk.sync_folder, self._folder.parent)
            self._parent_is_synced = True

    def _fill_reserve(self) -> None:
        """Take up the room kept for DONEs. Raises `OSError` when the disk has not even that."""
        if self._has_reserve:
            return
        try:
            self._disk.allocate(self._folder / RESERVE_NAME, RESERVE)
        except OSError as error:
            self._free_reserve()
            if error.errno in FULL:
                raise
        else:
            self._has_reserve = True

    def _free_reserve(self) -> None:
        self._has_reserve = False
        with suppress(OSError):
            self._disk.unlink(self._folder / RESERVE_NAME)

    def _path(self, segment: Segment) -> Path:
        return self._folder / segment.name

    @staticmethod
    def _error(what: str, where: Path, error: OSError) -> JournalError:
        return JournalError(what, where=os.fspath(error.filename or where), reason=_reason(error))


def _batch(records: Sequence[tuple[Head, bytes]], current: _Current) -> tuple[bytes, list[Place]]:
    """The bytes of a batch at the end of the segment, and where each record comes to lie."""
    parts: list[bytes] = []
    places: list[Place] = []
    offset = current.segment.size
    for head, store in records:
        places.append(Place(current.segment.number, offset))
        parts.append(record.encode(head, store, current.segment_id, offset))
        offset += head.room
    parts.append(bytes(aligned(offset, PAGE) - offset))
    return b"".join(parts), places


def _tolerating_read_only(sync: Callable[[Path], None], path: Path) -> None:
    """Sync, unless the disk can only be read: nothing can be lost on it then, nor acknowledged."""
    try:
        sync(path)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
