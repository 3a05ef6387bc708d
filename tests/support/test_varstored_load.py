"""The judge itself: what varstored loads and refuses, and what it writes back."""

import struct
from pathlib import Path

import pytest
from hypothesis import given

from support import storebytes as sb
from support.storemaker import HOSTILE, SCENES, Variable, cuts, hostile, make_store, scene
from support.strategies import mutations, stores
from support.varstored_model import LoadRefused, VarstoredModel, signature_list_violations


@pytest.mark.parametrize("name", SCENES)
def test_scenes_load_as_they_say(name: str) -> None:
    made = scene(name)
    if not made.loads:
        with pytest.raises(LoadRefused):
            VarstoredModel.load(made.blob)
        return
    model = VarstoredModel.load(made.blob)
    assert model.list() == made.variables[::-1]
    again = VarstoredModel.load(model.save())
    assert again.list() == made.variables
    for each in made.variables:
        if each.guid in (sb.GLOBAL, sb.IMAGE_SECURITY) and each.name in ("PK", "KEK", "db", "dbx"):
            assert signature_list_violations(each.data, str(each.name)) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_stores_are_what_they_say(name: str) -> None:
    made = hostile(name)
    if not made.loads:
        with pytest.raises(LoadRefused):
            VarstoredModel.load(made.blob)
        return
    model = VarstoredModel.load(made.blob)
    found = [
        each
        for variable in model.list()
        if variable.name in ("PK", "db")
        for each in signature_list_violations(variable.data, str(variable.name))
    ]
    assert bool(found) == made.bad_list


def test_a_store_cut_anywhere_is_refused() -> None:
    for cut in cuts(scene("custom_keys").blob):
        with pytest.raises(LoadRefused):
            VarstoredModel.load(cut)


def test_the_limits_themselves_load() -> None:
    most = [Variable(bytes([number >> 8, number & 255]), sb.GLOBAL, b"x") for number in range(1000)]
    assert len(VarstoredModel.load(make_store(most)).list()) == 1000
    big = Variable("N" * 2048, sb.GLOBAL, bytes(sb.DATA_LIMIT))
    assert VarstoredModel.load(make_store([big])).list() == (big,)
    small = [Variable(f"V{number:03}", sb.GLOBAL, bytes(2)) for number in range(900)]
    last = Variable("Last", sb.GLOBAL, bytes(sb.TOTAL_LIMIT - sum(each.counted for each in small) - 8 - 128))
    assert VarstoredModel.load(make_store([*small, last])).stored_bytes == sb.TOTAL_LIMIT


def test_an_old_host_refuses_version_2_and_keeps_version_1() -> None:
    with pytest.raises(LoadRefused, match="version 2, at most 1"):
        VarstoredModel.load(make_store([]), newest_version=1)
    old = make_store([Variable("BootOrder", sb.GLOBAL, bytes(6))], version=1)
    assert VarstoredModel.load(old, newest_version=1).save() == old


def test_of_two_variables_of_a_name_the_last_is_found() -> None:
    blob = hostile("db_twice").blob
    model = VarstoredModel.load(blob)
    assert model.names == ("db", "BootOrder", "db")
    assert model.get("db", sb.IMAGE_SECURITY) == model.list()[0]
    assert VarstoredModel.load(model.save()).save() == blob


@given(stores())
def test_any_accepted_store_survives_two_loads(blob: bytes) -> None:
    model = VarstoredModel.load(blob)
    once = model.save(volatile_too=True)
    again = VarstoredModel.load(once)
    assert again.list() == model.list()[::-1]
    twice = again.save(volatile_too=True)
    # The recorded data length, which nobody reads, is the only thing that saving puts right.
    assert twice[:16] + blob[16:24] + twice[24:] == blob
    assert struct.unpack_from("<Q", twice, 16)[0] == len(blob) - 24 - len(model.ancillary)
    kept = VarstoredModel.load(model.save()).list()
    assert kept == tuple(each for each in model.list()[::-1] if each.attributes & sb.NON_VOLATILE)


@given(stores().flatmap(mutations))
def test_a_damaged_store_is_refused_or_loads(blob: bytes) -> None:
    try:
        model = VarstoredModel.load(blob)
    except LoadRefused:
        return
    assert VarstoredModel.load(VarstoredModel.load(model.save(volatile_too=True)).save(volatile_too=True)).list() == (
        model.list()
    )
    for each in model.list():
        signature_list_violations(each.data, "db")


def test_the_judge_shares_nothing_with_the_judged() -> None:
    here = Path(__file__).parent
    for name in ("certificates", "hostile", "pkcs7", "siglist_rules", "storebytes", "storemaker", "varstored_model"):
        assert "varstore" + "_companion" not in (here / f"{name}.py").read_text(encoding="utf-8")
