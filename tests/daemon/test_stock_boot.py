"""Which read of an unmodified varstored is the boot (invariants 7 and 10): one an attach, and never one that is a tool's."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Machine, Place, updated, written
from support.stock import Failed, Varstored
from support.storemaker import scene
from varstore_companion.daemon.alerts import UPDATE_FAILED, UPDATED
from varstore_companion.daemon.cold_boot import RETRY_SECONDS
from varstore_companion.daemon.vm import BOOT_SECONDS
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.limits import BOOT_ANSWER_SECONDS
from varstore_companion.wire.messages import Outcome, Reason

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT
OLD = "ms2011"


def varstored(machine: Machine) -> Varstored:
    return Varstored(machine.path, machine.vm)


async def marked(place: Place, *, resume: bool = False) -> Machine:
    return await place.machine(scene(OLD).blob, ON_BOOT, resume=resume)


def mark_again(place: Place, machine: Machine) -> None:
    """As if the VM, which runs by now, had its old keys and a mark."""
    place.toolstack.vms[machine.vm] = VmRecord(scene(OLD).blob, ON_BOOT, place.record(machine).generation + 1)


async def never_updates(place: Place, machine: Machine) -> None:
    mark_again(place, machine)
    before = place.record(machine)
    for _ in range(2):
        assert await varstored(machine).read() == scene(OLD).blob
    assert place.record(machine) == before


async def test_the_first_read_is_the_boot_and_the_later_ones_are_not(place: Place) -> None:
    machine = await marked(place)
    assert await varstored(machine).read() == updated(scene(OLD).blob)
    assert place.record(machine).state is OK
    assert [write.update for write in place.toolstack.writes] == [Update.YES]
    await never_updates(place, machine)


async def test_the_first_boot_of_all_is_one_too(place: Place) -> None:
    machine = await place.machine(None)
    assert await varstored(machine).read() is None
    await never_updates(place, machine)


async def test_a_boot_without_a_mark_is_one_too(place: Place) -> None:
    machine = await place.machine(scene(OLD).blob, AVAILABLE)
    assert await varstored(machine).read() == scene(OLD).blob
    await never_updates(place, machine)


async def test_an_update_that_fails_does_not_stop_the_boot_and_is_not_tried_while_the_vm_runs(place: Place) -> None:
    machine = await marked(place)
    place.toolstack.fail_next("write", ToolstackRefusedError("SR_FULL", "no room"))
    assert await varstored(machine).read() == scene(OLD).blob
    assert place.record(machine).state is ON_BOOT
    await never_updates(place, machine)
    await wait_all_tasks_blocked()
    assert place.alerts() == [UPDATE_FAILED]


async def test_a_resume_never_updates(place: Place) -> None:
    await never_updates(place, await marked(place, resume=True))


async def test_a_boot_that_fails_leaves_the_boot_to_come(place: Place) -> None:
    machine = await marked(place)
    for _ in range(2):
        place.toolstack.fail_next("read", ToolstackRefusedError("VM_IS_LOST", "gone"))
        with pytest.raises(Failed):
            await varstored(machine).read()
    assert await varstored(machine).read() == updated(scene(OLD).blob)
    await never_updates(place, machine)


async def test_a_toolstack_that_is_away_leaves_the_boot_to_come(place: Place, autojump_clock: MockClock) -> None:
    machine = await marked(place)
    away = [ToolstackUnavailableError("away")] * int(BOOT_SECONDS / RETRY_SECONDS + 10)
    place.toolstack.fail_next("read", *away)
    begun = trio.current_time()
    with pytest.raises(Failed):
        await varstored(machine).read()
    assert trio.current_time() - begun <= BOOT_ANSWER_SECONDS
    place.toolstack._prepared["read"].clear()
    assert await varstored(machine).read() == updated(scene(OLD).blob)
    assert autojump_clock.autojump_threshold == 0


async def test_of_two_reads_at_once_one_is_the_boot_and_the_other_waits_for_it(place: Place) -> None:
    """Whichever is varstored's: one that got the old store would write it back over the new one."""
    machine = await marked(place)
    hang = place.toolstack.hang_next("write")
    read: list[bytes | None] = []

    async def start() -> None:
        read.append(await varstored(machine).read())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await hang.reached.wait()
        for _ in range(3):
            nursery.start_soon(start)
        await wait_all_tasks_blocked()
        assert read == []
        hang.release.set()
    assert read == [updated(scene(OLD).blob)] * 4
    assert [write.update for write in place.toolstack.writes] == [Update.YES]
    await wait_all_tasks_blocked()
    assert place.alerts() == [UPDATED]
    await never_updates(place, machine)


async def test_when_the_first_of_two_fails_the_second_is_the_boot(place: Place) -> None:
    machine = await marked(place)
    hang, second = place.toolstack.hang_next("read"), place.toolstack.hang_next("read")
    failed = trio.Event()

    async def fails() -> None:
        with pytest.raises(Failed):
            await varstored(machine).read()
        failed.set()

    read: list[bytes | None] = []

    async def start() -> None:
        read.append(await varstored(machine).read())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails)
        await hang.reached.wait()
        nursery.start_soon(start)
        await wait_all_tasks_blocked()
        vm = place.toolstack.vms.pop(machine.vm)
        hang.release.set()
        await failed.wait()
        place.toolstack.vms[machine.vm] = vm
        second.release.set()
    assert read == [updated(scene(OLD).blob)]
    await never_updates(place, machine)


