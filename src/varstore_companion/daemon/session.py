"""One connection of the framed protocol: deadlines, limits, and errors as the protocol's codes."""

import logging
from collections.abc import Awaitable, Callable

import trio

from varstore_companion import __version__
from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.limits import Share
from varstore_companion.daemon.peer_wait import DRAIN_SECONDS, PeerWait
from varstore_companion.errors import (
    CompanionError,
    ConfigurationError,
    MalformedError,
    OverLimitError,
    ToolstackConflictError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.unix_stream import UnixStream
from varstore_companion.wire.connection import BadRequest, Connection, Ended, Event, Request
from varstore_companion.wire.errors import ErrorCode, PayloadError, RemoteProtocolError
from varstore_companion.wire.limits import FRAME_SECONDS, HELLO_SECONDS
from varstore_companion.wire.messages import (
    AnswerMessage,
    Attach,
    Detach,
    GetStore,
    Hello,
    HelloAnswer,
    Mark,
    PutStore,
    RequestMessage,
    Restore,
    SbFailure,
    Socket,
)
from varstore_companion.wire.observing import Log, Reload, Updates
from varstore_companion.wire.states import Role, State

log = logging.getLogger(__name__)

CHUNK = 65_536
"""Bytes of one read."""
AT_ONCE = 4
"""How often in a row what comes is taken without a turn of the event loop: the others' requests wait meanwhile."""
STOPPING = "the daemon is stopping"

Handler = Callable[[RequestMessage], Awaitable[AnswerMessage]]

_CODES: tuple[tuple[type[CompanionError], ErrorCode], ...] = (
    (MalformedError, ErrorCode.NOT_A_STORE),
    (OverLimitError, ErrorCode.STORE_OVER_LIMIT),
    (ToolstackUnavailableError, ErrorCode.TOOLSTACK_UNAVAILABLE),
    (ToolstackUnclearError, ErrorCode.UNCLEAR),
    (ToolstackConflictError, ErrorCode.CONFLICT),
    (ConfigurationError, ErrorCode.INVALID_ARGUMENT),
)
_CHANGING = (PutStore, SbFailure, Attach, Detach, Mark, Restore, Log, Reload, Updates)
_LEFT_UNDONE = (PutStore, GetStore, Restore)
"""What changes a VM's store, a boot's read too: not for a peer that has gone."""
_XAPI_CODES = {"HANDLE_INVALID": ErrorCode.UNKNOWN_VM, "OPERATION_NOT_ALLOWED": ErrorCode.NOT_ALLOWED}


class RequestRefusedError(CompanionError):
    """A request that is answered with a code of the protocol's own. Raised by handlers."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return self.text


def error_code(error: CompanionError) -> ErrorCode:
    """The protocol's code for an error of ours."""
    if isinstance(error, RequestRefusedError):
        return error.code
    if isinstance(error, ToolstackRefusedError):
        return _XAPI_CODES.get(error.code, ErrorCode.TOOLSTACK_REFUSED)
    if isinstance(error, PayloadError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), ErrorCode.INTERNAL)


def too_many(socket: Socket) -> bytes:
    """What a connection that is one too many is told."""
    return Connection(Role.SERVER, socket=socket).fail(ErrorCode.BUSY, "too many connections")


