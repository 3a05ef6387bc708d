"""HTTP on a VM's socket and from a guard: the session and the exchange as they are, on a stream that never waits."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import trio

from fuzz.contract import Target, piece
from support.stock import http, login, request
from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.http_server import HttpSession
from varstore_companion.toolstack.http_unix import NoAnswerError, _Exchange
from varstore_companion.toolstack.xmlrpc import Success, build_response, parse_call
from varstore_companion.unix_stream import UnixStream

SIZES = (1 << 20, 1, 3, 50)
LIMIT = 600
"""Bytes of a document: small, so that its being broken is found."""
STATUSES = frozenset({200, 400, 404, 405, 411, 413, 431, 501, 505})
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]*\r\n((?:[A-Za-z-]+: [^\r\n]*\r\n)*)\r\n")
_CONTINUE = b"HTTP/1.1 100 \r\n\r\n"
_LENGTH = re.compile(rb"(?i)^content-length: (\d+)\r$", re.MULTILINE)


class Bug(Exception):  # noqa: N818 - what it stands for
    """The session logged a bug of the daemon's."""


class _Refuser(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None:
            raise Bug(record.getMessage()) from record.exc_info[1]


log = logging.getLogger("varstore_companion.daemon.http_server")
quiet = logging.getLogger("fuzz")
quiet.addHandler(logging.NullHandler())
quiet.propagate = False


class Stream:
    """Gives `data` in pieces and then the end of the stream, and keeps what is sent."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size
        self._at = 0
        self.sent = bytearray()
        self.is_closed = False

    def confirm_peer(self) -> None:
        assert not self.is_closed

    def close(self) -> None:
        self.is_closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_closed = True

    async def receive_some(self, limit: int) -> bytes:
        return self._take(limit)

    def _take(self, limit: int) -> bytes:
        piece = self._data[self._at : self._at + min(self._size, limit)]
        self._at += len(piece)
        return piece

    def receive_now(self, limit: int) -> bytes | None:
        # In pieces it has never come yet, so that both ways of reading are taken.
        return None if self._size < len(self._data) else self._take(limit)

    def unread(self, data: bytes) -> None:
        self._at -= len(data)
        assert self._data.startswith(data, self._at)

    async def send_all(self, data: bytes, *, seconds: float = 1.0) -> bool:
        assert not self.is_closed
        assert seconds > 0
        self.sent += data
        return True

    def send_eof(self) -> None:
        assert not self.is_closed


async def _answer(document: bytes) -> bytes:
    assert len(document) <= LIMIT
    return build_response(Success(parse_call(document).method))


def server(data: bytes) -> None:
    """The first byte chooses whether one answer ends the session, and how the rest is cut: which makes no difference."""
    choice, sent = data[:1] or b"\0", data[1:]
    sizes = (len(sent) or 1, piece(sent, SIZES[choice[0] >> 1 & 3]))
    whole, pieces = (_answers_in(_serve(sent, size, single=bool(choice[0] & 1))) for size in sizes)
    assert whole == pieces


def _answers_in(rest: bytes) -> list[tuple[int, bytes]]:
    """The status of each answer, and its document; why a request was refused depends on how much of it h11 has seen."""
    found = []
    while rest:
        head = _HEAD.match(rest)
        assert head is not None, rest[:80]
        status = int(head[1])
        assert status in STATUSES, status
        length = _LENGTH.search(head[2])
        assert length is not None
        content, rest = rest[head.end() :][: int(length[1])], rest[head.end() + int(length[1]) :]
        assert len(content) == int(length[1])
        if status != 200:
            assert not rest
            assert len(content) < 1_000, "a peer chooses how long its lines are"
            content = b""
        found.append((status, content))
    return found


def _serve(data: bytes, size: int, *, single: bool) -> bytes:
    stream = Stream(data, size)
    session = HttpSession(cast("UnixStream", stream), Complaints("fuzz", quiet), _answer, limit=LIMIT, single=single)
    refuser = _Refuser()
    log.addHandler(refuser)
    try:
        trio.run(session.run)
    finally:
        log.removeHandler(refuser)
    assert stream.is_closed
    # Whether it is sent depends on whether the document has come by then.
    return bytes(stream.sent).replace(_CONTINUE, b"")


def client(data: bytes) -> None:
    """The first byte chooses how the rest, an answer, is cut: which makes no difference."""
    choice, sent = data[:1] or b"\0", data[1:]
    whole = _ask(sent, len(sent) or 1)
    assert _ask(sent, piece(sent, SIZES[choice[0] >> 1 & 3])) == whole


def _ask(data: bytes, size: int) -> tuple[int, bytes] | None:
    stream = Stream(data, size)
    exchange = _Exchange(Path("/fuzz"), cast("UnixStream", stream), LIMIT)
    try:
        answer = trio.run(exchange.run, b"document")
    except NoAnswerError as error:
        assert exchange.is_sent
        assert len(str(error)) < 400
        return None
    assert 200 <= answer.status < 1_000
    assert len(answer.body) <= LIMIT
    return answer.status, answer.body


def _requests() -> Iterator[bytes]:
    calls = (login(), request("VM.get_NVRAM", "s", "v"), http(b"no call"), http(b"", 1 << 20), http(b"x", 2))
    for each in calls:
        yield b"\0" + each
        yield b"\3" + each
    kept = request("VM.get_NVRAM", "s", "v").replace(b"Connection: close\r\n", b"")
    yield b"\2" + kept * 3
    yield b"\2" + kept + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"\0HEAD / HTTP/1.0\r\n\r\n"
    yield b"\0POST /elsewhere HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    yield b"\0POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    yield b"\0POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab"
    yield b"\0POST / HTTP/2.0\r\nHost: a\r\n\r\n"


def _answers() -> Iterator[bytes]:
    body = build_response(Success("a"))
    yield b"\0HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    yield b"\2HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body
    yield b"\4HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    yield b"\0HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 500 Internal Server Error\r\n\r\nno"
    yield b"\0HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n" + bytes(700)
    yield b"\0HTTP/1.1 101 Switching Protocols\r\n\r\n"
    yield b"\0HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"


TARGETS = (
    Target("http_server", server, _requests, limit=1_536, calls_per_byte=150),
    Target("http_client", client, _answers, limit=1_024, calls_per_byte=150),
)
