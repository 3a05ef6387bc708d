"""The judge itself: SetVariable as varstored does it, with real signatures of keys made here."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import storebytes as sb
from support.certificates import identity
from support.storemaker import (
    Variable,
    efi_time,
    make_store,
    sha256_list,
    x509_list,
)
from support.varstored_model import (
    VOLATILE_BYTES,
    LoadRefused,
    SetRefused,
    Status,
    VarstoredModel,
    sign_update,
)

APPEND = sb.ATTRIBUTES_KEYS | sb.APPEND_WRITE
PK, KEK, OTHER = identity("Judge's PK"), identity("Judge's KEK"), identity("Judge's stranger")
BETWEEN = identity("Judge's CA under KEK", issued_by=KEK, key_of="Judge's PK")
SIGNER = identity("Judge's signer under that CA", issued_by=BETWEEN, key_of="Judge's stranger")
STORED = efi_time(2024, 5, 6, hour=7, minute=8, second=9)
EARLIER = efi_time(2024, 5, 6, hour=7, minute=8, second=8)
LATER = efi_time(2024, 5, 6, hour=7, minute=8, second=10)
HASHES = [bytes([number]) * 32 for number in range(6)]
PAYLOAD = sha256_list(HASHES[:2], sb.OWNER_TENANT)


def store_with_keys(dbx: bytes = PAYLOAD) -> bytes:
    return make_store(
        [
            sb.pk_variable(x509_list(PK.der, sb.OWNER_TENANT), STORED),
            Variable("BootOrder", sb.GLOBAL, bytes(6)),
            sb.kek_variable(x509_list(KEK.der, sb.OWNER_TENANT), STORED),
            sb.dbx_variable(dbx, STORED),
        ]
    )


@pytest.fixture
def model() -> VarstoredModel:
    return VarstoredModel.load(store_with_keys())


def refused(status: Status, model: VarstoredModel, name: str, attributes: int, data: bytes) -> str:
    """The reason with which a SetVariable is refused; nothing may have changed then."""
    guid = sb.IMAGE_SECURITY if name.startswith("db") else sb.GLOBAL
    before = model.list()
    with pytest.raises(SetRefused) as caught:
        model.set_variable(name, guid, attributes, data)
    assert caught.value.status is status
    assert model.list() == before
    return caught.value.reason


def kek_signed(
    payload: bytes,
    *,
    name: str = "dbx",
    attributes: int = APPEND,
    time: bytes = LATER,
    signed_attributes: bool = False,
    wrapped: bool = False,
) -> bytes:
    return sign_update(
        name,
        sb.IMAGE_SECURITY,
        attributes,
        time,
        payload,
        key=KEK.key,
        cert=KEK.certificate,
        signed_attributes=signed_attributes,
        wrapped=wrapped,
    )


def pk_signed(name: str, attributes: int, payload: bytes, time: bytes = LATER) -> bytes:
    guid = sb.IMAGE_SECURITY if name.startswith("db") else sb.GLOBAL
    return sign_update(name, guid, attributes, time, payload, key=PK.key, cert=PK.certificate)


@pytest.mark.parametrize("signed_attributes", [False, True], ids=["bare", "signed attributes"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["SignedData", "ContentInfo"])
def test_an_append_signed_under_kek(model: VarstoredModel, *, signed_attributes: bool, wrapped: bool) -> None:
    more = sha256_list(HASHES[2:4], sb.OWNER_TENANT)
    update = kek_signed(more, signed_attributes=signed_attributes, wrapped=wrapped)
    assert model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, update)
    assert model.get("dbx", sb.IMAGE_SECURITY) == sb.dbx_variable(PAYLOAD + more, LATER)


def test_a_signer_whose_chain_ends_in_kek(model: VarstoredModel) -> None:
    more = sha256_list(HASHES[2:4], sb.OWNER_TENANT)
    update = sign_update(
        "dbx",
        sb.IMAGE_SECURITY,
        APPEND,
        LATER,
        more,
        key=SIGNER.key,
        cert=SIGNER.certificate,
        chain=[BETWEEN.certificate],
    )
    assert model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, update)
    without = sign_update(
        "dbx", sb.IMAGE_SECURITY, APPEND, LATER, more, key=SIGNER.key, cert=SIGNER.certificate, chain=[KEK.certificate]
    )
    assert "no chain" in refused(Status.SECURITY_VIOLATION, model, "dbx", APPEND, without)


def test_a_stranger_is_refused_even_with_kek_enclosed(model: VarstoredModel) -> None:
    update = sign_update(
        "dbx",
        sb.IMAGE_SECURITY,
        APPEND,
        LATER,
        PAYLOAD,
        key=OTHER.key,
        cert=OTHER.certificate,
        chain=[KEK.certificate],
    )
    assert "no chain" in refused(Status.SECURITY_VIOLATION, model, "dbx", APPEND, update)


def test_a_signature_counts_for_its_own_variable_and_attributes_only(model: VarstoredModel) -> None:
    for name, attributes in (("db", APPEND), ("dbx", sb.ATTRIBUTES_KEYS), ("dbt", APPEND)):
        assert "does not fit" in refused(Status.SECURITY_VIOLATION, model, name, attributes, kek_signed(PAYLOAD))


def test_a_digest_other_than_sha256_is_refused(model: VarstoredModel) -> None:
    sha256, sha384 = bytes.fromhex("0609608648016503040201"), bytes.fromhex("0609608648016503040202")
    update = kek_signed(PAYLOAD)
    assert update.count(sha256) == 2
    for changed in (update.replace(sha256, sha384, 1), update.replace(sha256, sha384)):
        assert "not SHA-256" in refused(Status.SECURITY_VIOLATION, model, "dbx", APPEND, changed)


GOOD_UPDATE = kek_signed(sha256_list(HASHES[2:4], sb.OWNER_TENANT), signed_attributes=True)


@settings(max_examples=300)
@given(st.integers(0, 8 * len(GOOD_UPDATE) - 1))
def test_a_flipped_bit_is_refused_or_changes_nothing(bit: int) -> None:
    flipped = bytearray(GOOD_UPDATE)
    flipped[bit // 8] ^= 1 << bit % 8
    plain, model = VarstoredModel.load(store_with_keys()), VarstoredModel.load(store_with_keys())
    plain.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, GOOD_UPDATE)
    try:
        model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, bytes(flipped))
    except SetRefused:
        return
    assert model.list() == plain.list()


@pytest.mark.parametrize("where", ["time", "signature", "payload"])
def test_a_flipped_bit_that_counts_is_refused(model: VarstoredModel, where: str) -> None:
    offset = {"time": 6, "signature": -len(PAYLOAD) - 20, "payload": -1}[where]
    flipped = bytearray(kek_signed(sha256_list(HASHES[2:4], sb.OWNER_TENANT)))
    flipped[offset] ^= 1
    refused(Status.SECURITY_VIOLATION, model, "dbx", APPEND, bytes(flipped))


@given(data=st.binary(max_size=80))
def test_any_bytes_as_update_are_refused(data: bytes) -> None:
    header = LATER + struct.pack("<IHH", 24 + len(data), 0x200, 0xEF1) + sb.CERT_PKCS7.bytes_le
    model = VarstoredModel.load(store_with_keys())
    for update in (data or b"\0", header + data):
        refused(Status.SECURITY_VIOLATION, model, "dbx", APPEND, update)


@pytest.mark.parametrize(("offset", "what"), [(7, "pad"), (8, "nanosecond"), (12, "zone"), (14, "daylight")])
def test_a_time_with_more_than_seconds_is_refused(model: VarstoredModel, offset: int, what: str) -> None:
    time = LATER[:offset] + b"\1" + LATER[offset + 1 :]
    update = kek_signed(PAYLOAD, time=time)
    assert "EFI_TIME" in refused(Status.SECURITY_VIOLATION, model, "dbx", APPEND, update), what


@pytest.mark.parametrize("time", [EARLIER, STORED], ids=["earlier", "equal"])
def test_a_replacement_must_be_later(model: VarstoredModel, time: bytes) -> None:
    update = kek_signed(PAYLOAD, attributes=sb.ATTRIBUTES_KEYS, time=time)
    assert "later" in refused(Status.SECURITY_VIOLATION, model, "dbx", sb.ATTRIBUTES_KEYS, update)


def test_a_later_replacement_replaces_data_and_time(model: VarstoredModel) -> None:
    new = sha256_list(HASHES[4:], sb.OWNER_TENANT)
    update = kek_signed(new, attributes=sb.ATTRIBUTES_KEYS)
    assert model.set_variable("dbx", sb.IMAGE_SECURITY, sb.ATTRIBUTES_KEYS, update)
    assert model.get("dbx", sb.IMAGE_SECURITY) == sb.dbx_variable(new, LATER)


def test_an_empty_replacement_deletes(model: VarstoredModel) -> None:
    update = kek_signed(b"", attributes=sb.ATTRIBUTES_KEYS)
    assert model.set_variable("dbx", sb.IMAGE_SECURITY, sb.ATTRIBUTES_KEYS, update)
    assert ("dbx", sb.IMAGE_SECURITY) not in model


def test_an_append_with_an_earlier_time_keeps_the_later_one(model: VarstoredModel) -> None:
    more = sha256_list(HASHES[2:4], sb.OWNER_TENANT)
    assert model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, kek_signed(more, time=EARLIER))
    assert model.get("dbx", sb.IMAGE_SECURITY) == sb.dbx_variable(PAYLOAD + more, STORED)


def test_an_append_drops_what_is_there_under_the_same_owner(model: VarstoredModel) -> None:
    assert not model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, kek_signed(PAYLOAD, time=EARLIER))
    mixed = sha256_list(HASHES[1:3], sb.OWNER_TENANT) + PAYLOAD + sha256_list(HASHES[:1], sb.OWNER_WRONG)
    assert model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, kek_signed(mixed, time=EARLIER))
    added = sha256_list(HASHES[2:3], sb.OWNER_TENANT) + sha256_list(HASHES[:1], sb.OWNER_WRONG)
    assert model.get("dbx", sb.IMAGE_SECURITY).data == PAYLOAD + added


def test_an_append_keeps_what_the_update_itself_has_twice(model: VarstoredModel) -> None:
    twice = 2 * sha256_list(HASHES[3:4], sb.OWNER_TENANT)
    assert model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, kek_signed(twice))
    assert model.get("dbx", sb.IMAGE_SECURITY).data == PAYLOAD + twice


def test_an_append_to_kek_is_by_pk_alone_and_drops_nothing(model: VarstoredModel) -> None:
    known = model.get("KEK", sb.GLOBAL).data
    assert model.set_variable("KEK", sb.GLOBAL, APPEND, pk_signed("KEK", APPEND, known))
    assert model.get("KEK", sb.GLOBAL).data == 2 * known
    by_kek = sign_update("KEK", sb.GLOBAL, APPEND, LATER, known, key=KEK.key, cert=KEK.certificate)
    assert "platform key" in refused(Status.SECURITY_VIOLATION, model, "KEK", APPEND, by_kek)


def test_pk_may_sign_db_too(model: VarstoredModel) -> None:
    certificate = x509_list(OTHER.der, sb.OWNER_TENANT)
    assert model.set_variable("db", sb.IMAGE_SECURITY, APPEND, pk_signed("db", APPEND, certificate))
    assert model.list()[0] == sb.db_variable(certificate, LATER)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (sb.signature_list(sb.CERT_SHA256, [], signature_size=48), "0 bytes of entries"),
        (x509_list(b"none", sb.OWNER_TENANT), "DER"),
        (PAYLOAD + b"\0", "28"),
        (PAYLOAD[:16] + struct.pack("<III", len(PAYLOAD), 0, 0) + PAYLOAD[28:], "SignatureSize 0"),
    ],
    ids=["empty list", "no certificate", "trailing byte", "size zero"],
)
def test_signed_but_malformed_lists_are_refused(model: VarstoredModel, payload: bytes, reason: str) -> None:
    assert reason in refused(Status.INVALID_PARAMETER, model, "dbx", APPEND, kek_signed(payload))


def test_a_platform_key_signs_itself_in_and_out() -> None:
    model = VarstoredModel.load(make_store([]))
    assert model.in_setup_mode()
    payload = x509_list(PK.der, sb.OWNER_TENANT)
    strange = sign_update("PK", sb.GLOBAL, sb.ATTRIBUTES_KEYS, LATER, payload, key=KEK.key, cert=KEK.certificate)
    assert "no chain" in refused(Status.SECURITY_VIOLATION, model, "PK", sb.ATTRIBUTES_KEYS, strange)
    both = pk_signed("PK", sb.ATTRIBUTES_KEYS, payload + x509_list(KEK.der, sb.OWNER_TENANT))
    assert "2 entries" in refused(Status.INVALID_PARAMETER, model, "PK", sb.ATTRIBUTES_KEYS, both)
    unsigned = LATER + struct.pack("<IHH", 24, 0x200, 0xEF1) + sb.CERT_PKCS7.bytes_le + PAYLOAD
    assert model.set_variable("db", sb.IMAGE_SECURITY, sb.ATTRIBUTES_KEYS, unsigned)
    assert model.set_variable("PK", sb.GLOBAL, sb.ATTRIBUTES_KEYS, pk_signed("PK", sb.ATTRIBUTES_KEYS, payload, STORED))
    assert not model.in_setup_mode()
    refused(Status.SECURITY_VIOLATION, model, "dbt", APPEND, unsigned)
    refused(Status.INVALID_PARAMETER, model, "PK", APPEND, pk_signed("PK", APPEND, payload))
    assert model.set_variable("PK", sb.GLOBAL, sb.ATTRIBUTES_KEYS, pk_signed("PK", sb.ATTRIBUTES_KEYS, b""))
    assert model.in_setup_mode()


def test_key_variables_want_their_attributes(model: VarstoredModel) -> None:
    refused(Status.INVALID_PARAMETER, model, "db", sb.ATTRIBUTES_PLAIN, b"data")
    refused(Status.INVALID_PARAMETER, model, "dbx", sb.ATTRIBUTES_PLAIN, b"data")
    refused(Status.INVALID_PARAMETER, model, "dbx", 0, b"data")
    refused(Status.NOT_FOUND, model, "db", sb.ATTRIBUTES_KEYS, pk_signed("db", sb.ATTRIBUTES_KEYS, b""))
    refused(Status.UNSUPPORTED, model, "Private", sb.ATTRIBUTES_KEYS, kek_signed(PAYLOAD))


def test_appends_grow_past_the_limit_and_the_next_start_refuses_the_store() -> None:
    owners = (sb.OWNER_MICROSOFT, sb.OWNER_WRONG, sb.OWNER_VIRT_FIRMWARE)
    lists = [sha256_list([struct.pack("<32xI", number)[4:] for number in range(443)], owner) for owner in owners]
    model = VarstoredModel.load(store_with_keys(lists[0]))
    careful = VarstoredModel.load(store_with_keys(lists[0]), checks_append=True)
    for each in (model, careful):
        assert each.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, kek_signed(lists[1]))
    assert model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, kek_signed(lists[2]))
    with pytest.raises(LoadRefused, match="63876"):
        VarstoredModel.load(model.save())
    refused(Status.OUT_OF_RESOURCES, careful, "dbx", APPEND, kek_signed(lists[2]))


def test_the_total_limit_counts_varstoreds_own_variables(model: VarstoredModel) -> None:
    attributes = sb.ATTRIBUTES_PLAIN
    for name in ("A", "B"):
        assert model.set_variable(name, sb.GLOBAL, attributes, bytes(50_000))
    left = sb.TOTAL_LIMIT - model.stored_bytes - VOLATILE_BYTES
    refused(Status.OUT_OF_RESOURCES, model, "C", attributes, bytes(left - 2 - 128 + 1))
    assert model.set_variable("C", sb.GLOBAL, attributes, bytes(left - 2 - 128))
    refused(Status.OUT_OF_RESOURCES, model, "A", attributes | sb.APPEND_WRITE, b"1")
    assert model.set_variable("A", sb.GLOBAL, attributes, bytes(49_999))
    assert model.set_variable("C", sb.GLOBAL, attributes | sb.APPEND_WRITE, b"1")
    assert VarstoredModel.load(model.save()).stored_bytes == sb.TOTAL_LIMIT - VOLATILE_BYTES
    refused(Status.OUT_OF_RESOURCES, model, "A", attributes, bytes(sb.DATA_LIMIT + 1))


def test_plain_variables(model: VarstoredModel) -> None:
    plain = sb.ATTRIBUTES_PLAIN
    assert model.set_variable("Boot0007", sb.GLOBAL, plain, b"one")
    assert model.names[0] == "Boot0007"
    assert not model.set_variable("Boot0007", sb.GLOBAL, plain, b"one")
    assert model.set_variable("Boot0007", sb.GLOBAL, plain | sb.APPEND_WRITE, b"two")
    assert model.get("Boot0007", sb.GLOBAL).data == b"onetwo"
    refused(Status.INVALID_PARAMETER, model, "Boot0007", plain & ~sb.RUNTIME_ACCESS, b"three")
    assert model.set_variable("Boot0007", sb.GLOBAL, plain, b"")
    refused(Status.NOT_FOUND, model, "Boot0007", plain, b"")
    assert model.set_variable("BootOrder", sb.GLOBAL, 0, b"ignored")
    assert model.names == ("dbx", "KEK", "PK")
    with pytest.raises(KeyError):
        model.get("BootOrder", sb.GLOBAL)


def test_a_volatile_variable_is_not_stored(model: VarstoredModel) -> None:
    before = model.save()
    assert not model.set_variable("OsIndications", sb.GLOBAL, sb.BOOTSERVICE_ACCESS | sb.RUNTIME_ACCESS, bytes(8))
    assert model.save() == before
    assert len(model.save(volatile_too=True)) == len(before) + 84 + 26 + 8


@pytest.mark.parametrize(
    ("name", "attributes", "status"),
    [
        ("SetupMode", 0x06, Status.WRITE_PROTECTED),
        ("SecureBoot", 0x06, Status.WRITE_PROTECTED),
        ("", 0x07, Status.INVALID_PARAMETER),
        ("N" * 2049, 0x07, Status.INVALID_PARAMETER),
        ("X", 0x0F, Status.INVALID_PARAMETER),
        ("X", 0x17, Status.UNSUPPORTED),
        ("X", 0xA7, Status.INVALID_PARAMETER),
        ("X", 0x87, Status.UNSUPPORTED),
        ("X", 0x05, Status.INVALID_PARAMETER),
        ("X", 0x01, Status.NOT_FOUND),
    ],
)
def test_what_no_variable_may_be(model: VarstoredModel, name: str, attributes: int, status: Status) -> None:
    refused(status, model, name, attributes, b"data")
