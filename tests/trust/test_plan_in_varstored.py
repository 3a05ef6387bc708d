"""What an update makes, judged by varstored's own rules: it loads, and every signed update still applies to it."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import fixtures
from support import storebytes as sb
from support.certificates import FINGERPRINTS, identity, microsoft
from support.every import LOADING, known
from support.shipped import Keys, microsoft_bodies, own, own_bodies, own_manifest, shipped
from support.siglist_rules import certificates_in
from support.storemaker import TENANT_KEK, TENANT_PK, efi_time, make_store, scene, sha256_list, x509_list
from support.strategies import that_fit, variables
from support.varstored_model import SetRefused, VarstoredModel, sign_update, signature_list_violations
from varstore_companion.trust.check import State, check
from varstore_companion.trust.plan import Plan, plan

APPEND = sb.ATTRIBUTES_KEYS | sb.APPEND_WRITE
KEYS = {"PK": sb.GLOBAL, "KEK": sb.GLOBAL, "db": sb.IMAGE_SECURITY, "dbx": sb.IMAGE_SECURITY}
CURED = [name for name in LOADING if not name.endswith(("nearly_full", "room_without_headroom"))]
WITH_MICROSOFTS_KEK = [
    name
    for name in CURED
    if not name.endswith(("setup_mode", "custom_keys", "only2023", "empty", "no_pk_custom", "no_pk_2011"))
]


def updated(name: str) -> bytes:
    result = plan(known(name).blob, shipped(), microsoft_bodies())
    assert result.refused is None
    return result.store


def set_of(model: VarstoredModel, name: str) -> list[str]:
    """The fingerprints in a key variable, in order."""
    return [hashlib.sha256(body).hexdigest() for body in certificates_in(model.get(name, KEYS[name]).data)]


@pytest.mark.parametrize("name", CURED)
def test_the_updated_store_loads_and_keeps_to_the_rules_of_lists(name: str) -> None:
    """Invariant 2."""
    model = VarstoredModel.load(updated(name))
    for each in model.list():
        if KEYS.get(str(each.name)) == each.guid:
            assert signature_list_violations(each.data, str(each.name)) == []
    assert VarstoredModel.load(VarstoredModel.load(model.save()).save()).list() == model.list()


@pytest.mark.parametrize("file", fixtures.DB_UPDATES)
@pytest.mark.parametrize("name", WITH_MICROSOFTS_KEK)
def test_microsofts_signed_db_updates_apply_after_and_add_nothing_twice(name: str, file: str) -> None:
    """Invariant 2: what the host added is what the guest's own update would have added, entry for entry."""
    model = VarstoredModel.load(updated(name))
    before = set_of(model, "db")
    added = FINGERPRINTS[fixtures.DB_UPDATES[file]]
    assert model.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update(file)) == (added not in before)
    assert set_of(model, "db") == before + ([] if added in before else [added])
    VarstoredModel.load(model.save())


@pytest.mark.parametrize("name", WITH_MICROSOFTS_KEK)
def test_microsofts_signed_dbx_update_applies_after(name: str) -> None:
    """Invariant 2: the headroom is what it is for."""
    model = VarstoredModel.load(updated(name))
    model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, fixtures.update("DBXUpdate"))
    assert not model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, fixtures.update("DBXUpdate"))
    VarstoredModel.load(model.save())


def test_without_the_update_a_wrong_owner_makes_a_duplicate_and_with_it_none() -> None:
    for name in ("wrong_owner_2023", "wrong_owner_virt_firmware"):
        without, with_it = VarstoredModel.load(scene(name).blob), VarstoredModel.load(updated(name))
        for file in fixtures.DB_UPDATES:
            assert without.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update(file))
            assert not with_it.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update(file))


def tenants(name: str, attributes: int, time: bytes, payload: bytes, signer: str) -> bytes:
    who = identity(signer)
    return sign_update(name, KEYS[name], attributes, time, payload, key=who.key, cert=who.certificate)


JUST_AFTER = efi_time(2026, 1, 20, hour=10, minute=35, second=9)
"""One second after the time of the scenes' key variables, and before any clock of today."""


@pytest.mark.parametrize("attributes", [APPEND, sb.ATTRIBUTES_KEYS], ids=["append", "replacement"])
@pytest.mark.parametrize(("name", "signer"), [("db", TENANT_KEK), ("db", TENANT_PK), ("KEK", TENANT_PK)])
def test_a_tenants_own_older_signed_update_still_applies(name: str, signer: str, attributes: int) -> None:
    """Invariant 3: times are left as they were, so that what a tenant signed before the update is not locked out."""
    payload = x509_list(identity("A tenant's next").der, sb.OWNER_TENANT)
    signed = tenants(name, attributes, JUST_AFTER, payload, signer)
    model = VarstoredModel.load(updated("custom_and_microsoft"))
    before = model.get(name, KEYS[name]).data
    assert model.set_variable(name, KEYS[name], attributes, signed)
    assert model.get(name, KEYS[name]).data == (before + payload if attributes == APPEND else payload)


def test_a_tenants_replayed_older_update_is_still_refused() -> None:
    payload = x509_list(identity("A tenant's next").der, sb.OWNER_TENANT)
    time = efi_time(2026, 1, 20, hour=10, minute=35, second=8)
    signed = tenants("db", sb.ATTRIBUTES_KEYS, time, payload, TENANT_PK)
    model = VarstoredModel.load(updated("custom_and_microsoft"))
    with pytest.raises(SetRefused, match="later"):
        model.set_variable("db", sb.IMAGE_SECURITY, sb.ATTRIBUTES_KEYS, signed)