async def test_who_waits_for_a_boot_that_hangs_is_told_in_time(place: Place, autojump_clock: MockClock) -> None:
    machine = await marked(place)
    place.toolstack.hang_next("read")
    took: list[float] = []

    async def start() -> None:
        begun = trio.current_time()
        with pytest.raises(Failed):
            await varstored(machine).read()
        took.append(trio.current_time() - begun)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await trio.sleep(1)
        place.toolstack.hang_next("read")
        nursery.start_soon(start)
    assert len(took) == 2
    assert max(took) <= BOOT_ANSWER_SECONDS
    assert await varstored(machine).read() == updated(scene(OLD).blob)
    assert autojump_clock.autojump_threshold == 0


# Other signs that the VM runs


async def test_a_write_says_that_the_vm_runs(place: Place) -> None:
    machine = await marked(place)
    await varstored(machine).write(written(OLD, 1))
    await never_updates(place, machine)


async def test_a_framed_boot_is_the_boot(place: Place) -> None:
    machine = await marked(place)
    assert (await machine.boot()).outcome is Outcome.UPDATED
    await never_updates(place, machine)


@pytest.mark.parametrize("sign", ["resume", "put"])
async def test_a_framed_peer_that_runs_says_so_for_all(place: Place, sign: str) -> None:
    machine = await marked(place)
    await (machine.boot(Reason.RESUME) if sign == "resume" else machine.put(written(OLD, 1)))
    await never_updates(place, machine)


async def test_a_framed_tool_says_nothing_about_the_vm(place: Place) -> None:
    machine = await marked(place)
    assert (await machine.boot(Reason.TOOL)).store == scene(OLD).blob
    assert await varstored(machine).read() == updated(scene(OLD).blob)


async def test_a_framed_boot_is_a_boot_whenever_it_is_asked_for(place: Place) -> None:
    machine = await marked(place)
    await varstored(machine).read()
    mark_again(place, machine)
    assert (await machine.boot()).outcome is Outcome.UPDATED


# Attach, detach, restart


async def test_attaching_the_same_again_allows_nothing_more(place: Place) -> None:
    machine = await marked(place)
    await varstored(machine).read()
    attachment = place.daemon._sockets.served[machine.path][0]
    assert await place.daemon.attach(attachment)
    await never_updates(place, machine)


async def test_a_socket_that_somebody_removed_comes_back_without_a_boot(place: Place) -> None:
    machine = await marked(place)
    await varstored(machine).read()
    machine.path.unlink()
    await place.attach(machine.vm, machine.path.name)
    await never_updates(place, machine)


async def test_the_next_attach_allows_the_next_boot(place: Place) -> None:
    machine = await marked(place)
    await varstored(machine).read()
    mark_again(place, machine)
    assert await place.daemon.detach(machine.path)
    machine = await place.attach(machine.vm, machine.path.name)
    assert await varstored(machine).read() == updated(scene(OLD).blob)


@pytest.mark.parametrize("booted", [True, False])
async def test_what_comes_back_after_a_restart_never_updates_and_keeps_its_mark(tmp_path: Path, *, booted: bool) -> None:
    """Whether its VM runs nobody knows. A mark can wait for the next attach; a running VM's store must not change."""
    first = Place(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.daemon.run)
        machine = await marked(first)
        if booted:
            await varstored(machine).read()
        nursery.cancel_scope.cancel()
    second = Place(tmp_path)
    second.toolstack = second.host.toolstack = first.toolstack
    async with trio.open_nursery() as nursery:
        await nursery.start(second.daemon.run)
        await never_updates(second, machine)
        assert second.record(machine).state is ON_BOOT
        assert await second.daemon.detach(machine.path)
        again = await second.attach(machine.vm, machine.path.name)
        assert await varstored(again).read() == updated(scene(OLD).blob)
        nursery.cancel_scope.cancel()


async def test_two_sockets_of_a_vm_have_their_own_boots(place: Place) -> None:
    """As in a migration on one host, where the second is attached with resume."""
    machine = await marked(place)
    await varstored(machine).read()
    arriving = await place.attach(machine.vm, "second.sock", resume=True)
    await never_updates(place, arriving)
    await never_updates(place, machine)


async def test_many_boots_at_once_each_update_their_own(place: Place) -> None:
    machines = [await place.machine(scene(OLD).blob, ON_BOOT, name=f"{number}.sock") for number in range(20)]
    async with trio.open_nursery() as nursery:
        for machine in machines:
            for _ in range(2):
                nursery.start_soon(varstored(machine).read)
    assert {place.record(machine).store for machine in machines} == {updated(scene(OLD).blob)}
    assert len(place.toolstack.writes) == len(machines)


async def test_whether_a_boot_is_to_come_is_shown(place: Place) -> None:
    machine = await marked(place)

    async def shown() -> tuple[object, object]:
        (listed,) = place.daemon.listed()
        return listed["boot_left"], (await place.daemon.status(machine.vm))["boot_left"]

    assert await shown() == (True, [str(machine.path)])
    await varstored(machine).read()
    assert await shown() == (False, [])
