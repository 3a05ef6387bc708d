"""One connection with a peer that is slow, silent, greedy, confused or gone."""

import logging
import random
import socket
from contextlib import suppress
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Machine, Place, written
from support.peer import Peer, Refused, connect
from support.storemaker import make_store, scene
from varstore_companion.daemon.acceptor import Acceptor
from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.limits import VM_BYTES
from varstore_companion.daemon.peer_wait import DRAIN_SECONDS
from varstore_companion.daemon.session import CHUNK, Session, welcome
from varstore_companion.daemon.sockets import VM_CONNECTIONS
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState
from varstore_companion.unix_stream import UnixStream
from varstore_companion.wire import codec, messages
from varstore_companion.wire.connection import Connection
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.limits import FRAME_SECONDS, HEADER_BYTES, HELLO_SECONDS, MAX_PAYLOAD, MAX_PING
from varstore_companion.wire.messages import (
    ClientKind,
    GetStore,
    Hello,
    Ping,
    PingAnswer,
    PutStore,
    PutStoreAnswer,
    Reason,
    Verdict,
)

log = logging.getLogger(__name__)

ON_BOOT = CertificatesState.UPDATE_ON_BOOT


def frame(message: messages.RequestMessage, request_id: int = 77) -> bytes:
    return build_frame(message.TYPE, request_id, codec.encode(message))


def acceptor(place: Place, machine: Machine) -> Acceptor:
    return place.daemon._sockets.served[machine.path][1]


async def ended(peer: Peer, code: ErrorCode) -> None:
    """The daemon ends the connection with this error, of no request."""
    (last,) = await peer.rest()
    assert (last.request_id, last.error.code) == (0, code)


async def serves(machine: Machine) -> None:
    """The VM is served as if nothing had been."""
    async with machine.peer() as peer:
        assert (await peer.call(Ping(b"still there"), PingAnswer)).data == b"still there"


# Slow


@pytest.mark.parametrize("said", [0, 1, 15, 16, 40])
async def test_a_peer_that_does_not_finish_its_hello_is_let_go(place: Place, mock_clock: MockClock, said: int) -> None:
    machine = await place.machine(None)
    hello = frame(Hello.of(ClientKind.VARSTORED, vm=machine.vm, name="slow"))
    async with await connect(machine.path, machine.vm) as peer:
        await wait_all_tasks_blocked()
        mock_clock.jump(HELLO_SECONDS - 1)
        await peer.raw.send_all(hello[:said])
        await wait_all_tasks_blocked()
        assert acceptor(place, machine).connections == 1
        mock_clock.jump(1)
        await ended(peer, ErrorCode.TIMED_OUT)
    await serves(machine)


