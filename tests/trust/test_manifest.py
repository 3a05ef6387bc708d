"""The manifest: what is shipped, and how strictly an operator's is read."""

import hashlib
from uuid import UUID

import pytest
from cryptography import x509

from support import shipped
from support.certificates import FINGERPRINTS, microsoft
from varstore_companion.efi.names import KeyVariable
from varstore_companion.errors import ConfigurationError
from varstore_companion.trust.manifest import parse

SUBJECTS = {
    "ms-kek-2011": "Microsoft Corporation KEK CA 2011",
    "ms-kek-2023": "Microsoft Corporation KEK 2K CA 2023",
    "windows-2011": "Microsoft Windows Production PCA 2011",
    "windows-2023": "Windows UEFI CA 2023",
    "ms-uefi-2011": "Microsoft Corporation UEFI CA 2011",
    "ms-uefi-2023": "Microsoft UEFI CA 2023",
    "ms-uefi-rom-2023": "Microsoft Option ROM UEFI CA 2023",
}
"""The table of Microsoft's certificates; the fingerprints beside them are in `support.certificates`."""


def test_the_shipped_manifest_has_microsofts_certificates_by_fingerprint() -> None:
    certificates = shipped.shipped().certificates
    assert {name: each.subject for name, each in certificates.items()} == SUBJECTS
    assert {name: each.sha256.hex() for name, each in certificates.items()} == FINGERPRINTS
    assert all(each.name == name for name, each in certificates.items())


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_fingerprints_are_those_of_the_bodies(name: str) -> None:
    certificate = shipped.shipped().certificates[name]
    body = x509.load_der_x509_certificate(microsoft(name))
    assert hashlib.sha256(microsoft(name)).digest() == certificate.sha256
    assert body.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value == certificate.subject
    if certificate.tbs_sha256 is not None:
        assert hashlib.sha256(body.tbs_certificate_bytes).digest() == certificate.tbs_sha256


def test_the_shipped_rules_are_microsofts() -> None:
    manifest = shipped.shipped()
    rules = [(rule.variable, rule.present.name, [each.name for each in rule.required]) for rule in manifest.rules]
    assert rules == [
        (KeyVariable.KEK, "ms-kek-2011", ["ms-kek-2023"]),
        (KeyVariable.DB, "windows-2011", ["windows-2023"]),
        (KeyVariable.DB, "ms-uefi-2011", ["ms-uefi-2023", "ms-uefi-rom-2023"]),
    ]
    assert [(each.revoked.name, each.successor.name) for each in manifest.revocations] == [("windows-2011", "windows-2023")]
    assert manifest.revocations[0].revoked.tbs_sha256 is not None
    assert (manifest.name, manifest.revision, manifest.headroom) == ("microsoft-2023", 1, 21_292)
    assert manifest.signature_owner == UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
    assert manifest.wrong_owners == {
        UUID("9be025e2-415b-435d-ad61-6b3e094fc28d"),
        UUID("a0baa8a3-041d-48a8-bc87-c36d121b5e3d"),
    }


def test_an_operators_manifest_is_read() -> None:
    manifest = shipped.own_manifest()
    assert (manifest.name, manifest.revision, manifest.headroom) == ("our-own", 7, 5000)
    assert tuple(manifest.certificates) == shipped.OWN_NAMES
    assert [len(rule.required) for rule in manifest.rules] == [1, 2, 1]


A, B, C = "a" * 64, "b" * 64, "c" * 64
GOOD = f"""
format = 1
name = "mine"
revision = 1
signature_owner = "77fa9abd-0359-4d32-bd60-28f4e78f784b"
wrong_owners = ["9be025e2-415b-435d-ad61-6b3e094fc28d"]
headroom = 100
[certificate.a]
subject = "A"
sha256 = "{A}"
[certificate.b]
subject = "B"
sha256 = "{B}"
[certificate.c]
subject = "C"
sha256 = "{C}"
[[rule]]
variable = "db"
present = "a"
required = ["b"]
[[revocation]]
revoked = "a"
successor = "b"
"""
CHAIN = '\n[[rule]]\nvariable = "{variable}"\npresent = "b"\nrequired = {required}\n'


