"""What a write costs a guest: PUT_STORE answered over a Unix socket, against an echo of the same bytes.

The echo moves them twice, and the daemon's answer is short: a ratio below 1 is possible and would say that judging a
store costs less than sending it back.
"""

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

from benchmarks import stores
from benchmarks.harness import Effort, Figure, interleaved, ratio, seconds
from benchmarks.processes import server
from benchmarks.servers import SOCKET, VM
from varstore_companion.wire.codec import decode, encode
from varstore_companion.wire.frames import build_frame, parse_header
from varstore_companion.wire.limits import HEADER_BYTES, MAX_PAYLOAD
from varstore_companion.wire.messages import ClientKind, Hello, HelloAnswer, PutStore, PutStoreAnswer, RequestMessage, Verdict

YARDSTICK = "a trio echo of the same bytes"
TARGET = 5.0


def figures(effort: Effort) -> Iterator[Figure]:
    """One client, blocking; each server in a process of its own.

    None is tied to a processor: the scheduler keeps them apart, and lets them give way to what else the machine does.
    """
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        for which, folder in zip(("daemon", "echo"), folders, strict=True):
            stack.enter_context(server(which, str(folder)))
        daemon, echo = (stack.enter_context(connected(folder / SOCKET)) for folder in folders)
        greet(daemon)
        # The guest changes a boot entry back and forth: the keys stay, the bytes do not.
        frames = [frame_of(PutStore(blob)) for blob in (stores.store(), stores.store_with_boot_entry())]
        answer_bytes = len(put(daemon, frames[0]))
        rounds = interleaved(
            effort.exchanges,
            seconds(exchange(daemon, frames, answer_bytes), 5),
            seconds(exchange(echo, frames, len(frames[0])), 5),
        )
        put(daemon, frames[0])
    yield ratio("put", "PUT_STORE answered over a Unix socket", rounds, YARDSTICK, TARGET)


def exchange(connection: socket.socket, frames: list[bytes], answer_bytes: int) -> Callable[[], None]:
    """Send a frame and receive all of its answer: the very same client for both servers."""
    room = memoryview(bytearray(answer_bytes))
    turns = cycle(frames)

    def exchange() -> None:
        connection.sendall(next(turns))
        received = 0
        while received < answer_bytes:
            count = connection.recv_into(room[received:])
            assert count, "the server closed the connection"
            received += count

    return exchange


def put(connection: socket.socket, frame: bytes) -> bytes:
    """Write a store and see that it was taken without certcheck; returns the answer's frame."""
    connection.sendall(frame)
    answer = _receive_frame(connection)
    assert decode(PutStoreAnswer, answer[HEADER_BYTES:]).verdict is Verdict.NO
    return answer


def greet(connection: socket.socket) -> None:
    connection.sendall(frame_of(Hello.of(ClientKind.VARSTORED, vm=VM, name="benchmark")))
    decode(HelloAnswer, _receive_frame(connection)[HEADER_BYTES:])


def frame_of(message: RequestMessage) -> bytes:
    return build_frame(message.TYPE, 1, encode(message))


def _receive_frame(connection: socket.socket) -> bytes:
    head = connection.recv(HEADER_BYTES, socket.MSG_WAITALL)
    length = parse_header(head, max_payload=MAX_PAYLOAD).length
    return head + connection.recv(length, socket.MSG_WAITALL)


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        yield connection
