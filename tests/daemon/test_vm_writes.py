"""One VM's writes, asked for at its socket."""

import pytest
import trio
from trio.testing import MockClock

from support.daemon import Machine, Place, updated, written
from support.memory_toolstack import When
from support.peer import Refused
from support.storemaker import make_store, scene
from varstore_companion.daemon import vm as vm_module
from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.frames import build_frame, join_fields
from varstore_companion.wire.messages import (
    Durable,
    PutStore,
    PutStoreAnswer,
    Verdict,
)

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT

UNAVAILABLE = ToolstackUnavailableError("xapi restarts")
REFUSED = ToolstackRefusedError("VM_BAD_POWER_STATE", "not now")
UNCLEAR = ToolstackUnclearError("the answer was lost")
CONFLICT = ToolstackConflictError("somebody else was faster")


async def refused(machine: Machine, store: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        await machine.put(store)
    return caught.value


# The verdict


@pytest.mark.parametrize(
    ("before", "field", "after", "verdict", "field_after"),
    [
        # Unchanged, whatever the field says: the mark lives (invariant 7).
        ("ms2011", AVAILABLE, "ms2011_reversed", Verdict.NO, AVAILABLE),
        ("ms2011", ON_BOOT, "ms2011_reversed", Verdict.NO, ON_BOOT),
        ("ms2011", OK, "ms2011_reversed", Verdict.NO, OK),
        ("all2023", ON_BOOT, "all2023", Verdict.NO, ON_BOOT),
        ("setup_mode", ON_BOOT, "empty", Verdict.NO, ON_BOOT),
        # dbx is not of the three.
        ("ms2011", ON_BOOT, "ms2011_dbx", Verdict.NO, ON_BOOT),
        # Changed, and complete.
        ("ms2011", ON_BOOT, "all2023", Verdict.YES, OK),
        ("setup_mode", OK, "all2023", Verdict.YES, OK),
        ("custom_keys", None, "all2023", Verdict.YES, OK),
        # Changed, and in need of an update that the toolstack knows of.
        ("ms2011", AVAILABLE, "windows_updated_db_windows", Verdict.NO, AVAILABLE),
        ("ms2011", ON_BOOT, "db_done", Verdict.NO, ON_BOOT),
        ("all2023", ON_BOOT, "ms2011", Verdict.NO, ON_BOOT),
        # Changed otherwise.
        ("setup_mode", OK, "ms2011", Verdict.UNSPECIFIED, AVAILABLE),
        ("all2023", OK, "ms2011", Verdict.UNSPECIFIED, AVAILABLE),
        ("all2023", None, "ms2011", Verdict.UNSPECIFIED, AVAILABLE),
        ("ms2011", ON_BOOT, "custom_keys", Verdict.UNSPECIFIED, OK),
        ("ms2011", ON_BOOT, "setup_mode", Verdict.UNSPECIFIED, OK),
        # The store before is not known.
        ("version3", ON_BOOT, "all2023", Verdict.YES, OK),
        ("version3", ON_BOOT, "ms2011", Verdict.UNSPECIFIED, AVAILABLE),
        # The first store of a VM.
        (None, OK, "setup_mode", Verdict.NO, OK),
        (None, OK, "ms2011", Verdict.UNSPECIFIED, AVAILABLE),
        (None, OK, "all2023", Verdict.YES, OK),
        # A newer version is passed through.
        ("ms2011", ON_BOOT, "version3", Verdict.UNSPECIFIED, OK),
    ],
)
async def test_the_verdict(
    place: Place,
    *,
    before: str | None,
    field: CertificatesState | None,
    after: str,
    verdict: Verdict,
    field_after: CertificatesState | None,
) -> None:
    machine = await place.machine(None if before is None else scene(before).blob, field)
    store = scene(after).blob
    answer = await machine.put(store)
    assert answer == PutStoreAnswer(verdict, Durable.TOOLSTACK, 1)
    assert place.record(machine) == VmRecord(store, field_after, 1)
    assert len(place.toolstack.writes) == 1


async def test_one_look_at_the_toolstack_serves_every_write_that_changes_no_key(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as peer:
        for number in range(20):
            assert (await peer.put(written("ms2011", number))).generation == number + 1
    assert place.toolstack.calls["read"] == 1
    assert place.record(machine) == VmRecord(written("ms2011", 19), ON_BOOT, 20)
    # A changed key needs the field, and is known from then on.
    await machine.put(written("all2023", 20))
    assert place.toolstack.calls["read"] == 2
    await machine.put(written("all2023", 21))
    assert place.toolstack.calls["read"] == 2


async def test_after_a_boot_no_look_is_needed(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as peer:
        updated_store = (await peer.get()).store
        assert updated_store == updated(scene("ms2011").blob)
        assert (await peer.put(updated_store)).verdict is Verdict.NO
    assert place.toolstack.calls["read"] == 1


async def test_a_first_write_that_changes_keys_takes_one_look(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    await machine.put(scene("db_done").blob)
    assert place.toolstack.calls["read"] == 1


async def test_what_somebody_else_wrote_is_decided_anew(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    await machine.put(written("ms2011", 1))
    place.write_elsewhere(machine, scene("all2023").blob)
    answer = await machine.put(written("ms2011", 2))
    # Against what this daemon knew the keys are unchanged; against what the toolstack holds they are not.
    assert answer == PutStoreAnswer(Verdict.NO, Durable.TOOLSTACK, 3)
    assert [(write.update, write.expected) for write in place.toolstack.writes[1:]] == [(Update.NO, 1), (Update.NO, 2)]
    place.write_elsewhere(machine, scene("all2023").blob)
    place.toolstack.vms[machine.vm] = VmRecord(scene("all2023").blob, OK, 4)
    assert (await machine.put(written("ms2011", 3))).verdict is Verdict.UNSPECIFIED
    assert place.record(machine) == VmRecord(written("ms2011", 3), AVAILABLE, 5)


async def test_a_mark_set_at_any_moment_survives_no(place: Place) -> None:  # invariant 7
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    for when in ("before", "after"):
        for number in range(3):
            await place.toolstack.mark(machine.vm, mark=False)
            hang = place.toolstack.hang_next("write", when="before" if when == "before" else "after")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.put, written("ms2011", number))
                await hang.reached.wait()
                assert await place.toolstack.mark(machine.vm, mark=True) is ON_BOOT
                hang.release.set()
            assert place.record(machine).state is ON_BOOT


# What is not taken


@pytest.mark.parametrize(
    ("store", "code"),
    [
        (b"", ErrorCode.NOT_A_STORE),
        (b"VARS", ErrorCode.NOT_A_STORE),
        (b"SRAV" + bytes(300), ErrorCode.NOT_A_STORE),
        (bytes(131_072), ErrorCode.NOT_A_STORE),
        (written("setup_mode", 1) + b"\0", ErrorCode.NOT_A_STORE),
        (written("setup_mode", 1)[:-1], ErrorCode.NOT_A_STORE),
        (make_store([], count=1 << 63), ErrorCode.NOT_A_STORE),
        (written("setup_mode", 1, 57_352), ErrorCode.STORE_OVER_LIMIT),
    ],
    ids=["empty", "magic", "other magic", "zeros", "trailing", "cut", "count", "variable"],
)
async def test_what_varstored_would_not_load_is_refused_and_the_old_store_stays(
    place: Place, store: bytes, code: ErrorCode
) -> None:
    old = scene("ms2011").blob
    machine = await place.machine(old, ON_BOOT)
    async with machine.peer() as peer:
        with pytest.raises(Refused) as caught:
            await peer.put(store)
        assert caught.value.code is code
        assert not caught.value.try_again
        # The connection lives.
        assert (await peer.put(written("ms2011", 1))).verdict is Verdict.NO
    assert [write.store for write in place.toolstack.writes] == [written("ms2011", 1)]
    assert place.host.stats.refused == 1


async def test_a_store_larger_than_a_message_may_hold_is_refused(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob)
    async with machine.peer() as peer:
        frame = build_frame(PutStore.TYPE, 99, join_fields([(1, bytes(131_073))]))
        await peer.raw.send_all(frame)
        await peer.raw.send_eof()
        (answer,) = await peer.rest()
    assert answer.request_id == 99
    assert answer.error.code == ErrorCode.STORE_OVER_LIMIT
    assert place.toolstack.writes == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UNAVAILABLE, ErrorCode.TOOLSTACK_UNAVAILABLE),
        (REFUSED, ErrorCode.TOOLSTACK_REFUSED),
        (ToolstackRefusedError("HANDLE_INVALID", "gone"), ErrorCode.UNKNOWN_VM),
        (RuntimeError("a bug"), ErrorCode.UNCLEAR),
    ],
)
@pytest.mark.parametrize("call", ["read", "write"])
async def test_an_error_leaves_the_old_store(place: Place, call: str, error: Exception, code: ErrorCode) -> None:
    old = scene("ms2011").blob
    machine = await place.machine(old, ON_BOOT)
    other = await place.machine(old, ON_BOOT, name="other.sock")
    if call == "write" and error is UNAVAILABLE:
        # Only a journal that does not take it either lets the write fail.
        place.host.journal._total = 0
    place.toolstack.fail_next("read" if call == "read" else "write", error)
    answer = await refused(machine, written("ms2011", 1))
    assert answer.code is code
    assert place.record(machine) == VmRecord(old, ON_BOOT, 0)
    # Neither this VM nor another one suffers.
    for each in (machine, other):
        assert (await each.put(written("ms2011", 2))).verdict is Verdict.NO
        assert place.record(each) == VmRecord(written("ms2011", 2), ON_BOOT, 1)


async def test_an_unclear_write_is_acknowledged_only_once_it_is_read_back(place: Place) -> None:  # invariant 6
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    await machine.put(written("ms2011", 1))
    place.toolstack.fail_next("write", UNCLEAR, when="after")
    assert await machine.put(written("ms2011", 2)) == PutStoreAnswer(Verdict.NO, Durable.TOOLSTACK, 2)
    assert place.toolstack.calls["read"] == 2
    assert place.record(machine).store == written("ms2011", 2)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_write_that_stays_unclear_is_journaled_and_delivered_once(place: Place, when: When) -> None:  # invariant 6
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    vm = place.daemon.vm(machine.vm)
    place.toolstack.fail_next("write", UNCLEAR, when=when)
    # The look that the write decides on, then the one that reads back.
    place.toolstack.hang_next("read").release.set()
    place.toolstack.fail_next("read", UNAVAILABLE)
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    with trio.fail_after(5):
        await vm.flush()
    assert vm.is_direct
    assert place.record(machine) == VmRecord(written("ms2011", 1), ON_BOOT, 1)
    assert len(place.toolstack.writes) == (1 if when == "after" else 2)
    # What it is now is looked up before the next verdict.
    assert await machine.put(written("ms2011", 2)) == PutStoreAnswer(Verdict.NO, Durable.TOOLSTACK, 2)


async def test_an_unclear_write_overtaken_by_somebody_else_is_decided_anew(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    hang = place.toolstack.hang_next("read")
    hang.release.set()
    second = place.toolstack.hang_next("read")
    place.toolstack.fail_next("write", UNCLEAR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.put, written("ms2011", 1))
        await second.reached.wait()
        place.write_elsewhere(machine, scene("all2023").blob)
        second.release.set()
    assert place.record(machine) == VmRecord(written("ms2011", 1), AVAILABLE, 2)


async def test_a_write_that_hangs_is_answered(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    vm = place.daemon.vm(machine.vm)
    place.toolstack.hang_next("write")
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    assert autojump_clock.current_time() <= vm_module.STRAIGHT_SECONDS
    await vm.flush()
    place.toolstack.hang_next("write", when="after")
    assert (await machine.put(written("ms2011", 2))).durable is Durable.TOOLSTACK
    place.toolstack.hang_next("read").release.set()
    place.toolstack.hang_next("read")
    place.toolstack.hang_next("write")
    vm._upstream.known = None
    assert (await machine.put(written("ms2011", 3))).durable is Durable.JOURNAL
    await vm.flush()
    vm._upstream.known = None
    place.toolstack.hang_next("read")
    assert (await machine.put(written("ms2011", 4))).durable is Durable.JOURNAL
    await vm.flush()
    assert place.record(machine) == VmRecord(written("ms2011", 4), ON_BOOT, 4)
    assert autojump_clock.current_time() <= 4 * vm_module.STRAIGHT_SECONDS


async def test_conflicts_without_end_are_answered(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.fail_next("write", *[CONFLICT] * vm_module.DECISIONS)
    answer = await refused(machine, written("ms2011", 1))
    assert answer.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert answer.try_again
    assert (await machine.put(written("ms2011", 1))).generation == 1
