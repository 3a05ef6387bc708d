"""The fixed parts of every format, declared with construct; what has a length of its own is walked by the other modules.

construct's repeating and optional fields swallow errors, and reading through it costs twenty times a plain unpacking: so
the declarations here have one size each, are turned into `struct` formats once, and the code that walks checks every length
against what encloses it first.
"""

import struct
from collections import namedtuple
from collections.abc import Callable
from typing import Any

from construct import Bytes, FormatField, Int8ul, Int16sl, Int16ul, Int32ul, Int64ul, Struct


class Layout:
    """A declared layout of one size, with little-endian numbers and byte strings only."""

    def __init__(self, declared: Struct) -> None:
        self.declared = declared
        self._fields = _tuple_of([field.name for field in declared.subcons])
        self._struct = struct.Struct("<" + "".join(_format(field.subcon) for field in declared.subcons))
        # The fields without their names, for the walks that every write of every VM takes: no call of ours in between.
        self.unpack_from: Callable[[bytes, int], tuple[Any, ...]] = self._struct.unpack_from

    @property
    def size(self) -> int:
        """The layout's bytes."""
        return self._struct.size

    def parse(self, data: bytes, offset: int) -> Any:  # noqa: ANN401  the fields' types are construct's, which has none
        """The fields, by the names they were declared with. The caller has checked that all of them lie inside `data`."""
        return self._fields._make(self._struct.unpack_from(data, offset))

    def build(self, *values: object) -> bytes:
        """The bytes of the fields, in the order in which they were declared."""
        return self._struct.pack(*values)


def _tuple_of(names: list[str]) -> Any:  # noqa: ANN401  a type made at run time
    return namedtuple("Fields", names)  # noqa: PYI024  the names are in the declaration


def _format(field: Any) -> str:  # noqa: ANN401  construct has no types
    if isinstance(field, FormatField):
        return str(field.fmtstr[1])
    return f"{field.length}s"


EFI_TIME = Layout(
    Struct(
        "Year" / Int16ul,
        "Month" / Int8ul,
        "Day" / Int8ul,
        "Hour" / Int8ul,
        "Minute" / Int8ul,
        "Second" / Int8ul,
        "Pad1" / Int8ul,
        "Nanosecond" / Int32ul,
        "TimeZone" / Int16sl,
        "Daylight" / Int8ul,
        "Pad2" / Int8ul,
    )
)
"""UEFI 2.10, section 8.3 (GetTime)."""

STORE_HEADER = Layout(Struct("magic" / Bytes(4), "version" / Int32ul, "count" / Int64ul, "data_length" / Int64ul))
"""The first 24 bytes of a store (varstored, xapidb-lib.c)."""

ANCILLARY = Layout(Struct("mor_key" / Bytes(8), "ppi" / Bytes(0x104)))
"""Version 2 only: the Memory Overwrite Request key and the Physical Presence Interface data, both opaque here."""

LENGTH = Layout(Struct("length" / Int64ul))
"""What stands before a variable's name and before its data."""

VARIABLE_TAIL = Layout(Struct("guid" / Bytes(16), "attributes" / Int32ul, "timestamp" / Bytes(16), "digest" / Bytes(32)))
"""What follows a variable's name and data (varstored, xapidb-lib.c)."""

SIGNATURE_LIST_HEADER = Layout(
    Struct(
        "SignatureType" / Bytes(16),
        "SignatureListSize" / Int32ul,
        "SignatureHeaderSize" / Int32ul,
        "SignatureSize" / Int32ul,
    )
)
"""UEFI 2.10, section 32.4.1: EFI_SIGNATURE_LIST without its header and signatures."""

AUTHENTICATION_2_HEADER = Layout(
    Struct(
        "TimeStamp" / Bytes(16),
        "dwLength" / Int32ul,
        "wRevision" / Int16ul,
        "wCertificateType" / Int16ul,
        "CertType" / Bytes(16),
    )
)
"""UEFI 2.10, section 8.2.2: EFI_VARIABLE_AUTHENTICATION_2 up to CertData; dwLength counts from itself to CertData's end."""
