"""One HTTP/1.1 connection on a Unix socket: POST of a bounded document, an answer of a known length, limits on all of it.

h11 is the protocol; this file does its reading and writing, and says which requests are refused and how long each may take. A
request of varstored's own form that has come whole does without (`varstored_http`).
"""

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import h11
import trio

from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.limits import Share
from varstore_companion.daemon.peer_wait import DRAIN_SECONDS, PeerWait
from varstore_companion.daemon.varstored_http import find_document, only_answer
from varstore_companion.efi.names import printable
from varstore_companion.errors import MalformedError
from varstore_companion.unix_stream import UnixStream

log = logging.getLogger(__name__)

MAX_HEAD = 4 * 1024
"""Bytes of a request's line and headers; varstored's and the XenAPI client's have some 200. Of headers as short as they can be,
which take h11 longest, so many take 2 ms, in which nobody else is served.
"""
IDLE_SECONDS = 120.0
"""For the first byte of the next request: the XenAPI client keeps its connection between calls."""
REQUEST_SECONDS = 10.0
"""From a request's first byte to its last. The sender is on the same machine."""
SEND_SECONDS = 60.0
"""For a peer to take its answer."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024
"""How long and how much of a refused request is read away, so that its sender comes to read the refusal."""
SHOWN = 200
"""Characters of why a request is refused, in the log and in the answer: h11 quotes a line, and a peer makes it long."""
CHUNK = 65_536
READS_AT_ONCE = 8
"""Of one request, without a turn of the event loop: the longest takes fewer. Who sends it byte by byte, as fast as it is read,
would keep all others waiting for as long as that goes on.
"""
TOGETHER = 512 * 1024
"""Bytes of an answer that are put together and sent at once; a longer one is not copied."""
PATHS = frozenset({b"/", b"/RPC2"})
"""Where xapi takes calls: the XenAPI client's own path, and the one of clients that are given none."""

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
"""What a connection that is one too many gets, without a look at it."""

_TEXT = b"text/plain; charset=utf-8"
_XML = b"text/xml"
_CLOSE = (b"Connection", b"close")

Handler = Callable[[bytes], Awaitable[bytes]]


