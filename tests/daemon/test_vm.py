"""One VM's boots, asked for at its socket."""

import json
from hashlib import sha256

import pytest
import trio
from trio.testing import MockClock

from support.daemon import NOW, Place, updated, written
from support.peer import Refused
from support.storemaker import scene
from support.varstored_model import VarstoredModel
from varstore_companion.daemon.alerts import STORE_DAMAGED
from varstore_companion.errors import (
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import GetStore, GetStoreAnswer, Outcome, Presence, Reason

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT
UPDATED = "VM_SECURE_BOOT_CERTIFICATES_UPDATED"

UNAVAILABLE = ToolstackUnavailableError("xapi restarts")
REFUSED = ToolstackRefusedError("VM_BAD_POWER_STATE", "not now")
UNCLEAR = ToolstackUnclearError("the answer was lost")


async def alerted(place: Place, *names: str) -> None:
    """Wait until the operator has got these alerts."""
    await trio.testing.wait_all_tasks_blocked()
    assert place.alerts() == list(names)


# The first boot


async def test_it_is_a_first_boot_when_the_toolstack_says_that_there_is_no_store(place: Place) -> None:  # invariant 4
    machine = await place.machine(None)
    answer = await machine.boot()
    assert (answer.presence, answer.store, answer.outcome) == (Presence.ABSENT, None, Outcome.NOT_ASKED)
    assert place.toolstack.writes == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ToolstackRefusedError("HANDLE_INVALID", "no such VM"), ErrorCode.UNKNOWN_VM),
        (ToolstackRefusedError("SESSION_INVALID", "who are you"), ErrorCode.TOOLSTACK_REFUSED),
        (RuntimeError("a bug"), ErrorCode.INTERNAL),
    ],
)
async def test_a_refusal_is_no_first_boot(place: Place, error: Exception, code: ErrorCode) -> None:  # invariant 4
    machine = await place.machine(None)
    place.toolstack.fail_next("read", error)
    with pytest.raises(Refused) as refused:
        await machine.boot()
    assert refused.value.code is code
    # The connection lives, and so does the VM.
    assert (await machine.boot()).presence is Presence.ABSENT


async def test_an_unavailable_toolstack_is_waited_for_and_no_first_boot(place: Place, autojump_clock: MockClock) -> None:
    store = scene("all2023").blob
    machine = await place.machine(store)
    place.toolstack.fail_next("read", *[UNAVAILABLE] * 40)
    assert (await machine.boot()).store == store
    assert autojump_clock.current_time() == pytest.approx(10)
    place.toolstack.fail_next("read", *[UNAVAILABLE] * 1000)
    with pytest.raises(Refused) as refused:  # invariant 4
        await machine.boot()
    assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert refused.value.try_again


async def test_a_toolstack_that_hangs_is_no_first_boot(place: Place, autojump_clock: MockClock) -> None:  # invariant 4
    machine = await place.machine(None)
    place.toolstack.hang_next("read")
    with pytest.raises(Refused) as refused:
        await machine.boot()
    assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert autojump_clock.current_time() > 15


async def test_a_wait_for_the_toolstack_is_one_line_in_the_log(
    place: Place, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    machine = await place.machine(scene("all2023").blob)
    place.toolstack.fail_next("read", *[UNAVAILABLE] * 40)
    await machine.boot()
    assert autojump_clock.current_time() > 9
    assert sum("trying again" in line and f"vm={machine.vm}" in line for line in caplog.messages) == 1


# The marked update


@pytest.mark.parametrize("name", ["ms2011", "ms2011_dbx", "ms2011_v1", "windows_only2011", "no_pk_2011", "large"])
async def test_a_marked_vm_is_updated_at_boot(place: Place, name: str) -> None:
    old = scene(name).blob
    machine = await place.machine(old, ON_BOOT)
    answer = await machine.boot()
    new = updated(old)
    assert new != old
    assert (answer.outcome, answer.detail, answer.store) == (Outcome.UPDATED, None, new)
    VarstoredModel.load(new)  # or it raises (invariant 2)
    assert place.record(machine) == VmRecord(new, OK, 1)
    assert answer.generation == 1
    assert [write.update for write in place.toolstack.writes] == [Update.YES]
    await alerted(place, UPDATED)
    # The exact old store is kept, with the plan beside it.
    folder = place.folder / "backups" / str(machine.vm)
    (kept,) = folder.glob("*.vars")
    assert kept.read_bytes() == old
    about = json.loads(kept.with_suffix(".json").read_text())
    assert (about["vm"], about["at"], about["bytes"]) == (str(machine.vm), NOW, len(old))
    assert about["sha256"] == sha256(old).hexdigest()
    assert about["plan"]["state_before"] == "update_available"
    assert about["plan"]["bytes_after"] == len(new)
    # Twice is once (invariant 3).
    again = await machine.boot()
    assert (again.outcome, again.store) == (Outcome.NOT_ASKED, new)
    assert len(place.toolstack.writes) == 1


@pytest.mark.parametrize("name", ["all2023", "custom_keys", "setup_mode", "empty", "only2023"])
async def test_with_nothing_to_do_the_mark_ends(place: Place, name: str) -> None:
    store = scene(name).blob
    machine = await place.machine(store, ON_BOOT)
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.NOTHING_TO_DO, store)
    assert place.record(machine) == VmRecord(store, OK, 1)
    assert not (place.folder / "backups").exists()
    await alerted(place)


