"""Finds certificates inside any bytes, so that no corpus carries one that is not ours to give away."""

import base64
import hashlib
import re
from collections.abc import Iterator

from support import storebytes as sb

_TEXT = re.compile(rb"[A-Za-z0-9+/\r\n]{64,}={0,2}")
_SEQUENCE = re.compile(rb"(?=\x30\x82(..))", re.DOTALL)
LONGEST = 4_096
"""Bytes of a certificate that is looked for: every body of Microsoft's has less than 2,000."""


def digests_in(data: bytes) -> Iterator[str]:
    """The SHA-256 of everything in `data` that could be a certificate: DER wherever it stands, entries of X.509 lists.

    Bytes in the text of base64, as in PEM and in the toolstack's stores, are looked through, too.
    """
    yield from _in_bytes(data)
    for text in _TEXT.findall(data):
        digits = text.translate(None, delete=b"\r\n=")
        # One digit too many is no byte, and two or three that are left lack their padding.
        yield from _in_bytes(base64.b64decode(digits[: len(digits) - (len(digits) % 4 == 1)] + b"=="))


def _in_bytes(data: bytes) -> Iterator[str]:
    for found in _SEQUENCE.finditer(data):
        end = found.start() + 4 + int.from_bytes(found[1], "big")
        if end - found.start() <= LONGEST:
            yield hashlib.sha256(data[found.start() : end]).hexdigest()
    at = -1
    while (at := data.find(sb.CERT_X509.bytes_le, at + 1)) >= 0:
        size, header, each = (int.from_bytes(data[at + offset : at + offset + 4], "little") for offset in (16, 20, 24))
        if 16 <= each <= LONGEST:
            for entry in range(at + 28 + header, min(at + size, len(data)), each):
                yield hashlib.sha256(data[entry + 16 : entry + each]).hexdigest()
