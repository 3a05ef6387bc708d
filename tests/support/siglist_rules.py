"""What SetVariable enforces on the signature lists of PK, KEK, db, dbx and dbt, told independently of the product.

Source: varstored's `handler.c` (check_signature_list_format, filter_signature_list), UEFI 2.10 section 32.4.1.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from support import storebytes as sb
from support.pkcs7 import SignatureRefused, public_rsa_key, read_certificate

DATA_SIZES: dict[UUID, int | None] = {
    sb.CERT_SHA1: 20,
    sb.CERT_SHA256: 32,
    sb.CERT_RSA2048: 256,
    sb.CERT_RSA2048_SHA256: 256,
    sb.CERT_RSA2048_SHA1: 256,
    sb.CERT_X509: None,
    sb.CERT_SHA224: 28,
    sb.CERT_SHA384: 48,
    sb.CERT_SHA512: 64,
    sb.CERT_X509_SHA256: 48,
    sb.CERT_X509_SHA384: 64,
    sb.CERT_X509_SHA512: 80,
}
"""Bytes of an entry's data, without the owner; None: any."""


@dataclass(frozen=True, slots=True)
class SignatureList:
    """One signature list that keeps to the rules of sizes; an entry is the owner's 16 bytes and the data."""

    kind: UUID
    entries: tuple[bytes, ...]


class ListRefused(Exception):  # noqa: N818 - named after what happened, as the tests that expect it read
    """Signature lists that break a rule; the text says which, and at what offset."""


def walk(data: bytes) -> Iterator[SignatureList]:
    """Yield the lists in `data`; raises ListRefused where the sizes stop making sense."""
    offset = 0
    while offset < len(data):
        left = len(data) - offset
        if left < sb.SIGNATURE_LIST_HEADER_SIZE:
            raise ListRefused(f"{left} bytes at offset {offset} where a list header needs 28")
        kind = UUID(bytes_le=data[offset : offset + 16])
        list_size, header_size, size = struct.unpack_from("<III", data, offset + 16)
        body_size = list_size - sb.SIGNATURE_LIST_HEADER_SIZE
        if not 0 <= body_size <= left - sb.SIGNATURE_LIST_HEADER_SIZE:
            raise ListRefused(f"SignatureListSize {list_size} at offset {offset} with {left} bytes left")
        if kind not in DATA_SIZES:
            raise ListRefused(f"unknown signature type {kind} at offset {offset}")
        if header_size:
            raise ListRefused(f"SignatureHeaderSize {header_size} at offset {offset}")
        expected = DATA_SIZES[kind]
        if size < sb.OWNER_SIZE or (expected is not None and size != sb.OWNER_SIZE + expected):
            raise ListRefused(f"SignatureSize {size} at offset {offset}")
        if body_size % size or not body_size:
            raise ListRefused(f"{body_size} bytes of entries of {size} at offset {offset}")
        start = offset + sb.SIGNATURE_LIST_HEADER_SIZE
        yield SignatureList(kind, tuple(data[at : at + size] for at in range(start, start + body_size, size)))
        offset += list_size


def signature_list_violations(data: bytes, name: str) -> list[str]:
    """Every rule that the lists of the variable `name` break, in order; empty where varstored would take them.

    What follows a list whose sizes make no sense cannot be found, so it is not judged.
    """
    found = []
    entries = 0
    lists = walk(data)
    while True:
        try:
            each = next(lists, None)
        except ListRefused as error:
            found.append(str(error))
            return found
        if each is None:
            break
        if each.kind == sb.CERT_X509:
            for number, entry in enumerate(each.entries, entries):
                try:
                    public_rsa_key(read_certificate(entry[sb.OWNER_SIZE :]))
                except SignatureRefused as error:
                    found.append(f"entry {number}: {error}")
        entries += len(each.entries)
    if name == "PK" and entries > 1:
        found.append(f"{entries} entries in PK")
    return found


def without_known(old: bytes, new: bytes) -> bytes:
    """The lists of `new` without the entries that `old` has with the same type, owner and data.

    A list that loses all its entries goes; entries that `new` has twice stay twice.
    """
    known = {(each.kind, entry) for each in walk(old) for entry in each.entries}
    kept = []
    for each in walk(new):
        fresh = [entry for entry in each.entries if (each.kind, entry) not in known]
        if fresh:
            pairs = [(UUID(bytes_le=entry[:16]), entry[16:]) for entry in fresh]
            kept.append(sb.signature_list(each.kind, pairs))
    return b"".join(kept)


def certificates_in(data: bytes) -> Iterator[bytes]:
    """The X.509 bodies in `data`, as far as its lists can be walked."""
    for each in walk(data):
        if each.kind == sb.CERT_X509:
            yield from (entry[sb.OWNER_SIZE :] for entry in each.entries)
