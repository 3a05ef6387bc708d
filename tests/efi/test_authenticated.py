"""EFI_VARIABLE_AUTHENTICATION_2: byte for byte there and back, every length checked."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import fixtures
from support import storebytes as sb
from support.certificates import identity
from support.varstored_model import sign_update
from varstore_companion.efi import authenticated, siglist
from varstore_companion.efi.timestamp import EfiTime
from varstore_companion.errors import MalformedError

TIME = sb.efi_time(2024, 5, 6, hour=7, minute=8, second=9)
PAYLOAD = sb.x509_list(identity("A tenant's db").der, sb.OWNER_TENANT)


def signed(payload: bytes = PAYLOAD, *, wrapped: bool = False) -> bytes:
    signer = identity("A tenant's KEK")
    attributes = sb.ATTRIBUTES_KEYS | sb.APPEND_WRITE
    return sign_update(
        "db", sb.IMAGE_SECURITY, attributes, TIME, payload, key=signer.key, cert=signer.certificate, wrapped=wrapped
    )


def check_error(error: MalformedError, data: bytes) -> None:
    assert 0 <= error.offset <= len(data)
    assert error.expected


@pytest.mark.parametrize("name", [*fixtures.DB_UPDATES, "DBXUpdate"])
def test_microsofts_updates_round_trip(name: str) -> None:
    """Invariant 1."""
    data = fixtures.update(name)
    parsed = authenticated.parse(data)
    assert parsed.build() == data
    assert str(parsed.timestamp).startswith("2010-03-06T")
    assert siglist.build(siglist.parse(parsed.payload)) == parsed.payload
    assert len(parsed.payload) == {"DBXUpdate": 21_292}.get(name, len(parsed.payload))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("payload", [PAYLOAD, b""], ids=["a certificate", "a deletion"])
def test_an_update_round_trips(payload: bytes, *, wrapped: bool) -> None:
    """Invariant 1."""
    data = signed(payload, wrapped=wrapped)
    parsed = authenticated.parse(data)
    assert parsed.build() == data
    assert parsed.payload == payload
    assert parsed.timestamp == EfiTime(TIME)
    assert parsed.signature == data[40 : len(data) - len(payload)]


def test_an_update_cut_at_every_byte_is_refused_or_loses_payload_only() -> None:
    data = signed()
    split = len(data) - len(PAYLOAD)
    for end in range(len(data)):
        if end >= split:
            assert authenticated.parse(data[:end]).build() == data[:end]
            continue
        with pytest.raises(MalformedError) as caught:
            authenticated.parse(data[:end])
        check_error(caught.value, data[:end])


def _header(length: int, revision: int = 0x200, kind: int = 0xEF1, guid: bytes = sb.CERT_PKCS7.bytes_le) -> bytes:
    return TIME + struct.pack("<IHH", length, revision, kind) + guid


@pytest.mark.parametrize(
    ("data", "offset", "expected"),
    [
        (b"", 0, "40 bytes of header, found 0"),
        (_header(24)[:39], 0, "40 bytes of header, found 39"),
        (_header(23), 16, "a dwLength of 24 to 24, found 23"),
        (_header(25), 16, "a dwLength of 24 to 24, found 25"),
        (_header(0), 16, "found 0"),
        (_header(0xFFFFFFFF) + b"x", 16, "a dwLength of 24 to 25, found 4,294,967,295"),
        (_header(24, revision=0x100), 20, "wRevision 0x0200, found 0x0100"),
        (_header(24, kind=2), 22, "wCertificateType 0x0ef1, found 0x0002"),
        (_header(24, guid=sb.CERT_X509.bytes_le), 24, f"CertType {sb.CERT_PKCS7} (PKCS #7), found {sb.CERT_X509}"),
    ],
)
def test_an_error_names_the_field_that_does_not_fit(data: bytes, offset: int, expected: str) -> None:
    with pytest.raises(MalformedError) as caught:
        authenticated.parse(data)
    assert caught.value.offset == offset
    assert expected in caught.value.expected


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_with_our_own_error(data: bytes) -> None:
    for each in (data, _header(24 + len(data)) + data, _header(len(data)) + data):
        try:
            assert authenticated.parse(each).build() == each
        except MalformedError as error:
            check_error(error, each)
