"""The journal's files as bytes. Pure: nothing here reads or writes one.

A segment is a file. Integers are little-endian. It begins with a page of 4,096 bytes, its header in two copies, at 0 and
at 2,048, so that no single sector takes the whole file with it:

| offset | size | field                                                        |
|--------|------|--------------------------------------------------------------|
| 0      | 8    | magic `VSCJOURN`                                             |
| 8      | 4    | version, u32: 1                                              |
| 12     | 4    | zero                                                         |
| 16     | 16   | the segment's id, random and known to nobody outside         |
| 32     | 16   | BLAKE2b of the 32 bytes before, 16 bytes long                |

Then the records. What is written and synced at once, a batch, begins on a page of its own: no write touches a sector that
holds what was acknowledged before. Inside a batch each record begins at the next multiple of 512. All that lies between is
zero, and the file's length is a multiple of the page.

| offset | size      | field                                                                             |
|--------|-----------|-----------------------------------------------------------------------------------|
| 0      | 4         | magic `VSCR`                                                                      |
| 4      | 1         | kind: 1 STORE, 2 DONE                                                             |
| 5      | 1         | zero                                                                              |
| 6      | 2         | n, u16: how many stores this one replaces, at most 64                             |
| 8      | 4         | bytes of the store, u32, at most 131,072; 0 in a DONE                             |
| 12     | 4         | zero                                                                              |
| 16     | 8         | sequence, u64: of the STORE; of the newest STORE of the VM that a DONE ends       |
| 24     | 16        | the VM's uuid, big-endian, as it is printed                                       |
| 40     | 8         | seconds since the epoch, f64                                                      |
| 48     | 32        | SHA-256 of the store                                                              |
| 80     | 16        | seal                                                                              |
| 96     | 32 n      | the SHA-256 of each store that this one replaces                                  |
| …      |           | the store                                                                         |

The seal is BLAKE2b, 16 bytes long, with the segment's id as its key, of the record's own offset (u64), the 80 bytes before
it and the digests behind it: it binds a record to its file and its place. The store inside is a guest's: one that holds the
bytes of a record, or of a whole segment, is never taken for one, not even when the header around it is damaged and the
search goes on inside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b, sha256
from struct import Struct
from typing import Final
from uuid import UUID

from varstore_companion.errors import OverLimitError, UnknownVersionError
from varstore_companion.journal.entry import Damage

VERSION: Final = 1
PAGE: Final = 4096
"""Bytes: the largest sector that disks have, and the system's page."""
BLOCK: Final = 512
"""Bytes: where a record can begin. The search behind a damaged one tries each such place."""
MAX_STORE: Final = 131_072
"""Bytes: varstored's limit of a saved store file."""
MAX_REPLACES: Final = 64
DIGEST_BYTES: Final = 32
ID_BYTES: Final = 16

_SEGMENT_MAGIC: Final = b"VSCJOURN"
_SEGMENT = Struct("<8sI4x16s")
_MAGIC: Final = b"VSCR"
_FIXED = Struct("<4sBxHI4xQ16sd32s")
_SEAL_BYTES: Final = 16
HEADER_BYTES: Final = _FIXED.size + _SEAL_BYTES
"""Bytes of a record before its digests: 96."""


class Kind(IntEnum):
    """What a record says of its VM: here is its store, or the toolstack has taken it."""

    STORE = 1
    DONE = 2


@dataclass(frozen=True, slots=True)
class Head:
    """A record without its store. The fields are those of the table above; `length`: bytes of the store."""

    kind: Kind
    sequence: int
    vm: UUID
    at: float
    digest: bytes
    replaces: tuple[bytes, ...]
    length: int

    @property
    def store_offset(self) -> int:
        """Bytes from the record's start to its store."""
        return HEADER_BYTES + DIGEST_BYTES * len(self.replaces)

    @property
    def size(self) -> int:
        """Bytes of the whole record, without what lies behind it."""
        return self.store_offset + self.length

    @property
    def about(self) -> str:
        """The record in a few words."""
        return f"{self.kind.name} {self.sequence}"

    def matches(self, store: bytes) -> bool:
        """Whether `store` is the one that the record was written with."""
        return len(store) == self.length and (self.kind is Kind.DONE or sha256(store).digest() == self.digest)

    @property
    def room(self) -> int:
        """Bytes that the record takes up in a batch."""
        return aligned(self.size, BLOCK)


@dataclass(frozen=True, slots=True)
class Scan:
    """A segment's sound records with the offset of each, and what else it holds."""

    records: tuple[tuple[int, Head], ...]
    damages: tuple[Damage, ...]


def aligned(number: int, to: int) -> int:
    """The next multiple of `to`, a power of two, that is not below `number`."""
    return (number + to - 1) & -to


def store_head(sequence: int, vm: UUID, at: float, store: bytes, replaces: tuple[bytes, ...]) -> Head:
    """The head of a STORE. Raises `OverLimitError`."""
    if len(store) > MAX_STORE:
        raise OverLimitError(f"a store of {len(store)} bytes, of at most {MAX_STORE}")
    if len(replaces) > MAX_REPLACES:
        raise OverLimitError(f"a store that replaces {len(replaces)} others, of at most {MAX_REPLACES}")
    if any(len(digest) != DIGEST_BYTES for digest in replaces):
        raise OverLimitError(f"a digest that has not {DIGEST_BYTES} bytes")
    return Head(Kind.STORE, sequence, vm, at, sha256(store).digest(), replaces, len(store))


