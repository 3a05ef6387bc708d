"""The report on a store: its overall word, what certcheck answers, and what is missing."""

import struct
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import shipped
from support import storebytes as sb
from support.counting import calls
from support.every import EVERY, LOADING, known
from support.hostile import PLAIN
from support.shipped import Keys, own, own_manifest
from support.storemaker import HOSTILE, hostile, make_store, scene
from support.strategies import mutations, stores
from support.varstored_model import LoadRefused, VarstoredModel, signature_list_violations
from varstore_companion.efi.names import KeyVariable
from varstore_companion.trust.check import MOST_REASONS, CertCheck, Report, RuleState, State, check

CERTIFICATE_ONLY = {"not_a_certificate", "certificate_cut", "certificate_version", "certificate_elliptic"}
"""The lists are in order and what is in them is no certificate: a finding, not damage."""


def missing(report: Report) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for variable, certificate in report.missing:
        found[str(variable)] = (*found.get(str(variable), ()), certificate.name)
    return found


def checked(blob: bytes) -> Report:
    return check(blob, shipped.shipped())


@pytest.mark.parametrize("name", EVERY)
def test_every_store_is_reported_as_it_is(name: str) -> None:
    made = known(name)
    report = checked(made.blob)
    assert report.state == made.report
    assert report.certcheck == made.certcheck
    assert missing(report) == made.missing
    assert report.complete == (made.report == "ok")
    assert bool(report.reasons) == (made.report in ("damaged", "unknown"))
    assert made.loads == (name in LOADING)


def test_rules_say_how_a_store_stands_to_them() -> None:
    states = {
        "custom_keys": ["not_applicable"] * 3,
        "windows_only2011": ["missing", "missing", "not_applicable"],
        "kek_done": ["met", "missing", "missing"],
        "windows_updated_db_windows": ["missing", "met", "missing"],
        "all2023": ["met"] * 3,
        "only2023": ["not_applicable"] * 3,
    }
    for name, expected in states.items():
        report = checked(scene(name).blob)
        assert [each.state for each in report.rules] == [RuleState(word) for word in expected], name
        assert all(bool(each.missing) == (each.state is RuleState.MISSING) for each in report.rules)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_store_is_never_ok(name: str) -> None:
    """Invariant 11."""
    made = hostile(name)
    report = checked(made.blob)
    assert report.state is not State.OK
    unreadable = not made.loads or (made.bad_list and name not in CERTIFICATE_ONLY) or name == "db_twice"
    if name == "version_huge":
        assert (report.state, report.certcheck) == (State.UNKNOWN, CertCheck.UNKNOWN)
    elif unreadable:
        assert report.state is State.DAMAGED
        assert report.certcheck is (CertCheck.UPDATE_OK if report.excesses and not report.damage else CertCheck.UNKNOWN)
    else:
        assert report.state in (State.SETUP_MODE, State.CUSTOM)
        assert report.reasons == ()


@settings(max_examples=150)
@given(st.data())
def test_a_complete_store_that_was_damaged_is_ok_only_where_varstored_takes_it(data: st.DataObject) -> None:
    """Invariant 11."""
    whole = make_store(Keys(("old-kek", "new-kek"), ("old-db", "new-db", "new-rom")).variables())
    blob = data.draw(mutations(whole))
    report = check(blob, own_manifest())
    if report.state is not State.OK:
        return
    model = VarstoredModel.load(blob)
    for each in model.list():
        if each.name in ("PK", "KEK", "db") and each.guid in (sb.GLOBAL, sb.IMAGE_SECURITY):
            broken = signature_list_violations(each.data, str(each.name))
            assert all(line.startswith("entry ") for line in broken)


@given(stores().flatmap(mutations))
def test_any_store_can_be_reported_on(blob: bytes) -> None:
    report = check(blob, own_manifest())
    assert (report.certcheck is CertCheck.UNKNOWN) <= (report.state in (State.DAMAGED, State.UNKNOWN))
    try:
        VarstoredModel.load(blob)
    except LoadRefused:
        assert report.state in (State.DAMAGED, State.UNKNOWN)


@given(st.binary(max_size=100))
def test_any_bytes_can_be_reported_on(blob: bytes) -> None:
    for each in (blob, b"VARS" + blob):
        report = check(each, own_manifest())
        assert report.state in (State.DAMAGED, State.UNKNOWN, State.SETUP_MODE)
        assert all(0 <= error.offset <= len(each) for error in report.damage)


def test_a_store_over_a_limit_is_answered_by_its_certificates() -> None:
    """The store does not load, but its keys can be read: what the toolstack asks about is known."""
    big = sb.Variable("Big", sb.GLOBAL, bytes(sb.DATA_LIMIT + 1))
    for keys, answer in (
        (Keys(), CertCheck.UPDATE_REQUIRED),
        (Keys(("old-kek", "new-kek"), ("new-db",)), CertCheck.UPDATE_OK),
    ):
        report = check(make_store([big, *keys.variables()]), own_manifest())
        assert (report.state, report.certcheck) == (State.DAMAGED, answer)
        assert not report.complete
        assert report.reasons == ("data of variable Big: 57,345 bytes, at most 57,344",)


