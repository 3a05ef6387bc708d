"""The watchdog is fed as long as the daemon is well, and no longer; a toolstack that hangs is no reason to end the daemon."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.memory_toolstack import MemoryToolstack
from support.notify import Manager
from varstore_companion.daemon import watch
from varstore_companion.daemon.limits import Gate
from varstore_companion.daemon.measured import MeasuredToolstack
from varstore_companion.daemon.stats import Stats
from varstore_companion.daemon.systemd import Service
from varstore_companion.daemon.watch import STATUS_SECONDS, STUCK_SECONDS, look_after
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

VM = uuid4()


@dataclass
class Daemon:
    """What is looked after."""

    toolstack: MeasuredToolstack
    status_line: str = "fine"

    def stuck(self) -> str | None:
        return watch.stuck(self.toolstack)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager.at(tmp_path / "notify")
    made.datagrams.settimeout(0)
    yield made
    made.close()


@pytest.fixture
def memory() -> MemoryToolstack:
    memory = MemoryToolstack(lambda _: CertificatesState.OK)
    memory.vms[VM] = VmRecord(b"", CertificatesState.UPDATE_AVAILABLE, 0)
    return memory


def news(manager: Manager) -> list[dict[str, str]]:
    """What has come since the last time."""
    found = []
    while True:
        try:
            found.append(manager.take().fields)
        except BlockingIOError:
            return found


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual clock waits for no thread; one test has real ones."""

    async def run_sync(call: object, *, abandon_on_cancel: bool, limiter: trio.CapacityLimiter) -> None:
        assert call is watch._nothing
        assert limiter.total_tokens == 1
        assert abandon_on_cancel
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


def service(manager: Manager, watchdog: float | None = 30.0) -> Service:
    return Service(manager.address, watchdog)


async def test_it_is_fed_three_times_in_its_time(
    manager: Manager, memory: MemoryToolstack, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    nursery.start_soon(look_after, service(manager, 15.0), Daemon(MeasuredToolstack(memory, Stats(), Gate(lambda: 0))))
    for _ in range(10):
        await wait_all_tasks_blocked()
        assert news(manager) == [{"WATCHDOG": "1"}]
        mock_clock.jump(5)
    nursery.cancel_scope.cancel()


async def test_the_status_is_told_when_it_is_another(
    manager: Manager, memory: MemoryToolstack, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    daemon = Daemon(MeasuredToolstack(memory, Stats(), Gate(lambda: 0)))
    nursery.start_soon(look_after, service(manager, None), daemon)
    for line, told in [("fine", []), ("better", [{"STATUS": "better"}]), ("better", [])]:
        daemon.status_line = line
        mock_clock.jump(STATUS_SECONDS)
        await wait_all_tasks_blocked()
        assert news(manager) == told
    nursery.cancel_scope.cancel()


async def test_a_toolstack_that_hangs_and_is_left_is_none_of_ours(
    manager: Manager, memory: MemoryToolstack, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    """As a guard does: each call is given up at its deadline, and another one follows."""
    toolstack = MeasuredToolstack(memory, Stats(), Gate(lambda: 0))
    nursery.start_soon(look_after, service(manager), Daemon(toolstack))
    fed = 0
    for _ in range(20):
        memory.hang_next("read")
        with trio.CancelScope() as scope:
            nursery.start_soon(_jump, mock_clock, 25.0, scope)
            await toolstack.read(VM)
        fed += len(news(manager))
    assert mock_clock.current_time() > 3 * STUCK_SECONDS
    assert fed >= 20
    nursery.cancel_scope.cancel()


async def _jump(clock: MockClock, seconds: float, then: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    await wait_all_tasks_blocked()
    then.cancel()


@pytest.mark.parametrize("call", ["read", "write", "mark", "alert"])
async def test_a_call_that_cannot_be_left_ends_the_feeding(
    manager: Manager,
    memory: MemoryToolstack,
    mock_clock: MockClock,
    *,
    nursery: trio.Nursery,
    call: Literal["read", "write", "mark", "alert"],
    caplog: pytest.LogCaptureFixture,
) -> None:
    toolstack = MeasuredToolstack(memory, Stats(), Gate(lambda: 0))
    nursery.start_soon(look_after, service(manager), Daemon(toolstack))
    hang = memory.hang_next(call)

    async def stuck() -> None:
        match call:
            case "read":
                await toolstack.read(VM)
            case "write":
                await toolstack.write(VM, b"", Update.NO)
            case "mark":
                await toolstack.mark(VM, mark=True)
            case _:
                await toolstack.alert(VM, Alert("NAME", 5, "text"))

    nursery.start_soon(stuck)
    await hang.reached.wait()
    mock_clock.jump(STUCK_SECONDS - 1)
    await wait_all_tasks_blocked()
    assert {"WATCHDOG": "1"} in news(manager)
    for _ in range(5):
        mock_clock.jump(20)
        await wait_all_tasks_blocked()
    assert news(manager) == []
    (line,) = caplog.messages
    assert line.startswith(f"vm={VM} {call} at the memory toolstack goes on for 1")
    # It ends after all, before systemd's patience does.
    hang.release.set()
    await wait_all_tasks_blocked()
    mock_clock.jump(20)
    await wait_all_tasks_blocked()
    assert news(manager) == [{"WATCHDOG": "1"}]
    nursery.cancel_scope.cancel()


async def test_a_call_that_fails_is_over(memory: MemoryToolstack, mock_clock: MockClock) -> None:
    toolstack = MeasuredToolstack(memory, Stats(), Gate(lambda: 0))
    memory.fail_next("read", ToolstackUnavailableError("away"))
    with pytest.raises(ToolstackUnavailableError):
        await toolstack.read(VM)
    mock_clock.jump(2 * STUCK_SECONDS)
    assert watch.stuck(toolstack) is None


async def test_a_system_without_threads_ends_the_feeding_and_not_the_daemon(
    manager: Manager,
    memory: MemoryToolstack,
    mock_clock: MockClock,
    *,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def no_thread(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", no_thread)
        nursery.start_soon(look_after, service(manager), Daemon(MeasuredToolstack(memory, Stats(), Gate(lambda: 0))))
        await wait_all_tasks_blocked()
        assert news(manager) == []
        assert "can't start new thread" in caplog.text
    mock_clock.jump(10)
    await wait_all_tasks_blocked()
    assert news(manager) == [{"WATCHDOG": "1"}]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("whose", ["ours", "others'"])
async def test_threads_that_do_not_run_end_the_feeding_and_others_that_hang_do_not(
    manager: Manager, memory: MemoryToolstack, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    monkeypatch.undo()
    release = threading.Event()
    limiter = trio.to_thread.current_default_thread_limiter()
    total, limiter.total_tokens = limiter.total_tokens, 1
    if whose == "ours":
        monkeypatch.setattr(watch, "_nothing", lambda: release.wait(60))
    try:
        async with trio.open_nursery() as nursery:
            if whose != "ours":
                nursery.start_soon(trio.to_thread.run_sync, lambda: release.wait(60))
            await wait_all_tasks_blocked()
            nursery.start_soon(look_after, service(manager), Daemon(MeasuredToolstack(memory, Stats(), Gate(lambda: 0))))
            if whose == "ours":
                for _ in range(10):
                    await wait_all_tasks_blocked()
                    mock_clock.jump(10)
                assert news(manager) == []
                release.set()
            while not news(manager):
                await trio.lowlevel.checkpoint()
            release.set()
            nursery.cancel_scope.cancel()
    finally:
        release.set()
        limiter.total_tokens = total
