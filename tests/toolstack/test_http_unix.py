"""One POST on a Unix socket: what comes back, and for everything that goes wrong whether the request had gone out."""

import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from fuzz.targets.http import client
from varstore_companion.toolstack.http_unix import (
    ANSWER_SECONDS,
    MAX_FRAMING,
    MAX_HEAD,
    HttpAnswer,
    NoAnswerError,
    NotSentError,
    post,
)

LIMIT = 1_000
Serve = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@asynccontextmanager
async def listening(path: Path, serve: Serve) -> AsyncIterator[None]:
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(os.fspath(path))
    listener.listen(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listener)])
        yield
        nursery.cancel_scope.cancel()


async def request(stream: trio.SocketStream) -> bytes:
    """Read one request to its last byte."""
    data = b""
    while True:
        head, found, body = data.partition(b"\r\n\r\n")
        if found and len(body) == int(head.rpartition(b"Content-Length: ")[2].split(b"\r")[0]):
            return data
        chunk = bytes(await stream.receive_some())
        assert chunk
        data += chunk


def sending(raw: bytes, *, in_bytes: bool = False, then_hang: bool = False) -> Serve:
    """A server that reads the request, sends `raw` and closes."""

    async def serve(stream: trio.SocketStream) -> None:
        await request(stream)
        for part in [raw[i : i + 1] for i in range(len(raw))] if in_bytes else [raw]:
            try:
                await stream.send_all(part)
            except trio.BrokenResourceError:
                return
        if then_hang:
            await trio.sleep_forever()
        await stream.aclose()

    return serve


async def test_what_is_sent(path: Path) -> None:
    got = []

    async def serve(stream: trio.SocketStream) -> None:
        got.append(await request(stream))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with listening(path, serve):
        assert await post(path, b"<call/>") == HttpAnswer(200, b"ok")
    head, _, body = got[0].partition(b"\r\n\r\n")
    assert body == b"<call/>"
    assert head.split(b"\r\n") == [
        b"POST / HTTP/1.1",
        b"Host: localhost",
        b"User-Agent: varstore-companion",
        b"Connection: close",
        b"Content-Type: text/xml",
        b"Content-Length: 7",
    ]


async def test_what_is_done_meanwhile_is_done_between_the_request_and_its_answer(path: Path) -> None:
    done = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await request(stream)
        await done.wait()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with listening(path, serve):
        with trio.fail_after(5):
            assert await post(path, b"<call/>", meanwhile=done.set) == HttpAnswer(200, b"ok")


ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", HttpAnswer(200, b"body")),
    "to the end": (b"HTTP/1.1 200 OK\r\n\r\nbody", HttpAnswer(200, b"body")),
    "1.0": (b"HTTP/1.0 200 OK\r\n\r\nbody", HttpAnswer(200, b"body")),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
        HttpAnswer(200, b"body"),
    ),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", HttpAnswer(200, b"")),
    "error": (b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nwhy", HttpAnswer(500, b"why")),
    "largest": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000), HttpAnswer(200, bytes(1000))),
}


@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
async def test_answers(path: Path, name: str, *, in_bytes: bool) -> None:
    raw, answer = ANSWERS[name]
    async with listening(path, sending(raw, in_bytes=in_bytes)):
        assert await post(path, b"call", limit=LIMIT) == answer


async def test_an_answer_is_taken_at_its_end_though_the_server_does_not_close(path: Path) -> None:
    async with listening(path, sending(ANSWERS["length"][0], then_hang=True)):
        assert (await post(path, b"call")).body == b"body"


_HEADS = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200\r\n", b"http/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n"]
)
_HEADERS = st.sampled_from(
    [
        *(b"Content-Length: %d\r\n" % length for length in (0, 4, 5, 700)),
        *(b"%b: 4\r\n" % name for name in (b"content-length", b"Content-Length ", b"Content-Length:", b"X-Content-Length")),
        *(b"Content-Length:%b\r\n" % value for value in (b"4", b"4 ", b"\t4", b" 4,4", b" +4", b" 04", b"", b"4\r\n 5")),
        *(b"Transfer-Encoding: %b\r\n" % value for value in (b"chunked", b"identity", b"")),
        *(
            b"Connection: close\r\n",
            b"Date: \r\n",
            b": a\r\n",
            b"Server: x\0y\r\n",
            b"no header\r\n",
            b" folded\r\n",
            b"a_b: c\r\n",
        ),
        *(b"X: \xe4\r\n", b"X: a\tb\r\n", b"X: y\n", b"Upgrade: h2c\r\n"),
    ]
)


