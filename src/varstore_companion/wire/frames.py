"""The outermost two layers of bytes: the frame's header, and the fields of a payload. protocol/README.md "Frames".

`struct` and slices, not construct: this stands in front of every store a VM writes, and a 49 KiB store that construct
reads in 525 µs takes `struct` 32 µs.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from varstore_companion.wire.errors import HeaderError, HeaderVersionError, PayloadError
from varstore_companion.wire.limits import FIELD_HEADER_BYTES, MAGIC, MAX_FIELDS, VERSION

ANSWER_BIT: Final = 0x8000
"""In a frame's type: what it answers has the same type without this bit."""

MUST_UNDERSTAND: Final = 0x8000
"""In a field's tag: a reader that does not know it refuses the message instead of skipping the field."""

_HEADER = struct.Struct("<4sHHII")
_FIELD = struct.Struct("<HHI")


@dataclass(frozen=True, slots=True)
class Header:
    """A frame's header, after its magic and version were found good. `length`: of the payload, in bytes."""

    type: int
    request_id: int
    length: int


def parse_header(buffer: bytes | bytearray, *, max_payload: int) -> Header:
    """Read the header at the start of `buffer`, which holds at least `HEADER_BYTES`.

    Raises `HeaderError` for another magic or a payload over `max_payload` bytes, `HeaderVersionError` for another
    version. Nothing is allocated for the payload.
    """
    magic, version, type_, request_id, length = _HEADER.unpack_from(buffer)
    if magic != MAGIC:
        raise HeaderError(f"magic {magic.hex(' ')}", offset=0, expected=f"{MAGIC.hex(' ')} ({MAGIC.decode()})")
    if version != VERSION:
        raise HeaderVersionError(f"version {version}", offset=4, expected=f"{VERSION}")
    if length > max_payload:
        raise HeaderError(f"a payload of {length} bytes", offset=12, expected=f"at most {max_payload}")
    return Header(type_, request_id, length)


def build_frame(type_: int, request_id: int, payload: bytes) -> bytes:
    """Put the header before a payload."""
    return _HEADER.pack(MAGIC, VERSION, type_, request_id, len(payload)) + payload


def split_fields(payload: bytes | memoryview) -> list[tuple[int, int, int]]:
    """Return each field's tag, the offset of its value and the offset after it, without copying a value.

    Raises `PayloadError` unless the fields fill the payload exactly, tags ascend, reserved bytes are zero, and there
    are at most `MAX_FIELDS`.
    """
    fields: list[tuple[int, int, int]] = []
    end = len(payload)
    offset = 0
    last_tag = 0
    while offset < end:
        if len(fields) == MAX_FIELDS:
            raise PayloadError(f"field {MAX_FIELDS + 1}", offset=offset, expected=f"at most {MAX_FIELDS} fields")
        if end - offset < FIELD_HEADER_BYTES:
            raise PayloadError(f"a field's header, {end - offset} long,", offset=offset, expected=f"{FIELD_HEADER_BYTES} bytes")
        tag, reserved, length = _FIELD.unpack_from(payload, offset)
        if tag <= last_tag:
            raise PayloadError(f"tag {tag:#06x}", offset=offset, expected=f"a tag above {last_tag:#06x}")
        if reserved:
            raise PayloadError(f"reserved bytes {reserved:#06x}", offset=offset + 2, expected="zero")
        value = offset + FIELD_HEADER_BYTES
        if length > end - value:
            raise PayloadError(
                f"field {tag:#06x} of {length} bytes", offset=offset + 4, expected=f"at most the {end - value} left"
            )
        offset = value + length
        last_tag = tag
        fields.append((tag, value, offset))
    return fields


def join_fields(fields: Iterable[tuple[int, bytes]]) -> bytes:
    """Build a payload from tags, ascending, and values."""
    parts: list[bytes] = []
    for tag, value in fields:
        parts += (_FIELD.pack(tag, 0, len(value)), value)
    return b"".join(parts)
