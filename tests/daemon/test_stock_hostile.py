"""What a guest's side can send in place of varstored's calls: answered or closed, bounded, logged once, no other VM touched."""

from base64 import b64encode
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support import stock
from support import storebytes as sb
from support.daemon import Machine, Place, written
from support.stock import GET, GET_BY_UUID, LOGOUT, SET, Failed, S, V, Varstored, http, request
from support.storemaker import scene
from varstore_companion.daemon.http_server import MAX_HEAD, REQUEST_SECONDS
from varstore_companion.daemon.sockets import VM_CONNECTIONS
from varstore_companion.toolstack.xmlrpc import MAX_DOCUMENT
from varstore_companion.trust.state import CertificatesState

AVAILABLE = CertificatesState.UPDATE_AVAILABLE
LOGOUT_CALL = request(LOGOUT, S)
DOCTYPE = (
    b"<?xml version='1.0'?><!DOCTYPE m [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>"
    b"<methodCall><methodName>session.logout</methodName><params><param><value>&b;</value></param></params></methodCall>"
)


async def two(place: Place) -> tuple[Machine, Machine]:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    return machine, await place.machine(scene("ms2011").blob, AVAILABLE, name="other.sock")


async def untouched(place: Place, machine: Machine, other: Machine) -> None:
    """The VM still has its store and is served, and so is its neighbour."""
    with trio.fail_after(10):
        assert await Varstored(machine.path, machine.vm).read() == scene("ms2011").blob
        assert await Varstored(other.path, other.vm).read() == scene("ms2011").blob
    assert not place.toolstack.writes


async def status_of(machine: Machine, sent: bytes) -> int:
    """The status of the answer; 0 where the connection is closed without one."""
    answer = b""
    async with await trio.open_unix_socket(str(machine.path)) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(sent)
            await stream.send_eof()
        with suppress(trio.BrokenResourceError):  # closed with something unread
            async for data in stream:
                answer += data
    return int(answer.split()[1]) if answer else 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (http(b"x" * (MAX_DOCUMENT + 1)), 413),
        (http(b"", 10**12), 413),
        (http(b"", 10**30), 400),
        (http(b""), 400),
        (http(b"not XML"), 400),
        (http(DOCTYPE), 400),
        (http(b"<?xml-stylesheet href='a'?><methodCall/>"), 400),
        (http(b"<methodResponse/>"), 400),
        (http(LOGOUT_CALL.partition(b"\r\n\r\n")[2][:-9]), 400),
        (http(b"<a>" * 60_000), 400),
        (http(b"\xff" * 200), 400),
        (LOGOUT_CALL.replace(b"Content-Length", b"X"), 411),
        (LOGOUT_CALL.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\nContent-Length: "), 411),
        (LOGOUT_CALL.replace(b"POST / ", b"PUT / "), 405),
        (LOGOUT_CALL.replace(b"POST / ", b"PATCH / "), 405),
        (LOGOUT_CALL.replace(b"POST / ", b"POST /export "), 404),
        (LOGOUT_CALL.replace(b"HTTP/1.1", b"HTTP/3.0"), 505),
        (b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEAD, 431),
        (b"P" * 3 * MAX_HEAD, 431),
        (b"POST\0/\0\r\n\r\n", 400),
        (LOGOUT_CALL[:-1], 400),
        (b"POST", 400),
        (b"P", 400),
    ],
)
async def test_what_is_no_call_is_refused_and_closed(place: Place, sent: bytes, status: int) -> None:
    machine, other = await two(place)
    with trio.fail_after(10):
        assert await status_of(machine, sent) == status
    await untouched(place, machine, other)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("!", "INVALID_VALUE"),
        ("", "INVALID_VALUE"),
        ("VkFSUw=", "INVALID_VALUE"),
        ("VkFSUw==VkFSUw==", "INVALID_VALUE"),
        ("\u00e9" * 8, "INVALID_VALUE"),
        (b64encode(b"VARS").decode(), "INVALID_VALUE"),
        (b64encode(bytes(4_000)).decode(), "INVALID_VALUE"),
        (b64encode(scene("ms2011").blob[:-1]).decode(), "INVALID_VALUE"),
        (b64encode(scene("ms2011").blob + b"\0").decode(), "INVALID_VALUE"),
        (b64encode(b"VARS\x07\0\0\0" + bytes(sb.FILE_LIMIT)).decode(), "VALUE_NOT_SUPPORTED"),
        ("A" * 262_148, "VALUE_NOT_SUPPORTED"),
    ],
)
async def test_what_is_no_store_is_refused_and_the_old_one_stays(place: Place, text: str, name: str) -> None:
    machine, other = await two(place)
    with pytest.raises(Failed) as failed:
        await Varstored(machine.path, machine.vm).call(SET, S, V, text)
    assert failed.value.errors[0] == name
    assert sum(map(len, failed.value.errors)) < 2_000
    await untouched(place, machine, other)


