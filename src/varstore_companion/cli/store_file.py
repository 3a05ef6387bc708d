"""A store in a file: base64 text, as the toolstack keeps it, or the raw bytes."""

import binascii
import errno
import os
import sys
from typing import NamedTuple

from varstore_companion.efi.outline import MAGIC
from varstore_companion.errors import MalformedError
from varstore_companion.files import read_file

LIMIT = 1_048_576
"""Bytes of a file: a store varstored loads has at most 131,072, and one that grew too far is still to be reported on."""
_BLANKS = b" \t\r\n"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


# A named tuple for certcheck's start: see `siglist_outline.Place`.
class StoreFile(NamedTuple):
    """What was read. `base64`: how it was written; `newline`: whether the text ended in one; `data`: the file itself."""

    blob: bytes
    base64: bool
    newline: bool
    data: bytes

    def encode(self, blob: bytes) -> bytes:
        """Another store in the form of this file."""
        if not self.base64:
            return blob
        return binascii.b2a_base64(blob, newline=self.newline)


def read(name: str) -> StoreFile:
    """Read a store from a file, or from standard input for `-`.

    Raises `OSError`, and `MalformedError`, which names the offset, for what is neither a raw store nor base64 text.
    """
    if name == "-":
        if sys.stdin is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        data = sys.stdin.buffer.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise MalformedError("input", offset=LIMIT, expected=f"at most {LIMIT:,} bytes")
    else:
        data = read_file(name, LIMIT)
    return decode(data)


def decode(data: bytes) -> StoreFile:
    """Tell raw bytes, which begin with the magic, from base64 text, which cannot. Raises `MalformedError`."""
    if data.startswith(MAGIC):
        return StoreFile(data, base64=False, newline=False, data=data)
    text = data.translate(None, delete=_BLANKS)
    try:
        # Not by the daemon's decoder, which is quicker, but not to import.
        blob = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise _not_a_store(data, str(error)) from None
    if len(text) != (len(blob) + 2) // 3 * 4:
        raise _not_a_store(data, "Excess padding")
    return StoreFile(blob, base64=True, newline=data.endswith(b"\n"), data=data)


def _not_a_store(data: bytes, why: str) -> MalformedError:
    expected = f"base64 text, or a raw store, which begins with {MAGIC.decode()} ({why})"
    return MalformedError("store", offset=_broken_at(data), expected=expected)


def _broken_at(data: bytes) -> int:
    """Where base64 text goes wrong: at the first byte that cannot be in it, else where its padding is, or should be."""
    strange = data.translate(None, delete=_ALPHABET + b"=" + _BLANKS)
    return data.index(strange[:1]) if strange else (data + b"=").index(b"=")