def own_plan(blob: bytes, headroom: int | None = None) -> Plan:
    return plan(blob, own_manifest(), own_bodies(), headroom=headroom)


@pytest.mark.parametrize("dbx", [b"", sha256_list([bytes(32)])], ids=["dbx absent", "dbx there"])
@pytest.mark.parametrize("missing", [0, 1], ids=["the room is there", "a byte is missing"])
def test_the_headroom_is_exact(missing: int, dbx: bytes) -> None:
    """Invariant 2: with the headroom left a running varstored takes an append of that size, and with a byte less not."""
    append = sha256_list([struct.pack("<32xI", number)[4:] for number in range(1, 101)])
    growth = sum(28 + 16 + len(own(name)) for name in ("new-kek", "new-db", "new-rom", "new-other"))
    held = Keys(dbx=dbx).variables()
    held += [sb.Variable(f"F{number}", sb.GLOBAL, bytes(30_000)) for number in range(3)]
    used = sum(each.counted for each in held) + growth + 820 + (0 if dbx else 6 + 128)
    size = sb.TOTAL_LIMIT - used - len(append) - 128 - 2 + missing
    blob = make_store([*held, sb.Variable("L", sb.GLOBAL, bytes(size))])

    result = own_plan(blob, len(append))
    assert (result.refused is None) == (not missing)
    forced = own_plan(blob, 0)
    assert forced.headroom == len(append) - missing
    model = VarstoredModel.load(forced.store)
    signer = identity("An operator's old-kek", key_of="An operator's key")
    signed = sign_update("dbx", sb.IMAGE_SECURITY, APPEND, JUST_AFTER, append, key=signer.key, cert=signer.certificate)
    if missing:
        with pytest.raises(SetRefused, match="OUT_OF_RESOURCES"):
            model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, signed)
    else:
        assert model.set_variable("dbx", sb.IMAGE_SECURITY, APPEND, signed)
        VarstoredModel.load(model.save())


NAMES = st.lists(st.sampled_from(("old-db", "old-other", "new-db", "new-rom", "new-other")), unique=True, max_size=5)
KEK_NAMES = st.lists(st.sampled_from(("old-kek", "new-kek")), unique=True, max_size=2)


@st.composite
def stores_with_keys(draw: st.DrawFn) -> bytes:
    """A store that varstored takes, with any variables and some of the certificates of our own manifest."""
    hashes = [struct.pack("<I28x", number) for number in range(draw(st.sampled_from((0, 1, 443, 1_190))))]
    keys = Keys(
        tuple(draw(KEK_NAMES)),
        tuple(draw(NAMES)),
        sha256_list(hashes) if hashes else b"",
        draw(st.frozensets(st.sampled_from(("old-db", "new-db", "new-kek")))),
    )
    others = variables()
    if draw(st.booleans()):
        others = others.filter(lambda each: each.name not in KEYS)
    held = draw(st.permutations([*draw(st.lists(others, max_size=5, unique_by=lambda each: each.name)), *keys.variables()]))
    version = draw(st.sampled_from((0, 1, 2)))
    ancillary = draw(st.binary(min_size=268, max_size=268)) if version == 2 else b""
    return make_store(that_fit(held), version, ancillary, draw(st.sampled_from((None, 0, (1 << 64) - 1))))


def _without_data(held: Sequence[sb.Variable]) -> list[sb.Variable]:
    return [replace(each, data=b"") for each in held]


@settings(max_examples=150)
@given(stores_with_keys(), st.sampled_from((None, 0, 21_292, 100_000)))
def test_the_result_for_any_store_is_accepted_or_the_old_bytes(blob: bytes, headroom: int | None) -> None:
    """Invariants 2, 3 and 5."""
    result = own_plan(blob, headroom)
    old, new = (VarstoredModel.load(each) for each in (blob, result.store))
    if result.refused is not None:
        assert result.store == blob
        return
    assert own_plan(result.store, headroom).store == result.store
    if not result.changes:
        assert result.store == blob
        return
    assert result.after.state is State.OK or not result.before.missing
    assert check(result.store, own_manifest()).missing == ()
    assert (new.version, new.ancillary) == (old.version, old.ancillary)
    assert _without_data(new.list()) == _without_data(old.list())
    changed = {str(each.variable) for each in result.changes}
    for before, after in zip(old.list(), new.list(), strict=True):
        if before.name in changed and before.guid == KEYS[str(before.name)]:
            assert signature_list_violations(after.data, str(after.name)) == []
            assert list(certificates_in(after.data))[: len(list(certificates_in(before.data)))] == list(
                certificates_in(before.data)
            )
        else:
            assert after == before


@pytest.mark.parametrize("name", ["ms2011", "ms2011_v1"])
def test_a_store_updated_by_the_host_is_one_updated_by_the_guest(name: str) -> None:
    """The db that results is the same, byte for byte, as after Microsoft's three updates by the guest."""
    by_guest = VarstoredModel.load(scene(name).blob)
    for file in fixtures.DB_UPDATES:
        by_guest.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update(file))
    by_host = VarstoredModel.load(updated(name))
    assert by_host.get("db", sb.IMAGE_SECURITY) == by_guest.get("db", sb.IMAGE_SECURITY)
    assert microsoft("ms-kek-2023") in by_host.get("KEK", sb.GLOBAL).data
