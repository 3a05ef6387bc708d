"""The order of one VM's writes, and what the daemon knows of its store."""

import gc
import os
from base64 import b64encode
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from support.daemon import VENDOR, Machine, Place, updated, written
from support.peer import connect
from support.stock import SET, S, V, request
from support.storemaker import Variable, make_store, scene
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire import codec
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.limits import MAX_PAYLOAD
from varstore_companion.wire.messages import (
    GetStore,
    GetStoreAnswer,
    Outcome,
    PutStore,
    PutStoreAnswer,
    Reason,
    Verdict,
)

OK, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_ON_BOOT


async def test_pipelined_writes_are_carried_out_and_answered_in_order(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as peer:
        asked = [await peer.send(PutStore(written("ms2011", number))) for number in range(16)]
        answers = [await peer.answer(each) for each in asked]
    assert [answer.generation for answer in answers if isinstance(answer, PutStoreAnswer)] == list(range(1, 17))
    assert [write.store for write in place.toolstack.writes] == [written("ms2011", number) for number in range(16)]


async def test_two_sockets_of_one_vm_take_turns(place: Place) -> None:  # invariant 9
    first = await place.machine(scene("ms2011").blob, ON_BOOT)
    second = await place.attach(first.vm, "migration.sock")
    acknowledged: list[bytes] = []

    async def write(machine: Machine, numbers: range) -> None:
        async with machine.peer() as peer:
            for number in numbers:
                store = written("ms2011", number)
                await peer.put(store)
                acknowledged.append(store)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, first, range(100, 130))
        nursery.start_soon(write, second, range(200, 230))
    assert place.record(first) == VmRecord(acknowledged[-1], ON_BOOT, 60)
    # No write was tried twice: each was decided on what the one before had left.
    assert [write.store for write in place.toolstack.writes] == acknowledged
    assert [write.expected for write in place.toolstack.writes] == list(range(60))


async def test_a_write_that_waits_comes_after_the_one_under_way(place: Place) -> None:  # invariant 9
    first = await place.machine(scene("ms2011").blob, ON_BOOT)
    second = await place.attach(first.vm, "migration.sock")
    hang = place.toolstack.hang_next("write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.put, written("ms2011", 1))
        await hang.reached.wait()
        nursery.start_soon(second.put, written("ms2011", 2))
        await wait_all_tasks_blocked()
        assert len(place.toolstack.writes) == 1
        hang.release.set()
    assert place.record(first) == VmRecord(written("ms2011", 2), ON_BOOT, 2)


async def test_detached_and_attached_again_under_a_write_it_is_still_one_vm(place: Place) -> None:  # invariant 9
    old = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.put, written("ms2011", 1))
        await hang.reached.wait()
        assert await place.daemon.detach(old.path)
        new = await place.attach(old.vm, "vm.sock")
        nursery.start_soon(new.put, written("ms2011", 2))
        await wait_all_tasks_blocked()
        hang.release.set()
    assert place.record(old) == VmRecord(written("ms2011", 2), ON_BOOT, 2)
    assert len(place.toolstack.writes) == 2


async def test_a_vm_is_forgotten_when_nobody_uses_it(place: Place) -> None:
    """Also where its last request was still being carried out when its socket was detached."""
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as peer:
        write = place.toolstack.hang_next("write")
        asked = await peer.send(PutStore(written("ms2011", 1)))
        await write.reached.wait()
        await place.daemon.detach(machine.path)
        assert (list(place.daemon._vms), place.daemon.connections) == ([machine.vm], 1)
        write.release.set()
        await peer.answer(asked)
    await wait_all_tasks_blocked()
    gc.collect()
    assert (list(place.daemon._vms), place.daemon.connections) == ([], 0)


