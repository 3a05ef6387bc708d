"""The update: exactly what is missing, not a byte more, and refused with numbers."""

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

import pytest

from support import splice
from support import storebytes as sb
from support.certificates import identity, microsoft
from support.every import EVERY, LOADING, known
from support.hostile import PLAIN
from support.shipped import Keys, microsoft_bodies, own, own_bodies, own_manifest, shipped
from support.storemaker import HOSTILE, SCENES, hostile, make_store, scene
from support.varstored_model import VarstoredModel
from varstore_companion.trust.check import Report, State, check
from varstore_companion.trust.findings import Code, findings
from varstore_companion.trust.manifest import Manifest
from varstore_companion.trust.plan import Action, Plan, plan

TOO_FULL = {"nearly_full", "room_without_headroom", "db_nearly_full"}
MICROSOFT = sb.OWNER_MICROSOFT.bytes_le


def planned(blob: bytes, *, headroom: int | None = None) -> Plan:
    return plan(blob, shipped(), microsoft_bodies(), headroom=headroom)


def own_plan(blob: bytes, *, headroom: int | None = None) -> Plan:
    return plan(blob, own_manifest(), own_bodies(), headroom=headroom)


def variable(blob: bytes, name: str) -> sb.Variable:
    guid = sb.IMAGE_SECURITY if name.startswith("db") else sb.GLOBAL
    return VarstoredModel.load(blob).get(name, guid)


def updated(blob: bytes, missing: Mapping[str, tuple[str, ...]]) -> bytes:
    """What the update should make of a store, by plain bytes operations."""
    for name, names in missing.items():
        blob = splice.appended(blob, variable(blob, name), sb.x509_lists(map(microsoft, names)))
    return blob


def assert_untouched(made: Plan, blob: bytes) -> None:
    """Invariant 5: a refusal leaves the old store, byte for byte."""
    assert made.store == blob
    assert made.bytes_after == made.bytes_before == len(blob)
    assert made.after is made.before


@pytest.mark.parametrize("name", [name for name in LOADING if name not in TOO_FULL])
def test_an_update_adds_exactly_what_is_missing_and_changes_no_other_byte(name: str) -> None:
    """Invariant 3: each as its own list at the end of its variable; order, times, attributes and ancillary block stay."""
    made = known(name)
    result = planned(made.blob)
    assert result.refused is None
    added = [change for change in result.changes if change.action is Action.ADD]
    assert Counter((str(each.variable), each.certificate.name) for each in added) == Counter(
        (variable, each) for variable, names in made.missing.items() for each in names
    )
    if any(change.action is Action.REOWN for change in result.changes):
        assert result.before.state is State.OK
        return
    assert result.store == (updated(made.blob, made.missing) if made.missing else made.blob)
    assert result.bytes_before == len(made.blob)
    assert result.bytes_after - result.bytes_before == sum(each.size for each in result.changes)
    assert result.after.state == ("ok" if made.missing else made.report)
    assert struct.unpack_from("<I", result.store, 4) == struct.unpack_from("<I", made.blob, 4)


@pytest.mark.parametrize("name", [name for name in LOADING if name not in TOO_FULL])
def test_twice_is_once(name: str) -> None:
    """Invariant 3."""
    once = planned(known(name).blob)
    twice = planned(once.store)
    assert twice.store == once.store
    assert twice.changes == ()
    assert twice.refused is None
    assert twice.headroom == once.headroom


@pytest.mark.parametrize("name", [*EVERY, *HOSTILE])
def test_a_report_that_is_handed_in_spares_the_look_and_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = (hostile(name) if name in HOSTILE else known(name)).blob
    expected, before = planned(blob), check(blob, shipped())
    looked: list[bytes] = []

    def counted(looked_at: bytes, manifest: Manifest) -> Report:
        looked.append(looked_at)
        return check(looked_at, manifest)

    monkeypatch.setattr("varstore_companion.trust.plan.check", counted)
    result = plan(blob, shipped(), microsoft_bodies(), before=before)
    assert blob not in looked
    assert result.before is before
    assert (result.store, result.changes, result.refused, result.headroom, str(result.after.state)) == (
        expected.store,
        expected.changes,
        expected.refused,
        expected.headroom,
        str(expected.after.state),
    )


