"""Limits of each socket and of all together, and a system without room."""

import errno
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Place, written
from support.peer import connect, greeted
from support.storemaker import scene
from varstore_companion.daemon.acceptor import Acceptor
from varstore_companion.daemon.main import CONTROL_CONNECTIONS
from varstore_companion.daemon.peer_wait import DRAIN_SECONDS
from varstore_companion.daemon.sockets import VM_CONNECTIONS
from varstore_companion.trust.state import CertificatesState
from varstore_companion.unix_stream import UnixStream
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Ping, PingAnswer

ON_BOOT = CertificatesState.UPDATE_ON_BOOT
FLOOD = 10_000


async def test_one_connection_too_many_is_told_and_those_there_stay(place: Place) -> None:
    machine = await place.machine(None)
    other = await place.machine(None, name="other.sock")
    async with trio.open_nursery():
        peers = [await connect(machine.path, machine.vm) for _ in range(VM_CONNECTIONS)]
        for peer in peers:
            await peer.hello()
        async with await connect(machine.path, machine.vm) as late:
            (last,) = await late.rest()
            assert (last.request_id, last.error.code, last.error.try_again) == (0, ErrorCode.BUSY, True)
        async with other.peer() as unaffected:
            await unaffected.call(Ping(), PingAnswer)
        for peer in peers:
            await peer.call(Ping(), PingAnswer)
        await peers[0].raw.aclose()
        await wait_all_tasks_blocked()
        async with machine.peer() as next_one:
            await next_one.call(Ping(), PingAnswer)
        for peer in peers:
            await peer.raw.aclose()
    assert place.host.stats.connections_refused == 1


async def test_all_vms_together_have_a_limit_that_leaves_the_control_socket_alone(place: Place) -> None:
    first = await place.machine(None)
    second = await place.machine(None, name="second.sock")
    place.daemon._sockets.places.left = 2
    async with first.peer(), first.peer():
        async with await connect(second.path, second.vm) as late:
            (last,) = await late.rest()
            assert last.error.code == ErrorCode.BUSY
        async with greeted(place.control) as control:
            await control.call(Ping(), PingAnswer)
    await wait_all_tasks_blocked()
    async with second.peer() as peer:
        await peer.call(Ping(), PingAnswer)


async def test_the_control_socket_has_its_limit(place: Place) -> None:
    peers = [await connect(place.control) for _ in range(CONTROL_CONNECTIONS)]
    await wait_all_tasks_blocked()
    async with await connect(place.control) as late:
        (last,) = await late.rest()
        assert last.error.code == ErrorCode.BUSY
    for peer in peers:
        await peer.raw.aclose()


def _flood(path: Path) -> None:
    for _ in range(FLOOD):
        with socket.socket(socket.AF_UNIX) as each:
            each.connect(str(path))


async def test_a_flood_of_connections_holds_no_other_vm_up(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    hostile = await place.machine(None)
    victim = await place.machine(scene("ms2011").blob, ON_BOOT, name="victim.sock")
    kept = [await connect(hostile.path, hostile.vm) for _ in range(VM_CONNECTIONS)]
    await wait_all_tasks_blocked()
    flooded = trio.Event()

    async def flood() -> None:
        await trio.to_thread.run_sync(_flood, hostile.path)
        flooded.set()

    writes, slowest = 0, 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        async with victim.peer() as peer:
            while not flooded.is_set():
                begun = trio.current_time()
                await peer.put(written("ms2011", writes))
                slowest = max(slowest, trio.current_time() - begun)
                writes += 1
    assert writes > 20
    assert slowest < 5
    assert place.record(victim).generation == writes
    for peer in kept:
        await peer.raw.aclose()
    await wait_all_tasks_blocked()
    # Those that were closed while they waited to be accepted are seen, too, and none is left.
    assert place.daemon.connections == 0
    assert place.host.stats.connections_refused <= FLOOD
    # A flood must not fill the log.
    assert len(caplog.messages) < 100


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.EACCES])
async def test_a_system_without_room_is_waited_for(
    place: Place, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    accept = socket.socket.accept
    failures = 0

    def failing(listener: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        connected, address = accept(listener)
        if failures < 5:
            failures += 1
            connected.close()
            raise OSError(code, "no room")
        return connected, address

    async with machine.peer():
        monkeypatch.setattr(socket.socket, "accept", failing)
        for _ in range(5):
            async with await connect(machine.path, machine.vm):
                await wait_all_tasks_blocked()
                mock_clock.jump(1)
                await wait_all_tasks_blocked()
        await machine.put(written("ms2011", 1))
    assert failures == 5
    assert place.record(machine).store == written("ms2011", 1)
    # The 1st, 2nd and 4th.
    assert sum("no room" in line for line in caplog.messages) == 3


async def test_a_system_without_room_for_one_more_watch_is_waited_for(
    place: Place, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """epoll_ctl(2) gives ENOSPC over /proc/sys/fs/epoll/max_user_watches, and ENOMEM."""
    other = await place.machine(None, name="other.sock")

    async def no_watch(_socket: object) -> None:
        raise OSError(errno.ENOSPC, "no watch")

    with monkeypatch.context() as patched:
        patched.setattr(trio.lowlevel, "wait_readable", no_watch)
        machine = await place.machine(scene("ms2011").blob, ON_BOOT)
        await wait_all_tasks_blocked()
    assert f"vm={machine.vm} cannot accept a connection (try 1): no watch" in caplog.messages
    assert (await other.boot()).store is None
    mock_clock.jump(1)
    await wait_all_tasks_blocked()
    await machine.put(written("ms2011", 1))


async def test_a_connection_that_is_taken_as_the_stop_comes_is_told_and_waited_for(
    place: Place, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await place.machine(None)
    take = Acceptor._take
    stopped = trio.Event()

    async def stop() -> None:
        await place.daemon.stop()
        stopped.set()

    def taking(acceptor: Acceptor, stream: UnixStream) -> None:
        monkeypatch.undo()
        acceptor.stop()
        take(acceptor, stream)

    monkeypatch.setattr(Acceptor, "_take", taking)
    async with await connect(machine.path, machine.vm) as peer, trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        nursery.start_soon(stop)
        await wait_all_tasks_blocked()
        assert not stopped.is_set()
        mock_clock.jump(DRAIN_SECONDS)
        (last,) = await peer.rest()
        assert last.error.code == ErrorCode.SHUTTING_DOWN
    assert stopped.is_set()
