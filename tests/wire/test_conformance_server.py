"""The suite does not pass a server that is wrong in what no single frame shows: in time, in pieces, on several connections."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conformance import frames, server
from conformance.frames import Failure
from conformance.server import Server
from varstore_companion.wire.connection import BadRequest, Connection, Ended, Event, Request
from varstore_companion.wire.errors import ErrorCode, RemoteProtocolError
from varstore_companion.wire.messages import (
    AnswerMessage,
    Durable,
    GetStore,
    GetStoreAnswer,
    Hello,
    HelloAnswer,
    Outcome,
    Ping,
    PingAnswer,
    Presence,
    PutStore,
    PutStoreAnswer,
    SbFailureAnswer,
    Socket,
    Verdict,
)
from varstore_companion.wire.states import Role, State

HELLO_SECONDS, FRAME_SECONDS = 1, 2
CHECKS: dict[str, Callable[[Server], None]] = {
    "byte-by-byte": Server.byte_by_byte,
    "as-many-as-announced": Server.as_many_as_announced,
    "several-connections": Server.several_connections,
    "half-closed": Server.half_closed,
    "payload-at-limit": Server.payload_at_limit,
    "store-at-limit": Server.store_at_limit,
    "too-slow": Server.too_slow,
}


@dataclass
class Held:
    """What one VM, or by mistake one connection, has."""

    store: bytes | None = None


@dataclass
class Wrong:
    """A server with one mistake; with none it is right."""

    listener: socket.socket
    mistake: str
    held: Held = field(default_factory=Held)
    threads: list[threading.Thread] = field(default_factory=list)
    peers: list[socket.socket] = field(default_factory=list)

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                self.peers.append(peer)
                if self.mistake == "one connection at a time":
                    self.serve(peer)
                else:
                    self.threads.append(threading.Thread(target=self.serve, args=(peer,)))
                    self.threads[-1].start()

    def serve(self, peer: socket.socket) -> None:
        connection, held = Connection(Role.SERVER, socket=Socket.VM), Held() if self.mistake == "a store each" else self.held
        until, waits = time.monotonic() + HELLO_SECONDS, self.mistake != "waits without end"
        since: float | None = None
        with peer, suppress(ConnectionError):
            while connection.state is not State.CLOSED:
                left = until - time.monotonic() if waits else 3600.0
                try:
                    if left <= 0:
                        raise TimeoutError
                    peer.settimeout(left)
                    data = peer.recv(1 << 20)
                except TimeoutError:
                    peer.sendall(connection.fail(ErrorCode.TIMED_OUT, "too slow"))
                    return
                if self.mistake == "closes when nothing more comes" and ends(peer):
                    return
                if not self.take(connection, peer, data, held) or not data:
                    return
                if connection.state is State.OPEN:
                    now = time.monotonic()
                    since = (since or now) if connection.partial else None
                    if self.mistake == "a time for each piece" and connection.partial:
                        since = now
                    idle = now + (FRAME_SECONDS if self.mistake == "nobody may be idle" else 3600)
                    until = idle if since is None else since + FRAME_SECONDS

    def take(self, connection: Connection, peer: socket.socket, data: bytes, held: Held) -> bool:
        """Answer what came. False: the connection is over."""
        if data:
            connection.receive_data(data)
        else:
            connection.receive_eof()
        taken = 0
        try:
            for event in connection.events():
                if isinstance(event, Ended):
                    return False
                taken += 1
                peer.sendall(self.reply(connection, event, held, taken))
        except RemoteProtocolError as error:
            peer.sendall(error.reply)
            return False
        return not (self.mistake == "whole frames only" and connection.partial)

    def reply(self, connection: Connection, event: Event, held: Held, number: int) -> bytes:
        if isinstance(event, BadRequest):
            return connection.answer_error(event.request_id, event.code, event.text)
        assert isinstance(event, Request)
        if self.mistake == "one request fewer" and number == HelloAnswer.of("test").max_requests:
            return connection.answer_error(event.request_id, ErrorCode.BUSY, "too many")
        if (
            self.mistake == "a store one byte smaller"
            and isinstance(event.message, PutStore)
            and len(event.message.store) > 131_071
        ):
            return connection.answer_error(event.request_id, ErrorCode.STORE_OVER_LIMIT, "too large")
        if self.mistake == "a payload one byte smaller" and connection.buffered == 0 and isinstance(event.message, Ping):
            return connection.fail(ErrorCode.BAD_FRAME, "too long")
        return connection.answer(event.request_id, answer(event, held))


def ends(peer: socket.socket) -> bool:
    """Whether the end of the stream is what comes next, or has come."""
    peer.settimeout(0.2)
    with suppress(TimeoutError):
        return not peer.recv(1, socket.MSG_PEEK)
    return False


def answer(event: Request, held: Held) -> AnswerMessage:
    match event.message:
        case Hello():
            return HelloAnswer.of("test")
        case Ping(data):
            return PingAnswer(data)
        case PutStore(store):
            held.store = bytes(store)
            return PutStoreAnswer(Verdict.UNSPECIFIED, Durable.JOURNAL, 0)
        case GetStore():
            presence = Presence.ABSENT if held.store is None else Presence.PRESENT
            return GetStoreAnswer(presence, 0, Outcome.NOT_ASKED, held.store)
        case _:
            return SbFailureAnswer()


@contextmanager
def wrong(path: Path, mistake: str) -> Iterator[Server]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        running = Wrong(listener, mistake)
        accepting = threading.Thread(target=running.accept)
        accepting.start()
        try:
            yield Server({"vm": str(path)})
        finally:
            for each in (listener, *running.peers):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in running.threads:
                thread.join()


@pytest.fixture(autouse=True)
def _shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SECONDS", 1.0)
    monkeypatch.setattr(server, "SECONDS", 1.0)
    monkeypatch.setitem(frames.TABLE, "seconds", {"hello": HELLO_SECONDS, "frame": FRAME_SECONDS})


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_server_passes(check: str, tmp_path: Path) -> None:
    with wrong(tmp_path / "socket", "") as right:
        CHECKS[check](right)


@pytest.mark.parametrize(
    ("mistake", "check"),
    [
        ("whole frames only", "byte-by-byte"),
        ("one request fewer", "as-many-as-announced"),
        ("one connection at a time", "several-connections"),
        ("a store each", "several-connections"),
        ("closes when nothing more comes", "half-closed"),
        ("a payload one byte smaller", "payload-at-limit"),
        ("a store one byte smaller", "store-at-limit"),
        ("waits without end", "too-slow"),
        ("a time for each piece", "too-slow"),
        ("nobody may be idle", "too-slow"),
    ],
)
def test_a_wrong_server_does_not(mistake: str, check: str, tmp_path: Path) -> None:
    with wrong(tmp_path / "socket", mistake) as server, pytest.raises(Failure):
        CHECKS[check](server)