class _RefusedError(Exception):
    """A request that is answered with a status of HTTP's, after which the connection ends."""

    def __init__(self, status: HTTPStatus, why: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(status, why)
        self.status = status
        self.why = why[:SHOWN]
        self.headers = headers


class HttpSession:
    """One connection from its first byte to its last. `complaints` takes what its peer does wrong.

    `answer` maps a document to its answer, and raises `MalformedError` for what is not a document of its kind: status 400, and
    `trio.BrokenResourceError` when the peer has left before anything was done.
    A bug in it ends this connection with status 500 and no other. `limit`: bytes of a document. `single`: the first answer
    closes the connection, for peers that read to its end; `share`: of the bytes in flight.
    """

    def __init__(
        self,
        stream: UnixStream,
        complaints: Complaints,
        answer: Handler,
        *,
        limit: int,
        single: bool = False,
        share: Share | None = None,
    ) -> None:
        self._stream = stream
        self._complaints = complaints
        self._answer = answer
        self._limit = limit
        self._single = single
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._deadline = float("inf")
        self._wait = PeerWait(share)
        self._answered = False
        self._reads_left = READS_AT_ONCE

    def stop(self) -> None:
        """End the connection at once between two requests, otherwise after the one that is on its way or carried out."""
        between = self._answered and self._http.their_state is h11.IDLE and not self._http.trailing_data[0]
        self._wait.stop(0.0 if between else DRAIN_SECONDS)

    async def run(self) -> None:
        """Serve the connection until either side ends it. Closes the stream."""
        await self._wait.serve(self._stream, self._run, self._complaints.who)

    async def _run(self) -> None:
        try:
            while await self._one_request() and self._http.our_state is h11.DONE and not self._wait.stopped:
                self._http.start_next_cycle()
                if self._http.trailing_data[0]:
                    # One who sends without waiting for answers gives way to the others between two of them.
                    await trio.lowlevel.checkpoint()
        except h11.RemoteProtocolError as error:
            await self._refuse(_RefusedError(HTTPStatus(error.error_status_hint), str(error)))
        except _RefusedError as refused:
            await self._refuse(refused)

    async def _one_request(self) -> bool:
        """Read, carry out and answer one request; False when the peer sends no more."""
        self._reads_left = READS_AT_ONCE
        document = self._plain_document() if self._single else None
        if document is None:
            document = await self._any_document()
        if document is None:
            return False
        # As with the framed protocol: what it gave up must not come after what it sends next (invariant 9).
        self._stream.confirm_peer()
        try:
            answer = await self._answer(document)
        except MalformedError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from None
        except trio.BrokenResourceError:
            raise
        except Exception:
            # Whatever a document leads to, it ends its own connection, with an answer.
            log.exception("%s met a bug", self._complaints.who)
            raise _RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, "an error inside the daemon: see its log") from None
        if self._single:
            # A third of what h11 takes for the same bytes; nothing comes after them that it had to know of.
            await self._send_pieces([only_answer(answer)])
            return False
        await self._send_answer(HTTPStatus.OK, answer, _XML)
        self._answered = True
        return True

    def _plain_document(self) -> bytes | None:
        """The document of a request as varstored writes it that has come whole; None leaves what has come for h11."""
        data = self._receive_now()
        if data is None:
            return None
        place = find_document(data)
        if place is not None and place[1] - place[0] <= self._limit:
            begin, end = place
            while len(data) < end and (more := self._receive_now()):
                data += more
            if len(data) >= end:
                return data[begin:end]
        self._stream.unread(data)
        return None

    async def _any_document(self) -> bytes | None:
        """The document of the next request; None when the peer sends no more. Raises `_RefusedError`."""
        self._wait.holds(len(self._http.trailing_data[0]))
        begun = bool(self._http.trailing_data[0])
        self._deadline = trio.current_time() + (REQUEST_SECONDS if begun else IDLE_SECONDS)
        head = await self._next_event()
        if not isinstance(head, h11.Request):
            return None
        self._admit(head)
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[]))
        document = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            document += event.data
            # Or it would be held twice for as long as the rest takes to come.
            del event
        return bytes(document) if isinstance(event, h11.EndOfMessage) else None

    def _admit(self, head: h11.Request) -> None:
        """See that a document of a known length may come; h11 holds the peer to it. Raises `_RefusedError`."""
        if head.method != b"POST":
            raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"{head.method!r}", (b"Allow", b"POST"))
        if head.http_version not in (b"1.0", b"1.1"):
            raise _RefusedError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here")
        if head.target not in PATHS:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "calls go to / or /RPC2")
        lengths = [value for name, value in head.headers if name == b"content-length"]
        if len(lengths) != 1 or any(name == b"transfer-encoding" for name, _ in head.headers):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "a document's length comes before it")
        if int(lengths[0]) > self._limit:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {self._limit:,} bytes")

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED] | None:
        """The next event, or None when the peer is too slow or the daemon stops."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            between = self._http.their_state is h11.IDLE and not self._http.trailing_data[0]
            # The rest of a request, which is bounded, is mostly there; a next one gives way to the other connections.
            data = None if between and self._answered else self._receive_now()
            if data is None:
                data = await self._wait.receive(self._stream, CHUNK, self._deadline)
            if data is None:
                if not self._wait.stopped and not between:
                    self._complaints.add("closed: the peer was too slow")
                return None
            if between:
                self._deadline = trio.current_time() + REQUEST_SECONDS
            self._http.receive_data(self._of_head(data) if self._http.their_state is h11.IDLE else data)
        return event

    def _of_head(self, data: bytes) -> bytes:
        """As much of it as a head may have; the rest is read again. h11 holds only what has not come whole to `MAX_HEAD`."""
        held = len(self._http.trailing_data[0])
        room = MAX_HEAD + 1 - held
        if len(data) > room:
            self._stream.unread(data[room:])
            self._wait.holds(held + room)
        return data[:room]

    def _receive_now(self) -> bytes | None:
        """What of a request has come; None when there is nothing yet, or it is the others' turn."""
        if not self._reads_left:
            return None
        self._reads_left -= 1
        return self._wait.receive_now(self._stream, CHUNK)

    async def _refuse(self, refused: _RefusedError) -> None:
        self._complaints.add(f"closed: {refused.status} {printable(refused.why)}")
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        # The answer to HEAD, which is refused as any method but POST, has no body.
        text = b"" if refused.status is HTTPStatus.METHOD_NOT_ALLOWED else f"{refused.why}\n".encode()
        await self._send_answer(refused.status, text, _TEXT, *refused.headers, _CLOSE)
        self._stream.send_eof()
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_SECONDS):
            while left > 0 and (data := await self._stream.receive_some(CHUNK)):
                left -= len(data)

    async def _send_answer(self, status: HTTPStatus, body: bytes, kind: bytes, *headers: tuple[bytes, bytes]) -> None:
        length = str(len(body)).encode()
        head = h11.Response(
            status_code=status,
            reason=status.phrase.encode(),
            headers=[(b"Content-Type", kind), (b"Content-Length", length), *headers],
        )
        await self._send(head, h11.Data(data=body), h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        # A head comes in a dozen pieces, each of which would wake the peer.
        await self._send_pieces([data for event in events for data in self._http.send_with_data_passthrough(event) or ()])

    async def _send_pieces(self, pieces: list[bytes]) -> None:
        if sum(map(len, pieces)) <= TOGETHER:
            pieces = [b"".join(pieces)]
        deadline = trio.current_time() + SEND_SECONDS
        for data in pieces:
            if not await self._stream.send_all(data, seconds=max(0.0, deadline - trio.current_time())):
                self._complaints.add("closed: the peer does not take its answers")
                raise trio.BrokenResourceError("the peer does not take its answers")
