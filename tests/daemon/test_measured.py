"""A toolstack whose calls are counted and timed."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import still_host, written
from support.memory_toolstack import Call, MemoryToolstack
from support.storemaker import scene
from varstore_companion.daemon.limits import Gate, Turns
from varstore_companion.daemon.measured import MeasuredToolstack
from varstore_companion.daemon.reading import READ_SECONDS
from varstore_companion.daemon.stats import CALLS, FAILURES, Stats
from varstore_companion.daemon.vm import BOOT_SECONDS, STRAIGHT_SECONDS, Vm
from varstore_companion.daemon.writer import READ_BACK_SECONDS
from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.interface import Alert, Toolstack, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

VM = uuid4()
ERRORS = {
    "unavailable": ToolstackUnavailableError("x"),
    "refused": ToolstackRefusedError("X", "x"),
    "unclear": ToolstackUnclearError("x"),
    "conflict": ToolstackConflictError("x"),
    "bug": RuntimeError("x"),
}


@pytest.fixture
def inner() -> MemoryToolstack:
    toolstack = MemoryToolstack()
    toolstack.create(VM, b"store", CertificatesState.UPDATE_AVAILABLE)
    return toolstack


async def call(toolstack: Toolstack, name: str) -> None:
    match name:
        case "read":
            await toolstack.read(VM)
        case "write":
            await toolstack.write(VM, b"new", Update.NO, expected=None)
        case "mark":
            await toolstack.mark(VM, mark=True)
        case _:
            await toolstack.alert(VM, Alert("NAME", 4, "body"))


def counts(stats: Stats) -> dict[str, int]:
    return {name: sum(histogram.counts) for name, histogram in stats.call_seconds.items()}


@pytest.mark.parametrize("name", CALLS)
async def test_each_call_is_handed_on_and_timed(name: Call, inner: MemoryToolstack, autojump_clock: MockClock) -> None:
    stats = Stats()
    measured = MeasuredToolstack(inner, stats, Gate(lambda: 0))
    assert measured.name == "memory"
    hang = inner.hang_next(name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, measured, name)
        await hang.reached.wait()
        await trio.sleep(4)
        hang.release.set()
    assert inner.calls == {name: 1}
    assert counts(stats) == {each: int(each == name) for each in CALLS}
    assert stats.call_seconds[name].total == pytest.approx(4)
    assert autojump_clock.current_time() == pytest.approx(4)
    assert all(not any(kinds.values()) for kinds in stats.call_failures.values())
    await measured.aclose()
    assert inner.closed


async def test_values_go_through(inner: MemoryToolstack) -> None:
    measured = MeasuredToolstack(inner, Stats(), Gate(lambda: 0))
    assert (await measured.read(VM)).store == b"store"
    assert await measured.write(VM, b"new", Update.UNSPECIFIED, expected=0) == 1
    with pytest.raises(ToolstackConflictError):
        await measured.write(VM, b"newer", Update.NO, expected=0)
    assert inner.vms[VM].store == b"new"


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("name", CALLS)
async def test_each_failure_is_counted_as_what_it_is(name: Call, kind: str, inner: MemoryToolstack) -> None:
    stats = Stats()
    inner.fail_next(name, ERRORS[kind])
    with pytest.raises(type(ERRORS[kind])):
        await call(MeasuredToolstack(inner, stats, Gate(lambda: 0)), name)
    assert {each for each, kinds in stats.call_failures.items() if any(kinds.values())} == {name}
    assert stats.call_failures[name] == {each: int(each == kind) for each in FAILURES}
    assert counts(stats)[name] == 1


async def test_a_call_that_is_cancelled_is_timed_and_is_no_failure(inner: MemoryToolstack, autojump_clock: MockClock) -> None:
    stats = Stats()
    inner.hang_next("read")
    with trio.move_on_after(7):
        await MeasuredToolstack(inner, stats, Gate(lambda: 0)).read(VM)
    assert stats.call_seconds["read"].total == pytest.approx(7)
    assert not any(stats.call_failures["read"].values())
    assert autojump_clock.current_time() == pytest.approx(7)


# One VM, and the others beside it

OTHER = uuid4()


class Apart(MemoryToolstack):
    """Guards: a VM's calls can be left, and those of the VMs in `hanging` never end."""

    def __init__(self) -> None:
        super().__init__()
        self.late_seconds = 120.0
        self.hanging: set[UUID] = set()
        self.inside: list[UUID] = []
        for vm in (VM, OTHER):
            self.create(vm, b"store", CertificatesState.UPDATE_AVAILABLE)

    async def read(self, vm: UUID) -> VmRecord:
        await self._enter(vm)
        return await super().read(vm)

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        with trio.move_on_at(deadline):
            await self._enter(vm)
            return await super().write(vm, store, update, expected=expected)
        raise ToolstackUnclearError("the toolstack did not answer in time")

    async def _enter(self, vm: UUID) -> None:
        self.inside.append(vm)
        try:
            if vm in self.hanging:
                await trio.sleep_forever()
        finally:
            self.inside.remove(vm)


class Guarded:
    """The VMs' sockets, which are always there."""

    def set_upstream(self, vm: UUID, path: Path | None) -> None:
        """See `Upstreams`."""


def nothing_is_kept(measured: MeasuredToolstack) -> bool:
    return not measured._reads._taken and not measured._writes._taken and measured._gate._inside == 0


@pytest.fixture
def apart() -> Iterator[Apart]:
    toolstack = Apart()
    yield toolstack
    assert toolstack.inside == []


