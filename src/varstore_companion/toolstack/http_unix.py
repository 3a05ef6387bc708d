"""One POST over a Unix socket with h11 on trio: a new connection each, deadlines, and limits on everything that comes back.

What a caller has to know of a failure is whether the request had gone out whole: before that, nobody can have carried it out.

h11 reads every answer but the plain one: status 200, a length, and all of it there at once. A write's answer is one, and h11
takes a tenth of the write's time for it.
"""

import os
import re
import socket as stdlib_socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import h11
import trio

from varstore_companion.errors import CompanionError
from varstore_companion.toolstack.xmlrpc import MAX_DOCUMENT
from varstore_companion.unix_stream import UnixStream

ANSWER_SECONDS = 8.0
"""For one call from the connect to the answer's last byte: a boot's 18 s have room for a second try."""
MAX_HEAD = 16 * 1024
"""Bytes of an answer's status line and headers: xapi's and the guard's have some 200."""
MAX_FRAMING = 64 * 1024
"""Bytes of an answer besides its head and its body: what a server that sends in chunks may spend on them."""
SHOWN = 200
"""Characters of what h11 says of an answer that is not HTTP: it quotes the line, which may be as long as the head."""
CHUNK = 65_536
BUSY_SECONDS = 0.005
"""The first pause when the listener's queue is full, doubled each time: a guard's has two places."""
BUSY_SECONDS_MOST = 0.1

_HEAD = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: varstore-companion\r\nConnection: close\r\n"
    b"Content-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
)
_OTHER_HEADERS = rb"(?:(?!content-length:|transfer-encoding:)[a-z-]+:[ -~]*\r\n)*"
_PLAIN = re.compile(
    rb"HTTP/1\.1 200 [A-Za-z ]*\r\n(?i:%bcontent-length: *([0-9]{1,7})\r\n%b)\r\n" % (_OTHER_HEADERS, _OTHER_HEADERS)
)
"""The head of an answer whose body is so many bytes: one length, no encoding, and nothing that has to be looked at twice."""


class NotSentError(CompanionError):
    """The request did not go out whole, so nobody can have carried it out."""


class NoAnswerError(CompanionError):
    """The request went out whole, and no answer to it came: cut, late, oversized, or not HTTP."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """`status`: HTTP's, from 200; `body`: what came with it, whole; `location`: where a redirect leads, as it was sent."""

    status: int
    body: bytes
    location: bytes | None = None


async def post(
    path: Path,
    document: bytes,
    *,
    seconds: float = ANSWER_SECONDS,
    limit: int = MAX_DOCUMENT,
    meanwhile: Callable[[], object] | None = None,
) -> HttpAnswer:
    """Send `document` to the server at `path` and return its answer, whose body may have `limit` bytes.

    `meanwhile`: called when the request has gone out, so that its time is that of the server's work.

    Raises `NotSentError`, and `NoAnswerError` once the last byte has been sent; each also when `seconds` have passed.
    """
    deadline = trio.current_time() + seconds
    stream = await _connect(path, deadline)
    if stream is None:
        raise NotSentError(f"{path}: no connection within {seconds:g} s")
    exchange = _Exchange(path, stream, limit, meanwhile)
    try:
        with trio.move_on_at(deadline):
            return await exchange.run(document)
    finally:
        stream.close()
    if exchange.is_sent:
        raise NoAnswerError(f"{path}: no answer within {seconds:g} s")
    raise NotSentError(f"{path}: the request was not taken within {seconds:g} s")


async def _connect(path: Path, deadline: float) -> UnixStream | None:
    """Connect; None when there is no place in the queue until `deadline` (trio's clock). Raises `NotSentError`."""
    # Not by trio: it takes EAGAIN, which on a Unix socket is a full queue, for a connection under way.
    pause = BUSY_SECONDS
    while trio.current_time() < deadline:
        try:
            socket = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM | stdlib_socket.SOCK_NONBLOCK)
        except OSError as error:  # no descriptor left, or no memory
            raise NotSentError(f"{path}: {error.strerror}") from None
        try:
            socket.connect(os.fspath(path))
        except BlockingIOError:
            socket.close()
        except OSError as error:
            socket.close()
            raise NotSentError(f"{path}: {error.strerror or error}") from None
        else:
            return UnixStream(socket)
        await trio.sleep_until(min(trio.current_time() + pause, deadline))
        pause = min(2 * pause, BUSY_SECONDS_MOST)
    return None


class _Exchange:
    """One request and its answer on a connection. `is_sent`: whether the request's last byte has gone out."""

    def __init__(self, path: Path, stream: UnixStream, limit: int, meanwhile: Callable[[], object] | None = None) -> None:
        self._path = path
        self._stream = stream
        self._limit = limit
        self._meanwhile = meanwhile
        self._left = limit + MAX_HEAD + MAX_FRAMING
        self.is_sent = False

    async def run(self, document: bytes) -> HttpAnswer:
        try:
            await self._stream.send_all(_HEAD % len(document) + document)
        except trio.BrokenResourceError:
            # It may have said why before it closed; whatever it did, it did without a whole request.
            try:
                return await self._receive()
            except NoAnswerError:
                raise NotSentError(f"{self._path}: the connection was closed before the request was sent") from None
        self.is_sent = True
        if self._meanwhile is not None:
            self._meanwhile()
        return await self._receive()

    async def _receive(self) -> HttpAnswer:
        data = await self._receive_some()
        plain = _PLAIN.match(data)
        if plain is not None and int(plain[1]) == len(data) - plain.end() <= self._limit:
            return HttpAnswer(HTTPStatus.OK, data[plain.end() :])
        return await self._receive_any(data)

    async def _receive_any(self, begun: bytes) -> HttpAnswer:
        """Read the answer that begins so."""
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        # It has to know that a POST went out, and no more of it.
        http.send(h11.Request(method=b"POST", target=b"/", headers=[(b"Host", b"localhost")]))
        http.send(h11.EndOfMessage())
        http.receive_data(begun)
        status, location = 0, None
        body = bytearray()
        while not isinstance(event := await self._next_event(http), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
                location = next((value for name, value in event.headers if name == b"location"), None)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._limit:
                    raise NoAnswerError(f"{self._path}: an answer of more than {self._limit:,} bytes")
            elif not isinstance(event, h11.InformationalResponse):
                raise NoAnswerError(f"{self._path}: the connection was closed without an answer")
        return HttpAnswer(status, bytes(body), location)

    async def _next_event(self, http: h11.Connection) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await self._receive_some())
        except h11.RemoteProtocolError as error:
            raise NoAnswerError(f"{self._path}: not an HTTP answer: {str(error)[:SHOWN]}") from None
        return event

    async def _receive_some(self) -> bytes:
        try:
            data = await self._stream.receive_some(CHUNK)
        except trio.BrokenResourceError:
            raise NoAnswerError(f"{self._path}: the connection was closed before the answer's end") from None
        self._left -= len(data)
        if self._left < 0:
            raise NoAnswerError(f"{self._path}: an answer that does not end")
        return data
