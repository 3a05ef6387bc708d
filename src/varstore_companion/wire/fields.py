"""The kinds of value that a field can hold. protocol/README.md "Kinds of value".

No kind raises: None in place of a value says that it does not fit, and `expected` says what would.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol, TypeAlias
from uuid import UUID

from varstore_companion.wire.errors import PayloadError

Value: TypeAlias = int | bytes | str | UUID


class Kind(Protocol):
    """One kind of value, with its bounds."""

    @property
    def expected(self) -> str:
        """What fits, for an error's text."""

    @property
    def error(self) -> type[PayloadError]:
        """What a reader raises for bytes that do not fit."""

    def parse(self, data: bytes) -> Value | None:
        """Read a field's value."""

    def build(self, value: object) -> bytes | None:
        """Write a field's value."""


@dataclass(frozen=True, slots=True)
class Number:
    """An unsigned little-endian integer of `size` bytes, from `low` to `high`."""

    size: int
    low: int
    high: int
    error: type[PayloadError] = PayloadError

    @property
    def expected(self) -> str:
        """What fits, for an error's text."""
        return f"{self.size} bytes, a number from {self.low} to {self.high}"

    def parse(self, data: bytes) -> int | None:
        """Read a field's value."""
        value = int.from_bytes(data, "little")
        return value if len(data) == self.size and self.low <= value <= self.high else None

    def build(self, value: object) -> bytes | None:
        """Write a field's value."""
        if isinstance(value, int) and self.low <= value <= self.high:
            return value.to_bytes(self.size, "little")
        return None


@dataclass(frozen=True, slots=True)
class Flag:
    """One byte, 0 or 1."""

    error: type[PayloadError] = PayloadError

    @property
    def expected(self) -> str:
        """What fits, for an error's text."""
        return "1 byte, 0 or 1"

    def parse(self, data: bytes) -> bool | None:
        """Read a field's value."""
        return {b"\0": False, b"\1": True}.get(data)

    def build(self, value: object) -> bytes | None:
        """Write a field's value."""
        return bytes([value]) if isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class Choice:
    """One byte, a member of a closed set."""

    members: type[IntEnum]
    error: type[PayloadError] = PayloadError

    @property
    def expected(self) -> str:
        """What fits, for an error's text."""
        return "1 byte, one of " + ", ".join(f"{member.value} ({member.name.lower()})" for member in self.members)

    def parse(self, data: bytes) -> IntEnum | None:
        """Read a field's value."""
        return next((member for member in self.members if data == bytes([member])), None)

    def build(self, value: object) -> bytes | None:
        """Write a field's value."""
        return bytes([value]) if isinstance(value, self.members) else None


@dataclass(frozen=True, slots=True)
class Uuid:
    """16 bytes in the order of the text (RFC 9562 section 4), not EFI's mixed order."""

    error: type[PayloadError] = PayloadError

    @property
    def expected(self) -> str:
        """What fits, for an error's text."""
        return "16 bytes, a UUID"

    def parse(self, data: bytes) -> UUID | None:
        """Read a field's value."""
        return UUID(bytes=data) if len(data) == 16 else None

    def build(self, value: object) -> bytes | None:
        """Write a field's value."""
        return value.bytes if isinstance(value, UUID) else None


@dataclass(frozen=True, slots=True)
class Octets:
    """Any bytes, from `low` to `high` of them."""

    low: int
    high: int
    error: type[PayloadError] = PayloadError

    @property
    def expected(self) -> str:
        """What fits, for an error's text."""
        return f"{self.low} to {self.high} bytes"

    def parse(self, data: bytes) -> bytes | None:
        """Read a field's value."""
        return data if self.low <= len(data) <= self.high else None

    def build(self, value: object) -> bytes | None:
        """Write a field's value."""
        return value if isinstance(value, bytes) and self.low <= len(value) <= self.high else None


@dataclass(frozen=True, slots=True)
class Path:
    """An absolute path, from 2 to `high` bytes in no particular encoding, without NUL."""

    high: int
    error: type[PayloadError] = PayloadError

    @property
    def expected(self) -> str:
        """What fits, for an error's text."""
        return f"an absolute path of 2 to {self.high} bytes without NUL"

    def parse(self, data: bytes) -> bytes | None:
        """Read a field's value."""
        return data if data.startswith(b"/") and b"\0" not in data and 2 <= len(data) <= self.high else None

    def build(self, value: object) -> bytes | None:
        """Write a field's value."""
        return self.parse(value) if isinstance(value, bytes) else None


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 without U+0000, from `low` to `high` bytes. Other control characters are the logger's to escape."""

    low: int
    high: int
    error: type[PayloadError] = PayloadError

    @property
    def expected(self) -> str:
        """What fits, for an error's text."""
        return f"{self.low} to {self.high} bytes of UTF-8 without NUL"

    def parse(self, data: bytes) -> str | None:
        """Read a field's value."""
        if b"\0" in data or not self.low <= len(data) <= self.high:
            return None
        try:
            return data.decode()
        except UnicodeDecodeError:
            return None

    def build(self, value: object) -> bytes | None:
        """Write a field's value."""
        if not isinstance(value, str) or "\0" in value:
            return None
        try:
            data = value.encode()
        except UnicodeEncodeError:
            return None
        return data if self.low <= len(data) <= self.high else None


U16: Final = Number(2, 0, 0xFFFF)
U64: Final = Number(8, 0, 0xFFFF_FFFF_FFFF_FFFF)


def clip(text: str, limit: int) -> str:
    """Make any text fit a `Text` of `limit` bytes: what cannot be sent becomes `?`, and the end is cut off."""
    data = text.replace("\0", "?").encode(errors="replace")
    return data[:limit].decode(errors="ignore")
