"""The C client when things go wrong: what it tries again, what it does not, and what it tells its caller."""

import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.client import Client
from conformance.frames import FIELD, HEADER, MESSAGES, VM, Failure, Frame, Stream, vector, with_id
from support import c_code

Start = Callable[[int], Client]

A, B = "56415253" + "00" * 20, "56415253" + "01" + "00" * 19
PUT_A, PUT_B = (Frame("PUT_STORE", "request", 0, {"store": each}) for each in (A, B))
GET = Frame("GET_STORE", "request", 0, {"reason": "boot"})
PING = Frame("PING", "request", 0, {})
STORED = bytes.fromhex(vector("put-store-answer-no")["hex"])
SAID_STORED = "answer verdict=no durable=toolstack generation=10"
LONG = 20_000
"""Milliseconds that no test waits for."""
SHORT = 400
"""Milliseconds in which nothing is answered; connecting and asking take a hundredth of it."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the client with a time limit for each call; it speaks to a server that the test plays."""
    clients: list[Client] = []

    def begin(milliseconds: int = LONG) -> Client:
        command = ["sh", "-c", f'exec "$0" "$@" {milliseconds} 2>stderr', c_code.example("call")]
        here = Path.cwd()
        os.chdir(tmp_path)
        try:
            clients.append(Client(command, tmp_path))
        finally:
            os.chdir(here)
        return clients[-1]

    yield begin
    for client in clients:
        client.__exit__()


def answer(stream: Stream, request_id: int, frame: bytes = STORED) -> None:
    stream.send(with_id(frame, request_id))


def error(code: int, *, again: bool, text: bytes = b"no") -> bytes:
    """An ERROR, its id to be set."""
    payload = FIELD.pack(1, 0, 2) + struct.pack("<H", code) + FIELD.pack(2, 0, 1) + bytes([again])
    payload += FIELD.pack(3, 0, len(text)) + text
    return HEADER.pack(b"VSCP", 1, 0xFFFF, 1, len(payload)) + payload


def is_silent(stream: Stream) -> bool:
    """Nothing has come, and the connection is there."""
    return not select.select([stream.socket], [], [], 0)[0]