async def test_a_read_overtaken_by_a_write_does_not_undo_what_is_known(place: Place) -> None:  # invariants 7 and 9
    machine = await place.machine(scene("ms2011").blob, OK)
    for begin_with_a_write in (False, True):
        async with machine.peer() as reader, machine.peer() as writer, trio.open_nursery() as nursery:
            await writer.put(written("ms2011", 1))
            write = place.toolstack.hang_next("write")
            changed = scene("db_done" if begin_with_a_write else "custom_keys").blob
            if begin_with_a_write:
                nursery.start_soon(writer.put, changed)
                await write.reached.wait()
            # The read has its answer, from before the write, and is kept from bringing it.
            read = place.toolstack.hang_next("read", when="after")
            asked = await reader.send(GetStore(Reason.TOOL))
            await read.reached.wait()
            if not begin_with_a_write:
                nursery.start_soon(writer.put, changed)
                await write.reached.wait()
            write.release.set()
            await wait_all_tasks_blocked()
            assert place.record(machine).store == changed
            read.release.set()
            answer = await reader.answer(asked)
            assert isinstance(answer, GetStoreAnswer)
            assert answer.store == written("ms2011", 1)
            writes = len(place.toolstack.writes)
            assert (await writer.put(changed)).verdict is Verdict.NO
            assert len(place.toolstack.writes) == writes + 1


@pytest.mark.parametrize("steps", range(14))
@pytest.mark.parametrize("what", ["boot", "put"])
async def test_cancelled_anywhere_what_is_known_stays_true(still: Place, what: str, steps: int) -> None:
    vm = still.new_vm(scene("ms2011").blob, ON_BOOT)
    call: Callable[[], Awaitable[object]] = vm.boot if what == "boot" else lambda: vm.put(scene("db_done").blob)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            nursery.start_soon(cancel)
            await call()
    record = still.record(vm)
    assert record.store in {scene("ms2011").blob, scene("db_done").blob, updated(scene("ms2011").blob)}
    # The lock is free, the next write is decided on what the toolstack holds, and no mark is lost (invariant 7).
    assert record.store is not None
    with trio.fail_after(5):
        put = await vm.put(record.store)
    assert (put.verdict.update, put.generation) == (Update.NO, record.generation + 1)
    assert still.record(vm) == VmRecord(record.store, record.state, put.generation)
    with trio.fail_after(5):
        boot = await vm.boot()
    assert boot.outcome.name == (Outcome.NOT_ASKED if record.state is OK else Outcome.UPDATED).name


@pytest.mark.parametrize("stock", [False, True])
async def test_a_write_that_its_peer_gave_up_does_not_come_after_the_next_one(place: Place, stock: bool) -> None:  # invariant 9
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    large = make_store([*scene("ms2011").variables, *(Variable(name, VENDOR, bytes(50_000)) for name in "AB")])
    # Others of the VM's connections hoard so much that a large write is not read for the moment.
    hoarders = [await connect(machine.path, machine.vm) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for hoarder in hoarders:
            await hoarder.hello()
            nursery.start_soon(hoarder.raw.send_all, build_frame(0x0042, 9, bytes(MAX_PAYLOAD))[:-1])
        await wait_all_tasks_blocked()
        gone = await connect(machine.path, machine.vm)
        if stock:
            await gone.raw.send_all(request(SET, S, V, b64encode(large).decode()))
        else:
            await gone.hello()
            await gone.send(PutStore(large))
        await wait_all_tasks_blocked()
        await gone.raw.aclose()
        await machine.put(written("ms2011", 2))
        nursery.cancel_scope.cancel()
    for hoarder in hoarders:
        await hoarder.raw.aclose()
    await wait_all_tasks_blocked()
    assert place.daemon.connections == 0
    assert place.record(machine) == VmRecord(written("ms2011", 2), ON_BOOT, 1)


async def test_a_boot_that_its_peer_gave_up_updates_nothing(place: Place) -> None:  # invariants 9 and 10
    """Its VM may have been started elsewhere meanwhile: what is written then may be older than what its guest wrote."""
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    gone = await connect(machine.path, machine.vm)
    await gone.hello()
    # Both before the daemon has a turn.
    assert os.write(gone.raw.socket.fileno(), build_frame(GetStore.TYPE, 2, codec.encode(GetStore(Reason.BOOT)))) == 25
    gone.raw.socket.close()
    await wait_all_tasks_blocked()
    assert place.daemon.connections == 0
    assert place.record(machine) == VmRecord(scene("ms2011").blob, ON_BOOT, 0)


async def test_a_peer_that_only_sends_no_more_is_answered(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as peer:
        asked = await peer.send(PutStore(written("ms2011", 1)))
        await peer.raw.send_eof()
        assert isinstance(await peer.answer(asked), PutStoreAnswer)
