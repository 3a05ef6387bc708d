"""Builds the bytes of stores, variables and signature lists from values, wrong ones too when asked.

Written from the layout alone (varstored's `xapidb-lib.c`, UEFI 2.10 sections 8.3 and 32.4.1); shares nothing with the
product.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")

OWNER_MICROSOFT = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
OWNER_WRONG = UUID("9be025e2-415b-435d-ad61-6b3e094fc28d")
OWNER_VIRT_FIRMWARE = UUID("a0baa8a3-041d-48a8-bc87-c36d121b5e3d")
OWNER_SVN = UUID("9d132b6c-59d5-4388-ab1c-185cfcb2eb92")
OWNER_TENANT = UUID("5f3d8c02-7b4e-4a19-9c65-1d2e3f405162")

CERT_SHA1 = UUID("826ca512-cf10-4ac9-b187-be01496631bd")
CERT_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
CERT_RSA2048 = UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6")
CERT_RSA2048_SHA256 = UUID("e2b36190-879b-4a3d-ad8d-f2e7bba32784")
CERT_RSA2048_SHA1 = UUID("67f8444f-8743-48f1-a328-1eaab8736080")
CERT_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
CERT_SHA224 = UUID("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd")
CERT_SHA384 = UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01")
CERT_SHA512 = UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a")
CERT_X509_SHA256 = UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
CERT_X509_SHA384 = UUID("7076876e-80c2-4ee6-aad2-28b349a6865b")
CERT_X509_SHA512 = UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d")
CERT_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")

NON_VOLATILE = 0x01
BOOTSERVICE_ACCESS = 0x02
RUNTIME_ACCESS = 0x04
HARDWARE_ERROR_RECORD = 0x08
AUTHENTICATED_WRITE_ACCESS = 0x10
TIME_BASED_AUTHENTICATED_WRITE_ACCESS = 0x20
APPEND_WRITE = 0x40
ENHANCED_AUTHENTICATED_ACCESS = 0x80
ATTRIBUTES_PLAIN = NON_VOLATILE | BOOTSERVICE_ACCESS | RUNTIME_ACCESS
ATTRIBUTES_KEYS = ATTRIBUTES_PLAIN | TIME_BASED_AUTHENTICATED_WRITE_ACCESS

NAME_LIMIT = 4096
DATA_LIMIT = 57_344
TOTAL_LIMIT = 131_072
FILE_LIMIT = 131_072
COUNT_LIMIT = 1024
OVERHEAD_COUNTED = 128
"""What varstored counts for each variable besides name and data; on disk it is 84."""

HEADER_SIZE = 24
ANCILLARY_SIZE = 8 + 0x104
VARIABLE_FIXED_SIZE = 84
SIGNATURE_LIST_HEADER_SIZE = 28
OWNER_SIZE = 16
NO_TIME = bytes(16)


def efi_time(year: int, month: int, day: int, *, hour: int = 0, minute: int = 0, second: int = 0) -> bytes:
    """An EFI_TIME of 16 bytes with the fields that authenticated writes want zero left zero (UEFI 2.10, 8.3)."""
    return struct.pack("<H5BxIhBx", year, month, day, hour, minute, second, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a store. `name`: text, or raw bytes where it is not UTF-16LE."""

    name: str | bytes
    guid: UUID
    data: bytes
    attributes: int = ATTRIBUTES_PLAIN
    time: bytes = NO_TIME
    digest: bytes = bytes(32)

    @property
    def raw_name(self) -> bytes:
        return self.name if isinstance(self.name, bytes) else self.name.encode("utf-16-le")

    @property
    def counted(self) -> int:
        """The bytes that varstored counts towards TOTAL_LIMIT."""
        return len(self.raw_name) + len(self.data) + OVERHEAD_COUNTED

    def encode(self, *, name_length: int | None = None, data_length: int | None = None) -> bytes:
        """The variable's bytes in a store; the lengths may be made to lie."""
        name = self.raw_name
        return b"".join(
            (
                struct.pack("<Q", len(name) if name_length is None else name_length),
                name,
                struct.pack("<Q", len(self.data) if data_length is None else data_length),
                self.data,
                self.guid.bytes_le,
                struct.pack("<I", self.attributes),
                self.time,
                self.digest,
            )
        )


def make_store(
    variables: Iterable[Variable | bytes],
    version: int = 2,
    ancillary: bytes | None = None,
    data_length: int | None = None,
    *,
    count: int | None = None,
) -> bytes:
    """A store blob. `ancillary` is all zero by default and absent in versions 0 and 1; a variable given as bytes is
    taken as it is; `data_length` and `count` may be made to lie.
    """
    encoded = [item if isinstance(item, bytes) else item.encode() for item in variables]
    body = b"".join(encoded)
    if ancillary is None:
        ancillary = bytes(ANCILLARY_SIZE) if version >= 2 else b""
    header = struct.pack(
        "<4sIQQ",
        b"VARS",
        version,
        len(encoded) if count is None else count,
        len(body) if data_length is None else data_length,
    )
    return header + ancillary + body


def signature_list(
    kind: UUID,
    entries: Sequence[tuple[UUID, bytes]],
    *,
    header: bytes = b"",
    list_size: int | None = None,
    header_size: int | None = None,
    signature_size: int | None = None,
) -> bytes:
    """An EFI_SIGNATURE_LIST of (owner, data) entries (UEFI 2.10, 32.4.1); the sizes may be made to lie."""
    body = header + b"".join(owner.bytes_le + data for owner, data in entries)
    if signature_size is None:
        signature_size = OWNER_SIZE + len(entries[0][1])
    return (
        kind.bytes_le
        + struct.pack(
            "<III",
            SIGNATURE_LIST_HEADER_SIZE + len(body) if list_size is None else list_size,
            len(header) if header_size is None else header_size,
            signature_size,
        )
        + body
    )


def x509_list(certificate: bytes, owner: UUID = OWNER_MICROSOFT) -> bytes:
    """One certificate as a signature list of its own, as Microsoft issues them."""
    return signature_list(CERT_X509, [(owner, certificate)])


def x509_lists(certificates: Iterable[bytes], owner: UUID = OWNER_MICROSOFT) -> bytes:
    """Certificates of any sizes, each in its own signature list, one after the other."""
    return b"".join(x509_list(certificate, owner) for certificate in certificates)


def sha256_list(hashes: Sequence[bytes], owner: UUID = OWNER_MICROSOFT) -> bytes:
    """Image hashes in one signature list, as in dbx."""
    return signature_list(CERT_SHA256, [(owner, each) for each in hashes])


def pk_variable(data: bytes, time: bytes = NO_TIME) -> Variable:
    return Variable("PK", GLOBAL, data, ATTRIBUTES_KEYS, time)


def kek_variable(data: bytes, time: bytes = NO_TIME) -> Variable:
    return Variable("KEK", GLOBAL, data, ATTRIBUTES_KEYS, time)


def db_variable(data: bytes, time: bytes = NO_TIME) -> Variable:
    return Variable("db", IMAGE_SECURITY, data, ATTRIBUTES_KEYS, time)


def dbx_variable(data: bytes, time: bytes = NO_TIME) -> Variable:
    return Variable("dbx", IMAGE_SECURITY, data, ATTRIBUTES_KEYS, time)