class Session:
    """One connection from its first byte to its last. `complaints` takes what its peer does wrong; `handle` answers requests.

    `share`: of the bytes in flight; `begun`: when the connection was taken (trio's clock), None for when `run` begins.

    `handle` raises `CompanionError` for a request that fails; the connection goes on. A bug in it ends this connection
    with INTERNAL and no other.
    """

    __slots__ = (
        "_at_once",
        "_begun",
        "_complaints",
        "_connection",
        "_events",
        "_greet",
        "_handle",
        "_socket",
        "_stream",
        "_wait",
    )

    def __init__(
        self,
        stream: UnixStream,
        socket: Socket,
        complaints: Complaints,
        *,
        greet: Handler,
        handle: Handler,
        begun: float | None = None,
        share: Share | None = None,
    ) -> None:
        self._begun = begun
        self._socket = socket
        self._stream = stream
        self._connection = Connection(Role.SERVER, socket=socket)
        self._complaints = complaints
        self._greet = greet
        self._handle = handle
        self._wait = PeerWait(share)
        self._events = 0
        self._at_once = 0

    def stop(self) -> None:
        """End the connection at once between two requests, otherwise after the one that is on its way or carried out."""
        self._wait.stop(DRAIN_SECONDS if self._connection.partial else 0.0)

    async def run(self) -> None:
        """Serve the connection until either side ends it. Closes the stream."""
        await self._wait.serve(self._stream, self._run, self._complaints.who)

    async def _run(self) -> None:
        begun = trio.current_time() if self._begun is None else self._begun
        frame_begun: float | None = None
        while True:
            events = self._events
            if not await self._carry_out_events():
                return
            self._wait.holds(self._connection.buffered)
            if not self._connection.partial:
                if self._wait.stopped:
                    await self._end(ErrorCode.SHUTTING_DOWN, STOPPING)
                    return
                frame_begun = None
            elif frame_begun is None or self._events != events:
                frame_begun = trio.current_time()
            deadline = float("inf") if frame_begun is None else frame_begun + FRAME_SECONDS
            if self._connection.state is State.NEW:
                deadline = begun + HELLO_SECONDS
            if not await self._receive(deadline):
                return

    async def _receive(self, deadline: float) -> bool:
        """Take in what the peer sends next; False when the connection is over."""
        # Where the daemon shares a processor with its peer, the next request is there by now: a turn is a fifth of a write.
        data = self._wait.receive_now(self._stream, CHUNK) if self._at_once < AT_ONCE else None
        self._at_once = 0 if data is None else self._at_once + 1
        if data is None:
            data = await self._wait.receive(self._stream, CHUNK, deadline)
        if data is None and self._wait.stopped:
            await self._end(ErrorCode.SHUTTING_DOWN, STOPPING)
        elif data is None:
            self._complaints.add("closed: the peer was too slow")
            await self._end(ErrorCode.TIMED_OUT, "too slow")
        elif data:
            self._connection.receive_data(data)
        else:
            self._connection.receive_eof()
        return data is not None

    async def _carry_out_events(self) -> bool:
        """Answer everything that has been received; False when the connection is over."""
        try:
            for event in self._connection.events():
                if isinstance(event, Ended):
                    return False
                self._events += 1
                await self._send(await self._answer(event))
                if self._wait.stopped and self._connection.state is State.OPEN:
                    await self._end(ErrorCode.SHUTTING_DOWN, STOPPING)
                    return False
                if self._connection.buffered:
                    # One who sends without waiting for answers gives way to the others between two of them.
                    await trio.lowlevel.checkpoint()
        except RemoteProtocolError as error:
            self._complaints.add(f"closed: {error}")
            await self._send(error.reply)
        return self._connection.state is not State.CLOSED

    async def _answer(self, event: Event) -> bytes:
        connection = self._connection
        if isinstance(event, BadRequest):
            self._complaints.add(f"a request that cannot be carried out: {event.code.name} {event.text}")
            return connection.answer_error(event.request_id, event.code, event.text)
        if not isinstance(event, Request) or not isinstance(event.message, RequestMessage):
            raise TypeError(f"a server's connection gave {type(event).__name__}")
        if isinstance(event.message, _LEFT_UNDONE):
            # It has given it up, and something newer may have been written since, over another connection or on another host:
            # that must stay the last (invariant 9). A request whose answer cannot come may be left undone.
            self._stream.confirm_peer()
        try:
            handle = self._greet if isinstance(event.message, Hello) else self._handle
            return connection.answer(event.request_id, await handle(event.message))
        except CompanionError as error:
            code = error_code(error)
            self._complaints.add(f"{self._named(event.message)} failed: {code.name}: {error}")
            return connection.answer_error(event.request_id, code, str(error))
        except Exception:
            log.exception("%s %s met a bug", self._complaints.who, self._named(event.message))
            # What was asked for may have been done before the bug was met; INTERNAL would say that it was not.
            code = ErrorCode.UNCLEAR if isinstance(event.message, _CHANGING) else ErrorCode.INTERNAL
            return connection.answer_error(event.request_id, code, "an error inside the daemon: see its log")

    def _named(self, request: RequestMessage) -> str:
        """For the log, with the VM that an operator asks about. On a VM's own socket the line begins with it."""
        vm = getattr(request, "vm", None) if self._socket is Socket.CONTROL else None
        return type(request).__name__ if vm is None else f"vm={vm} {type(request).__name__}"

    async def _end(self, code: ErrorCode, text: str) -> None:
        if self._connection.state is not State.CLOSED:
            await self._send(self._connection.fail(code, text))

    async def _send(self, data: bytes) -> None:
        if not await self._stream.send_all(data, seconds=FRAME_SECONDS):
            self._complaints.add("closed: the peer does not take its answers")
            raise trio.BrokenResourceError("the peer does not take its answers")


async def welcome(_hello: RequestMessage) -> HelloAnswer:
    """The answer to a HELLO that is in order."""
    return HelloAnswer.of(f"varstore-companion {__version__}")
