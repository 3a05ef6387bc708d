"""The small values: GUIDs, attributes, times and names."""

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import storebytes as sb
from varstore_companion.efi import attributes, guid
from varstore_companion.efi.names import KeyVariable, readable
from varstore_companion.efi.timestamp import EfiTime
from varstore_companion.efi.variable import Variable


def test_guids_are_those_of_the_specification() -> None:
    assert guid.EFI_GLOBAL_VARIABLE == sb.GLOBAL
    assert guid.EFI_IMAGE_SECURITY_DATABASE == sb.IMAGE_SECURITY
    assert guid.EFI_CERT_X509 == sb.CERT_X509
    assert guid.EFI_CERT_SHA256 == sb.CERT_SHA256
    assert guid.EFI_CERT_X509_SHA256 == sb.CERT_X509_SHA256
    assert guid.EFI_CERT_TYPE_PKCS7 == sb.CERT_PKCS7


def test_a_guid_is_mixed_endian_on_the_wire() -> None:
    assert guid.EFI_CERT_X509.bytes_le == bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (0, []),
        (0x27, ["NON_VOLATILE", "BOOTSERVICE_ACCESS", "RUNTIME_ACCESS", "TIME_BASED_AUTHENTICATED_WRITE_ACCESS"]),
        (0x8000_0101, ["NON_VOLATILE", "0x80000100"]),
        (0xFFFF_FFFF, [*attributes.NAMES.values(), "0xffffff00"]),
    ],
)
def test_attributes_are_named_and_unknown_bits_kept(value: int, names: list[str]) -> None:
    assert attributes.describe(value) == names


@given(st.integers(0, 0xFFFF_FFFF))
def test_no_attribute_is_lost(value: int) -> None:
    bits = {name: bit for bit, name in attributes.NAMES.items()}
    assert sum(bits.get(name) or int(name, 16) for name in attributes.describe(value)) == value


def test_a_time_reads_as_a_date() -> None:
    assert str(EfiTime(sb.efi_time(2026, 1, 20, hour=10, minute=35, second=8))) == "2026-01-20T10:35:08"
    assert str(EfiTime(bytes(16))) == "unset"


@given(st.binary(min_size=16, max_size=16))
def test_an_impossible_time_is_shown_all_the_same(raw: bytes) -> None:
    year = struct.unpack_from("<H", raw)[0]
    shown = str(EfiTime(raw))
    assert shown == "unset" if not any(raw) else shown.startswith(f"{year:04}-")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"d\0b\0", "db"),
        (b"d\0b\0\0\0", "db\ufffd"),
        (b"\x1b\0[\x002\0J\0", "\ufffd[2J"),
        (b"a\0\n\0b\0", "a\ufffdb"),
        (b"\x2e\x20a\0", "\ufffda"),
        (b"d\0odd", "d\u646f\ufffd"),
        (b"\x3d\xd8d\0", "\ufffdd"),
        (b"\x3d\xd8\x00\xdeX\0", "\U0001f600X"),
    ],
    ids=["db", "terminator", "escape", "newline", "right to left", "odd", "half a pair", "pair"],
)
def test_a_guests_name_cannot_write_to_the_terminal(name: bytes, shown: str) -> None:
    assert readable(name) == shown


@given(st.binary(max_size=200))
def test_any_name_can_be_shown_on_one_line(name: bytes) -> None:
    shown = readable(name)
    assert shown.isprintable()
    assert len(f"{shown}.".splitlines()) == 1


def test_key_variables_are_known_by_name_and_vendor() -> None:
    keys = {str(key): key.key for key in KeyVariable}
    expected = {"PK": sb.GLOBAL, "KEK": sb.GLOBAL, "db": sb.IMAGE_SECURITY, "dbx": sb.IMAGE_SECURITY, "dbt": sb.IMAGE_SECURITY}
    assert keys == {name: (name.encode("utf-16-le"), vendor.bytes_le) for name, vendor in expected.items()}


def test_a_variables_key_is_a_key_variables_key() -> None:
    variable = Variable(b"d\0b\0", b"x", sb.IMAGE_SECURITY, 7, EfiTime(bytes(16)), bytes(32))
    assert variable.key == KeyVariable.DB.key
    assert variable.text == "db"
    elsewhere = Variable(b"d\0b\0", b"x", UUID(int=1), 7, EfiTime(bytes(16)), bytes(32))
    assert elsewhere.key != KeyVariable.DB.key
