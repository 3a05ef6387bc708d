"""A client of the framed protocol on a trio socket, for tests that also want to send what no client sends."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

import trio

from varstore_companion.wire import codec
from varstore_companion.wire.connection import Answer, Connection, Failure
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import (
    AnswerMessage,
    ClientKind,
    ErrorAnswer,
    GetStore,
    GetStoreAnswer,
    Hello,
    PutStore,
    PutStoreAnswer,
    Reason,
    RequestMessage,
    Socket,
)
from varstore_companion.wire.states import Role

A = TypeVar("A", bound=AnswerMessage)

_HEADER = struct.Struct("<4sHHII")


class Refused(Exception):  # noqa: N818 - named after what happened, as the tests that expect it read
    """The daemon answered with an error."""

    def __init__(self, error: ErrorAnswer) -> None:
        super().__init__(f"{error.code}: {error.text}")
        self.code = ErrorCode(error.code)
        self.text = error.text
        self.try_again = error.try_again


class HungUp(AssertionError):  # noqa: N818 - as above
    """The daemon closed the connection instead of answering."""


@dataclass(frozen=True, slots=True)
class RawFrame:
    """One frame as it came."""

    type: int
    request_id: int
    payload: bytes

    @property
    def error(self) -> ErrorAnswer:
        """The ERROR that it is."""
        assert self.type == ErrorAnswer.TYPE
        return codec.decode(ErrorAnswer, self.payload)


class Peer:
    """One connection. `call` and its like speak the protocol; `raw` is the stream below it."""

    def __init__(self, stream: trio.SocketStream, vm: UUID | None) -> None:
        self.raw = stream
        self.vm = vm
        self._connection = Connection(Role.CLIENT, socket=Socket.CONTROL if vm is None else Socket.VM)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.raw.aclose()

    async def hello(self, vm: UUID | None = None) -> AnswerMessage:
        """Greet, as `vm` if it is given."""
        return await self.call(Hello.of(ClientKind.TOOL, vm=vm or self.vm, name="tests"), AnswerMessage)

    async def send(self, message: RequestMessage) -> int:
        """Send a request; the answer is `answer`'s."""
        request_id, frame = self._connection.request(message)
        await self.raw.send_all(frame)
        return request_id

    async def answer(self, request_id: int) -> AnswerMessage:
        """Wait for the next answer, which must be this one's. Raises `Refused`."""
        while True:
            for event in self._connection.events():
                if isinstance(event, Failure):
                    raise Refused(event.error)
                if not isinstance(event, Answer):
                    raise HungUp(f"the daemon closed the connection: {event}")
                assert event.request_id == request_id
                return event.message
            data = await self.raw.receive_some(65_536)
            if data:
                self._connection.receive_data(bytes(data))
            else:
                self._connection.receive_eof()

    async def call(self, message: RequestMessage, answer: type[A]) -> A:
        """Make a request and wait for its answer. Raises `Refused`."""
        got = await self.answer(await self.send(message))
        assert isinstance(got, answer)
        return got

    async def get(self, reason: Reason = Reason.BOOT) -> GetStoreAnswer:
        """GET_STORE."""
        return await self.call(GetStore(reason), GetStoreAnswer)

    async def put(self, store: bytes) -> PutStoreAnswer:
        """PUT_STORE."""
        return await self.call(PutStore(store), PutStoreAnswer)

    async def rest(self) -> list[RawFrame]:
        """Every frame until the daemon closes the connection."""
        data = bytearray(self._connection._buffer)
        async for chunk in self.raw:
            data += chunk
        frames = []
        while data:
            magic, _, kind, request_id, length = _HEADER.unpack_from(data)
            assert magic == b"VSCP"
            frames.append(RawFrame(kind, request_id, bytes(data[_HEADER.size : _HEADER.size + length])))
            assert len(frames[-1].payload) == length
            del data[: _HEADER.size + length]
        return frames


async def connect(path: Path, vm: UUID | None = None) -> Peer:
    """A connection that has said nothing yet."""
    return Peer(await trio.open_unix_socket(str(path)), vm)


@asynccontextmanager
async def greeted(path: Path, vm: UUID | None = None) -> AsyncIterator[Peer]:
    """A connection that is greeted: to a VM's socket, or to the control socket when `vm` is None."""
    async with await connect(path, vm) as peer:
        await peer.hello()
        yield peer
