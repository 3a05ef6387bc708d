"""Where things lie in the store blob "VARS" (varstored, xapidb-lib.c), and the limits by which varstored loads one.

Every length is checked here, once; every write of every VM comes through here.
"""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from varstore_companion.efi import layouts
from varstore_companion.efi.names import readable_start
from varstore_companion.errors import MalformedError, OverLimitError, UnknownVersionError

MAGIC = b"VARS"
NEWEST_VERSION = 2
HEADER_SIZE = layouts.STORE_HEADER.size
ANCILLARY_SIZE = layouts.ANCILLARY.size
_LENGTH_SIZE = layouts.LENGTH.size
TAIL_SIZE = layouts.VARIABLE_TAIL.size
FIXED_SIZE = 2 * _LENGTH_SIZE + TAIL_SIZE
"""A variable's bytes in a store besides its name and data: 84."""

MAX_VARIABLES = 1024
NAME_LIMIT = 4096
"""Bytes of one name."""
DATA_LIMIT = 57_344
"""Bytes of one variable's data. One byte more, and varstored refuses the whole store: the VM does not start."""
TOTAL_LIMIT = 131_072
"""Bytes of all variables, each counted as name + data + `OVERHEAD`."""
OVERHEAD = 128
FILE_LIMIT = 131_072
"""Bytes of a saved store."""
VOLATILE_TOTAL = 820
"""Bytes of `TOTAL_LIMIT` that varstored's own volatile variables take while a VM runs (handler.c): SetupMode, AuditMode,
DeployedMode and SecureBoot of one byte each, SignatureSupport of 64. They are not in the store."""

_u64_at = layouts.LENGTH.unpack_from


Place = tuple[int, int, int, int]
"""Where one variable lies in a store: its name's start and end, its data's start and end; its tail follows the data.

A plain tuple: one is made for each variable of every store that any VM writes.
"""


class Limit(StrEnum):
    """Which of varstored's limits a store breaks."""

    VARIABLES = "variables"
    NAME = "name"
    DATA = "data"
    TOTAL = "total"
    FILE = "file"


# A named tuple for certcheck's start: see `siglist_outline.Place`.
class Excess(NamedTuple):
    """A limit that a store breaks: which, where, how much there is and how much is allowed."""

    limit: Limit
    where: str
    found: int
    allowed: int

    def __str__(self) -> str:
        unit = "variables" if self.limit is Limit.VARIABLES else "bytes"
        return f"{self.where}: {self.found:,} {unit}, at most {self.allowed:,}"


@dataclass(frozen=True, slots=True)
class Outline:
    """Where the variables of a store lie, found without looking into them: enough for every write that a VM makes.

    `damage`: why the walk ended early, None for a store that parses; `places` then holds the variables before the damage.
    """

    blob: bytes
    version: int
    places: tuple[Place, ...]
    damage: MalformedError | None

    def key(self, place: Place) -> tuple[bytes, bytes]:
        """The name and vendor GUID of a variable, as in `Variable.key`."""
        name, name_end, _, data_end = place
        return self.blob[name:name_end], self.blob[data_end : data_end + 16]

    def find(self, key: tuple[bytes, bytes]) -> tuple[Place, ...]:
        """The variables of that name and vendor GUID: none or one, unless the store was not written by varstored."""
        size = len(key[0])
        # Nearly all names have another length: nothing of those variables need be cut out.
        return tuple(place for place in self.places if place[1] - place[0] == size and self.key(place) == key)

    def with_data(self, data: Mapping[Place, bytes]) -> bytes:
        """The bytes of an undamaged store with the data of some variables replaced, and the data length recorded anew.

        Every other byte is as it stands.
        """
        grown = sum(len(new) - (place[3] - place[2]) for place, new in data.items())
        length = layouts.LENGTH.build(len(self.blob) - self.start + grown)
        pieces, at = [self.blob[: HEADER_SIZE - len(length)], length], HEADER_SIZE
        for place in sorted(data):
            _, name_end, _, end = place
            pieces += self.blob[at:name_end], layouts.LENGTH.build(len(data[place])), data[place]
            at = end
        return b"".join((*pieces, self.blob[at:]))

    @property
    def start(self) -> int:
        """Where the variables begin: after the header and, in version 2, the ancillary block."""
        return HEADER_SIZE + (ANCILLARY_SIZE if self.version >= 2 else 0)

    @property
    def total(self) -> int:
        """Bytes as varstored counts them against `TOTAL_LIMIT`."""
        if not self.places:
            return 0
        # They lie back to back, each with `FIXED_SIZE` bytes besides its name and data.
        begin, end = self.places[0][0] - _LENGTH_SIZE, self.places[-1][3] + TAIL_SIZE
        return end - begin + len(self.places) * (OVERHEAD - FIXED_SIZE)

    def excesses(self) -> tuple[Excess, ...]:
        """Every limit of varstored's that the store breaks, each with its numbers; empty for a store that it loads."""
        found = []
        if len(self.places) > MAX_VARIABLES:
            found.append(Excess(Limit.VARIABLES, "store", len(self.places), MAX_VARIABLES))
        for name, name_end, data, data_end in self.places:
            if name_end - name > NAME_LIMIT:
                found.append(Excess(Limit.NAME, f"name of variable {self._text(name, name_end)}", name_end - name, NAME_LIMIT))
            if data_end - data > DATA_LIMIT:
                found.append(Excess(Limit.DATA, f"data of variable {self._text(name, name_end)}", data_end - data, DATA_LIMIT))
        if self.total > TOTAL_LIMIT:
            found.append(Excess(Limit.TOTAL, f"all variables, each with {OVERHEAD} bytes more", self.total, TOTAL_LIMIT))
        if len(self.blob) > FILE_LIMIT:
            found.append(Excess(Limit.FILE, "store", len(self.blob), FILE_LIMIT))
        return tuple(found)

    def duplicated(self) -> tuple[tuple[bytes, bytes], ...]:
        """The keys, once each, of variables that stand in the store more than once: varstored writes none, and loads them."""
        keys = list(map(self.key, self.places))
        if len(set(keys)) == len(keys):
            return ()
        counts = Counter(keys)
        return tuple(key for key, count in counts.items() if count > 1)

    def _text(self, name: int, name_end: int) -> str:
        return readable_start(self.blob[name:name_end])


