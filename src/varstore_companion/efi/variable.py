"""One variable of a store."""

from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from varstore_companion.efi import layouts
from varstore_companion.efi.names import readable
from varstore_companion.efi.timestamp import EfiTime


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable as varstored stores it.

    `name`: UTF-16LE without a terminator, 1..4,096 bytes, kept as bytes because nothing checks that it is text. `data`:
    1..57,344 bytes. `digest`: 32 bytes, the SHA-256 by which varstored remembers the signer of a private authenticated
    variable.
    """

    name: bytes
    data: bytes
    guid: UUID
    attributes: int
    timestamp: EfiTime
    digest: bytes

    @property
    def text(self) -> str:
        """The name for people, as `readable` makes it."""
        return readable(self.name)

    @property
    def key(self) -> tuple[bytes, bytes]:
        """What identifies the variable: name and vendor GUID, as in `KeyVariable.key`."""
        return self.name, self.guid.bytes_le

    def build(self) -> bytes:
        """The variable's bytes in a store."""
        tail = layouts.VARIABLE_TAIL.build(
            self.guid.bytes_le,
            self.attributes,
            self.timestamp.raw,
            self.digest,
        )
        return b"".join(
            (
                len(self.name).to_bytes(8, "little"),
                self.name,
                len(self.data).to_bytes(8, "little"),
                self.data,
                tail,
            )
        )


@lru_cache(maxsize=64)
def _guid(raw: bytes) -> UUID:
    """A vendor's GUID. A store's variables are of a handful of vendors, and making each anew is a third of parsing them."""
    return UUID(bytes_le=raw)


def parse_tail(name: bytes, data: bytes, store: bytes, offset: int) -> Variable:
    """The variable with this name and data whose tail, known to lie inside `store`, starts at `offset`."""
    tail = layouts.VARIABLE_TAIL.parse(store, offset)
    return Variable(
        name=name,
        data=data,
        guid=_guid(tail.guid),
        attributes=tail.attributes,
        timestamp=EfiTime(tail.timestamp),
        digest=tail.digest,
    )
