"""A client of the framed protocol on blocking sockets: what the commands and the demo talk to the daemon with."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from varstore_companion import __version__
from varstore_companion.errors import CompanionError
from varstore_companion.wire.connection import Answer, Connection, Failure
from varstore_companion.wire.errors import ErrorCode, RemoteProtocolError
from varstore_companion.wire.messages import (
    AnswerMessage,
    BackupsAnswer,
    ClientKind,
    Hello,
    HistoryAnswer,
    RequestMessage,
    Socket,
)
from varstore_companion.wire.states import Role

SECONDS = 60.0
"""For one answer: a write may take 30, and wait for another one of the same VM."""
CHUNK = 65_536


class ConnectError(CompanionError):
    """There is no daemon, or it does not speak to us. Names the socket."""


class RequestFailedError(CompanionError):
    """The daemon answered with an error. `code` is one of the protocol's, or a number from a later version.

    `try_again`: the same request may succeed later.
    """

    def __init__(self, code: int, text: str, *, try_again: bool) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.try_again = try_again

    @property
    def name(self) -> str:
        """The code's name."""
        return ErrorCode(self.code).name if self.code in set(ErrorCode) else f"error {self.code}"

    def __str__(self) -> str:
        if self.code == ErrorCode.UNKNOWN_TYPE:
            return f"{self.name}: the running daemon is older than this program and cannot do this: restart it first"
        return f"{self.name}: {self.text}"


class Client:
    """One connection, greeted. Raises `ConnectError`; `call` also `RequestFailedError`."""

    def __init__(self, path: Path, kind: ClientKind, *, vm: UUID | None = None, seconds: float = SECONDS) -> None:
        self._path = path
        self._connection = Connection(Role.CLIENT, socket=Socket.CONTROL if vm is None else Socket.VM)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        try:
            self._socket.connect(str(path))
            self.call(Hello.of(kind, vm=vm, name=f"varstore-companion {__version__}"))
        except BaseException as error:  # Ctrl-C too leaves no descriptor open
            self._socket.close()
            if isinstance(error, OSError):
                raise ConnectError(f"{path}: no daemon answers there: {error.strerror or error}") from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def call(self, request: RequestMessage) -> AnswerMessage:
        """Make one request and wait for its answer."""
        try:
            return self._call(request)
        except RemoteProtocolError as error:
            raise ConnectError(f"{self._path}: what answers there is no daemon of ours: {error}") from None
        except TimeoutError:
            raise ConnectError(f"{self._path}: no answer within {self._socket.gettimeout():g} s") from None

    def _call(self, request: RequestMessage) -> AnswerMessage:
        request_id, frame = self._connection.request(request)
        with suppress(BrokenPipeError, ConnectionResetError):  # the daemon may have said why before it closed
            self._socket.sendall(frame)
        while True:
            for event in self._connection.events():
                if isinstance(event, Answer) and event.request_id == request_id:
                    if isinstance(event.message, AnswerMessage):
                        return event.message
                elif isinstance(event, Failure):
                    raise RequestFailedError(event.error.code, event.error.text, try_again=event.error.try_again)
                else:
                    raise ConnectError(f"{self._path}: the daemon closed the connection")
            try:
                data = self._socket.recv(CHUNK)
            except ConnectionResetError:
                data = b""
            if data:
                self._connection.receive_data(data)
            else:
                self._connection.receive_eof()


def control(path: Path) -> Client:
    """A connection to the control socket."""
    return Client(path, ClientKind.OPERATOR)


def pages(client: Client, request: Callable[[bytes | None], RequestMessage]) -> Iterator[dict[str, Any]]:
    """Every page of a paged answer, as JSON. `request`: makes the request for the page after a cursor."""
    after: bytes | None = None
    while True:
        answer = client.call(request(after))
        if not isinstance(answer, BackupsAnswer | HistoryAnswer):
            raise ConnectError(f"the daemon answered with {type(answer).__name__}")
        yield json.loads(answer.json)
        after = answer.next
        if after is None:
            return