def outline(blob: bytes) -> Outline:
    """Find the variables of a store, as far as it can be read.

    Raises `MalformedError` when not even the header can be read, `UnknownVersionError` for a version above 2.
    """
    version = _read_version(blob)
    places: list[Place] = []
    damage = None
    try:
        _walk(blob, version, places)
    except MalformedError as error:
        damage = error
    return Outline(blob, version, tuple(places), damage)


def admit(blob: bytes) -> Outline:
    """Check that a store which a VM wants to write is one that varstored will load again.

    Raises as `parse` does, and `OverLimitError`, which lists the limits that it breaks.
    """
    found = _plain(blob)
    if found is None:
        found = outline(blob)
        if found.damage is not None:
            raise found.damage
        if excesses := found.excesses():
            raise OverLimitError("over varstored's limits: " + "; ".join(map(str, excesses[:8])))
    return found


def _plain(blob: bytes) -> Outline | None:
    """As `outline`, of a store with nothing wrong and no limit broken; None for any other, of which `outline` says more.

    Nearly every write is one, and does without working out what there is room for: a quarter less than the two walks.
    """
    version = _read_version(blob)
    end = len(blob)
    count = _u64_at(blob, 8)[0]
    if count > MAX_VARIABLES or end > FILE_LIMIT:
        return None
    places: list[Place] = []
    append = places.append
    at = HEADER_SIZE + (ANCILLARY_SIZE if version >= 2 else 0)
    try:
        # What lies outside has no length to be read after it, or does not end where the store ends.
        for _ in range(count):
            (length,) = _u64_at(blob, at)
            if not 0 < length <= NAME_LIMIT:
                return None
            name = at + 8
            name_end = name + length
            (length,) = _u64_at(blob, name_end)
            if not 0 < length <= DATA_LIMIT:
                return None
            data = name_end + 8
            at = data + length
            append((name, name_end, data, at))
            at += TAIL_SIZE
    except struct.error:
        return None
    found = Outline(blob, version, tuple(places), None)
    return found if at == end and found.total <= TOTAL_LIMIT else None


def _read_version(blob: bytes) -> int:
    if len(blob) < HEADER_SIZE:
        raise MalformedError(
            "store header", offset=len(blob), expected=f"{HEADER_SIZE} bytes of header, found {len(blob)} bytes in all"
        )
    if not blob.startswith(MAGIC):
        raise MalformedError("store header", offset=0, expected=f"the magic {MAGIC.decode()}, found {blob[:4].hex()}")
    version = int.from_bytes(blob[4:8], "little")
    if version > NEWEST_VERSION:
        raise UnknownVersionError("store header", offset=4, expected=f"version 0 to {NEWEST_VERSION}, found {version}")
    return version


def _walk(blob: bytes, version: int, places: list[Place]) -> None:
    """Append the place of each variable in turn, every length checked against what encloses it; raise at the damage."""
    end = len(blob)
    count = _u64_at(blob, 8)[0]
    at = HEADER_SIZE
    if version >= 2:
        at += ANCILLARY_SIZE
        if at > end:
            raise MalformedError(
                "ancillary block",
                offset=HEADER_SIZE,
                expected=f"{ANCILLARY_SIZE} bytes, found {end - HEADER_SIZE:,}",
            )
    found = 0
    while found < count:
        # `room` is what is left for name and data once the fixed part of this variable is taken.
        room = end - at - FIXED_SIZE
        if room < 0:
            raise _bad(found, count, at, f"{FIXED_SIZE} bytes besides name and data, found {end - at:,} to the end")
        length = _u64_at(blob, at)[0]
        name = at + 8
        if not 0 < length <= room:
            raise _bad(found, count, at, f"a name of 1 to {room:,} bytes, found a length of {length:,}")
        name_end = name + length
        room -= length
        length = _u64_at(blob, name_end)[0]
        data = name_end + 8
        if not 0 < length <= room:
            raise _bad(found, count, name_end, f"data of 1 to {room:,} bytes, found a length of {length:,}")
        data_end = data + length
        places.append((name, name_end, data, data_end))
        at = data_end + TAIL_SIZE
        found += 1
    if at != end:
        raise MalformedError(
            "store", offset=at, expected=f"nothing after the last of {count:,} variables, found {end - at:,} bytes"
        )


def _bad(found: int, count: int, offset: int, expected: str) -> MalformedError:
    return MalformedError(f"variable {found + 1:,} of {count:,}", offset=offset, expected=expected)
