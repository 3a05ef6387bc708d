"""Servers in a daemon's place, that answer as a test says."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from varstore_companion.wire import messages
from varstore_companion.wire.codec import encode
from varstore_companion.wire.connection import Connection, Request
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.messages import AnswerMessage, Hello, HelloAnswer, RequestMessage, Socket
from varstore_companion.wire.states import Role

Handle = Callable[[socket.socket], None]


@contextmanager
def server(path: Path, handle: Handle) -> Iterator[None]:
    """Accepts one connection at `path` and hands it to `handle` on a thread."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                handle(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


Answer = Callable[[RequestMessage], AnswerMessage | tuple[ErrorCode | int, str]]


def answering(answer: Answer, asked: list[RequestMessage] | None = None) -> Handle:
    """A server that greets and then answers as `answer` says, until its client leaves."""

    def handle(peer: socket.socket) -> None:
        connection = Connection(Role.SERVER, socket=Socket.CONTROL)
        while data := peer.recv(65_536):
            connection.receive_data(data)
            for event in connection.events():
                assert isinstance(event, Request)
                assert isinstance(event.message, RequestMessage)
                if asked is not None:
                    asked.append(event.message)
                hello = isinstance(event.message, Hello)
                answered = HelloAnswer.of("test") if hello else answer(event.message)
                if isinstance(answered, AnswerMessage):
                    peer.sendall(connection.answer(event.request_id, answered))
                else:
                    code, text = answered
                    if isinstance(code, ErrorCode):
                        peer.sendall(connection.answer_error(event.request_id, code, text))
                    else:
                        peer.sendall(_later_error(event.request_id, code, text))

    return handle


def _later_error(request_id: int, code: int, text: str) -> bytes:
    return build_frame(messages.ErrorAnswer.TYPE, request_id, encode(messages.ErrorAnswer(code, try_again=False, text=text)))
