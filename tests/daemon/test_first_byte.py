"""The first byte says what a connection speaks, and is lost to nobody."""

from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support import stock
from support.daemon import Machine, Place
from support.peer import connect
from support.stock import LOGOUT, S
from varstore_companion.daemon.first_byte import FirstByte
from varstore_companion.daemon.http_server import REQUEST_SECONDS
from varstore_companion.daemon.peer_wait import DRAIN_SECONDS
from varstore_companion.wire import codec
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.limits import HELLO_SECONDS
from varstore_companion.wire.messages import ClientKind, Hello, HelloAnswer, Ping, PingAnswer


def frame(message: Hello | Ping, request_id: int) -> bytes:
    return build_frame(message.TYPE, request_id, codec.encode(message))


def waiting(place: Place, machine: Machine) -> list[FirstByte]:
    return [each for each in place.daemon._sockets.served[machine.path][1]._sessions if isinstance(each, FirstByte)]


@pytest.mark.parametrize("bytewise", [False, True])
async def test_the_framed_protocol_begins_with_its_first_byte(place: Place, *, bytewise: bool) -> None:
    machine = await place.machine(None)
    sent = frame(Hello.of(ClientKind.TOOL, vm=machine.vm, name="x"), 1) + frame(Ping(b"data"), 2)
    async with await connect(machine.path, machine.vm) as peer:
        for piece in [sent[at : at + 1] for at in range(len(sent))] if bytewise else [sent]:
            await peer.raw.send_all(piece)
            await wait_all_tasks_blocked()
        await peer.raw.send_eof()
        hello, ping = await peer.rest()
    assert hello.type == HelloAnswer.TYPE
    assert (ping.type, codec.decode(PingAnswer, ping.payload).data) == (PingAnswer.TYPE, b"data")


async def test_until_the_byte_comes_there_is_no_session(place: Place) -> None:
    machine = await place.machine(None)
    async with await connect(machine.path, machine.vm) as silent, await connect(machine.path, machine.vm) as speaks:
        await speaks.hello()
        await wait_all_tasks_blocked()
        assert len(waiting(place, machine)) == 1
        assert place.daemon.connections == 2
        await silent.hello()
        assert waiting(place, machine) == []
        assert place.daemon.connections == 2


@pytest.mark.parametrize("first", [b"", b"V"])
async def test_who_says_too_little_is_told_in_frames(place: Place, mock_clock: MockClock, first: bytes) -> None:
    machine = await place.machine(None)
    async with await connect(machine.path, machine.vm) as peer:
        await peer.raw.send_all(first)
        await wait_all_tasks_blocked()
        mock_clock.jump(HELLO_SECONDS)
        (last,) = await peer.rest()
    assert last.error.code == ErrorCode.TIMED_OUT


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"post / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01" + bytes(97)]
)
async def test_all_but_a_p_is_answered_in_frames(place: Place, sent: bytes) -> None:
    machine = await place.machine(None)
    async with await connect(machine.path, machine.vm) as peer:
        await peer.raw.send_all(sent)
        (last,) = await peer.rest()
    assert last.error.code == ErrorCode.BAD_FRAME


async def test_a_first_byte_that_comes_late_buys_no_time_for_a_hello(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(None)
    async with await connect(machine.path, machine.vm) as peer:
        await wait_all_tasks_blocked()
        mock_clock.jump(HELLO_SECONDS - 1)
        await peer.raw.send_all(b"V")
        await wait_all_tasks_blocked()
        assert place.daemon.connections == 1
        mock_clock.jump(1)
        (last,) = await peer.rest()
    assert last.error.code == ErrorCode.TIMED_OUT


async def test_a_call_has_its_time_from_its_first_byte(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(None)
    sent = stock.request(LOGOUT, S)
    async with await connect(machine.path) as peer:
        await wait_all_tasks_blocked()
        mock_clock.jump(HELLO_SECONDS - 1)
        await peer.raw.send_all(sent[:1])
        await wait_all_tasks_blocked()
        mock_clock.jump(REQUEST_SECONDS - 1)
        await peer.raw.send_all(sent[1:])
        answer = b""
        async for data in peer.raw:
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_who_goes_away_without_a_word_leaves_nothing(place: Place) -> None:
    machine = await place.machine(None)
    for _ in range(20):
        async with await connect(machine.path):
            pass
    await wait_all_tasks_blocked()
    assert place.daemon.connections == 0


async def test_a_stop_before_the_first_byte_is_said_in_frames(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(None)
    async with await connect(machine.path, machine.vm) as peer:
        await wait_all_tasks_blocked()
        await place.daemon.stop()
        (last,) = await peer.rest()
    assert last.error.code == ErrorCode.SHUTTING_DOWN
    assert autojump_clock.current_time() == pytest.approx(DRAIN_SECONDS)


async def test_a_framed_peer_whose_hello_is_on_its_way_is_told_at_once(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(None)
    async with await connect(machine.path, machine.vm) as peer, trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        nursery.start_soon(place.daemon.stop)
        await wait_all_tasks_blocked()
        await peer.raw.send_all(b"V")
        # Not to the end, which is a reset: the byte stays unread.
        assert b"the daemon is stopping" in await peer.raw.receive_some(1_000)
    assert mock_clock.current_time() == 0


@pytest.mark.parametrize("already", [0, 1, 100])
async def test_a_call_on_its_way_when_the_daemon_stops_is_answered(place: Place, mock_clock: MockClock, already: int) -> None:
    """A varstored that has connected sends its call at once, and tries no second time."""
    machine = await place.machine(None)
    sent = stock.request(LOGOUT, S)
    async with await connect(machine.path) as peer, trio.open_nursery() as nursery:
        await peer.raw.send_all(sent[:already])
        await wait_all_tasks_blocked()
        nursery.start_soon(place.daemon.stop)
        await wait_all_tasks_blocked()
        mock_clock.jump(DRAIN_SECONDS / 2)
        await peer.raw.send_all(sent[already:])
        answer = b""
        async for data in peer.raw:
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert place.daemon.connections == 0


@pytest.mark.parametrize("already", [1, 100])
async def test_who_does_not_finish_its_call_holds_no_stop_up(place: Place, autojump_clock: MockClock, already: int) -> None:
    machine = await place.machine(None)
    async with await connect(machine.path, machine.vm) as peer:
        await peer.raw.send_all(stock.request(LOGOUT, S)[:already])
        await wait_all_tasks_blocked()
        await place.daemon.stop()
        with suppress(trio.BrokenResourceError):  # closed with something unread
            assert await peer.raw.receive_some(100) == b""
    assert autojump_clock.current_time() == pytest.approx(DRAIN_SECONDS)
    assert place.daemon.connections == 0
