"""A Unix socket on the event loop: what is sent arrives in order, who waits can be cancelled, and who is gone is known."""

import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from varstore_companion.unix_stream import UnixStream

MANY = bytes(range(256)) * 8_192
"""More than a socket's buffers take."""


@pytest.fixture
def ends() -> Iterator[tuple[UnixStream, UnixStream]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield UnixStream(ours), UnixStream(theirs)


async def test_what_has_room_is_sent_without_a_turn_of_the_event_loop(ends: tuple[UnixStream, UnixStream]) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await ends[0].send_all(b"at once")
    assert not scope.cancelled_caught
    assert await ends[1].receive_some(100) == b"at once"


async def test_what_has_none_is_sent_as_it_is_taken(ends: tuple[UnixStream, UnixStream]) -> None:
    received = bytearray()

    async def take() -> None:
        await wait_all_tasks_blocked()
        while len(received) < len(MANY):
            received.extend(await ends[1].receive_some(65_536))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        assert await ends[0].send_all(MANY)
    assert received == MANY


async def test_who_does_not_take_it_is_given_up(ends: tuple[UnixStream, UnixStream], autojump_clock: MockClock) -> None:
    begun = trio.current_time()
    assert not await ends[0].send_all(MANY, seconds=7)
    assert trio.current_time() - begun == pytest.approx(7)
    with trio.move_on_after(3) as scope:
        await ends[0].send_all(MANY, seconds=7)
    assert scope.cancelled_caught, "a cancellation from outside is not its own deadline"


async def test_reading_waits_and_can_be_cancelled(ends: tuple[UnixStream, UnixStream], autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await ends[1].receive_some(100)
    assert scope.cancelled_caught
    await ends[0].send_all(b"abc")
    assert await ends[1].receive_some(2) == b"ab"
    assert await ends[1].receive_some(2) == b"c"


async def test_what_was_given_back_comes_first(ends: tuple[UnixStream, UnixStream]) -> None:
    await ends[0].send_all(b"first")
    ends[1].unread(await ends[1].receive_some(100))
    await ends[0].send_all(b"second")
    assert [await ends[1].receive_some(100) for _ in range(2)] == [b"first", b"second"]


async def test_the_end_and_a_peer_that_is_gone(ends: tuple[UnixStream, UnixStream]) -> None:
    ends[0].send_eof()
    assert await ends[1].receive_some(100) == b""
    await ends[1].send_all(b"still")
    assert await ends[0].receive_some(100) == b"still"
    ends[1].close()
    for send in (ends[0].send_all(b"x"), ends[0].send_all(MANY)):
        with pytest.raises(trio.BrokenResourceError):
            await send


async def test_a_peer_that_closes_with_bytes_unread(ends: tuple[UnixStream, UnixStream]) -> None:
    await ends[0].send_all(b"unread")
    ends[1].close()
    with pytest.raises(trio.BrokenResourceError):
        await ends[0].receive_some(100)


async def test_a_system_without_watches_or_memory(ends: tuple[UnixStream, UnixStream], monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_watch(_socket: object) -> None:
        raise OSError(28, "no watch")

    for name in ("wait_readable", "wait_writable"):
        monkeypatch.setattr(trio.lowlevel, name, no_watch)
    with pytest.raises(trio.BrokenResourceError, match="no watch"):
        await ends[0].send_all(MANY)
    with pytest.raises(trio.BrokenResourceError, match="no watch"):
        await ends[0].receive_some(1)


async def test_a_closed_one_says_so(ends: tuple[UnixStream, UnixStream]) -> None:
    async with ends[0] as stream:
        pass
    stream.close()
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some(1)
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        stream.send_eof()


async def test_what_has_come_is_received_without_a_turn_of_the_event_loop(ends: tuple[UnixStream, UnixStream]) -> None:
    assert ends[1].receive_now(100) is None
    await ends[0].send_all(b"first")
    assert ends[1].receive_now(2) == b"fi"
    ends[1].unread(b"fi")
    assert [ends[1].receive_now(100) for _ in range(3)] == [b"fi", b"rst", None]
    ends[0].close()
    assert ends[1].receive_now(100) == b""
    ends[1].close()
    with pytest.raises(trio.BrokenResourceError):
        ends[1].receive_now(100)


async def test_reading_can_be_ended_by_another_task_and_begun_anew(ends: tuple[UnixStream, UnixStream]) -> None:
    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ends[1].receive_some(100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        ends[1].wake()
    ends[1].wake()
    await ends[0].send_all(b"more")
    assert await ends[1].receive_some(100) == b"more"


async def test_who_is_hurried_has_so_long_for_all_that_is_sent(
    ends: tuple[UnixStream, UnixStream], autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            assert not await ends[0].send_all(MANY, seconds=60)
            assert trio.current_time() == pytest.approx(3)

        nursery.start_soon(send)
        await trio.sleep(1)
        ends[0].hurry(2)
        ends[0].hurry(10)
    assert not await ends[0].send_all(MANY, seconds=60)
    assert trio.current_time() == pytest.approx(3)
    # What needs no waiting goes on.
    while await ends[1].receive_some(len(MANY)) and ends[1].receive_now(1) is not None:
        pass
    assert await ends[0].send_all(b"more")


async def test_only_the_waiting_for_its_peer_counts_against_who_is_hurried(
    ends: tuple[UnixStream, UnixStream], autojump_clock: MockClock
) -> None:
    ends[0].hurry(2)
    await trio.sleep(100)
    for passed in (1.5, 0.5, 0):
        begun = trio.current_time()
        with trio.move_on_after(1.5):
            assert not await ends[0].send_all(MANY, seconds=60)
        assert trio.current_time() - begun == pytest.approx(passed)