def test_a_full_update_adds_5999_bytes() -> None:
    result = planned(scene("ms2011").blob)
    assert [(str(each.variable), each.certificate.name, each.size) for each in result.changes] == [
        ("KEK", "ms-kek-2023", 1_506),
        ("db", "windows-2023", 1_498),
        ("db", "ms-uefi-2023", 1_492),
        ("db", "ms-uefi-rom-2023", 1_503),
    ]
    assert result.bytes_after - result.bytes_before == 5_999


def test_a_windows_only_store_does_not_come_to_trust_third_parties() -> None:
    result = planned(scene("windows_only2011").blob)
    assert [each.certificate.name for each in result.changes] == ["ms-kek-2023", "windows-2023"]


@pytest.mark.parametrize("name", [name for name in EVERY if name not in LOADING])
def test_what_varstored_does_not_load_is_refused(name: str) -> None:
    """Invariants 2 and 11."""
    made = known(name)
    result = planned(made.blob)
    assert result.refused is not None
    assert result.refused.startswith(f"the store is {made.report}: ")
    assert result.changes == ()
    assert_untouched(result, made.blob)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_store_is_left_as_it_is(name: str) -> None:
    """Invariants 2 and 11."""
    made = hostile(name)
    result = planned(made.blob)
    assert (result.refused is None) == (result.before.state not in (State.DAMAGED, State.UNKNOWN))
    assert_untouched(result, made.blob)


def test_another_variable_that_stands_twice_hinders_nothing() -> None:
    """varstored loads it, and the update leaves it as it is (invariant 3)."""
    blob = make_store([PLAIN, *Keys().variables(), PLAIN])
    result = own_plan(blob)
    assert result.refused is None
    assert result.after.state is State.OK
    assert result.store.count(PLAIN.raw_name) == blob.count(PLAIN.raw_name) == 2


@pytest.mark.parametrize("twice", ["PK", "KEK", "db", "dbx"])
def test_a_key_variable_that_stands_twice_is_refused(twice: str) -> None:
    """Which of the two counts turns with each load: adding to one would be undone by the next."""
    held = [PLAIN, *Keys(dbx=sb.sha256_list([bytes(32)])).variables()]
    blob = make_store([*held, next(each for each in held if each.name == twice)])
    result = own_plan(blob)
    assert result.refused == f"the store is damaged: variable {twice} stands in the store more than once"
    assert_untouched(result, blob)


def test_one_malformed_variable_refuses_the_whole_update() -> None:
    """Invariant 11: KEK could be mended alone, but nothing is done by halves."""
    kek, db = (next(each for each in Keys().variables() if each.name == name) for name in ("KEK", "db"))
    for name, held in (
        ("db", [kek, sb.db_variable(db.data + b"x")]),
        ("dbx", [kek, db, sb.dbx_variable(b"no lists")]),
    ):
        blob = make_store(held)
        result = own_plan(blob)
        assert result.refused is not None
        assert f"variable {name}: signature list" in result.refused
        assert_untouched(result, blob)


def test_a_body_that_no_source_has_refuses_the_whole_update() -> None:
    blob = make_store(Keys().variables())
    kept = {digest: der for digest, der in own_bodies().items() if der != own("new-rom")}
    result = plan(blob, own_manifest(), kept)
    digest = own_manifest().certificates["new-rom"].sha256.hex()
    assert result.refused == f"no certificate source has the body of An operator's new-rom ({digest})"
    assert_untouched(result, blob)
    elsewhere = make_store(Keys(db=("old-other",)).variables())
    assert plan(elsewhere, own_manifest(), kept).refused is None


def test_an_empty_source_does_not_matter_to_a_complete_store() -> None:
    blob = scene("all2023").blob
    result = plan(blob, shipped(), {})
    assert (result.refused, result.changes, result.store) == (None, (), blob)


def test_data_limit_refuses_with_its_numbers() -> None:
    """Invariant 2."""
    blob = scene("db_nearly_full").blob
    result = planned(blob, headroom=0)
    grown = len(variable(blob, "db").data) + 1_498 + 1_492 + 1_503
    assert result.refused == f"the updated store would break a limit: data of variable db: {grown:,} bytes, at most 57,344"
    assert len(result.changes) == 4
    assert_untouched(result, blob)


