"""The judge and the scenes against stores and updates that were not made here: skipped where those are absent."""

import hashlib
import struct

import pytest

from support import fixtures
from support import storebytes as sb
from support.certificates import FINGERPRINTS
from support.siglist_rules import certificates_in
from support.storemaker import SCENES, scene
from support.varstored_model import LoadRefused, SetRefused, Status, VarstoredModel, signature_list_violations

APPEND = sb.ATTRIBUTES_KEYS | sb.APPEND_WRITE
UPDATES = fixtures.DB_UPDATES
RULES = {
    ("KEK", "ms-kek-2011"): ("ms-kek-2023",),
    ("db", "windows-2011"): ("windows-2023",),
    ("db", "ms-uefi-2011"): ("ms-uefi-2023", "ms-uefi-rom-2023"),
}


def missing(variables: tuple[sb.Variable, ...]) -> dict[str, tuple[str, ...]]:
    """What the three rules miss in a store, by fingerprint."""
    held = {
        (each.name, hashlib.sha256(body).hexdigest())
        for each in variables
        if (each.name, each.guid) in (("KEK", sb.GLOBAL), ("db", sb.IMAGE_SECURITY))
        for body in certificates_in(each.data)
    }
    found: dict[str, tuple[str, ...]] = {}
    for (variable, old), needed in RULES.items():
        absent = tuple(each for each in needed if (variable, FINGERPRINTS[each]) not in held)
        if (variable, FINGERPRINTS[old]) in held and absent:
            found[variable] = found.get(variable, ()) + absent
    return found


@pytest.mark.parametrize("name", SCENES)
def test_scenes_miss_what_they_say(name: str) -> None:
    made = scene(name)
    assert made.missing == ({} if made.report == "unknown" else missing(made.variables))


def test_every_fixture_store_is_known() -> None:
    assert set(fixtures.index()) == set(fixtures.STORES)
    assert set(fixtures.STORES) <= set(SCENES)


@pytest.mark.parametrize("name", fixtures.STORES)
def test_fixture_stores_load_and_round_trip(name: str) -> None:
    blob = fixtures.store(name)
    if name == "oversized_dbx":
        with pytest.raises(LoadRefused, match="63876"):
            VarstoredModel.load(blob)
        return
    model = VarstoredModel.load(blob)
    assert model.version == fixtures.index()[name]["version"]
    assert list(model.names) == fixtures.index()[name]["variables"][::-1]
    assert VarstoredModel.load(model.save()).save() == blob
    assert missing(model.list()) == {key: tuple(value) for key, value in fixtures.index()[name]["missing"].items()}
    for each in model.list():
        if each.name in ("PK", "KEK", "db", "dbx"):
            assert signature_list_violations(each.data, str(each.name)) == []


@pytest.mark.parametrize("name", fixtures.STORES)
def test_scenes_are_like_the_fixtures(name: str) -> None:
    expected, made = fixtures.index()[name], scene(name)
    assert [each.name for each in made.variables] == expected["variables"]
    assert made.certcheck == expected["certcheck"]
    assert made.missing == {key: tuple(value) for key, value in expected["missing"].items()}
    assert struct.unpack_from("<I", made.blob, 4)[0] == expected["version"]
    assert abs(len(made.blob) - expected["bytes"]) < 5_000


def models(name: str) -> list[VarstoredModel]:
    return [VarstoredModel.load(blob) for blob in (fixtures.store(name), scene(name).blob)]


@pytest.mark.parametrize("file", UPDATES)
@pytest.mark.parametrize("name", ["ms2011", "ms2011_dbx", "windows_only2011", "ms2011_v1", "large"])
def test_microsofts_db_updates_apply_once(name: str, file: str) -> None:
    signed = fixtures.update(file)
    for model in models(name):
        before = model.get("db", sb.IMAGE_SECURITY)
        assert model.set_variable("db", sb.IMAGE_SECURITY, APPEND, signed)
        after = model.get("db", sb.IMAGE_SECURITY)
        assert after.data.startswith(before.data)
        (added,) = certificates_in(after.data[len(before.data) :])
        assert hashlib.sha256(added).hexdigest() == FINGERPRINTS[UPDATES[file]]
        assert after.time == before.time
        assert not model.set_variable("db", sb.IMAGE_SECURITY, APPEND, signed)
        assert model.get("db", sb.IMAGE_SECURITY) == after
        VarstoredModel.load(model.save())


def test_the_three_db_updates_leave_kek_missing() -> None:
    for model in models("ms2011"):
        for file in UPDATES:
            assert model.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update(file))
        assert missing(model.list()) == {"KEK": ("ms-kek-2023",)}


def test_microsofts_dbx_update_makes_the_variable() -> None:
    signed = fixtures.update("DBXUpdate")
    for model in models("ms2011"):
        assert model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, signed)
        made = model.get("dbx", sb.IMAGE_SECURITY)
        assert len(made.data) == 21_292
        assert made.time == signed[:16]
        assert not model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, signed)


def test_microsofts_dbx_update_finds_itself_in_the_fixture() -> None:
    model = VarstoredModel.load(fixtures.store("ms2011_dbx"))
    assert not model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, fixtures.update("DBXUpdate"))


@pytest.mark.parametrize("file", UPDATES)
def test_under_a_wrong_owner_the_update_is_a_duplicate(file: str) -> None:
    signed = fixtures.update(file)
    for model in models("wrong_owner_2023"):
        before = list(certificates_in(model.get("db", sb.IMAGE_SECURITY).data))
        assert model.set_variable("db", sb.IMAGE_SECURITY, APPEND, signed)
        after = list(certificates_in(model.get("db", sb.IMAGE_SECURITY).data))
        assert len(after) == len(before) + 1
        assert after[-1] in before


@pytest.mark.parametrize("file", [*UPDATES, "DBXUpdate"])
def test_without_microsofts_kek_the_updates_are_refused(file: str) -> None:
    name = "dbx" if file == "DBXUpdate" else "db"
    for model in models("custom_keys"):
        with pytest.raises(SetRefused, match="no chain"):
            model.set_variable(name, sb.IMAGE_SECURITY, APPEND, fixtures.update(file))


@pytest.mark.parametrize("file", [*UPDATES, "DBXUpdate"])
@pytest.mark.parametrize("where", ["year", "second", "certificate of the signer", "signature", "payload"])
def test_a_flipped_bit_in_microsofts_updates_is_refused(file: str, where: str) -> None:
    signed = bytearray(fixtures.update(file))
    (length,) = struct.unpack_from("<I", signed, 16)
    places = {"year": 0, "second": 6, "certificate of the signer": 0x200, "signature": 16 + length - 8, "payload": -1}
    signed[places[where]] ^= 1
    for model in models("ms2011"):
        with pytest.raises(SetRefused) as caught:
            model.set_variable("dbx" if file == "DBXUpdate" else "db", sb.IMAGE_SECURITY, APPEND, bytes(signed))
        assert caught.value.status is Status.SECURITY_VIOLATION


def test_the_updates_are_signed_as_appends_only() -> None:
    for model in models("setup_mode"):
        assert model.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update("DBUpdate2024"))
    for model in models("ms2011"):
        with pytest.raises(SetRefused, match="SECURITY_VIOLATION"):
            model.set_variable("db", sb.IMAGE_SECURITY, sb.ATTRIBUTES_KEYS, fixtures.update("DBUpdate2024"))
