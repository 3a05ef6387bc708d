"""EFI_VARIABLE_AUTHENTICATION_2 (UEFI 2.10, section 8.2.2): varstored's `.auth` files and Microsoft's `.bin` updates."""

from dataclasses import dataclass
from uuid import UUID

from varstore_companion.efi import guid, layouts
from varstore_companion.efi.timestamp import SIZE as TIME_SIZE
from varstore_companion.efi.timestamp import EfiTime
from varstore_companion.errors import MalformedError

HEADER_SIZE = layouts.AUTHENTICATION_2_HEADER.size
WIN_CERT_REVISION = 0x0200
WIN_CERT_TYPE_EFI_GUID = 0x0EF1


@dataclass(frozen=True, slots=True)
class AuthenticatedUpdate:
    """A signed SetVariable payload. `signature` is PKCS #7 SignedData, not verified here; `payload` the variable's data."""

    timestamp: EfiTime
    signature: bytes
    payload: bytes

    def build(self) -> bytes:
        """The update's bytes; `parse(b).build() == b`."""
        head = layouts.AUTHENTICATION_2_HEADER.build(
            self.timestamp.raw,
            HEADER_SIZE - TIME_SIZE + len(self.signature),
            WIN_CERT_REVISION,
            WIN_CERT_TYPE_EFI_GUID,
            guid.EFI_CERT_TYPE_PKCS7.bytes_le,
        )
        return head + self.signature + self.payload


def parse(data: bytes) -> AuthenticatedUpdate:
    """Parse a signed update. Raises `MalformedError`; the payload may be empty (a deletion) and is not looked into."""
    what = "EFI_VARIABLE_AUTHENTICATION_2"
    if len(data) < HEADER_SIZE:
        raise MalformedError(what, offset=0, expected=f"{HEADER_SIZE} bytes of header, found {len(data)}")
    head = layouts.AUTHENTICATION_2_HEADER.parse(data, 0)
    smallest, largest = HEADER_SIZE - TIME_SIZE, len(data) - TIME_SIZE
    if not smallest <= head.dwLength <= largest:
        raise MalformedError(
            what, offset=TIME_SIZE, expected=f"a dwLength of {smallest} to {largest:,}, found {head.dwLength:,}"
        )
    if head.wRevision != WIN_CERT_REVISION:
        raise MalformedError(
            what, offset=TIME_SIZE + 4, expected=f"wRevision {WIN_CERT_REVISION:#06x}, found {head.wRevision:#06x}"
        )
    if head.wCertificateType != WIN_CERT_TYPE_EFI_GUID:
        raise MalformedError(
            what,
            offset=TIME_SIZE + 6,
            expected=f"wCertificateType {WIN_CERT_TYPE_EFI_GUID:#06x}, found {head.wCertificateType:#06x}",
        )
    if head.CertType != guid.EFI_CERT_TYPE_PKCS7.bytes_le:
        raise MalformedError(
            what,
            offset=TIME_SIZE + 8,
            expected=f"CertType {guid.EFI_CERT_TYPE_PKCS7} (PKCS #7), found {UUID(bytes_le=head.CertType)}",
        )
    split = TIME_SIZE + head.dwLength
    return AuthenticatedUpdate(EfiTime(head.TimeStamp), data[HEADER_SIZE:split], data[split:])
