"""EFI_SIGNATURE_LIST (UEFI 2.10, section 32.4.1) as values: the data of PK, KEK, db, dbx and dbt."""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from varstore_companion.efi import guid, layouts
from varstore_companion.efi.siglist_outline import HEADER_SIZE, OWNER_SIZE, walk


@dataclass(frozen=True, slots=True)
class Signature:
    """One EFI_SIGNATURE_DATA: its SignatureOwner and its bytes."""

    owner: UUID
    data: bytes


@dataclass(frozen=True, slots=True)
class SignatureList:
    """One EFI_SIGNATURE_LIST. `signature_size` counts the owner's 16 bytes; a list may be without signatures."""

    type: UUID
    header: bytes
    signature_size: int
    signatures: tuple[Signature, ...]

    def build(self) -> bytes:
        """The list's bytes."""
        body = b"".join(signature.owner.bytes_le + signature.data for signature in self.signatures)
        head = layouts.SIGNATURE_LIST_HEADER.build(
            self.type.bytes_le,
            HEADER_SIZE + len(self.header) + len(body),
            len(self.header),
            self.signature_size,
        )
        return head + self.header + body


def x509_list(owner: UUID, certificate: bytes) -> SignatureList:
    """A list of its own for one DER certificate."""
    return SignatureList(guid.EFI_CERT_X509, b"", OWNER_SIZE + len(certificate), (Signature(owner, certificate),))


def build(lists: Iterable[SignatureList]) -> bytes:
    """The bytes of a variable's signature lists."""
    return b"".join(signature_list.build() for signature_list in lists)


def parse(data: bytes) -> tuple[SignatureList, ...]:
    """Parse a variable's signature lists; `build(parse(data)) == data`.

    Raises `MalformedError` where a size does not fit: nothing is skipped and nothing is guessed. Types and header sizes
    that varstored would not accept from a guest are read all the same: see `siglist_outline.violations`.
    """
    return tuple(
        SignatureList(
            UUID(bytes_le=place.type),
            data[place.start + HEADER_SIZE : place.body],
            place.signature_size,
            tuple(Signature(UUID(bytes_le=entry[:OWNER_SIZE]), entry[OWNER_SIZE:]) for entry in place.entries(data)),
        )
        for place in walk(data)
    )