@pytest.mark.parametrize("name", ["ms2011", "all2023", "custom_keys"])
@pytest.mark.parametrize("state", CertificatesState)
@pytest.mark.parametrize("reason", [Reason.RESUME, Reason.TOOL])
async def test_only_a_cold_boot_updates(place: Place, name: str, state: CertificatesState, reason: Reason) -> None:
    machine = await place.machine(scene(name).blob, state)  # invariant 10
    answer = await machine.boot(reason)
    assert (answer.outcome, answer.store) == (Outcome.NOT_ASKED, scene(name).blob)
    assert place.toolstack.writes == []


@pytest.mark.parametrize("state", CertificatesState)
async def test_no_read_through_a_resuming_socket_is_a_cold_boot(place: Place, state: CertificatesState) -> None:
    store = scene("ms2011").blob  # invariant 10
    machine = await place.machine(store, state, resume=True)
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.NOT_ASKED, store)
    assert place.toolstack.writes == []


# Without a mark the field is made to tell the truth


@pytest.mark.parametrize(
    ("name", "field", "verdict"),
    [
        ("all2023", OK, None),
        ("all2023", AVAILABLE, Update.YES),
        ("ms2011", AVAILABLE, None),
        ("ms2011", OK, Update.UNSPECIFIED),
        ("custom_keys", OK, None),
        ("custom_keys", AVAILABLE, Update.UNSPECIFIED),
        ("setup_mode", OK, None),
        ("setup_mode", AVAILABLE, Update.UNSPECIFIED),
        # What cannot be read says nothing about the field (invariant 11).
        ("oversized_dbx", OK, None),
        ("oversized_dbx", AVAILABLE, None),
        ("version3", OK, None),
        ("version3", AVAILABLE, None),
        # A guard from before the field.
        ("ms2011", None, None),
        ("all2023", None, None),
    ],
)
async def test_the_field_is_made_to_tell_the_truth(
    place: Place, name: str, field: CertificatesState | None, verdict: Update | None
) -> None:
    store = scene(name).blob
    machine = await place.machine(store, field)
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.NOT_ASKED, store)
    assert [(write.store, write.update) for write in place.toolstack.writes] == ([] if verdict is None else [(store, verdict)])
    if verdict is not None:
        expected = AVAILABLE if name == "ms2011" else OK
        assert place.record(machine) == VmRecord(store, expected, 1)
    # Once is enough.
    await machine.boot()
    assert len(place.toolstack.writes) == (verdict is not None)
    await alerted(place, *([STORE_DAMAGED] if name == "oversized_dbx" else []))


@pytest.mark.parametrize("error", [UNAVAILABLE, REFUSED, UNCLEAR, RuntimeError("a bug")])
async def test_a_field_that_cannot_be_corrected_stops_no_boot(place: Place, error: Exception) -> None:
    store = scene("all2023").blob
    machine = await place.machine(store, AVAILABLE)
    place.toolstack.fail_next("write", error)
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.NOT_ASKED, store)
    assert place.record(machine) == VmRecord(store, AVAILABLE, 0)
    await machine.boot()
    assert place.record(machine) == VmRecord(store, OK, 1)


async def test_a_hanging_correction_stops_no_boot(place: Place, autojump_clock: MockClock) -> None:
    store = scene("all2023").blob
    machine = await place.machine(store, AVAILABLE)
    place.toolstack.hang_next("write")
    assert (await machine.boot()).store == store
    assert autojump_clock.current_time() > 10


async def test_a_store_that_varstored_cannot_load_is_said_to_be_too_large(place: Place) -> None:
    machine = await place.machine(bytes(131_073))
    for reason in Reason:
        with pytest.raises(Refused) as refused:
            await machine.boot(reason)
        assert refused.value.code is ErrorCode.STORE_OVER_LIMIT
    assert place.toolstack.writes == []


async def test_a_boot_waits_for_a_write_and_sees_it(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("write")
    newer = written("ms2011", 3)
    async with machine.peer() as writer, machine.peer() as booter, trio.open_nursery() as nursery:
        nursery.start_soon(writer.put, newer)
        await hang.reached.wait()
        asked = await booter.send(GetStore(Reason.BOOT))
        await trio.testing.wait_all_tasks_blocked()
        hang.release.set()
        answer = await booter.answer(asked)
    assert isinstance(answer, GetStoreAnswer)
    assert answer.store == updated(newer)