def test_the_good_one_is_good() -> None:
    assert parse(GOOD, "mine.toml").rules[0].required[0].subject == "B"
    without = GOOD[: GOOD.index("[[revocation]]")]
    assert parse(without, "mine.toml").revocations == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", "format = 2", "mine.toml: format: expected 1, which this version reads, found '2'"),
        ("format = 1", "", "mine.toml: format: expected a whole number, found nothing"),
        ("format = 1", "format = true", "mine.toml: format: expected a whole number from 0"),
        ("revision = 1", "revision = -1", "mine.toml: revision: expected a whole number from 0, found '-1'"),
        ("revision = 1", "revision = 1.5", "mine.toml: revision: expected a whole number, found '1.5'"),
        ('name = "mine"', 'name = ""', "mine.toml: name: expected a string that is not empty"),
        ('name = "mine"', 'name = "mine"\nextra = 1', "mine.toml: extra: unknown key"),
        ('"77fa9abd-', '"77fa9abd', "mine.toml: signature_owner: expected a GUID in its usual form"),
        ('"77fa9abd-', '"x', "mine.toml: signature_owner: expected a GUID, found"),
        ('["9be025e2-415b-435d-ad61-6b3e094fc28d"]', "[7]", "mine.toml: wrong_owners: expected a list of strings"),
        ('["9be025e2-415b-435d-ad61-6b3e094fc28d"]', '"x"', "mine.toml: wrong_owners: expected a list of strings"),
        (
            "9be025e2-415b-435d-ad61-6b3e094fc28d",
            "77fa9abd-0359-4d32-bd60-28f4e78f784b",
            "mine.toml: wrong_owners: expected owners other than signature_owner",
        ),
        (A, A[:-1], "mine.toml: certificate.a.sha256: expected a SHA-256 as 64 lower-case hexadecimal digits"),
        (A, A.upper(), "mine.toml: certificate.a.sha256: expected a SHA-256 as 64 lower-case hexadecimal digits"),
        (A, B, "mine.toml: certificate: expected each sha256 once"),
        ('subject = "A"', 'subject = "A"\nnote = "x"', "mine.toml: certificate.a.note: unknown key"),
        ('subject = "A"', 'tbs_sha256 = "x"\nsubject = "A"', "mine.toml: certificate.a.tbs_sha256: expected a SHA-256"),
        ('subject = "A"', "", "mine.toml: certificate.a.subject: expected a string, found nothing"),
        ("[certificate.b]", "[certificate]\nb = 1\n[certificate.d]", "mine.toml: certificate.b: expected a table, found '1'"),
        ('variable = "db"', 'variable = "dbx"', "mine.toml: rule[1].variable: expected one of KEK, db, found 'dbx'"),
        ('variable = "db"', 'variable = "PK"', "mine.toml: rule[1].variable: expected one of KEK, db, found 'PK'"),
        ('present = "a"', 'present = "d"', "mine.toml: rule[1].present: expected one of a, b, c, found 'd'"),
        ('required = ["b"]', 'required = ["d"]', "mine.toml: rule[1].required: expected one of a, b, c, found 'd'"),
        ('required = ["b"]', "required = []", "mine.toml: rule[1].required: expected at least one certificate"),
        ('required = ["b"]', 'required = ["b"]\nx = 1', "mine.toml: rule[1].x: unknown key"),
        ('revoked = "a"', 'revoked = "d"', "mine.toml: revocation[1].revoked: expected one of a, b, c, found 'd'"),
        ('successor = "b"', 'successor = "b"\nx = 1', "mine.toml: revocation[1].x: unknown key"),
        (GOOD[GOOD.index("[[rule") : GOOD.index("[[revo")], "", "mine.toml: rule: expected at least one"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(old: str, new: str, message: str) -> None:
    assert old in GOOD
    broken = GOOD.replace(old, new, 1)
    with pytest.raises(ConfigurationError) as caught:
        parse(broken, "mine.toml")
    assert str(caught.value).startswith(message)


def test_a_rule_may_not_lead_to_another_that_is_not_met() -> None:
    """Invariant 3: applying the update once is enough, or the manifest is refused with the reason."""
    with pytest.raises(ConfigurationError, match=r"rule\[1\].required: expected c too, .* requires beside b"):
        parse(GOOD + CHAIN.format(variable="db", required='["c"]'), "mine.toml")
    parse(GOOD + CHAIN.format(variable="KEK", required='["c"]'), "mine.toml")
    parse(GOOD + CHAIN.format(variable="db", required='["a"]'), "mine.toml")
    closed = GOOD.replace('required = ["b"]', 'required = ["b", "c"]')
    parse(closed + CHAIN.format(variable="db", required='["c"]'), "mine.toml")


@pytest.mark.parametrize("text", ["name = ", "a = " + "[" * 5_000, "a = " + "9" * 5_000, 'a = "\\ud800"', "\0"])
def test_what_is_not_toml_is_refused_with_the_files_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^mine\.toml: not TOML: "):
        parse(text, "mine.toml")
