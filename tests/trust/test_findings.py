"""Findings: each code has a store that shows it and one that does not."""

from collections.abc import Callable

import pytest
from hypothesis import given

from support import shipped
from support import storebytes as sb
from support.every import EVERY, known
from support.shipped import Keys, own, own_manifest
from support.storemaker import HOSTILE, hostile, make_store, scene
from support.strategies import stores
from varstore_companion.trust.check import check
from varstore_companion.trust.findings import MOST_OF_A_CODE, Code, Finding, findings
from varstore_companion.trust.manifest import Manifest


def found(blob: bytes, manifest: Manifest | None = None) -> tuple[Finding, ...]:
    manifest = manifest or shipped.shipped()
    return findings(check(blob, manifest), manifest)


def codes(blob: bytes) -> set[str]:
    return {str(each.code) for each in found(blob)}


EXPECTED = {
    "setup_mode": {"setup_mode"},
    "empty": {"setup_mode"},
    "no_pk_2011": {"setup_mode"},
    "no_pk_custom": {"setup_mode"},
    "wrong_owner_2023": {"wrong_owner"},
    "wrong_owner_virt_firmware": {"wrong_owner"},
    "oversized_dbx": {"over_limit", "dbx_headroom", "duplicate"},
    "nearly_full": {"dbx_headroom"},
    "room_without_headroom": {"dbx_headroom"},
    "duplicates": {"duplicate"},
    "duplicates_2023": {"duplicate", "wrong_owner"},
    "dbx_revokes_pca2011": {"revoked_without_successor"},
    "version3": {"unknown_version"},
}
"""Beside `space`, which every store has that can be read; the others have none."""


@pytest.mark.parametrize("name", EVERY)
def test_every_store_has_its_findings_and_no_others(name: str) -> None:
    short = name.removeprefix("fixture ")
    expected = EXPECTED.get(short, set()) | ({"space"} if short != "version3" else set())
    assert codes(known(name).blob) == expected


SHOWS: dict[Code, tuple[Callable[[], bytes], str]] = {
    Code.DAMAGED: (lambda: hostile("list_cut").blob, "variable db: signature list 2 at offset"),
    Code.UNKNOWN_VERSION: (lambda: hostile("version_huge").blob, "version 0 to 2, found 4294967295"),
    Code.OVER_LIMIT: (lambda: hostile("data_over_limit").blob, "57,345 bytes, at most 57,344: varstored refuses the whole"),
    Code.SETUP_MODE: (lambda: scene("setup_mode").blob, "no PK"),
    Code.SPACE: (lambda: make_store([]), "0 of 131,072 bytes are used, and 57,344 can be appended to dbx"),
    Code.DBX_HEADROOM: (lambda: scene("nearly_full").blob, "of 21,292 bytes may not fit: 0 are left (dbx holds 0 of 57,344"),
    Code.DUPLICATE: (lambda: scene("duplicates").blob, "KEK: Microsoft Corporation KEK CA 2011 stands there 2 times"),
    Code.WRONG_OWNER: (
        lambda: scene("wrong_owner_2023").blob,
        f"the owner {sb.OWNER_WRONG} instead of {sb.OWNER_MICROSOFT}",
    ),
    Code.CERTIFICATE: (lambda: hostile("not_a_certificate").blob, "is not a readable X.509 certificate"),
    Code.REVOKED: (
        lambda: scene("dbx_revokes_pca2011").blob,
        "Microsoft Windows Production PCA 2011, and db lacks Windows",
    ),
}
LACKS = dict.fromkeys(Code, "all2023") | {Code.SPACE: "version3"}


@pytest.mark.parametrize("code", Code)
def test_each_code_has_a_store_that_shows_it_and_one_that_does_not(code: Code) -> None:
    made, detail = SHOWS[code]
    details = [each.detail for each in found(made()) if each.code is code]
    assert any(detail in each for each in details), details
    assert code not in codes(scene(LACKS[code]).blob)


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("certificate_cut", "is not a readable X.509 certificate"),
        ("certificate_version", "is not a readable X.509 certificate"),
        ("certificate_elliptic", "has a key that is not RSA (1.2.840.10045.2.1)"),
        ("certificate_padded", "is not a readable X.509 certificate"),
    ],
)
def test_a_certificate_that_varstored_would_not_take_is_found(name: str, detail: str) -> None:
    (finding,) = [each for each in found(hostile(name).blob) if each.code is Code.CERTIFICATE]
    assert finding.detail.startswith("db: the entry with SHA-256 ")
    assert detail in finding.detail