async def test_a_vm_whose_guard_hangs_takes_one_place(apart: Apart, autojump_clock: MockClock) -> None:
    measured = MeasuredToolstack(apart, Stats(), Gate(lambda: 2))
    apart.hanging.add(VM)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(measured.read, VM)
        await wait_all_tasks_blocked()
        assert apart.inside == [VM]
        assert await measured.write(OTHER, b"new", Update.NO) == 1
        assert (await measured.read(OTHER)).store == b"new"
        assert trio.current_time() == autojump_clock.current_time() == 0
        # Nor does its own write wait for longer than it wants to.
        with trio.move_on_after(12) as scope:
            await measured.write(VM, b"new", Update.NO)
        assert scope.cancelled_caught
        assert trio.current_time() == 12
        nursery.cancel_scope.cancel()
    assert nothing_is_kept(measured)


async def test_a_vms_calls_go_in_their_order_when_those_before_them_are_given_up(
    apart: Apart, autojump_clock: MockClock
) -> None:
    measured = MeasuredToolstack(apart, Stats(), Gate(lambda: 2))
    apart.hanging.add(VM)
    ended: list[tuple[int, float]] = []

    async def read(number: int) -> None:
        with trio.move_on_at(number):
            await measured.read(VM)
        ended.append((number, trio.current_time()))

    async with trio.open_nursery() as nursery:
        # Some leave while they wait, and one of them at the very moment that it gets its turn.
        for number in (3, 1, 3, 2, 5):
            nursery.start_soon(read, number)
            await wait_all_tasks_blocked()
        await trio.sleep_until(4)
        assert sorted(ended) == [(1, 1), (2, 2), (3, 3), (3, 3)]
        assert apart.inside == [VM]
        apart.hanging.clear()
    assert max(ended) == (5, 5)
    assert nothing_is_kept(measured)
    assert await measured.write(VM, b"new", Update.NO) == 1
    assert nothing_is_kept(measured)


async def test_calls_that_fail_or_wait_at_the_gate_give_their_turn_back(apart: Apart) -> None:
    measured = MeasuredToolstack(apart, Stats(), Gate(lambda: 1))
    apart.fail_next("read", *ERRORS.values())
    for error in ERRORS.values():
        with pytest.raises(type(error)):
            await measured.read(VM)
    assert nothing_is_kept(measured)
    apart.hanging.add(OTHER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measured.read, OTHER)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await measured.write(VM, b"new", Update.NO)
        assert list(measured._reads._taken) == [OTHER]
        nursery.cancel_scope.cancel()
    assert nothing_is_kept(measured)


async def test_a_read_does_not_wait_for_a_write_that_cannot_be_left(inner: MemoryToolstack, mock_clock: MockClock) -> None:
    """A disk that hangs under the embedded toolstack: the VM's next boot has its store all the same."""
    measured = MeasuredToolstack(inner, Stats(), Gate(lambda: 0))
    hang = inner.hang_next("write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, measured, "write")
        await hang.reached.wait()
        assert (await measured.read(VM)).store == b"store"
        assert mock_clock.current_time() == 0
        hang.release.set()
    assert nothing_is_kept(measured)


async def test_a_vms_deadlines_hold_while_its_guard_hangs(
    apart: Apart, tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    host = still_host(tmp_path, MeasuredToolstack(apart, Stats(), Gate(lambda: 2)), upstreams=Guarded())
    host.nursery = nursery
    await nursery.start(host.journal.run)
    apart.vms[VM] = VmRecord(scene("ms2011").blob, CertificatesState.UPDATE_AVAILABLE, 0)
    vm = Vm(VM, host)
    await vm.boot()
    apart.hanging.add(VM)
    took: dict[str, float] = {}

    async def reading() -> None:
        assert (await vm.read()).store == written("ms2011", 1)  # from the journal by then
        took["read"] = max(took.get("read", 0.0), trio.current_time() - begun)

    begun = trio.current_time()
    async with trio.open_nursery() as eight:
        for _ in range(8):
            eight.start_soon(reading)
        await wait_all_tasks_blocked()
        written_at = trio.current_time()
        assert (await vm.put(written("ms2011", 1))).journaled
        took["write"] = trio.current_time() - written_at
    # Its turn did not come in time: nothing had been sent, and nothing needs to be read back.
    assert took == {"read": READ_SECONDS, "write": STRAIGHT_SECONDS - READ_BACK_SECONDS}
    other = Vm(OTHER, host)
    apart.hanging.add(OTHER)
    begun = trio.current_time()
    async with trio.open_nursery() as eight:
        for _ in range(8):
            eight.start_soon(other.read)
        await wait_all_tasks_blocked()
        with pytest.raises(ToolstackUnavailableError, match="within 18 s"):
            await other.boot()
        eight.cancel_scope.cancel()
    assert trio.current_time() - begun == BOOT_SECONDS
    nursery.cancel_scope.cancel()


async def test_a_turn_that_is_free_takes_no_turn_of_the_event_loop() -> None:
    turns = Turns()
    for vm in (VM, OTHER):
        entering = turns.enter(vm)
        with pytest.raises(StopIteration):
            entering.send(None)
    turns.leave(VM)
    turns.leave(OTHER)
    assert turns._taken == {}


async def test_turns_come_in_order() -> None:
    turns, order = Turns(), list[int]()

    async def take(number: int) -> None:
        await turns.enter(VM)
        order.append(number)
        await trio.lowlevel.checkpoint()
        turns.leave(VM)

    await turns.enter(VM)
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(take, number)
            await wait_all_tasks_blocked()
        turns.leave(VM)
    assert order == list(range(10))
    assert turns._taken == {}
