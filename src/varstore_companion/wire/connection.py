"""One connection of the framed protocol, either side, without its socket. protocol/README.md.

Bytes go in, events come out; messages go in, bytes come out. The caller moves the bytes and keeps the deadlines.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from varstore_companion.wire.codec import ANSWERS, REQUESTS, M, decode, encode
from varstore_companion.wire.errors import (
    ENDING,
    ErrorCode,
    HeaderError,
    LocalProtocolError,
    PayloadError,
    RemoteProtocolError,
)
from varstore_companion.wire.fields import clip
from varstore_companion.wire.frames import ANSWER_BIT, Header, build_frame, parse_header
from varstore_companion.wire.limits import HEADER_BYTES, MAX_PAYLOAD, MAX_TEXT, VERSION
from varstore_companion.wire.messages import (
    AnswerMessage,
    ErrorAnswer,
    Hello,
    HelloAnswer,
    RequestMessage,
    Socket,
)
from varstore_companion.wire.states import READING, RECEIVE, SEND, Role, Signal, State


@dataclass(frozen=True, slots=True)
class Request:
    """Server: a request to be answered under its id, once. The first is always `Hello`."""

    request_id: int
    message: RequestMessage


@dataclass(frozen=True, slots=True)
class BadRequest:
    """Server: a request that cannot be carried out, to be answered with `answer_error`. The connection lives."""

    request_id: int
    code: ErrorCode
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Client: a request was carried out."""

    request_id: int
    message: AnswerMessage


