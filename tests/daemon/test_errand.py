"""A call that goes on though nobody waits for it, and the boot whose toolstack is stuck in one."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Place, updated, written
from support.memory_toolstack import MemoryToolstack
from support.storemaker import scene
from varstore_companion.daemon.errand import Errand
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.messages import Durable, Outcome, Verdict

AVAILABLE, ON_BOOT, OK = CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT, CertificatesState.OK


async def seven() -> int:
    return 7


async def fail() -> int:
    raise ToolstackUnavailableError("not now")


@pytest.mark.parametrize(("call", "gives"), [(seven, 7), (fail, None), (trio.sleep_forever, None)])
async def test_it_ends_with_what_came_of_the_call(call: Callable[[], Awaitable[int]], gives: int | None) -> None:
    async with trio.open_nursery() as nursery:
        errand = Errand(nursery, call, "errand")
        await wait_all_tasks_blocked()
        errand.give_up()
        await errand.ended()
        assert errand.is_over
        if call is fail:
            with pytest.raises(ToolstackUnavailableError, match="not now"):
                errand.result()
        else:
            assert errand.result() == gives


class StuckDisk(MemoryToolstack):
    """A toolstack whose writes cannot be left once they have begun, as in an fsync that does not return."""

    def __init__(self, like: MemoryToolstack) -> None:
        super().__init__()
        self.__dict__.update(like.__dict__)
        self.stuck = trio.Event()
        self.freed = trio.Event()

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        self.stuck.set()
        with trio.CancelScope(shield=True):
            await self.freed.wait()
            return await super().write(vm, store, update, expected=expected)
        raise AssertionError("nothing cancels a scope that is shielded and has no deadline")


async def test_a_boot_does_not_wait_for_a_disk_that_hangs(place: Place, autojump_clock: MockClock) -> None:  # invariant 5
    old = scene("ms2011").blob
    machine = await place.machine(old, ON_BOOT)
    disk = place.host.toolstack = StuckDisk(place.toolstack)
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.FAILED, old)
    assert "still at it" in (answer.detail or "")
    assert 10 < autojump_clock.current_time() < 18

    # A second boot gets what the toolstack holds, and begins no other write.
    again = await machine.boot()
    assert (again.outcome, again.store) == (Outcome.FAILED, old)
    assert "an earlier write" in (again.detail or "")

    # The write arrives at last: the guest's next one is judged against it, and the field tells the truth (invariant 9).
    disk.freed.set()
    await wait_all_tasks_blocked()
    assert place.record(machine) == VmRecord(updated(old), OK, 1)
    put = await machine.put(written("ms2011", 1))
    assert put.verdict is Verdict.UNSPECIFIED
    assert place.record(machine) == VmRecord(written("ms2011", 1), AVAILABLE, 2)


async def test_a_write_is_journaled_behind_the_one_that_the_boot_left(place: Place, autojump_clock: MockClock) -> None:
    old = scene("ms2011").blob
    machine = await place.machine(old, ON_BOOT)
    disk = place.host.toolstack = StuckDisk(place.toolstack)
    await machine.boot()
    before = autojump_clock.current_time()
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    assert autojump_clock.current_time() == before
    await trio.sleep(5)
    assert place.record(machine).store == old
    disk.freed.set()
    with trio.fail_after(5):
        while not place.daemon.vm(machine.vm).is_direct:  # noqa: ASYNC110
            await trio.sleep(0.1)
    # First the update arrived, then what the guest wrote after it got its old store (invariant 9).
    assert place.record(machine) == VmRecord(written("ms2011", 1), AVAILABLE, 2)
