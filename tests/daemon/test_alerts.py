"""What operators are told: texts that stand alone, and not too many of them."""

import re
from uuid import UUID, uuid4

import pytest
from trio.testing import wait_all_tasks_blocked

from support.daemon import MANIFEST, Place, loaded
from support.peer import Refused
from support.storemaker import scene
from varstore_companion.daemon import alerts
from varstore_companion.daemon.alerts import SECURE_BOOT_FAILED, STORE_DAMAGED, UPDATE_FAILED, UPDATED, Told
from varstore_companion.trust.check import check
from varstore_companion.trust.plan import plan
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Reason

OK, AVAILABLE, ON_BOOT = CertificatesState
VM = UUID("6a1f3c52-94b0-4c7e-8d21-0f5e7a9b3c10")
CUT = scene("ms2011").blob[:-7]


def test_each_text_says_by_itself_what_happened_and_what_to_do() -> None:
    """A guard gives every alert one name, so the text has to say which one it is."""
    made = alerts.updated(VM, plan(scene("ms2011").blob, MANIFEST, loaded().bodies))
    assert (made.name, made.priority) == (UPDATED, 4)
    for part in (str(VM), "certificates were updated at boot", "add Windows UEFI CA 2023 in db", "PCR 7", "recovery key"):
        assert part in made.body
    made = alerts.update_failed(VM, "no room")
    assert (made.name, made.priority) == (UPDATE_FAILED, 3)
    for part in (str(VM), "certificates were not updated at boot", "no room", "stays marked"):
        assert part in made.body
    made = alerts.store_damaged(VM, check(CUT, MANIFEST).reasons)
    assert (made.name, made.priority) == (STORE_DAMAGED, 2)
    for part in (str(VM), "store is damaged", "may not start", "snapshot", "backups"):
        assert part in made.body
    assert re.search(r"at offset \d+: expected ", made.body)
    made = alerts.secure_boot_failed("dbx\nx")
    assert (made.name, made.priority) == (SECURE_BOOT_FAILED, 5)
    assert made.body == "The VM failed to pass Secure Boot verification. dbx\ufffdx"


def test_a_guests_store_does_not_make_a_text_long() -> None:
    assert len(alerts.store_damaged(VM, ["x" * 10_000, "y\n" * 10_000]).body) < 2_000


def test_what_was_told_is_no_news_and_what_is_remembered_is_bounded() -> None:
    told = Told()
    assert told.is_news(VM, "a")
    assert not told.is_news(VM, "a")
    assert [told.is_news(VM, str(number)) for number in range(20)] == [True] * (alerts.TEXTS_TOLD - 1) + [False] * 13
    assert told.is_news(uuid4(), "a")
    for _ in range(alerts.VMS_TOLD):
        told.is_news(uuid4(), "a")
    assert len(told._texts) == alerts.VMS_TOLD
    assert told.is_news(VM, "a")


@pytest.mark.parametrize("blob", [CUT, scene("oversized_dbx").blob, b"no store at all"], ids=["cut", "over a limit", "none"])
@pytest.mark.parametrize("state", [OK, AVAILABLE, ON_BOOT])
async def test_a_damaged_store_that_a_boot_finds_is_told_once(place: Place, blob: bytes, state: CertificatesState) -> None:
    machine = await place.machine(blob, state)
    for _ in range(3):
        assert (await machine.boot()).store == blob
    await wait_all_tasks_blocked()
    assert place.alerts().count(STORE_DAMAGED) == 1
    ((vm, _),) = [each for each in place.toolstack.alerts if each[1].name == STORE_DAMAGED]
    assert vm == machine.vm
    # Another finding, and another VM.
    place.write_elsewhere(machine, scene("ms2011").blob[:30])
    await machine.boot()
    other = await place.machine(blob, state, name="other.sock")
    await other.boot()
    await wait_all_tasks_blocked()
    assert place.alerts().count(STORE_DAMAGED) == 3


async def test_a_damaged_store_that_a_write_replaces_is_told(place: Place) -> None:
    machine = await place.machine(CUT, AVAILABLE)
    await machine.put(scene("ms2011").blob)
    await wait_all_tasks_blocked()
    assert place.alerts() == [STORE_DAMAGED]


async def test_a_guest_that_tries_to_write_what_is_no_store_alerts_nobody(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    with pytest.raises(Refused):
        await machine.put(CUT)
    assert (await machine.boot(Reason.TOOL)).store == scene("ms2011").blob
    await wait_all_tasks_blocked()
    assert place.alerts() == []
