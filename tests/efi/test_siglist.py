"""Signature lists: byte for byte there and back, every size checked, and what varstored would not accept of them."""

import struct
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import hostile
from support import storebytes as sb
from support.certificates import identity
from support.counting import calls, peak
from support.every import LOADING, known
from support.siglist_rules import DATA_SIZES, signature_list_violations
from support.storemaker import scene
from support.strategies import mutations
from support.varstored_model import VarstoredModel
from varstore_companion.efi import guid, siglist
from varstore_companion.efi.siglist import Signature, SignatureList, x509_list
from varstore_companion.efi.siglist_outline import violations, walk
from varstore_companion.errors import MalformedError

KEYS = {("PK", sb.GLOBAL), ("KEK", sb.GLOBAL), ("db", sb.IMAGE_SECURITY), ("dbx", sb.IMAGE_SECURITY)}


def key_data(blob: bytes) -> list[tuple[str, bytes]]:
    """The data of the key variables in a store that varstored loads."""
    return [(str(each.name), each.data) for each in VarstoredModel.load(blob).list() if (each.name, each.guid) in KEYS]


@st.composite
def lists(draw: st.DrawFn) -> bytes:
    """Signature lists of known types as a guest may set them; certificates are made-up bytes."""
    made = []
    for kind in draw(st.lists(st.sampled_from(list(DATA_SIZES)), max_size=4)):
        size = DATA_SIZES[kind]
        length = draw(st.integers(1, 40)) if size is None else size
        owners = draw(st.lists(st.uuids(), min_size=1, max_size=3))
        made.append(sb.signature_list(kind, [(owner, draw(st.binary(min_size=length, max_size=length))) for owner in owners]))
    return b"".join(made)


def check_error(error: MalformedError, data: bytes) -> None:
    assert error.what.startswith("signature list ")
    assert 0 <= error.offset <= len(data)
    assert error.expected


@pytest.mark.parametrize("name", LOADING)
def test_the_lists_of_every_store_round_trip(name: str) -> None:
    """Invariant 1."""
    for variable, data in key_data(known(name).blob):
        assert siglist.build(siglist.parse(data)) == data
        assert violations(walk(data), platform_key=variable == "PK") == ()


@given(lists())
def test_any_lists_round_trip(data: bytes) -> None:
    """Invariant 1."""
    parsed = siglist.parse(data)
    assert siglist.build(parsed) == data
    assert violations(walk(data)) == ()


@given(lists().flatmap(mutations))
def test_damaged_lists_are_taken_exactly_when_varstored_takes_them(data: bytes) -> None:
    """Invariants 1 and 2; whether a certificate can be read is not a question of the lists."""
    refused = [each for each in signature_list_violations(data, "db") if not each.startswith("entry ")]
    try:
        found = violations(walk(data))
    except MalformedError as error:
        check_error(error, data)
        assert refused
        return
    assert siglist.build(siglist.parse(data)) == data
    assert bool(found) == bool(refused)


@given(st.binary(max_size=120))
def test_any_bytes_are_refused_with_our_own_error(data: bytes) -> None:
    for each in (data, sb.CERT_X509.bytes_le + data):
        try:
            assert siglist.build(siglist.parse(each)) == each
        except MalformedError as error:
            check_error(error, each)


def test_lists_cut_at_every_byte_are_refused_but_between_lists() -> None:
    first = sb.sha256_list([bytes(32), bytes([1]) * 32])
    data = first + sb.x509_list(identity("A tenant's db").der)
    for end in range(len(data)):
        if end in (0, len(first)):
            assert siglist.build(siglist.parse(data[:end])) == data[:end]
            continue
        with pytest.raises(MalformedError) as caught:
            siglist.parse(data[:end])
        check_error(caught.value, data[:end])


@pytest.mark.parametrize("name", hostile.LOADING)
def test_hostile_lists_are_told_as_varstored_tells_them(name: str) -> None:
    for variable, data in key_data(hostile.hostile(name).blob):
        refused = [each for each in signature_list_violations(data, variable) if not each.startswith("entry ")]
        try:
            assert bool(violations(walk(data), platform_key=variable == "PK")) == bool(refused)
        except MalformedError as error:
            check_error(error, data)
            assert refused


TWO = sb.sha256_list([bytes(32), bytes([1]) * 32], sb.OWNER_TENANT)


def _sizes(list_size: int, header_size: int, signature_size: int) -> bytes:
    return TWO[:16] + struct.pack("<III", list_size, header_size, signature_size) + TWO[28:]