def test_an_odd_certificate_that_varstored_takes_is_no_finding() -> None:
    assert Code.CERTIFICATE not in codes(hostile("certificate_serial_negative").blob)


@pytest.mark.parametrize("name", HOSTILE)
def test_every_hostile_store_has_findings(name: str) -> None:
    made = hostile(name)
    assert found(made.blob)
    assert all(each.detail and "\n" not in each.detail for each in found(made.blob))


@given(stores())
def test_any_store_has_its_space_told(blob: bytes) -> None:
    told = found(blob, own_manifest())
    assert [each.code for each in told].count(Code.SPACE) == 1
    assert all(len(each.detail) < 1_000 for each in told)


def _dbx(data: bytes, *, db: tuple[str, ...]) -> bytes:
    return make_store(Keys(("old-kek",), db, data).variables())


def test_a_revocation_is_found_by_body_and_by_hash_and_only_without_the_successor() -> None:
    by_body = sb.x509_list(own("old-db"))
    other = sb.x509_list(own("old-other"))

    def revoked(data: bytes, *db: str) -> bool:
        return Code.REVOKED in [each.code for each in found(_dbx(data, db=db), own_manifest())]

    assert revoked(by_body, "old-db")
    assert revoked(by_body, "old-other")
    assert revoked(by_body)
    assert not revoked(by_body, "old-db", "new-db")
    assert not revoked(other, "old-db")


def test_a_revocation_by_the_hash_of_the_certificate_is_found() -> None:
    tbs = shipped.shipped().certificates["windows-2011"].tbs_sha256
    assert tbs is not None
    revoked = sb.signature_list(sb.CERT_X509_SHA256, [(sb.OWNER_MICROSOFT, tbs + bytes(16))])
    image = sb.sha256_list([tbs])
    keys = list(scene("ms2011").variables)
    assert Code.REVOKED in codes(make_store([*keys, sb.dbx_variable(revoked)]))
    assert Code.REVOKED not in codes(make_store([*keys, sb.dbx_variable(image)]))
    complete = list(scene("all2023").variables)
    assert Code.REVOKED not in codes(make_store([*complete, sb.dbx_variable(revoked)]))


def test_a_store_cut_before_pk_is_not_said_to_be_in_setup_mode() -> None:
    """Invariant 11: what was not read is not known to be absent."""
    keys = Keys().variables()
    cut = make_store([*keys[1:], keys[0]])[:-1]
    assert {each.code for each in found(cut, own_manifest())} == {Code.DAMAGED, Code.SPACE}


def test_a_wrong_owner_counts_on_certificates_that_the_manifest_knows_only() -> None:
    tenants = sb.x509_list(own("a certificate that nobody names"), sb.OWNER_WRONG)
    assert Code.WRONG_OWNER not in [each.code for each in found(make_store([sb.db_variable(tenants)]), own_manifest())]
    other_owner = sb.x509_list(own("new-db"), sb.OWNER_TENANT)
    assert Code.WRONG_OWNER not in [each.code for each in found(make_store([sb.db_variable(other_owner)]), own_manifest())]


def test_duplicates_are_told_once_a_variable() -> None:
    twice = sb.sha256_list([bytes([number]) * 32 for number in range(100)] * 2)
    (finding,) = [each for each in found(make_store([sb.dbx_variable(twice)])) if each.code is Code.DUPLICATE]
    assert finding.detail.endswith("stands there 2 times, and 99 other entries stand there more than once")


def test_of_a_code_the_first_are_told_and_the_rest_counted() -> None:
    junk = b"".join(sb.x509_list(b"no certificate %d" % number) for number in range(500))
    told = [each for each in found(make_store([sb.db_variable(junk)])) if each.code is Code.CERTIFICATE]
    assert len(told) == MOST_OF_A_CODE + 1
    assert told[-1].detail == f"and {500 - MOST_OF_A_CODE} more"


def test_the_headroom_is_that_of_the_running_varstored() -> None:
    """Beside the store varstored counts 820 bytes of its own, and a dbx that is not there yet costs its name and 128."""
    filler = [sb.Variable(f"F{number}", sb.GLOBAL, bytes(30_000)) for number in range(4)]
    used = sum(each.counted for each in filler)
    room = sb.TOTAL_LIMIT - 820 - used - 128 - 6
    (space,) = [each for each in found(make_store(filler)) if each.code is Code.SPACE]
    assert space.detail == f"{used:,} of 131,072 bytes are used, and {room:,} can be appended to dbx"


def test_a_variable_that_stands_twice_is_told() -> None:
    told = found(hostile("plain_twice").blob)
    assert Finding(Code.DUPLICATE, "variable BootOrder stands in the store more than once") in told