async def test_a_byte_now_and_then_does_not_keep_a_frame_alive(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(None)
    sent = frame(PutStore(bytes(1000)))
    async with machine.peer() as peer:
        # Idle is fine.
        mock_clock.jump(100 * FRAME_SECONDS)
        for second in range(FRAME_SECONDS):
            assert acceptor(place, machine).connections == 1
            await peer.raw.send_all(sent[second : second + 1])
            await wait_all_tasks_blocked()
            mock_clock.jump(1)
        await ended(peer, ErrorCode.TIMED_OUT)
    await serves(machine)


async def test_each_frame_has_its_own_time(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(None)
    ping = frame(Ping(b"1234"))
    async with machine.peer() as peer:
        await peer.raw.send_all(ping[:10])
        for _ in range(5):
            await wait_all_tasks_blocked()
            mock_clock.jump(FRAME_SECONDS - 1)
            # The end of one frame and the beginning of the next.
            await peer.raw.send_all(ping[10:] + ping[:10])
        await wait_all_tasks_blocked()
        assert acceptor(place, machine).connections == 1
        mock_clock.jump(FRAME_SECONDS)
        frames = await peer.rest()
    assert len(frames) == 6
    assert frames[-1].error.code == ErrorCode.TIMED_OUT


async def test_a_request_under_way_does_not_use_up_the_time_of_the_next_frame(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("read")
    async with machine.peer() as peer:
        await peer.raw.send_all(frame(GetStore(Reason.TOOL), 2) + frame(Ping(), 3)[:12])
        await hang.reached.wait()
        mock_clock.jump(10 * FRAME_SECONDS)
        hang.release.set()
        await wait_all_tasks_blocked()
        await peer.raw.send_all(frame(Ping(), 3)[12:])
        await peer.raw.send_eof()
        assert [each.request_id for each in await peer.rest()] == [2, 3]


async def test_a_peer_that_takes_no_answers_is_let_go_and_holds_nobody_up(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(written("ms2011", 1, 40_000))
    other = await place.machine(scene("ms2011").blob, name="other.sock")
    async with machine.peer() as peer, trio.open_nursery() as nursery:

        async def ask() -> None:
            with suppress(trio.BrokenResourceError):
                for number in range(10_000):
                    await peer.raw.send_all(frame(GetStore(Reason.TOOL), number + 2))
                pytest.fail("the daemon took all requests")

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        # Its own VM on another connection, and another VM.
        for each in (machine, other):
            await each.put(written("ms2011", 2))
        assert acceptor(place, machine).connections == 1
        mock_clock.jump(FRAME_SECONDS)
        await wait_all_tasks_blocked()
        assert acceptor(place, machine).connections == 0
    await serves(machine)


# Greedy


async def test_the_largest_frames_one_after_the_other(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    count = 12
    async with machine.peer() as peer, trio.open_nursery() as nursery:

        async def send() -> None:
            for number in range(count):
                await peer.raw.send_all(build_frame(0x0042, 100 + number, bytes(MAX_PAYLOAD)))
            await peer.raw.send_all(frame(PutStore(written("ms2011", 1)), 500))
            await peer.raw.send_eof()

        nursery.start_soon(send)
        *refusals, answer = await peer.rest()
    assert [each.request_id for each in refusals] == list(range(100, 100 + count))
    assert {each.error.code for each in refusals} == {ErrorCode.UNKNOWN_TYPE}
    assert answer.type == PutStoreAnswer.TYPE
    assert place.record(machine).store == written("ms2011", 1)


async def test_a_frame_that_is_announced_too_large_ends_the_connection_at_its_header(place: Place) -> None:
    machine = await place.machine(None)
    async with machine.peer() as peer:
        await peer.raw.send_all(build_frame(0x0011, 9, bytes(MAX_PAYLOAD + 1))[:HEADER_BYTES])
        await ended(peer, ErrorCode.BAD_FRAME)
    await serves(machine)


async def test_what_a_vm_can_make_the_daemon_hold_is_bounded(place: Place) -> None:
    machine = await place.machine(None)
    largest = build_frame(0x0042, 9, bytes(MAX_PAYLOAD))
    async with trio.open_nursery() as nursery:
        peers = [await connect(machine.path, machine.vm) for _ in range(VM_CONNECTIONS)]
        for peer in peers:
            await peer.hello()
            nursery.start_soon(peer.raw.send_all, largest * 3 + largest[:-1])
        await wait_all_tasks_blocked()
        sessions = [session for session in acceptor(place, machine)._sessions if isinstance(session, Session)]
        held = [len(session._connection._buffer) for session in sessions]
        assert len(held) == VM_CONNECTIONS
        assert max(held) <= HEADER_BYTES + MAX_PAYLOAD + CHUNK
        # One is read on to its end, the others only until they have what each may have.
        assert VM_BYTES <= sum(held) == place.host.in_flight.total <= VM_BYTES + MAX_PAYLOAD + VM_CONNECTIONS * CHUNK
        nursery.cancel_scope.cancel()
    for peer in peers:
        await peer.raw.aclose()
    await wait_all_tasks_blocked()
    assert acceptor(place, machine).connections == 0
    assert place.host.in_flight.total == 0


async def test_a_connection_that_hoards_leaves_room_for_the_others_of_its_vm(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    largest = build_frame(0x0042, 9, bytes(MAX_PAYLOAD))
    hoarders = [await connect(machine.path, machine.vm) for _ in range(VM_CONNECTIONS - 1)]
    async with trio.open_nursery() as nursery:
        for hoarder in hoarders:
            await hoarder.hello()
            nursery.start_soon(hoarder.raw.send_all, largest[:-1])
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            assert (await machine.put(written("ms2011", 1))).verdict is Verdict.NO
        nursery.cancel_scope.cancel()
    for hoarder in hoarders:
        await hoarder.raw.aclose()


# Confused


@pytest.mark.parametrize("seed", range(30))
async def test_garbage_ends_its_own_connection(place: Place, seed: int) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    dice = random.Random(seed)
    good = frame(Hello.of(ClientKind.VARSTORED, vm=machine.vm, name="x"), 1) + frame(PutStore(written("ms2011", 1)), 2)
    if seed % 3 == 0:
        sent = dice.randbytes(dice.randrange(1, 2000))
    else:
        mangled = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            mangled[dice.randrange(16 if seed % 3 == 1 else 200)] ^= 1 << dice.randrange(8)
        sent = bytes(mangled)
    async with await connect(machine.path, machine.vm) as peer:
        await peer.raw.send_all(sent)
        await peer.raw.send_eof()
        with trio.fail_after(10):
            await peer.rest()
    assert (
        place.record(machine)
        in {
            VmRecord(scene("ms2011").blob, ON_BOOT, 0),
            VmRecord(written("ms2011", 1), ON_BOOT, 1),
        }
        or place.record(machine).generation == 1
    )
    await serves(machine)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.BAD_FRAME),
        (frame(Ping()), ErrorCode.HELLO_REQUIRED),
        (bytes(100), ErrorCode.BAD_FRAME),
        (b"VSCP\2\0", None),
    ],
)
async def test_what_does_not_greet_is_told_so(place: Place, sent: bytes, code: ErrorCode | None) -> None:
    machine = await place.machine(None)
    async with await connect(machine.path, machine.vm) as peer:
        await peer.raw.send_all(sent)
        await peer.raw.send_eof()
        (last,) = await peer.rest()
    assert last.error.code == (code or ErrorCode.BAD_FRAME)


async def test_a_bad_message_leaves_the_connection_alive(place: Place) -> None:
    machine = await place.machine(None)
    async with machine.peer() as peer:
        await peer.raw.send_all(build_frame(GetStore.TYPE, 9, b"\1\0\0\0\1\0\0\0\x09") + frame(Ping(), 10))
        await peer.raw.send_eof()
        first, second = await peer.rest()
    assert (first.request_id, first.error.code) == (9, ErrorCode.BAD_MESSAGE)
    assert second.type == PingAnswer.TYPE


async def test_a_bug_in_reading_one_peer_ends_no_other(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as other, machine.peer() as peer:

        def bug(_connection: Connection) -> object:
            raise IndexError("bytes nobody thought of")

        with monkeypatch.context() as patch:
            patch.setattr(Connection, "events", bug)
            await peer.raw.send_all(frame(Ping()))
            await peer.rest()
        await wait_all_tasks_blocked()
        assert "bytes nobody thought of" in caplog.text
        assert (await other.put(written("ms2011", 1))).verdict is Verdict.NO
    await serves(machine)


# Gone


async def test_a_peer_gone_in_the_middle_of_a_frame(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    for cut in (1, 16, 30, 5000):
        async with machine.peer() as peer:
            await peer.raw.send_all(frame(PutStore(written("ms2011", 1)))[:cut])
    await wait_all_tasks_blocked()
    assert acceptor(place, machine).connections == 0
    assert place.toolstack.writes == []
    await serves(machine)


async def test_a_write_is_finished_though_its_peer_is_gone(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("write")
    async with machine.peer() as peer:
        await peer.send(PutStore(written("ms2011", 1)))
        await hang.reached.wait()
    hang.release.set()
    await wait_all_tasks_blocked()
    assert place.record(machine) == VmRecord(written("ms2011", 1), ON_BOOT, 1)
    assert acceptor(place, machine).connections == 0
    await serves(machine)


async def test_the_end_of_the_stream_waits_for_the_answers(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as peer:
        for number in range(5):
            await peer.send(PutStore(written("ms2011", number)))
        await peer.raw.send_eof()
        assert len(await peer.rest()) == 5
    assert place.record(machine).store == written("ms2011", 4)


# Told to stop


async def test_an_idle_peer_is_told_and_a_request_under_way_is_answered(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("write")
    async with (
        machine.peer() as idle,
        machine.peer() as busy,
        await connect(machine.path) as new,
        trio.open_nursery() as nursery,
    ):
        request = await busy.send(PutStore(written("ms2011", 1)))
        await hang.reached.wait()
        nursery.start_soon(place.daemon.stop)
        await ended(idle, ErrorCode.SHUTTING_DOWN)
        # What it speaks is not known yet: an unmodified varstored's call may be on its way.
        await wait_all_tasks_blocked()
        assert acceptor(place, machine).connections == 2
        mock_clock.jump(DRAIN_SECONDS)
        await ended(new, ErrorCode.SHUTTING_DOWN)
        await wait_all_tasks_blocked()
        assert acceptor(place, machine).connections == 1
        hang.release.set()
        answer = await busy.answer(request)
        assert isinstance(answer, PutStoreAnswer)
        await ended(busy, ErrorCode.SHUTTING_DOWN)
    assert place.record(machine).store == written("ms2011", 1)
    with pytest.raises(OSError):  # noqa: PT011  refused, once the listening socket is closed
        await connect(machine.path)


async def test_a_frame_on_its_way_when_the_daemon_stops_is_carried_out(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    store = written("ms2011", 1)
    frame = build_frame(PutStore.TYPE, 2, codec.encode(PutStore(store)))
    async with machine.peer() as peer, trio.open_nursery() as nursery:
        await peer.raw.send_all(frame[:100])
        await wait_all_tasks_blocked()
        nursery.start_soon(place.daemon.stop)
        await wait_all_tasks_blocked()
        mock_clock.jump(DRAIN_SECONDS / 2)
        await peer.raw.send_all(frame[100:])
        answer, last = await peer.rest()
    assert (answer.type, answer.request_id) == (PutStoreAnswer.TYPE, 2)
    assert (last.request_id, last.error.code) == (0, ErrorCode.SHUTTING_DOWN)
    assert mock_clock.current_time() == DRAIN_SECONDS / 2
    assert place.record(machine).store == store


async def test_what_is_asked_for_ahead_holds_no_stop_up(place: Place) -> None:
    """A VM that takes its answers would keep its former socket for as long as what it has asked for lasts."""
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("read")
    async with machine.peer() as peer, trio.open_nursery() as nursery:
        await peer.raw.send_all(b"".join(frame(GetStore(Reason.TOOL), number) for number in range(2, 10)))
        await hang.reached.wait()
        nursery.start_soon(place.daemon.stop)
        await wait_all_tasks_blocked()
        hang.release.set()
        answer, last = await peer.rest()
    assert answer.request_id == 2
    assert (last.request_id, last.error.code) == (0, ErrorCode.SHUTTING_DOWN)


async def test_a_frame_that_does_not_end_holds_no_stop_up(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    frame = build_frame(PutStore.TYPE, 2, codec.encode(PutStore(written("ms2011", 1))))
    async with machine.peer() as peer:
        await peer.raw.send_all(frame[:-1])
        await wait_all_tasks_blocked()
        await place.daemon.stop()
        (last,) = await peer.rest()
    assert last.error.code == ErrorCode.SHUTTING_DOWN
    assert autojump_clock.current_time() == pytest.approx(DRAIN_SECONDS)
    assert place.record(machine).store == scene("ms2011").blob


async def test_the_first_error_says_whether_to_try_again(place: Place) -> None:
    machine = await place.machine(make_store([]))
    async with machine.peer() as peer:
        with pytest.raises(Refused) as refused:
            await peer.put(b"x" * MAX_PING)
    assert not refused.value.try_again


async def test_who_does_not_wait_for_answers_gives_way_between_them(place: Place) -> None:
    machine = await place.machine(None)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with await connect(machine.path, machine.vm) as peer, trio.open_nursery() as nursery:
        await peer.hello()
        nursery.start_soon(others)
        await peer.raw.send_all(b"".join(frame(Ping(), number) for number in range(100, 200)))
        await peer.raw.send_eof()
        assert len(await peer.rest()) == 100
        nursery.cancel_scope.cancel()
    assert turns >= 90


async def test_who_has_always_sent_the_next_request_gives_way_too() -> None:
    """At least every sixth of its requests waits for a turn of the loop, however fast it is."""
    turns = 0
    hello = frame(Hello.of(ClientKind.TOOL, vm=UUID(int=1), name="eager"), 1)
    to_come = iter([hello, *(frame(Ping(), number) for number in range(2, 102))])

    class Eager(UnixStream):
        """Its next request has come whenever it is asked for."""

        def receive_now(self, most: int) -> bytes:
            return next(to_come, b"")

        async def receive_some(self, most: int) -> bytes:
            await trio.lowlevel.checkpoint()
            return self.receive_now(most)

    async def handle(_ping: messages.RequestMessage) -> messages.AnswerMessage:
        return PingAnswer(None)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    ours, theirs = socket.socketpair()
    with ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await Session(Eager(theirs), messages.Socket.VM, Complaints("test", log), greet=welcome, handle=handle).run()
            nursery.cancel_scope.cancel()
    assert next(to_come, None) is None
    assert turns >= 15
