"""Where the signature lists lie in a variable's data (UEFI 2.10, section 32.4.1), and what varstored accepts of them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from varstore_companion.efi import guid, layouts
from varstore_companion.errors import MalformedError

HEADER_SIZE = layouts.SIGNATURE_LIST_HEADER.size
OWNER_SIZE = 16

_DATA_SIZES = {kind.bytes_le: size for kind, size in guid.SIGNATURE_DATA_SIZES.items()}


# Named tuples, here and in the other modules that certcheck starts with, where a value is small: it is a new process for
# each store, and making a class takes a tenth of a millisecond instead of the two thirds of a frozen dataclass.
class Place(NamedTuple):
    """Where one list lies in a variable's data; its signatures fill `body` to `end` exactly."""

    type: bytes
    start: int
    body: int
    end: int
    signature_size: int

    def entries(self, data: bytes) -> Iterator[bytes]:
        """Each EFI_SIGNATURE_DATA of the list as it stands: 16 bytes of owner, then the signature."""
        for at in range(self.body, self.end, self.signature_size):
            yield data[at : at + self.signature_size]


def walk(data: bytes) -> list[Place]:
    """Find the lists in a variable's data, checking every size against what encloses it; raises as `parse` does."""
    places: list[Place] = []
    at, end = 0, len(data)
    while at < end:
        what = f"signature list {len(places) + 1}"
        if end - at < HEADER_SIZE:
            raise MalformedError(what, offset=at, expected=f"{HEADER_SIZE} bytes of header, found {end - at}")
        head = layouts.SIGNATURE_LIST_HEADER.parse(data, at)
        if not HEADER_SIZE <= head.SignatureListSize <= end - at:
            raise MalformedError(
                what,
                offset=at + 16,
                expected=f"a SignatureListSize of {HEADER_SIZE} to {end - at:,}, found {head.SignatureListSize:,}",
            )
        room = head.SignatureListSize - HEADER_SIZE
        if head.SignatureHeaderSize > room:
            raise MalformedError(
                what,
                offset=at + 20,
                expected=f"a SignatureHeaderSize of at most {room:,}, found {head.SignatureHeaderSize:,}",
            )
        room -= head.SignatureHeaderSize
        if head.SignatureSize < OWNER_SIZE or room % head.SignatureSize:
            raise MalformedError(
                what,
                offset=at + 24,
                expected=f"a SignatureSize of at least {OWNER_SIZE} that divides {room:,}, found {head.SignatureSize:,}",
            )
        body = at + HEADER_SIZE + head.SignatureHeaderSize
        places.append(Place(head.SignatureType, at, body, at + head.SignatureListSize, head.SignatureSize))
        at += head.SignatureListSize
    return places


def violations(places: Sequence[Place], *, platform_key: bool = False) -> tuple[str, ...]:
    """What varstored's SetVariable would refuse about well-formed lists (handler.c), one line each; certificates aside.

    `platform_key`: the lists are PK's, which has exactly one signature.
    """
    found = []
    for number, place in enumerate(places, 1):
        where = f"signature list {number}"
        if place.type not in _DATA_SIZES:
            found.append(f"{where} has the unknown signature type {UUID(bytes_le=place.type)}")
            continue
        if place.body - place.start > HEADER_SIZE:
            found.append(f"{where} has a header of {place.body - place.start - HEADER_SIZE:,} bytes, expected none")
        expected = _DATA_SIZES[place.type]
        if expected is not None and place.signature_size != OWNER_SIZE + expected:
            found.append(f"{where} has signatures of {place.signature_size:,} bytes, expected {OWNER_SIZE + expected}")
        if place.body == place.end:
            found.append(f"{where} is empty")
    count = sum((place.end - place.body) // place.signature_size for place in places)
    if platform_key and count != 1:
        found.append(f"PK has {count:,} signatures, expected exactly one")
    return tuple(found)
