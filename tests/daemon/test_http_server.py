"""One HTTP connection: what is answered, what is refused with which status, and what a peer cannot make it do."""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from varstore_companion.daemon import http_server
from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.http_server import (
    CHUNK,
    IDLE_SECONDS,
    MAX_HEAD,
    READS_AT_ONCE,
    REQUEST_SECONDS,
    SEND_SECONDS,
    HttpSession,
)
from varstore_companion.daemon.peer_wait import DRAIN_SECONDS
from varstore_companion.errors import MalformedError
from varstore_companion.unix_stream import UnixStream

LIMIT = 1_000
log = logging.getLogger(__name__)


async def shout(document: bytes) -> bytes:
    return document.upper()


def post(body: bytes = b"call", *headers: bytes, path: bytes = b"/", version: bytes = b"1.1", length: object = None) -> bytes:
    lines = [
        b"POST %s HTTP/%s" % (path, version),
        b"Host: _tmp_socket",
        b"Content-Length: " + str(len(body) if length is None else length).encode(),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Peer:
    """The other end: `ended` is set when the session has."""

    def __init__(self, stream: trio.SocketStream, session: HttpSession) -> None:
        self.stream = stream
        self.session = session
        self.ended = trio.Event()
        self._rest = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: its status, headers and body."""
        while b"\r\n\r\n" not in self._rest:
            await self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length:
            await self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return int(first.split()[1]), headers, body

    async def end(self) -> bytes:
        """Everything that still comes until the session closes the connection."""
        rest = self._rest
        with suppress(trio.BrokenResourceError):  # closed with something unread
            while data := await self.stream.receive_some():
                rest += data
        await self.ended.wait()
        return rest

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        assert data, "the connection ended"
        self._rest += data


@asynccontextmanager
async def connected(answer: Callable[[bytes], Awaitable[bytes]] = shout, *, single: bool = False) -> AsyncIterator[Peer]:
    ours, theirs = socket.socketpair()
    session = HttpSession(UnixStream(theirs), Complaints("test", log), answer, limit=LIMIT, single=single)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream, trio.open_nursery() as nursery:
        peer = Peer(stream, session)

        async def serve() -> None:
            await session.run()
            peer.ended.set()

        nursery.start_soon(serve)
        yield peer
        nursery.cancel_scope.cancel()


# What is answered


@pytest.mark.parametrize("path", [b"/", b"/RPC2"])
async def test_a_document_is_answered_with_its_length(path: bytes) -> None:
    async with connected() as peer:
        await peer.send(post(b"call", path=path))
        status, headers, body = await peer.answer()
    assert (status, body) == (200, b"CALL")
    assert headers["content-type"] == "text/xml"
    assert headers["content-length"] == "4"
    assert "transfer-encoding" not in headers


async def test_a_connection_is_kept_for_the_next_call() -> None:
    async with connected() as peer:
        for number in range(5):
            await peer.send(post(b"call %d" % number))
            assert (await peer.answer())[2] == b"CALL %d" % number


@pytest.mark.parametrize("headers", [(b"Connection: close",), ()])
async def test_it_closes_when_the_peer_asks_for_it(headers: tuple[bytes, ...]) -> None:
    async with connected() as peer:
        await peer.send(post(b"call", *headers, version=b"1.1" if headers else b"1.0"))
        rest = await peer.end()
    assert rest.startswith(b"HTTP/1.1 200 ")
    assert rest.lower().count(b"connection: close\r\n") == 1
    assert rest.endswith(b"\r\n\r\nCALL")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("headers", [(), (b"Connection: close",), (b"Connection: keep-alive",)])
async def test_a_single_one_closes_after_its_answer(version: bytes, headers: tuple[bytes, ...]) -> None:
    async with connected(single=True) as peer:
        await peer.send(post(b"call", *headers, version=version))
        rest = await peer.end()
    assert rest.startswith(b"HTTP/1.1 200 ")
    assert rest.lower().count(b"connection: close\r\n") == 1
    assert rest.endswith(b"\r\n\r\nCALL")


async def test_a_single_one_carries_out_the_first_of_pipelined_requests() -> None:
    calls = []

    async def answer(document: bytes) -> bytes:
        calls.append(document)
        return document

    async with connected(answer, single=True) as peer:
        await peer.send(post(b"first") + post(b"second"))
        rest = await peer.end()
    assert rest.endswith(b"\r\n\r\nfirst")
    assert calls == [b"first"]


async def test_a_request_may_come_a_byte_at_a_time() -> None:
    async with connected() as peer:
        for byte in post(b"call"):
            await peer.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert (await peer.answer())[2] == b"CALL"


async def test_pipelined_requests_are_answered_in_their_order_one_at_a_time() -> None:
    running, most = 0, 0

    async def answer(document: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.testing.wait_all_tasks_blocked()
        running -= 1
        return document

    async with connected(answer) as peer:
        await peer.send(b"".join(post(b"call %d" % number) for number in range(50)))
        for number in range(50):
            assert (await peer.answer())[2] == b"call %d" % number
    assert most == 1


async def test_who_waits_for_100_gets_it() -> None:
    async with connected() as peer:
        await peer.send(post(b"", b"Expect: 100-continue", length=4))
        assert (await peer.answer())[0] == 100
        await peer.send(b"call")
        assert (await peer.answer())[2] == b"CALL"


async def test_another_protocol_that_is_offered_is_not_taken_up() -> None:
    async with connected() as peer:
        for _ in range(2):
            await peer.send(post(b"call", b"Connection: Upgrade", b"Upgrade: h2c"))
            assert (await peer.answer())[::2] == (200, b"CALL")


async def test_an_empty_document_is_a_document() -> None:
    async with connected() as peer:
        await peer.send(post(b""))
        assert (await peer.answer())[::2] == (200, b"")


async def test_the_largest_document_is_taken() -> None:
    async with connected() as peer:
        await peer.send(post(b"x" * LIMIT))
        assert (await peer.answer())[2] == b"X" * LIMIT


# What is refused


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\ncall", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"HEAD / HTTP/2.0\r\nHost: a\r\n\r\n", 405),
        (b"CONNECT host:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (post(path=b"/services"), 404),
        (post(path=b"http://host/"), 404),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ncall\r\n0\r\n\r\n", 411),
        (post(b"", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (post(b"x" * (LIMIT + 1)), 413),
        (post(length=10**15), 413),
        (post(b"", b"Expect: 100-continue", length=LIMIT + 1), 413),
        (post(length=-1), 400),
        (post(length="4\r\nContent-Length: 5"), 400),
        (post(length="9" * 30), 400),
        (b"POST / HTTP/1.1\r\n\r\n", 400),
        (post(version=b"2.0"), 505),
        (post(version=b"0.9"), 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"VSCM\0\0\0\0\n\n", 400),
        (post(b"call", b"Bad Header: x"), 400),
        (post(b"call", b"X: a\0b"), 400),
        (b"POST / HTTP/1.1\r\n" + b"X: " + b"x" * 2 * CHUNK + b"\r\n\r\n", 431),
        (b"POST /" + b"x" * 2 * MAX_HEAD, 431),
        (post(b"call", *[b"a:b"] * (MAX_HEAD // 4)), 431),
        (b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * CHUNK, 431),
    ],
)
async def test_what_is_not_taken_is_refused_with_a_status_and_a_close(request_: bytes, status: int) -> None:
    calls = []

    async def answer(document: bytes) -> bytes:
        calls.append(document)
        return b""

    async with connected(answer) as peer:
        await peer.send(request_)
        found, headers, body = await peer.answer()
        await peer.stream.send_eof()
        assert await peer.end() == b""
    assert found == status
    assert headers["connection"] == "close"
    assert calls == []
    assert ("allow" in headers, bool(body)) == ((True, False) if status == 405 else (False, True))


async def test_nothing_after_a_refused_request_is_carried_out() -> None:
    async with connected() as peer:
        await peer.send(post(path=b"/other") + post())
        assert (await peer.answer())[0] == 404
        await peer.stream.send_eof()
        assert await peer.end() == b""


async def test_what_is_no_document_is_a_bad_request() -> None:
    async def answer(_document: bytes) -> bytes:
        raise MalformedError("XML-RPC", offset=3, expected="XML")

    async with connected(answer) as peer:
        await peer.send(post())
        status, _, body = await peer.answer()
        await peer.stream.send_eof()
        assert await peer.end() == b""
    assert (status, body) == (400, b"XML-RPC at offset 3: expected XML\n")


async def test_a_bug_ends_this_connection_only_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_document: bytes) -> bytes:
        raise LookupError("inner words")

    async with connected(answer) as peer:
        await peer.send(post())
        status, _, body = await peer.answer()
        await peer.stream.send_eof()
        await peer.end()
    assert status == 500
    assert b"inner" not in body
    assert "inner words" in caplog.text


# What a peer cannot do


@pytest.mark.parametrize("part", [b"P", b"\r\n", post()[:-1], post()[:20], post() + b"P"])
async def test_a_peer_that_goes_away_in_the_middle_ends_it(part: bytes) -> None:
    async with connected() as peer:
        await peer.send(part)
        await peer.stream.send_eof()
        with trio.fail_after(5):
            await peer.end()


async def test_a_peer_that_is_gone_before_its_answer_ends_it() -> None:
    ours, theirs = socket.socketpair()

    async def answer(_document: bytes) -> bytes:
        ours.close()
        return b"x" * 1_000_000

    await trio.SocketStream(trio.socket.from_stdlib_socket(ours)).send_all(post())
    with trio.fail_after(5):
        await HttpSession(UnixStream(theirs), Complaints("test", log), answer, limit=LIMIT).run()


async def drip(peer: Peer, data: bytes, every: float) -> None:
    with suppress(trio.BrokenResourceError):
        for byte in data:
            await peer.send(bytes([byte]))
            await trio.sleep(every)


@pytest.mark.parametrize(
    ("at_once", "slowly"),
    [
        (b"", b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 1_000),
        (b"", post(b"x" * LIMIT)),
        (post(length=LIMIT), b"x" * LIMIT),
        (post() + b"P", b"OST / HTTP/1.1\r\n" + b"X: y\r\n" * 1_000),
    ],
)
async def test_a_request_that_never_ends_is_cut_off(
    at_once: bytes, slowly: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    begin = trio.current_time()
    async with connected() as peer, trio.open_nursery() as nursery:
        await peer.send(at_once)
        nursery.start_soon(partial(drip, peer, slowly, 0.5))
        await peer.end()
        assert REQUEST_SECONDS - 0.5 <= trio.current_time() - begin <= REQUEST_SECONDS + 0.5
    assert caplog.text.count("test closed: the peer was too slow") == 1
    assert autojump_clock.autojump_threshold == 0


async def test_an_idle_connection_is_closed(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with connected() as peer:
        await peer.send(post())
        await peer.answer()
        begin = trio.current_time()
        assert await peer.end() == b""
        assert trio.current_time() - begin == pytest.approx(IDLE_SECONDS)
    assert caplog.text == ""
    assert autojump_clock.autojump_threshold == 0


async def test_a_peer_that_does_not_take_its_answer_is_cut_off(autojump_clock: MockClock) -> None:
    async def answer(_document: bytes) -> bytes:
        return b"x" * 10_000_000

    begin = trio.current_time()
    async with connected(answer) as peer:
        await peer.send(post())
        await peer.ended.wait()
        assert trio.current_time() - begin == pytest.approx(SEND_SECONDS)
    assert autojump_clock.autojump_threshold == 0


async def test_a_refused_peer_that_goes_on_sending_is_cut_off(autojump_clock: MockClock) -> None:
    async with connected() as peer, trio.open_nursery() as nursery:
        await peer.send(post(length=10**9))
        nursery.start_soon(partial(drip, peer, b"x" * 1_000, 0.1))
        assert (await peer.answer())[0] == 413
        begin = trio.current_time()
        await peer.ended.wait()
        assert trio.current_time() - begin <= http_server.LINGER_SECONDS + 0.5
    assert autojump_clock.autojump_threshold == 0


async def test_no_more_than_a_little_of_a_refused_request_is_read_away() -> None:
    async with connected() as peer:
        await peer.send(post(length=10**9))
        assert (await peer.answer())[0] == 413
        with pytest.raises(trio.BrokenResourceError):
            await peer.send(bytes(20 * http_server.LINGER_BYTES))


async def test_it_reads_no_further_than_the_request_that_it_carries_out() -> None:
    reached, release = trio.Event(), trio.Event()

    async def answer(document: bytes) -> bytes:
        reached.set()
        await release.wait()
        return document

    async with connected(answer) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, post() * 100_000)
        await reached.wait()
        await trio.testing.wait_all_tasks_blocked()
        # The sender is blocked: what it has sent stands in the system's buffer, not in this process.
        assert len(peer.session._http.trailing_data[0]) <= CHUNK
        nursery.cancel_scope.cancel()


# Stopping


async def test_stop_ends_an_idle_connection_at_once() -> None:
    async with connected() as peer:
        await peer.send(post())
        await peer.answer()
        await trio.testing.wait_all_tasks_blocked()
        peer.session.stop()
        assert await peer.end() == b""


async def test_stop_lets_the_first_request_come(mock_clock: MockClock) -> None:
    async with connected() as peer:
        await trio.testing.wait_all_tasks_blocked()
        peer.session.stop()
        mock_clock.jump(DRAIN_SECONDS / 2)
        await peer.send(post())
        assert (await peer.answer())[2] == b"CALL"
        assert await peer.end() == b""
    assert mock_clock.current_time() == DRAIN_SECONDS / 2


async def test_stop_waits_no_longer_than_it_says_for_the_rest_of_a_request(mock_clock: MockClock) -> None:
    async with connected() as peer:
        await peer.send(post())
        await peer.answer()
        await peer.send(post()[:-1])
        await trio.testing.wait_all_tasks_blocked()
        peer.session.stop()
        mock_clock.jump(DRAIN_SECONDS)
        assert await peer.end() == b""


async def test_stop_lets_the_request_that_is_carried_out_finish() -> None:
    reached, release = trio.Event(), trio.Event()

    async def answer(document: bytes) -> bytes:
        reached.set()
        await release.wait()
        return document

    async with connected(answer) as peer:
        await peer.send(post() + post())
        await reached.wait()
        peer.session.stop()
        release.set()
        assert (await peer.answer())[2] == b"call"
        rest = await peer.end()
    assert rest in (b"", b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 4\r\n\r\ncall")


async def test_who_does_not_wait_for_answers_gives_way_between_them() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with connected() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await peer.send(post() * 100)
        for _ in range(100):
            assert (await peer.answer())[0] == 200
        nursery.cancel_scope.cancel()
    assert turns >= 90


class Fed(UnixStream):
    """One byte of a request is there at every read: its peer sends the next one as soon as one is taken."""

    def __init__(self, connected: socket.socket, data: bytes) -> None:
        super().__init__(connected)
        self.left = data
        self.together = self.most_together = 0

    def receive_now(self, most: int) -> bytes | None:
        if not self._unread and self.left:
            self._unread, self.left = self.left[:1], self.left[1:]
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        return super().receive_now(most)

    async def receive_some(self, most: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.together = 0
        return self.receive_now(most) or b""


_VARSTOREDS = b"\r\n".join(
    (
        b"POST / HTTP/1.1",
        b"Host: h",
        b"Accept-Encoding: identity",
        b"User-Agent: varstored/0.1",
        b"Connection: close",
        b"Content-Type: text/xml",
        b"Content-Length: 500",
        b"\r\n",
    )
)


@pytest.mark.parametrize("at_once", [b"", _VARSTOREDS])
async def test_who_sends_a_byte_whenever_one_is_read_gives_way_to_the_others(at_once: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        stream = Fed(theirs, post(b"x" * 500) if not at_once else b"x" * 500)
        stream.unread(at_once)
        await HttpSession(stream, Complaints("test", log), shout, limit=LIMIT, single=True).run()
        assert ours.recv(CHUNK).endswith(b"\r\n\r\n" + b"X" * 500)
    assert stream.most_together <= READS_AT_ONCE