def test_total_limit_refuses_with_its_numbers() -> None:
    """Invariant 2."""
    blob = scene("nearly_full").blob
    result = planned(blob, headroom=0)
    total = sb.TOTAL_LIMIT - 64 + 5_999
    assert result.refused is not None
    assert f"{total:,} bytes, at most 131,072" in result.refused
    assert_untouched(result, blob)


def test_headroom_refuses_with_its_numbers_and_less_of_it_lets_pass() -> None:
    blob = scene("room_without_headroom").blob
    result = planned(blob)
    room = 12_000 - 5_999 - 820 - 128 - 6
    assert result.refused == (
        f"the update needs 5,999 bytes and would leave {room:,} of the 21,292 that the guest's next append to dbx needs: "
        f"{sb.TOTAL_LIMIT - 12_000 + 5_999:,} of 131,072 bytes would be used"
    )
    assert_untouched(result, blob)
    assert planned(blob, headroom=room + 1).refused is not None
    lowered = planned(blob, headroom=room)
    assert (lowered.refused, lowered.after.state, lowered.headroom) == (None, State.OK, room)
    assert lowered.store == updated(blob, scene("room_without_headroom").missing)


def test_a_dbx_that_is_full_by_itself_is_no_reason_to_refuse() -> None:
    """The update takes nothing from dbx's own limit: the room that all variables share is what counts."""
    full = sb.sha256_list([struct.pack("<I28x", number) for number in range(1_190)])
    result = own_plan(make_store(Keys(dbx=full).variables()))
    assert (result.refused, result.after.state) == (None, State.OK)
    assert result.headroom == sb.DATA_LIMIT - len(full) < own_manifest().headroom
    assert Code.DBX_HEADROOM in [each.code for each in findings(result.after, own_manifest())]


def test_the_headroom_of_a_store_that_cannot_be_read_is_not_known() -> None:
    assert planned(b"").headroom is None
    assert planned(scene("version3").blob).headroom is None
    oversized = planned(scene("oversized_dbx").blob).headroom
    assert oversized == sb.DATA_LIMIT - 63_876


@pytest.mark.parametrize("name", ["wrong_owner_2023", "fixture wrong_owner_2023", "wrong_owner_virt_firmware"])
def test_a_known_wrong_owner_is_corrected_in_place(name: str) -> None:
    """Invariant 3: 16 bytes before each 2023 certificate and no other; those of 2011 stay as they are."""
    made = known(name)
    result = planned(made.blob)
    expected = made.blob
    names = ("ms-kek-2023", "windows-2023", "ms-uefi-2023", "ms-uefi-rom-2023")
    for each in names:
        expected = splice.reowned(expected, microsoft(each), MICROSOFT)
    assert result.store == expected
    assert [(each.action, each.size) for each in result.changes] == [(Action.REOWN, 0)] * 4
    assert {each.certificate.name for each in result.changes} == set(names)
    assert (result.after.state, result.refused) == (State.OK, None)


def test_an_owner_is_corrected_and_the_rest_added_in_one_update() -> None:
    keys = Keys(db=("old-db", "new-db", "old-other"), wrong=frozenset({"new-db", "old-db"}))
    blob = make_store([*keys.variables(), PLAIN])
    result = own_plan(blob)
    done = [(str(each.variable), each.action, each.certificate.name) for each in result.changes]
    assert done == [
        ("KEK", Action.ADD, "new-kek"),
        ("db", Action.REOWN, "new-db"),
        ("db", Action.ADD, "new-rom"),
        ("db", Action.ADD, "new-other"),
    ]
    expected = splice.reowned(blob, own("new-db"), MICROSOFT)
    expected = splice.appended(expected, variable(expected, "KEK"), sb.x509_list(own("new-kek")))
    expected = splice.appended(expected, variable(expected, "db"), sb.x509_lists([own("new-rom"), own("new-other")]))
    assert result.store == expected


def test_an_owner_is_corrected_inside_a_list_of_several() -> None:
    bodies = [own("new-rom"), own("new-kek")]
    assert len({len(each) for each in bodies}) == 1
    shared = sb.signature_list(sb.CERT_X509, [(sb.OWNER_WRONG, each) for each in bodies])
    blob = make_store([sb.db_variable(shared)])
    result = own_plan(blob)
    assert result.store == splice.reowned(blob, own("new-rom"), MICROSOFT)


