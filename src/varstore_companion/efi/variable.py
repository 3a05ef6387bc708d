"""One variable of a store, and the names of the variables that hold Secure Boot keys."""

from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from varstore_companion.efi import guid, layouts
from varstore_companion.efi.timestamp import EfiTime

TAIL_SIZE = layouts.VARIABLE_TAIL.size
FIXED_SIZE = 8 + 8 + TAIL_SIZE
"""A variable's bytes in a store besides its name and data: 84."""


class KeyVariable(Enum):
    """The variables that hold signature lists (UEFI 2.10, section 32.3), by varstored's names."""

    PK = ("PK", guid.EFI_GLOBAL_VARIABLE)
    KEK = ("KEK", guid.EFI_GLOBAL_VARIABLE)
    DB = ("db", guid.EFI_IMAGE_SECURITY_DATABASE)
    DBX = ("dbx", guid.EFI_IMAGE_SECURITY_DATABASE)
    DBT = ("dbt", guid.EFI_IMAGE_SECURITY_DATABASE)

    def __init__(self, text: str, vendor: UUID) -> None:
        self.text = text
        self.key = (text.encode("utf-16-le"), vendor.bytes_le)

    def __str__(self) -> str:
        return self.text


def readable(name: bytes) -> str:
    """A variable's name for people: what is not printable UTF-16 shows as U+FFFD, as a guest chooses its names."""
    text = name.decode("utf-16-le", errors="replace")
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


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


def parse_tail(name: bytes, data: bytes, store: bytes, offset: int) -> Variable:
    """The variable with this name and data whose tail, known to lie inside `store`, starts at `offset`."""
    tail = layouts.VARIABLE_TAIL.parse(store, offset)
    return Variable(
        name=name,
        data=data,
        guid=UUID(bytes_le=tail.guid),
        attributes=tail.attributes,
        timestamp=EfiTime(tail.timestamp),
        digest=tail.digest,
    )