async def test_an_answer_never_repeats_what_a_peer_made_long(place: Place) -> None:
    machine, other = await two(place)
    for sent in (
        request(GET_BY_UUID, S, "&amp;" * 50_000),
        request("M" * 128, S),
        request("VM.get_NVRAM", S, V, "&lt;" * 9_000),
    ):
        assert len(await stock.exchange(machine.path, sent)) < 2_000
    assert await status_of(machine, request("M" * 100_000, S)) == 400
    await untouched(place, machine, other)


async def test_of_pipelined_calls_the_first_is_carried_out(place: Place) -> None:
    machine, other = await two(place)
    write = request(SET, S, V, b64encode(written("ms2011", 1)).decode())
    assert await status_of(machine, LOGOUT_CALL + write * 3) == 200
    await wait_all_tasks_blocked()
    await untouched(place, machine, other)


@pytest.mark.parametrize("begin", [b"P", b"POST / HTTP/1.1\r\nX: ", http(b"<methodCall>", MAX_DOCUMENT)])
async def test_a_call_that_never_ends_is_cut_off_and_logged_once(
    place: Place, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, begin: bytes
) -> None:
    machine, other = await two(place)

    async def drip(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"a")
                await trio.sleep(0.5)

    begun = trio.current_time()
    async with await trio.open_unix_socket(str(machine.path)) as stream, trio.open_nursery() as nursery:
        await stream.send_all(begin)
        if begin != b"P":
            nursery.start_soon(drip, stream)
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some(100) == b""
        nursery.cancel_scope.cancel()
    assert trio.current_time() - begun <= REQUEST_SECONDS + 1
    assert caplog.text.count(f"vm={machine.vm} closed: the peer was too slow") == 1
    await untouched(place, machine, other)
    assert autojump_clock.autojump_threshold == 0


async def test_a_flood_is_not_the_logs(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    machine, other = await two(place)
    for sent in (
        http(b"not XML"),
        request("VM.destroy", S, V),
        request(SET, S, V, "!"),
        request(GET_BY_UUID, S, str(other.vm)),
    ):
        for _ in range(64):
            await status_of(machine, sent)
    lines = [record for record in caplog.records if f"vm={machine.vm}" in record.getMessage()]
    assert len(lines) == 9  # the 1st, 2nd, 4th … 256th
    await untouched(place, machine, other)


async def test_all_of_a_vms_connections_can_hang_and_no_other_vm_notices(place: Place) -> None:
    machine, other = await two(place)
    largest = http(b"<methodCall>" + b" " * MAX_DOCUMENT, MAX_DOCUMENT)
    streams = [await trio.open_unix_socket(str(machine.path)) for _ in range(VM_CONNECTIONS)]
    for stream in streams:
        await stream.send_all(largest[:-MAX_DOCUMENT] + b" " * (MAX_DOCUMENT // 4))
    await wait_all_tasks_blocked()
    assert place.daemon.connections == VM_CONNECTIONS
    # One more is turned away, whatever it speaks.
    with pytest.raises((Failed, trio.BrokenResourceError)):  # closed with the call unread
        stock.understand(await stock.exchange(machine.path, stock.login()))
    assert await Varstored(other.path, other.vm).read() == scene("ms2011").blob
    for stream in streams:
        await stream.aclose()
    await wait_all_tasks_blocked()
    await untouched(place, machine, other)


async def test_a_write_whose_peer_goes_away_is_carried_out(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    hang = place.toolstack.hang_next("write")
    async with await trio.open_unix_socket(str(machine.path)) as stream:
        await stream.send_all(request(SET, S, V, b64encode(written("ms2011", 1)).decode()))
        await hang.reached.wait()
    hang.release.set()
    await wait_all_tasks_blocked()
    assert place.record(machine).store == written("ms2011", 1)
    assert place.daemon.connections == 0
    assert await Varstored(machine.path, machine.vm).call(GET, S, V) is not None


async def test_a_stop_lets_a_write_finish(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    hang = place.toolstack.hang_next("write")
    answers: list[str | None] = []

    async def write() -> None:
        answers.append(await Varstored(machine.path, machine.vm).call(SET, S, V, b64encode(written("ms2011", 1)).decode()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await hang.reached.wait()
        nursery.start_soon(place.daemon.stop)
        await wait_all_tasks_blocked()
        hang.release.set()
    assert answers == [""]
    assert place.record(machine).store == written("ms2011", 1)
