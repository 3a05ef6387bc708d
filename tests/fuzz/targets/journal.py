"""The journal's segments, as a crash, a bad disk or a guest's store may have made them, and a VM's history."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID

from fuzz.contract import Target
from varstore_companion.errors import UnknownVersionError
from varstore_companion.journal import history, record
from varstore_companion.journal.history import Event, Line
from varstore_companion.journal.record import (
    BLOCK,
    HEADER_BYTES,
    MAX_STORE,
    PAGE,
    Head,
    aligned,
    done_head,
    encode,
    scan,
    segment_header,
    store_head,
)

SEGMENT_ID = bytes(range(16))
VMS = [UUID(int=number) for number in range(1, 5)]
LONGEST = 24 * 1024
"""Bytes of a segment."""


@dataclass(slots=True)
class Made:
    """A segment under construction: what it holds, where each record lies, whether its records are all our own."""

    data: bytearray
    records: list[tuple[int, Head]]
    is_own: bool = True


class Recipe:
    """The bytes of an input, taken one by one; 0 once there are none."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken


def segment(data: bytes) -> None:
    """The first byte chooses between a segment that is the rest and one that is made by it, and then damaged.

    Whatever the bytes: what is found is byte for byte what `encode` writes there, and lies in order. Of a segment of our own
    every record is found that was not touched, and nothing that was never written, whatever its stores hold.
    """
    recipe = Recipe(data)
    if not recipe.number() & 1:
        _scanned(data[1:])
        return
    made = _cooked(recipe)
    records, damages = _scanned(bytes(made.data))
    if made.is_own:
        assert (records, damages) == (made.records, 0)
    damaged = bytearray(made.data)
    touched = []
    while recipe:
        at, mask = recipe.number(2) % len(damaged), recipe.number()
        damaged[at] ^= mask
        touched.append(at)
    found, _ = _scanned(bytes(damaged))
    if made.is_own and not any(at < PAGE for at in touched):
        assert all(each in made.records for each in found)
        untouched = [
            (offset, head) for offset, head in made.records if not any(offset <= at < offset + head.size for at in touched)
        ]
        assert all(each in found for each in untouched)


def _scanned(data: bytes) -> tuple[list[tuple[int, Head]], int]:
    try:
        read = scan("fuzz", data)
    except UnknownVersionError as error:
        assert 0 <= error.offset <= len(data)
        return [], 0
    at = PAGE
    for offset, head in read.records:
        assert offset >= at
        at = offset + head.size
        store = data[offset + head.store_offset : at]
        assert head.matches(store)
        segment_id = record._segment_id("fuzz", data)
        assert segment_id is not None
        assert encode(head, store, segment_id, offset)[: head.size] == data[offset:at]
    for damage in read.damages:
        assert 0 <= damage.offset <= damage.offset + damage.length <= len(data)
        assert str(damage)
    return list(read.records), len(read.damages)


def _cooked(recipe: Recipe) -> Made:
    made = Made(bytearray(segment_header(SEGMENT_ID)), [])
    sequence = 0
    while recipe and len(made.data) < LONGEST and (op := recipe.number()) != 0xFF:
        offset = len(made.data)
        sequence += 1
        vm = VMS[op & 3]
        match op >> 2 & 7:
            case 0 | 1:
                _add(made, done_head(sequence, vm, 1.5), b"")
            case 2:
                made.data += bytes(aligned(offset, PAGE) - offset)
            case 3:
                # What a guest may have put into its store: a piece of the journal itself.
                start, size = recipe.number(2), recipe.number(2)
                store = bytes(made.data[start % offset :][: size % 5_000])
                _add(made, store_head(sequence, vm, 2.5, store, ()), store)
            case 4:
                store = recipe.take(recipe.number())
                replaces = (bytes(32),) * (recipe.number() % 65)
                _add(made, store_head(sequence, vm, 2.5, store, replaces), store)
            case 5:
                store = bytes([recipe.number()]) * (recipe.number(2) % 9_000)
                _add(made, store_head(sequence, vm, 2.5, store, ()), store)
            case _:
                _forge(made, recipe)
    made.data += bytes(aligned(len(made.data), PAGE) - len(made.data))
    return made


def _add(made: Made, head: Head, store: bytes) -> None:
    offset = len(made.data)
    made.records.append((offset, head))
    made.data += encode(head, store, SEGMENT_ID, offset)


def _forge(made: Made, recipe: Recipe) -> None:
    """Any header under a good seal: what only somebody who reads the file could write, or a later version."""
    made.is_own = False
    offset = len(made.data)
    count = recipe.number() % 70
    fixed = (b"VSCR" + recipe.take(1) + b"\0" + bytes([count, 0]) + recipe.take(4)).ljust(80, b"\0")
    digests = bytes(32 * count)
    seal = blake2b(offset.to_bytes(8, "little") + fixed + digests, digest_size=HEADER_BYTES - 80, key=SEGMENT_ID).digest()
    record = fixed + seal + digests
    made.data += record.ljust(aligned(len(record), BLOCK), b"\0")


def events(data: bytes) -> None:
    """A history: every line is an event or counted as unreadable, and an event is written as it was read."""
    lines, unreadable = history._parse(data)
    assert len(lines) + unreadable == len(data.splitlines())
    again, none = history._parse(b"".join(line.build() for line in lines))
    assert (again, none) == (lines, 0)
    for most in (1, 3):
        assert len(history._kept(lines, most)) == min(most, len(lines))


def _segments() -> Iterator[bytes]:
    yield b"\0"
    yield b"\0" + segment_header(SEGMENT_ID)
    yield b"\0" + segment_header(SEGMENT_ID)[:40]
    yield b"\0" + segment_header(SEGMENT_ID).replace(b"JOURN\1", b"JOURN\2")
    done, page, copy, store, large, forged = (number << 2 for number in (0, 2, 3, 4, 5, 6))
    size = (600).to_bytes(2, "little")
    stores = bytes([store, 5, *b"VARS1", 2, store + 1, 0, 0, large + 2, 7]) + size
    yield b"\1" + stores + bytes([done, page, done + 1])
    yield b"\1" + stores + bytes([page, copy, 0, 16]) + size + bytes([done])
    yield b"\1" + stores + bytes([0xFF]) + b"\5\x10\1" + b"\x60\x10\x80"
    yield b"\1" + bytes([forged, 1, 1, 0, 0, 0, 0, done])
    yield b"\1" + bytes([forged, 66, 2, 0xFF, 0xFF, 0xFF, 0xFF, done])


def _histories() -> Iterator[bytes]:
    digest = "ab" * 32
    written = [
        Line(1, Event(1.5, "updated", "microsoft-2023 1", digest, digest, "20260131T120000Z")),
        Line(2, Event(2.5, "update_failed", None, None, None, None, "a reason with \u20ac")),
        Line(4, Event(3e9, "a later word")),
    ]
    text = b"".join(line.build() for line in written)
    yield text
    yield text[:-20]
    yield b"\n\n[]\n{}\nnull\n" + text
    yield b'{"number": 1, "at": 1e999, "what": "x"}\n{"number": true, "at": "2", "what": "x"}\n' + b"[" * 50


assert LONGEST < MAX_STORE

TARGETS = (
    Target("journal", segment, _segments, limit=4_200, calls_per_byte=100, memory_per_byte=2_000),
    Target("history", events, _histories, limit=2_048, calls_per_byte=10),
)