@dataclass(frozen=True, slots=True)
class Failure:
    """Client: a request was not carried out, or, with request id 0, the server ends the connection."""

    request_id: int
    error: ErrorAnswer


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer sends nothing more. What a client still waited for (`outstanding`) has no answer."""


Event = Request | BadRequest | Answer | Failure | Ended


class Connection:
    """The state of one connection.

    `socket` matters to a server only: what may be asked of it, and whether HELLO must name a VM. Whose VM that is, the
    caller checks.

    Every method raises `LocalProtocolError` for a call that the protocol does not allow now, and `events` raises
    `RemoteProtocolError` once, after the last good event. Any other exception is a bug.
    """

    def __init__(self, role: Role, *, socket: Socket = Socket.VM) -> None:
        self._role = role
        self._socket = socket
        self._state = State.NEW
        self._buffer: bytes | bytearray = b""
        self._ended = False
        self._max_payload = MAX_PAYLOAD
        self._max_requests = 1
        self._last_id = 0
        # None stands for a request that was not read: only an error may answer it.
        self._outstanding: dict[int, type[RequestMessage] | None] = {}

    @property
    def state(self) -> State:
        """Where the connection stands. In `CLOSED` the caller sends what it still has and closes the socket."""
        return self._state

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended, once `events` is exhausted: the deadline for slow peers."""
        return bool(self._buffer)

    @property
    def buffered(self) -> int:
        """Bytes of what was received that no event has taken yet."""
        return len(self._buffer)

    @property
    def outstanding(self) -> tuple[int, ...]:
        """The ids of the requests that have no answer, oldest first."""
        return tuple(self._outstanding)

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take in bytes from the peer; `events` says what they mean.

        At most one frame and one call's `data` are ever held: the caller exhausts `events` before it reads on.
        """
        if self._ended:
            raise LocalProtocolError("bytes after the end of the stream")
        if self._state is State.CLOSED:
            return
        if len(self._buffer) >= HEADER_BYTES + MAX_PAYLOAD:
            raise LocalProtocolError("bytes before the events of those received earlier")
        if not self._buffer and isinstance(data, bytes):
            # Mostly one whole frame, whose values are taken out of it as it is.
            self._buffer = data
        else:
            self._growing().extend(data)

    def receive_eof(self) -> None:
        """Take in the end of the peer's stream."""
        self._ended = True

    def events(self) -> Iterator[Event]:
        """Give what the received bytes mean, one at a time, each read only when it is asked for.

        A server's pause after `Hello` until it is answered. Raises `RemoteProtocolError`.
        """
        reading = READING[self._role]
        while (self._buffer or self._ended) and self._state in reading:
            event = self._read_event()
            if event is None:
                return
            # Not even its frame is kept while it is being carried out.
            yield event

    def request(self, message: RequestMessage) -> tuple[int, bytes]:
        """Client: choose an id and build a request's frame. The first is `Hello`."""
        state = self._after_sending(Signal.HELLO if isinstance(message, Hello) else Signal.REQUEST)
        if len(self._outstanding) >= self._max_requests:
            raise LocalProtocolError(f"the server takes {self._max_requests} requests at a time")
        payload = encode(message)
        request_id = self._last_id
        while request_id == self._last_id or request_id in self._outstanding:
            request_id = request_id % 0xFFFF_FFFF + 1
        self._last_id = request_id
        self._outstanding[request_id] = type(message)
        self._state = state
        return request_id, build_frame(message.TYPE, request_id, payload)

    def answer(self, request_id: int, message: AnswerMessage) -> bytes:
        """Server: build the answer to a `Request`."""
        state = self._after_sending(Signal.WELCOME if isinstance(message, HelloAnswer) else Signal.ANSWER)
        asked = self._asked(request_id)
        if asked is None or asked.TYPE | ANSWER_BIT != message.TYPE:
            raise LocalProtocolError(f"{type(message).__name__} does not answer request {request_id}")
        if isinstance(message, HelloAnswer) and message.version != VERSION:
            raise LocalProtocolError(f"version {message.version}: expected {VERSION}")
        frame = build_frame(message.TYPE, request_id, encode(message))
        if isinstance(message, HelloAnswer):
            self._max_payload = message.max_payload
            self._max_requests = message.max_requests
        del self._outstanding[request_id]
        self._state = state
        return frame

    def answer_error(self, request_id: int, code: ErrorCode, text: str) -> bytes:
        """Server: build the error that answers a `Request` or `BadRequest`.

        `text`, for the log, is cut to fit. In answer to `Hello`, and with a code that ends the connection, the state is
        `CLOSED` afterwards.
        """
        last = code.ends or self._state is State.GREETED
        state = self._after_sending(Signal.LAST_ERROR if last else Signal.ERROR)
        self._asked(request_id)
        del self._outstanding[request_id]
        self._move(state)
        return _error_frame(request_id, code, text)

    def fail(self, code: ErrorCode, text: str) -> bytes:
        """Server: end the connection with an error that belongs to no request."""
        self._move(self._after_sending(Signal.LAST_ERROR))
        return _error_frame(0, code, text)

    def _after_sending(self, signal: Signal) -> State:
        state = SEND[self._role].get((self._state, signal))
        if state is None:
            raise LocalProtocolError(f"a {self._role.value} sends no {signal.value} in state {self._state.value}")
        return state

    def _asked(self, request_id: int) -> type[RequestMessage] | None:
        if request_id not in self._outstanding:
            raise LocalProtocolError(f"request {request_id} waits for no answer")
        return self._outstanding[request_id]

    def _move(self, state: State) -> None:
        self._state = state
        if state is State.CLOSED:
            self._buffer = b""

    def _broken(self, code: ErrorCode, text: str, request_id: int = 0) -> RemoteProtocolError:
        self._move(State.CLOSED)
        reply = _error_frame(request_id, code, text) if self._role is Role.SERVER else b""
        return RemoteProtocolError(code, text, reply=reply)

    def _growing(self) -> bytearray:
        """The buffer as one that is added to and taken from."""
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer)
        return self._buffer

    def _read_event(self) -> Event | None:
        frame = self._take_frame()
        if frame is not None:
            return self._read_request(*frame) if self._role is Role.SERVER else self._read_answer(*frame)
        return self._read_end() if self._ended else None

    def _take_frame(self) -> tuple[Header, bytes | memoryview] | None:
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        try:
            header = parse_header(buffer, max_payload=self._max_payload)
        except HeaderError as error:
            raise self._broken(error.code, str(error)) from error
        end = HEADER_BYTES + header.length
        if len(buffer) < end:
            return None
        if len(buffer) == end and isinstance(buffer, bytes):
            self._buffer = b""
            return header, memoryview(buffer)[HEADER_BYTES:]
        buffer = self._growing()
        with memoryview(buffer) as view:
            payload = bytes(view[HEADER_BYTES:end])
        # A bytearray gives up its front without moving the rest.
        del buffer[:end]
        return header, payload

    def _read_end(self) -> Ended:
        if self._buffer:
            raise self._broken(ErrorCode.BAD_FRAME, f"the stream ended {len(self._buffer)} bytes into a frame")
        self._move(RECEIVE[self._role][self._state, Signal.END])
        return Ended()

    def _read_request(self, header: Header, payload: bytes | memoryview) -> Event:
        request_id = header.request_id
        if self._state is State.NEW and header.type != Hello.TYPE:
            raise self._broken(ErrorCode.HELLO_REQUIRED, f"type {header.type:#06x} before HELLO", request_id)
        signal = Signal.HELLO if header.type == Hello.TYPE else Signal.REQUEST
        state = RECEIVE[Role.SERVER].get((self._state, signal))
        if state is None or header.type & ANSWER_BIT:
            raise self._broken(ErrorCode.BAD_FRAME, f"type {header.type:#06x} from a client in state {self._state.value}")
        if request_id == 0 or request_id in self._outstanding:
            raise self._broken(ErrorCode.BAD_FRAME, f"request id {request_id}: expected one that is not in use, not 0")
        if signal is Signal.HELLO:
            return self._read_hello(request_id, payload, state)
        busy = len(self._outstanding) >= self._max_requests
        self._outstanding[request_id] = None
        if busy:
            return BadRequest(request_id, ErrorCode.BUSY, f"more than {self._max_requests} requests at a time")
        message = REQUESTS.get(header.type)
        if message is None:
            return BadRequest(request_id, ErrorCode.UNKNOWN_TYPE, f"type {header.type:#06x}")
        if self._socket not in message.SOCKETS:
            where = f"{message.__name__} on a {self._socket.value} socket"
            return BadRequest(request_id, ErrorCode.NOT_HERE, where)
        try:
            request = decode(message, payload)
        except PayloadError as error:
            return BadRequest(request_id, error.code, str(error))
        self._outstanding[request_id] = message
        return Request(request_id, request)

    def _read_hello(self, request_id: int, payload: bytes | memoryview, state: State) -> Request:
        try:
            hello = decode(Hello, payload)
        except PayloadError as error:
            raise self._broken(error.code, str(error), request_id) from error
        if not hello.min_version <= VERSION <= hello.max_version:
            text = f"versions {hello.min_version} to {hello.max_version}: this server speaks {VERSION} to {VERSION}"
            raise self._broken(ErrorCode.UNSUPPORTED_VERSION, text, request_id)
        if (hello.vm is None) != (self._socket is Socket.CONTROL):
            expected = "no vm on the control socket" if hello.vm is not None else "a vm on a VM's socket"
            raise self._broken(ErrorCode.BAD_MESSAGE, f"Hello: expected {expected}", request_id)
        self._outstanding[request_id] = Hello
        self._move(state)
        return Request(request_id, hello)

    def _read_answer(self, header: Header, payload: bytes | memoryview) -> Event:
        if header.type == ErrorAnswer.TYPE:
            return self._read_error(header.request_id, payload)
        asked = self._outstanding.get(header.request_id)
        if asked is None or header.type != asked.TYPE | ANSWER_BIT:
            text = f"type {header.type:#06x} with request id {header.request_id} answers nothing that was asked"
            raise self._broken(ErrorCode.BAD_FRAME, text)
        answer = self._read_payload(ANSWERS[header.type], payload)
        signal = Signal.ANSWER
        if isinstance(answer, HelloAnswer):
            if answer.version != VERSION:
                raise self._broken(ErrorCode.UNSUPPORTED_VERSION, f"version {answer.version} was not offered")
            self._max_requests = answer.max_requests
            signal = Signal.WELCOME
        del self._outstanding[header.request_id]
        self._move(RECEIVE[Role.CLIENT][self._state, signal])
        return Answer(header.request_id, answer)

    def _read_error(self, request_id: int, payload: bytes | memoryview) -> Failure:
        error = self._read_payload(ErrorAnswer, payload)
        if request_id and request_id not in self._outstanding:
            raise self._broken(ErrorCode.BAD_FRAME, f"an error for request {request_id}, which was not asked")
        last = not request_id or error.code in ENDING or self._state is State.GREETED
        self._outstanding.pop(request_id, None)
        self._move(RECEIVE[Role.CLIENT][self._state, Signal.LAST_ERROR if last else Signal.ERROR])
        return Failure(request_id, error)

    def _read_payload(self, message: type[M], payload: bytes | memoryview) -> M:
        try:
            return decode(message, payload)
        except PayloadError as error:
            raise self._broken(error.code, str(error)) from error


def _error_frame(request_id: int, code: ErrorCode, text: str) -> bytes:
    error = ErrorAnswer(code, code.try_again, clip(text, MAX_TEXT))
    return build_frame(ErrorAnswer.TYPE, request_id, encode(error))