@given(_HEADS, st.lists(_HEADERS, max_size=4), st.sampled_from([b"", b"body", b"body!", b"4\r\nbody\r\n0\r\n\r\n", bytes(700)]))
@example(b"HTTP/1.1 200 OK\r\n", [b"Content-Length: 5\r\n", b"Content-Length: 4\r\n"], b"body")
@example(b"HTTP/1.1 200 OK\r\n", [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 4\r\n"], b"body")
@example(b"HTTP/1.1 200 OK\r\n", [b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"], b"body")
def test_an_answer_is_the_same_whether_it_comes_whole_or_a_byte_at_a_time(
    head: bytes, headers: list[bytes], body: bytes
) -> None:
    client(b"\2" + head + b"".join(headers) + b"\r\n" + body)


LOST = {
    "closed": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "binary": bytes(range(256)) * 4,
    "only continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "oversized": b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + bytes(1001),
    "oversized to the end": b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2000),
    "a head that does not end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD,
    "continue for ever": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "tiny chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;aaaaaaaaaa=" + b"b" * MAX_FRAMING + b"\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
}


@pytest.mark.parametrize("name", LOST)
async def test_a_lost_answer(path: Path, name: str) -> None:
    async with listening(path, sending(LOST[name])):
        with pytest.raises(NoAnswerError, match=str(path)):
            await post(path, b"call", limit=LIMIT)


@pytest.mark.parametrize("name", ["closed", "half a head", "half a body"])
async def test_a_server_that_hangs_is_given_up(path: Path, name: str, autojump_clock: MockClock) -> None:
    # The clock jumps only while everything waits: the real socket is no exception, for its data is there at once.
    autojump_clock.autojump_threshold = 0.05
    begun = trio.current_time()
    async with listening(path, sending(LOST[name], then_hang=True)):
        with pytest.raises(NoAnswerError, match="no answer within 8 s"):
            await post(path, b"call")
    assert trio.current_time() - begun == pytest.approx(ANSWER_SECONDS)


async def test_nobody_is_there(path: Path) -> None:
    with pytest.raises(NotSentError, match="No such file"):
        await post(path, b"call")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(os.fspath(path))
    with pytest.raises(NotSentError, match="refused"):
        await post(path, b"call")
    with pytest.raises(NotSentError, match="too long"):
        await post(path / ("x" * 200), b"call")


async def test_without_a_descriptor_nothing_was_sent(path: Path) -> None:
    async with listening(path, sending(b"")):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Those that are open stay; there is none for one more.
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(NotSentError, match="Too many open files"):
                await post(path, b"call")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def full(path: Path) -> list[socket.socket]:
    """A listener whose queue is full, and what fills it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen(0)
    held = [listener]
    while True:
        held.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        try:
            held[-1].connect(os.fspath(path))
        except BlockingIOError:
            return held


async def test_a_full_queue_is_waited_for_and_given_up(path: Path, autojump_clock: MockClock) -> None:
    held = full(path)
    try:
        begun = trio.current_time()
        with pytest.raises(NotSentError, match="no connection within 8 s"):
            await post(path, b"call")
        assert trio.current_time() - begun == pytest.approx(ANSWER_SECONDS)
    finally:
        for each in held:
            each.close()
    assert autojump_clock.rate == 0


async def test_a_full_queue_that_empties(path: Path, autojump_clock: MockClock) -> None:
    held = full(path)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(held.pop(0)))
    for each in held:
        each.close()
    held.clear()

    async def serve(stream: trio.SocketStream) -> None:
        if await stream.receive_some(1):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    autojump_clock.autojump_threshold = 0.05
    async with trio.open_nursery() as nursery:

        async def late() -> None:
            await trio.sleep(1)
            await trio.serve_listeners(serve, [listener])

        nursery.start_soon(late)
        assert (await post(path, b"call")).status == 200
        assert trio.current_time() >= 1
        nursery.cancel_scope.cancel()


LARGE = bytes(8 * 1024 * 1024)
"""More than a socket's buffers take."""


async def test_a_request_that_is_not_taken_was_not_sent(path: Path, autojump_clock: MockClock) -> None:
    async def serve(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    autojump_clock.autojump_threshold = 0.05
    async with listening(path, serve):
        with pytest.raises(NotSentError, match="not taken within 8 s"):
            await post(path, LARGE)


async def test_a_request_that_is_cut_was_not_sent(path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.aclose()

    async with listening(path, serve):
        with pytest.raises(NotSentError):
            await post(path, LARGE)


async def test_an_answer_before_the_requests_end_is_read(path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        await stream.aclose()

    async with listening(path, serve):
        assert (await post(path, LARGE)).status == 503


async def test_the_connection_is_closed_when_the_call_is_cancelled(path: Path) -> None:
    asked, ended = trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await request(stream)
        asked.set()
        assert await stream.receive_some() == b""
        ended.set()

    async with listening(path, serve):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, path, b"call")
            await asked.wait()
            nursery.cancel_scope.cancel()
        await ended.wait()
