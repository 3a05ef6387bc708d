"""Certificate bodies: what may be added, what is wrong with the others, and the files that hosts have them in."""

import hashlib
import time
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from support import fixtures
from support import storebytes as sb
from support.certificates import (
    FINGERPRINTS,
    diffie_hellman_certificate,
    elliptic_certificate,
    identity,
    microsoft,
    pss_certificate,
)
from support.shipped import NAMES_2023, own, own_manifest, own_text, shipped
from support.siglist_rules import signature_list_violations
from support.storemaker import HOSTILE, hostile
from support.strategies import mutations
from support.varstored_model import VarstoredModel, sign_update
from varstore_companion.errors import MalformedError
from varstore_companion.trust import certificates
from varstore_companion.trust.manifest import parse

DER = identity("A tenant's db").der
VERSION_4 = DER.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103"), 1)
APPEND = sb.ATTRIBUTES_KEYS | sb.APPEND_WRITE


def pem(*bodies: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in bodies)


def auth(*bodies: bytes, payload: bytes | None = None) -> bytes:
    """A signed update with certificates, as varstored's `.auth` files are."""
    signer = identity("A tenant's platform key")
    held = sb.x509_lists(bodies) if payload is None else payload
    time = sb.efi_time(2024, 5, 6)
    return sign_update("db", sb.IMAGE_SECURITY, APPEND, time, held, key=signer.key, cert=signer.certificate)


def negative_serial() -> bytes:
    """The certificate of which cryptography warns."""
    der = bytearray(DER)
    der[der.index(bytes.fromhex("a0030201020208")) + 7] |= 0x80
    return bytes(der)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_microsofts_certificates_are_taken(name: str) -> None:
    assert certificates.problem(microsoft(name)) is None


@pytest.mark.parametrize(
    ("der", "problem"),
    [
        (b"", "is not a readable X.509 certificate"),
        (b"this is no certificate", "is not a readable X.509 certificate"),
        (DER[:-1], "is not a readable X.509 certificate"),
        (VERSION_4, "is not a readable X.509 certificate (3 is not a valid X509 version)"),
        (elliptic_certificate(), "has a key that is not RSA (1.2.840.10045.2.1)"),
        (pss_certificate(), "has a key that is not RSA (1.2.840.113549.1.1.10)"),
    ],
    ids=["nothing", "text", "cut", "version 4", "elliptic", "RSASSA-PSS"],
)
def test_what_varstored_would_not_take_has_a_problem(der: bytes, problem: str) -> None:
    found = certificates.problem(der)
    assert found is not None
    assert found.startswith(problem)
    assert len(found) < 200


def test_a_key_that_takes_half_a_minute_to_read_is_not_read() -> None:
    """A guest's certificate must not hold up the daemon, and a store has room for seventy of them."""
    der = diffie_hellman_certificate()
    begun = time.process_time()
    assert certificates.problem(der) == "has a key that is not RSA (1.2.840.113549.1.3.1)"
    assert time.process_time() - begun < 1


def test_the_librarys_warnings_never_escape() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert certificates.problem(negative_serial()) is None
        assert list(certificates.from_file(negative_serial())) == [negative_serial()]
        assert certificates.accept([negative_serial()], own_manifest()) == {}
    assert seen == []


def test_reading_pem_does_not_hold_the_processs_filter_of_warnings() -> None:
    reading = certificates.from_file(pem(DER, own("new-db")))
    before = list(warnings.filters)
    next(reading)
    assert list(warnings.filters) == before


@settings(max_examples=200)
@given(mutations(DER))
def test_a_problem_is_told_for_any_damaged_certificate_and_nothing_is_raised(der: bytes) -> None:
    """varstored's judge may take more (bytes after it), but takes whatever has no problem."""
    if certificates.problem(der) is None:
        assert signature_list_violations(sb.x509_list(der), "db") == []


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith(("certificate_", "not_a_"))])
def test_hostile_certificates_have_a_problem_where_varstored_has_one(name: str) -> None:
    (data,) = [each.data for each in VarstoredModel.load(hostile(name).blob).list() if each.name == "db"]
    problem = certificates.problem(data[44:])
    assert (problem is not None) == (bool(signature_list_violations(data, "db")) or name == "certificate_padded")