@pytest.mark.parametrize("first", [sb.OWNER_MICROSOFT, sb.OWNER_WRONG])
def test_no_owner_is_corrected_where_the_right_one_is_there_too(first: UUID) -> None:
    """It would become the same entry twice."""
    second = sb.OWNER_WRONG if first == sb.OWNER_MICROSOFT else sb.OWNER_MICROSOFT
    lists = sb.x509_list(own("new-db"), first) + sb.x509_list(own("new-db"), second)
    blob = make_store([sb.db_variable(lists)])
    result = own_plan(blob)
    assert (result.store, result.changes, result.refused) == (blob, (), None)
    assert planned(scene("duplicates_2023").blob).changes == ()


def test_of_two_wrong_owners_one_is_corrected() -> None:
    lists = sb.x509_list(own("new-db"), sb.OWNER_VIRT_FIRMWARE) + sb.x509_list(own("new-db"), sb.OWNER_WRONG)
    blob = make_store([sb.db_variable(lists)])
    expected = make_store([sb.db_variable(sb.x509_list(own("new-db")) + sb.x509_list(own("new-db"), sb.OWNER_WRONG))])
    assert own_plan(blob).store == expected
    assert own_plan(expected).changes == ()


def test_an_owner_that_nobody_lists_as_wrong_stays() -> None:
    """A tenant may enrol Microsoft's certificate under an owner of the tenant's own."""
    tenants = sb.x509_lists([own("new-db"), own("new-rom")], sb.OWNER_TENANT)
    blob = make_store([sb.db_variable(sb.x509_list(own("old-db")) + tenants)])
    result = own_plan(blob)
    assert (result.store, result.changes, result.refused) == (blob, (), None)


def test_a_correction_needs_no_headroom() -> None:
    keys = Keys(kek=(), db=("new-db",), wrong=frozenset({"new-db"}))
    used = sum(each.counted for each in keys.variables())
    filler = [sb.Variable(f"F{number}", sb.GLOBAL, bytes(40_000)) for number in range(3)]
    left = sb.TOTAL_LIMIT - used - sum(each.counted for each in filler)
    blob = make_store([*keys.variables(), *filler, sb.Variable("L", sb.GLOBAL, bytes(left - 230))])
    result = own_plan(blob)
    assert result.refused is None
    assert result.store == splice.reowned(blob, own("new-db"), MICROSOFT)


def test_the_recorded_length_is_right_after_an_update_and_untouched_without() -> None:
    """varstored ignores it on load, so any number may stand there; a store with nothing to do stays byte for byte."""
    made = scene("wrong_data_length")
    result = planned(made.blob)
    assert struct.unpack_from("<Q", result.store, 16)[0] == len(result.store) - 292
    assert result.store == updated(made.blob, made.missing)
    complete = make_store(Keys(("old-kek", "new-kek"), ("new-db",)).variables(), data_length=7)
    assert own_plan(complete).store == complete


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_version_and_what_stands_beside_the_data_are_kept(version: int) -> None:
    """Invariant 3."""
    held = [replace(each, attributes=0xDEADBEEF, time=bytes(range(16)), digest=bytes(range(32))) for each in Keys().variables()]
    ancillary = bytes(range(256)) + bytes(12) if version == 2 else b""
    result = own_plan(make_store(held, version, ancillary))
    assert result.refused is None
    new = VarstoredModel.load(result.store)
    assert (new.version, new.ancillary) == (version, ancillary)
    assert [replace(each, data=b"") for each in new.list()[::-1]] == [replace(each, data=b"") for each in held]


def test_a_tenants_own_keys_stay() -> None:
    """Invariant 3: what a tenant enrolled stands where it stood, before what is added."""
    blob = scene("custom_and_microsoft").blob
    result = planned(blob)
    for name, tenants in (("KEK", "A tenant's KEK"), ("db", "A tenant's db")):
        data = variable(result.store, name).data
        assert data.startswith(variable(blob, name).data)
        assert identity(tenants).der in data


def test_every_scene_is_planned_one_way_or_the_other() -> None:
    """A plan either keeps the store, or makes one that is complete: there is nothing between."""
    for name in SCENES:
        result = planned(scene(name).blob)
        assert result.store == scene(name).blob or result.after.state is State.OK, name
        assert (result.refused is not None) <= (result.store == scene(name).blob), name