def done_head(sequence: int, vm: UUID, at: float) -> Head:
    """The head of a DONE that ends all stores of the VM up to `sequence`."""
    return Head(Kind.DONE, sequence, vm, at, bytes(DIGEST_BYTES), (), 0)


def segment_header(segment_id: bytes) -> bytes:
    """A segment's first page."""
    fields = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, segment_id)
    return (fields + blake2b(fields, digest_size=_SEAL_BYTES).digest()).ljust(PAGE // 2, b"\0") * 2


def encode(head: Head, store: bytes, segment_id: bytes, offset: int) -> bytes:
    """A record as it is written at `offset` of its segment, a multiple of `BLOCK`; with the zeros behind it."""
    fixed = _FIXED.pack(
        _MAGIC, head.kind, len(head.replaces), head.length, head.sequence, head.vm.bytes, head.at, head.digest
    )  # fmt: skip
    digests = b"".join(head.replaces)
    return b"".join((fixed, _seal(segment_id, offset, fixed, digests), digests, store, bytes(head.room - head.size)))


def decode(data: bytes, offset: int, segment_id: bytes, *, start: int = 0) -> Head | None:
    """The head of a record that lies at `start` of `data` and at `offset` of its segment; None when there is none."""
    if data[start : start + 4] != _MAGIC or len(data) - start < HEADER_BYTES:
        return None
    _, kind, count, length, sequence, vm, at, digest = _FIXED.unpack_from(data, start)
    end = start + HEADER_BYTES + DIGEST_BYTES * count
    if count > MAX_REPLACES or end > len(data):
        return None
    fixed = data[start : start + _FIXED.size]
    digests = data[start + HEADER_BYTES : end]
    if data[start + _FIXED.size : start + HEADER_BYTES] != _seal(segment_id, offset, fixed, digests):
        return None
    replaces = tuple(digests[each : each + DIGEST_BYTES] for each in range(0, len(digests), DIGEST_BYTES))
    return Head(Kind(kind), sequence, UUID(bytes=vm), at, digest, replaces, length)


def scan(name: str, data: bytes) -> Scan:
    """Read the segment `name`. Whatever the bytes are, this takes time and memory linear in them.

    Raises `UnknownVersionError` for a segment that a later version of this program has written, and nothing else.
    """
    if not data:
        return Scan((), ())
    segment_id = _segment_id(name, data)
    if segment_id is None:
        return Scan((), (Damage(name, 0, len(data), "neither of the segment's headers can be read"),))
    return _Scanner(name, data, segment_id).scan()


class _Scanner:
    __slots__ = ("_damages", "_data", "_id", "_name")

    def __init__(self, name: str, data: bytes, segment_id: bytes) -> None:
        self._name = name
        self._data = data
        self._id = segment_id
        self._damages: list[Damage] = []

    def scan(self) -> Scan:
        if self._data[:PAGE] != segment_header(self._id):
            self._damaged(0, min(PAGE, len(self._data)), "one of the segment's headers is not as it was written")
        records = tuple(self._records())
        return Scan(records, tuple(self._damages))

    def _records(self) -> Iterator[tuple[int, Head]]:
        offset, end = PAGE, len(self._data)
        while offset < end:
            head = self._head(offset)
            if head is None:
                following = next((each for each in range(offset + BLOCK, end, BLOCK) if self._head(each)), end)
                self._damaged(offset, following, "no record where one has to be")
                offset = following
                continue
            if offset + head.size > end:
                self._damaged(offset, end, f"{head.about} of {head.size} bytes is cut off", head.vm)
                return
            if head.matches(self._data[offset + head.store_offset : offset + head.size]):
                yield offset, head
            else:
                self._damaged(offset, offset + head.size, f"the store of {head.about} is not what was written", head.vm)
            offset = self._behind(offset + head.size)

    def _head(self, offset: int) -> Head | None:
        return decode(self._data, offset, self._id, start=offset)

    def _behind(self, end: int) -> int:
        """Where the next record has to be behind one that ends at `end`."""
        block, page = aligned(end, BLOCK), aligned(end, PAGE)
        if not self._is_zero(end, block):
            self._damaged(end, min(block, len(self._data)), "not zero between two records")
        return page if self._head(block) is None and self._is_zero(block, page) else block

    def _is_zero(self, start: int, end: int) -> bool:
        return self._data.count(0, start, end) == max(0, min(end, len(self._data)) - start)

    def _damaged(self, start: int, end: int, what: str, vm: UUID | None = None) -> None:
        self._damages.append(Damage(self._name, start, end - start, what, vm))


def _segment_id(name: str, data: bytes) -> bytes | None:
    for start in (0, PAGE // 2):
        fields = data[start : start + _SEGMENT.size]
        check = data[start + _SEGMENT.size : start + _SEGMENT.size + _SEAL_BYTES]
        if len(fields) == _SEGMENT.size and blake2b(fields, digest_size=_SEAL_BYTES).digest() == check:
            magic, version, segment_id = _SEGMENT.unpack(fields)
            if magic == _SEGMENT_MAGIC and version == VERSION:
                return bytes(segment_id)
            if magic == _SEGMENT_MAGIC:
                raise UnknownVersionError(f"{name}: version {version}", offset=start + 8, expected=f"version {VERSION}")
    return None


def _seal(segment_id: bytes, offset: int, fixed: bytes, digests: bytes) -> bytes:
    return blake2b(offset.to_bytes(8, "little") + fixed + digests, digest_size=_SEAL_BYTES, key=segment_id).digest()