FILES = {
    "DER": (DER, [DER]),
    "PEM": (pem(DER), [DER]),
    "several PEM with text around": (b"# ours\n" + pem(DER) + b"and\n" + pem(own("new-db")), [DER, own("new-db")]),
    "signed update": (auth(DER, own("new-db")), [DER, own("new-db")]),
    "signed update of hashes": (auth(payload=sb.sha256_list([bytes(32)])), []),
    "signed update of both": (auth(payload=sb.sha256_list([bytes(32)]) + sb.x509_list(DER)), [DER]),
    "signed deletion": (auth(payload=b""), []),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_each_kind_is_read(kind: str) -> None:
    data, bodies = FILES[kind]
    assert list(certificates.from_file(data)) == bodies


@pytest.mark.parametrize("file", fixtures.DB_UPDATES)
def test_microsofts_signed_updates_have_their_bodies(file: str) -> None:
    (body,) = certificates.from_file(fixtures.update(file))
    assert hashlib.sha256(body).hexdigest() == FINGERPRINTS[fixtures.DB_UPDATES[file]]
    assert list(certificates.accept([body], shipped())) == [hashlib.sha256(body).digest()]


@pytest.mark.parametrize(
    ("data", "offset", "what"),
    [
        (b"", 0, "EFI_VARIABLE_AUTHENTICATION_2"),
        (b"garbage " * 20, 16, "EFI_VARIABLE_AUTHENTICATION_2"),
        (b"text\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 5, "PEM"),
        (b"-----BEGIN CERTIFICATE-----", 0, "PEM"),
    ],
    ids=["empty", "garbage", "PEM that is none", "PEM without end"],
)
def test_what_is_none_of_them_is_refused(data: bytes, offset: int, what: str) -> None:
    with pytest.raises(MalformedError) as caught:
        list(certificates.from_file(data))
    assert (caught.value.what, caught.value.offset) == (what, offset)


def test_the_offset_in_a_signed_updates_payload_counts_from_the_files_start() -> None:
    data = auth(payload=sb.x509_list(DER) + b"cut")
    with pytest.raises(MalformedError, match="payload: signature list 2") as caught:
        list(certificates.from_file(data))
    assert data[caught.value.offset :] == b"cut"


@given(st.one_of(st.binary(max_size=200), mutations(auth(DER)), mutations(pem(DER))))
def test_any_file_is_read_or_refused_with_our_own_error(data: bytes) -> None:
    try:
        bodies = list(certificates.from_file(data))
    except MalformedError as error:
        check_error(error, data)
        return
    assert certificates.accept(bodies, own_manifest()) == {}


def check_error(error: MalformedError, data: bytes) -> None:
    assert 0 <= error.offset <= len(data)


def test_a_body_counts_only_when_the_manifest_requires_it() -> None:
    """The certificates of 2011 are named, but no update adds them."""
    taken = certificates.accept([*map(microsoft, FINGERPRINTS), DER, b"junk"], shipped())
    assert {digest.hex() for digest in taken} == {FINGERPRINTS[name] for name in NAMES_2023}
    assert all(hashlib.sha256(der).digest() == digest for digest, der in taken.items())
    assert certificates.accept(map(microsoft, FINGERPRINTS), own_manifest()) == {}


def test_the_right_name_on_another_body_does_not_count() -> None:
    impostor = identity("Windows UEFI CA 2023", key_of="A tenant's db").der
    assert certificates.accept([impostor, microsoft("windows-2023") + b"\0"], shipped()) == {}


def test_a_required_body_that_varstored_would_refuse_does_not_count() -> None:
    """A manifest may name what it likes: what is no RSA certificate is not added to a store."""
    text = own_text()
    for body in (elliptic_certificate(), b"no certificate"):
        named = text.replace(hashlib.sha256(own("new-db")).hexdigest(), hashlib.sha256(body).hexdigest())
        assert certificates.accept([body], parse(named, "own.toml")) == {}
