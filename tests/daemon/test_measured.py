"""A toolstack whose calls are counted and timed."""

from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock

from support.memory_toolstack import Call, MemoryToolstack
from varstore_companion.daemon.limits import Gate
from varstore_companion.daemon.measured import MeasuredToolstack
from varstore_companion.daemon.stats import CALLS, FAILURES, Stats
from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.interface import Alert, Toolstack
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