@pytest.mark.parametrize(
    ("data", "offset", "expected"),
    [
        (b"x", 0, "28 bytes of header, found 1"),
        (TWO + bytes(27), 124, "28 bytes of header, found 27"),
        (_sizes(27, 0, 48), 16, "a SignatureListSize of 28 to 124, found 27"),
        (_sizes(125, 0, 48), 16, "a SignatureListSize of 28 to 124, found 125"),
        (_sizes(0, 0, 48), 16, "found 0"),
        (TWO + _sizes(0xFFFFFFFF, 0, 48), 124 + 16, "a SignatureListSize of 28 to 124, found 4,294,967,295"),
        (_sizes(124, 97, 48), 20, "a SignatureHeaderSize of at most 96, found 97"),
        (_sizes(124, 0xFFFFFFFF, 48), 20, "found 4,294,967,295"),
        (_sizes(124, 0, 0), 24, "a SignatureSize of at least 16 that divides 96, found 0"),
        (_sizes(124, 0, 15), 24, "found 15"),
        (_sizes(124, 0, 47), 24, "found 47"),
        (_sizes(124, 0, 0xFFFFFFFF), 24, "found 4,294,967,295"),
        (TWO + _sizes(124, 8, 48), 124 + 24, "that divides 88, found 48"),
    ],
)
def test_an_error_names_the_field_that_does_not_fit(data: bytes, offset: int, expected: str) -> None:
    with pytest.raises(MalformedError) as caught:
        siglist.parse(data)
    assert caught.value.offset == offset
    assert expected in caught.value.expected


def test_a_list_is_read_field_by_field() -> None:
    (parsed,) = siglist.parse(TWO)
    pair = (Signature(sb.OWNER_TENANT, bytes(32)), Signature(sb.OWNER_TENANT, bytes([1]) * 32))
    assert parsed == SignatureList(sb.CERT_SHA256, b"", 48, pair)


def test_types_and_headers_that_varstored_refuses_are_read_all_the_same() -> None:
    data = sb.signature_list(hostile.VENDOR, [(sb.OWNER_TENANT, b"data")], header=b"header")
    (parsed,) = siglist.parse(data)
    assert (parsed.type, parsed.header, parsed.signatures) == (
        hostile.VENDOR,
        b"header",
        (Signature(sb.OWNER_TENANT, b"data"),),
    )
    assert siglist.build([parsed]) == data


def test_a_certificate_gets_a_list_of_its_own() -> None:
    der = identity("A tenant's db").der
    assert x509_list(sb.OWNER_MICROSOFT, der).build() == sb.x509_list(der)


def _found(data: bytes, *, platform_key: bool = False) -> Sequence[str]:
    return violations(walk(data), platform_key=platform_key)


def test_each_violation_is_named() -> None:
    unknown = UUID(int=7)
    assert _found(TWO + sb.signature_list(unknown, [(sb.OWNER_TENANT, b"x")])) == (
        f"signature list 2 has the unknown signature type {unknown}",
    )
    assert _found(sb.signature_list(sb.CERT_SHA256, [(sb.OWNER_TENANT, bytes(32))], header=b"12345678")) == (
        "signature list 1 has a header of 8 bytes, expected none",
    )
    assert _found(sb.sha256_list([bytes(31)])) == ("signature list 1 has signatures of 47 bytes, expected 48",)
    assert _found(sb.signature_list(sb.CERT_X509, [], signature_size=50)) == ("signature list 1 is empty",)
    assert _found(TWO, platform_key=True) == ("PK has 2 signatures, expected exactly one",)
    assert _found(b"", platform_key=True) == ("PK has 0 signatures, expected exactly one",)
    assert _found(sb.x509_list(b"any bytes"), platform_key=True) == ()


def test_the_types_and_sizes_are_those_that_varstored_knows() -> None:
    assert guid.SIGNATURE_DATA_SIZES == DATA_SIZES


def test_work_and_memory_are_linear_in_the_input() -> None:
    """Many small lists, and one list of many small entries."""
    many = sb.signature_list(sb.CERT_X509, [(sb.OWNER_TENANT, b"x")])
    assert calls(lambda: walk(many * 4_000)) < 5 * calls(lambda: walk(many * 1_000))
    assert peak(lambda: walk(many * 4_000)) < 600 * 4_000
    wide = sb.signature_list(sb.CERT_X509, [(sb.OWNER_TENANT, b"x")] * 4_000)
    assert calls(lambda: walk(wide)) < 100
    assert peak(lambda: violations(walk(wide))) < 20_000


def test_a_list_of_signatures_without_bytes_ends() -> None:
    data = sb.signature_list(sb.CERT_X509, [(sb.OWNER_TENANT, b"")] * 3)
    (parsed,) = siglist.parse(data)
    assert parsed.signatures == (Signature(sb.OWNER_TENANT, b""),) * 3
    assert siglist.build([parsed]) == data


def test_the_shared_list_of_a_scene_has_three_entries() -> None:
    data = dict(key_data(scene("shared_list").blob))["db"]
    assert [len(each.signatures) for each in siglist.parse(data)] == [3, 1, 1]