@pytest.mark.parametrize("name", ["ms2011_dbx", "ms2011_v1"])
def test_a_store_cut_inside_one_variable_is_reported_as_far_as_it_can_be_read(name: str) -> None:
    """Invariant 11."""
    made = scene(name)
    last = made.variables[-1].encode()
    for end in range(len(made.blob) - len(last), len(made.blob), 61):
        report = checked(made.blob[:end])
        assert (report.state, report.certcheck) == (State.DAMAGED, CertCheck.UNKNOWN)
        assert missing(report) == made.missing
        assert report.damage[0].offset >= len(made.blob) - len(last)


def test_a_malformed_variable_does_not_hide_the_others() -> None:
    """Invariant 11: db cannot be read, so nothing is said of it, and KEK still is."""
    variables = Keys().variables()
    db = next(each for each in variables if each.name == "db")
    broken = sb.db_variable(db.data + b"no list")
    blob = make_store([PLAIN, broken, *(each for each in variables if each.name != "db")])
    report = check(blob, own_manifest())
    assert (report.state, report.certcheck) == (State.DAMAGED, CertCheck.UNKNOWN)
    assert missing(report) == {"KEK": ("new-kek",)}
    assert KeyVariable.DB not in report.lists
    (damage,) = report.damage
    assert damage.what == "variable db: signature list 3"
    assert damage.offset == blob.index(broken.data) + len(db.data)
    assert blob[damage.offset :].startswith(b"no list")


@pytest.mark.parametrize(
    ("name", "offset"), [("signature_size_zero", 24), ("list_size_huge", 16), ("header_size_huge", 20), ("list_cut", 124)]
)
def test_the_offset_of_a_malformed_list_points_into_the_whole_store(name: str, offset: int) -> None:
    blob = hostile(name).blob
    (damage,) = checked(blob).damage
    data = blob.index(sb.CERT_SHA256.bytes_le)
    assert damage.offset == data + offset


def test_a_key_variable_that_stands_twice_is_damage() -> None:
    """Which of the two varstored finds depends on the order, and the order turns at each load."""
    variables = Keys().variables()
    for name in ("PK", "KEK", "db", "dbx"):
        twice = next((each for each in variables if each.name == name), sb.dbx_variable(sb.sha256_list([bytes(32)])))
        report = check(make_store([*variables, *[twice] * (1 if twice in variables else 2)]), own_manifest())
        assert (report.state, report.certcheck) == (State.DAMAGED, CertCheck.UNKNOWN)
        assert report.reasons == (f"variable {name} stands in the store more than once",)


def test_only_the_right_variable_of_the_right_vendor_counts() -> None:
    body = sb.x509_list(own("old-db"))
    elsewhere = [
        sb.Variable("db", sb.GLOBAL, body),
        sb.Variable("KEK", sb.IMAGE_SECURITY, sb.x509_list(own("old-kek"))),
        sb.Variable("db\0", sb.IMAGE_SECURITY, body),
        sb.Variable("DB", sb.IMAGE_SECURITY, body),
        sb.dbx_variable(body),
        sb.kek_variable(body),
    ]
    report = check(make_store(elsewhere), own_manifest())
    assert report.state is State.SETUP_MODE
    assert report.missing == ()


def test_a_body_that_is_not_an_x509_entry_does_not_count() -> None:
    """The same bytes under another signature type are not a certificate to varstored."""
    body = own("old-db")
    padded = sb.signature_list(sb.CERT_X509, [(sb.OWNER_MICROSOFT, body + b"\0")])
    report = check(make_store([sb.db_variable(padded)]), own_manifest())
    assert report.missing == ()
    typed = sb.signature_list(sb.CERT_SHA256, [(sb.OWNER_MICROSOFT, body)])
    report = check(make_store([sb.db_variable(typed)]), own_manifest())
    assert (report.state, report.missing) == (State.DAMAGED, ())


def test_the_owner_does_not_matter_for_the_report() -> None:
    keys = Keys(("old-kek", "new-kek"), ("old-db",), wrong=frozenset({"old-db", "new-kek"}))
    assert missing(check(make_store(keys.variables()), own_manifest())) == {"db": ("new-db", "new-rom")}


def test_reasons_are_bounded() -> None:
    strange = sb.signature_list(UUID(int=1), [(sb.OWNER_TENANT, b"x")])
    report = check(make_store([sb.db_variable(strange * 1_000)]), own_manifest())
    assert len(report.violations) == 1_000
    assert len(report.reasons) == MOST_REASONS + 1
    assert report.reasons[-1] == "and 984 more"


def test_the_work_is_linear_in_the_input() -> None:
    def store(count: int) -> bytes:
        entry = sb.x509_list(b"x")
        names = [sb.Variable(struct.pack("<I", number), sb.GLOBAL, b"x") for number in range(count)]
        return make_store([*names, sb.db_variable(entry * count), sb.dbx_variable(sb.sha256_list([bytes(32)] * count))])

    small, large = store(250), store(1_000)
    assert calls(lambda: check(large, own_manifest())) < 5 * calls(lambda: check(small, own_manifest()))
