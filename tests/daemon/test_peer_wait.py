"""A peer is waited for until a deadline, or for ever; when the daemon stops, no longer than what is on its way may take."""

import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from varstore_companion.daemon.limits import FREE_BYTES, InFlight, Share
from varstore_companion.daemon.peer_wait import PeerWait
from varstore_companion.unix_stream import UnixStream

FOREVER = float("inf")


@pytest.fixture
def ends() -> Iterator[tuple[UnixStream, UnixStream]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield UnixStream(ours), UnixStream(theirs)


@pytest.mark.parametrize("deadline", [FOREVER, 1_000.0])
async def test_a_stop_ends_a_wait_at_once(
    ends: tuple[UnixStream, UnixStream], deadline: float, autojump_clock: MockClock
) -> None:
    ours, _ = ends
    wait = PeerWait()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_later, wait, 0.0)
        assert await wait.receive(ours, 100, begun + deadline) is None
    assert trio.current_time() == begun + 5
    assert await wait.receive(ours, 100, FOREVER) is None, "nor is anything waited for later"


@pytest.mark.parametrize("deadline", [FOREVER, 1_000.0])
async def test_a_stop_with_patience_ends_it_then(
    ends: tuple[UnixStream, UnixStream], deadline: float, autojump_clock: MockClock
) -> None:
    ours, _ = ends
    wait = PeerWait()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_later, wait, 2.0)
        assert await wait.receive(ours, 100, begun + deadline) is None
    assert trio.current_time() == begun + 7


@pytest.mark.parametrize("deadline", [FOREVER, 1_000.0])
async def test_what_comes_meanwhile_is_received(
    ends: tuple[UnixStream, UnixStream], deadline: float, autojump_clock: MockClock
) -> None:
    ours, theirs = ends
    wait = PeerWait()
    begun = trio.current_time()

    async def speak() -> None:
        await trio.sleep(6)
        await theirs.send_all(b"late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_later, wait, 2.0)
        nursery.start_soon(speak)
        assert await wait.receive(ours, 100, begun + deadline) == b"late"
    assert trio.current_time() == begun + 6


async def test_the_deadline_ends_it(ends: tuple[UnixStream, UnixStream], autojump_clock: MockClock) -> None:
    begun = trio.current_time()
    assert await PeerWait().receive(ends[0], 100, begun + 3) is None
    assert trio.current_time() == begun + 3


async def test_nothing_is_read_without_room_and_a_stop_ends_that_too(
    ends: tuple[UnixStream, UnixStream], autojump_clock: MockClock
) -> None:
    ours, theirs = ends
    share = Share(InFlight(limit=1))
    other, wait = PeerWait(share), PeerWait(share)
    other.holds(FREE_BYTES)
    wait.holds(FREE_BYTES)
    await theirs.send_all(b"waits")
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_later, wait, 0.0)
        assert await wait.receive(ours, 100, FOREVER) is None
    assert trio.current_time() == begun + 5
    assert ours.receive_now(100) == b"waits"


async def _stop_later(wait: PeerWait, patience: float) -> None:
    await trio.sleep(5)
    wait.stop(patience)