@pytest.mark.parametrize("compiler", c_code.compilers() or ["none"])
@pytest.mark.parametrize("level", ["-O0", "-O2"])
@pytest.mark.parametrize("program", c_code.SOURCES)
def test_no_compiler_has_anything_to_say(compiler: str, level: str, program: str, tmp_path: Path) -> None:
    if compiler == "none":
        pytest.skip("there is no C compiler (gcc or clang)")
    command = [compiler, *c_code.STRICT, level, *map(str, c_code.SOURCES[program]), "-o", str(tmp_path / program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=c_code.SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_of_its_own(tmp_path: Path) -> None:
    """What cannot be seen from outside, and arguments out of bounds: checked in C."""
    program = c_code.build(
        "api", [Path(__file__).with_name("api.c"), c_code.LIBRARY], f"-I{c_code.FOLDER}", *c_code.sanitizers()
    )
    done = subprocess.run(
        [program, str(tmp_path / "no-server")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_when_it_tries_again(tmp_path: Path) -> None:
    """Up to 100 ms before the end, and as late as it says, also in a program that signals interrupt all the time."""
    sources = [Path(__file__).with_name("pauses.c"), c_code.LIBRARY]
    options = (f"-I{c_code.FOLDER}", "-Wl,--wrap=connect", *c_code.sanitizers())
    program = c_code.build("pauses", sources, *options)
    done = subprocess.run([program, str(tmp_path / "socket")], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_write_whose_connection_is_lost_is_sent_again(start: Start) -> None:
    client = start(LONG)
    client.say(f"put {A}")
    for _ in range(3):
        client.request(PUT_A)
        client.drop()
    answer(*client.request(PUT_A))
    assert client.line() == SAID_STORED


@pytest.mark.parametrize("cut", [1, 15, 16, 17, len(STORED) - 1])
def test_an_answer_cut_by_the_daemons_end_is_no_answer(start: Start, cut: int) -> None:
    client = start(LONG)
    client.say(f"put {A}")
    stream, request_id = client.request(PUT_A)
    stream.send(with_id(STORED, request_id)[:cut])
    client.drop()
    answer(*client.request(PUT_A))
    assert client.line() == SAID_STORED


def test_answers_may_come_in_pieces(start: Start) -> None:
    client = start(LONG)
    client.say("ping")
    stream, request_id = client.request(PING)
    for byte in HEADER.pack(b"VSCP", 1, MESSAGES["PING"]["type"] | 0x8000, request_id, 0):
        stream.send(bytes([byte]))
    assert client.line() == "answer"


def test_the_largest_answer(start: Start) -> None:
    client = start(LONG)
    client.say("get boot")
    stream, request_id = client.request(GET)
    store = os.urandom(131_072)
    payload = FIELD.pack(1, 0, 1) + b"\1" + FIELD.pack(2, 0, 8) + struct.pack("<Q", 9) + FIELD.pack(3, 0, 1) + b"\0"
    payload += FIELD.pack(4, 0, len(store)) + store
    rest = 262_144 - len(payload) - FIELD.size
    payload += FIELD.pack(900, 0, rest) + bytes(rest)
    stream.send(HEADER.pack(b"VSCP", 1, 0x8010, request_id, len(payload)) + payload)
    assert client.line() == f"answer presence=present generation=9 outcome=not_asked store={store.hex()}"


def test_an_idle_connection_that_is_dead_is_replaced(start: Start) -> None:
    client = start(LONG)
    for put in (PUT_A, PUT_B):
        client.say(f"put {put.fields['store']}")
        answer(*client.request(put))
        assert client.line() == SAID_STORED
        client.drop()


def test_the_daemon_that_stopped_said_so(start: Start) -> None:
    client = start(LONG)
    client.say(f"put {A}")
    stream, request_id = client.request(PUT_A)
    answer(stream, request_id)
    stream.send(with_id(error(17, again=True), 0))
    assert client.line() == SAID_STORED
    client.drop()
    client.say(f"put {B}")
    answer(*client.request(PUT_B))
    assert client.line() == SAID_STORED


def test_a_store_that_was_given_up_is_not_overtaken(start: Start) -> None:
    """The server may be about to read it: a newer one on another connection could be carried out before it."""
    client = start(SHORT)
    client.say(f"put {A}")
    stream, request_id = client.request(PUT_A)
    assert client.line() == "unavailable"
    client.say(f"put {B}")
    assert client.line() == "unavailable"
    assert is_silent(stream)
    # Its answer does not count for the next one.
    answer(stream, request_id)
    client.say(f"put {B}")
    same, request_id = client.request(PUT_B)
    assert same is stream
    answer(stream, request_id)
    assert client.line() == SAID_STORED


@pytest.mark.parametrize("last", [b"", STORED[:20], error(21, again=False), error(17, again=True)])
def test_a_store_that_was_given_up_is_settled_by_the_end_of_its_connection(start: Start, last: bytes) -> None:
    client = start(SHORT)
    client.say(f"put {A}")
    stream, request_id = client.request(PUT_A)
    assert client.line() == "unavailable"
    stream.send(with_id(last, 0 if last[6:8] == b"\xff\xff" else request_id) if last else b"")
    client.drop()
    client.say(f"put {B}")
    answer(*client.request(PUT_B))
    assert client.line() == SAID_STORED


@pytest.mark.parametrize("code", [9, 10, 11, 13])
def test_a_store_that_was_given_up_may_be_refused_later(start: Start, code: int) -> None:
    client = start(SHORT)
    client.say(f"put {A}")
    stream, request_id = client.request(PUT_A)
    assert client.line() == "unavailable"
    answer(stream, request_id, error(code, again=code == 11))
    client.say(f"put {B}")
    answer(*client.request(PUT_B))
    assert client.line() == SAID_STORED


def test_an_error_of_a_store_that_was_given_up_is_not_the_next_ones(start: Start, tmp_path: Path) -> None:
    client = start(SHORT)
    client.say(f"put {A}")
    stream, request_id = client.request(PUT_A)
    assert client.line() == "unavailable"
    answer(stream, request_id, error(10, again=False, text=b"too large"))
    client.say(f"put {B}")
    client.request(PUT_B)
    assert client.line() == "unavailable"
    assert (tmp_path / "stderr").read_text() == "unavailable: no answer in time (it may have been carried out)\n" * 2


def test_a_server_that_took_the_request_in_the_end_was_there(start: Start, tmp_path: Path) -> None:
    """What is said is what became of the last try, not of one before."""
    client = start(SHORT)
    client.say(f"put {A}")
    client.request(PUT_A)
    client.drop()
    client.request(PUT_A)
    assert client.line() == "unavailable"
    assert (tmp_path / "stderr").read_text() == "unavailable: no answer in time (it may have been carried out)\n"


def test_a_read_that_was_given_up_ends_its_connection(start: Start) -> None:
    client = start(SHORT)
    client.say("get boot")
    stream, _ = client.request(GET)
    assert client.line() == "unavailable"
    assert stream.frame() is None
    client.drop()
    client.say("ping")
    stream, request_id = client.request(PING)
    answer(stream, request_id, HEADER.pack(b"VSCP", 1, 0x8002, 1, 0))
    assert client.line() == "answer"


def test_an_answer_that_nobody_waits_for_breaks_the_connection(start: Start) -> None:
    client = start(LONG)
    client.say(f"put {A}")
    stream, request_id = client.request(PUT_A)
    stream.send(with_id(STORED, request_id) * 2)
    assert client.line() == SAID_STORED
    client.say(f"put {B}")
    assert client.line() == "broken"


def test_a_text_cannot_forge_a_line_of_the_log(start: Start, tmp_path: Path) -> None:
    client = start(LONG)
    client.say(f"put {A}")
    answer(*client.request(PUT_A), error(12, again=False, text="a\nb\x1b[2J\x7f\x85 é€😀".encode()))
    assert client.line() == "error 12 0"
    assert (tmp_path / "stderr").read_text() == "refused: a?b?[2J??? é€😀\n"


def test_there_is_no_server(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [c_code.example("call"), str(tmp_path / "none"), VM, "250"],
        input=f"put {A}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("unavailable\n", "unavailable: no server answers at the socket\n")
    assert time.monotonic() - begun >= 0.1


def test_a_server_that_comes_later(tmp_path: Path) -> None:
    """Refused, absent, and there at last: a daemon that is being restarted."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with subprocess.Popen(
        [c_code.example("call"), str(path), VM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        path.unlink()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(10)
            with Stream(listener.accept()[0]) as stream:
                hello = stream.frame()
                assert hello is not None
                stream.send(with_id(bytes.fromhex(vector("hello-answer")["hex"]), hello.request_id))
                out, err = process.communicate(timeout=10)
    assert (out, err) == (b"answer\n", b"")


def test_a_refusal_on_connecting_is_tried_again(start: Start) -> None:
    """BUSY before HELLO was even read: too many connections."""
    client = start(LONG)
    client.say("ping")
    for _ in range(2):
        stream = client._accept()
        stream.send(with_id(error(8, again=True), 0))
        stream.socket.close()
    stream, request_id = client.request(PING)
    answer(stream, request_id, HEADER.pack(b"VSCP", 1, 0x8002, 1, 0))
    assert client.line() == "answer"


@pytest.mark.parametrize("reason", ["", "Tool", "tools", "update"])
def test_what_is_no_reason_is_not_taken_for_a_boot(start: Start, reason: str) -> None:
    """A boot may update the store, and whoever asks here looks at a VM that runs."""
    client = start(SHORT)
    client.say(f"get {reason}")
    with pytest.raises(Failure, match="ended with 2"):
        client.line()


def test_what_it_says_on_greeting(start: Start) -> None:
    client = start(LONG)
    client.say("hello")
    with client._accept() as stream:
        hello = stream.frame()
    assert hello is not None
    assert hello.fields == {
        "min_version": "1",
        "max_version": "1",
        "features": "0",
        "kind": "tool",
        "vm": VM,
        "name": "call-example/1",
    }


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Under valgrind: no leak, no open descriptor, no read of what was not written."""
    c_code.needs("valgrind")
    plain = c_code.build("call-plain", c_code.SOURCES["call"], "-g", "-O1")
    command = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--track-fds=yes", plain]
    with Client(command, tmp_path) as client:
        client.say(f"put {A}")
        client.request(PUT_A)
        client.drop()
        answer(*client.request(PUT_A))
        assert client.line() == SAID_STORED
        client.say("get boot")
        stream, request_id = client.request(GET)
        answer(stream, request_id, bytes.fromhex(vector("get-store-answer-failed")["hex"]))
        assert client.line().startswith("answer presence=present")
        client.say("get boot")
        stream, request_id = client.request(GET)
        answer(stream, request_id, error(18, again=False))
        assert client.line() == "error 18 0"
        client.finish()
