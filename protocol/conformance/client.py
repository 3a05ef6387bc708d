"""The checks of a client: a process that makes the calls which it is told to make."""

import selectors
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from conformance.frames import (
    CODES,
    FIELD,
    HEADER,
    MESSAGES,
    SECONDS,
    TABLE,
    VM,
    Failure,
    Frame,
    Stream,
    Vector,
    build,
    expect,
    largest_store,
    parse,
    vector,
    vectors,
    with_id,
)

DRIVEN = ("HELLO", "PING", "GET_STORE", "PUT_STORE", "SB_FAILURE")
"""What a client under test can be told to ask."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A request that the client is told to make, and what it gets: `reply`, or nothing but the end of the stream.

    `kind`: `answer`, `error`, or `bad` for what a client refuses; `asked_id`: the request id that the reply was written for;
    `slowly`: the reply comes a byte at a time.
    """

    asked: Frame
    reply: bytes
    kind: str
    asked_id: int
    ends: bool = False
    slowly: bool = False


class Client:
    """A process of the client under test, and the socket that it was given."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        path = folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        command = [*command, str(path), VM]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)  # noqa: S603 - it is what is tested
        self._stream: Stream | None = None
        self._said = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.socket.close()
        self._listener.close()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def end_of_input(self) -> None:
        """Tell it that there is nothing more."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def finish(self) -> None:
        """After the end of its input it has to end with 0."""
        self.end_of_input()
        code = self._process.wait(SECONDS)
        expect(code == 0, f"the client ended with {code}")

    def say(self, line: str) -> None:
        """Tell it what to ask."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failure(f"the client {self._end()}") from None

    def line(self) -> str:
        """What it says became of it."""
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            what = f"no end of the line {self._said[:200]!r}" if self._said else "nothing"
            expect(self._wait(self._process.stdout) is not None, f"the client said {what} within {SECONDS:g} s")
            piece = self._process.stdout.read(65_536)
            if not piece:
                raise Failure(f"the client {self._end()}")
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _end(self) -> str:
        """What became of it once it says nothing more."""
        try:
            return f"ended with {self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            return "closed its output"

    def _wait(self, *sources: Any) -> Any:  # noqa: ANN401 - whatever has a descriptor
        with selectors.DefaultSelector() as waiting:
            for source in sources:
                waiting.register(source, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in waiting.select(SECONDS)}
        return next((source for source in sources if source in ready), None)

    def asks_again(self) -> bool:
        """Whether it sends something by itself before it says anything."""
        if self._said:
            return False
        source = self._listener if self._stream is None else self._stream.socket
        ready = self._wait(self._process.stdout, source)
        expect(ready is not None, f"neither a line nor a request within {SECONDS:g} s")
        if ready is source and self._stream is not None and not self._stream.socket.recv(1, socket.MSG_PEEK):
            self.drop()
            return self.asks_again()
        return ready is source

    def drop(self) -> None:
        """End the connection."""
        if self._stream is not None:
            self._stream.socket.close()
        self._stream = None

    def _accept(self) -> Stream:
        ready = None if self._said else self._wait(self._listener, self._process.stdout)
        if ready is not self._listener:
            expect(self._said != b"" or ready is not None, f"no connection within {SECONDS:g} s")
            raise Failure(f"a connection was due, and the client said {self.line()[:200]!r}")
        return Stream(self._listener.accept()[0])

    def request(self, wanted: Frame) -> tuple[Stream, int]:
        """Its next request is the one that it was told to make; on a new connection HELLO comes before and is answered."""
        if self._stream is None:
            self._stream = self._accept()
            hello = self._stream.due("HELLO")
            expect((hello.message, hello.form) == ("HELLO", "request"), f"first came {hello}")
            expect(hello.request_id != 0 and hello.fields.get("vm") == VM, f"a HELLO as {hello}")
            low, high = (int(hello.fields[each]) for each in ("min_version", "max_version"))
            expect(low == 1 <= high, f"versions from {low} to {high}")
            if wanted.message == "HELLO":
                return self._stream, hello.request_id
            self._stream.send(with_id(bytes.fromhex(vector("hello-answer")["hex"]), hello.request_id))
        frame = self._stream.due(wanted)
        expect(
            (frame.message, frame.form, frame.fields) == (wanted.message, "request", wanted.fields),
            f"{wanted} was due: {frame}",
        )
        expect(frame.request_id != 0, "a request id of 0")
        return self._stream, frame.request_id

    def play(self, turns: Sequence[Turn]) -> None:
        """Go through a conversation turn by turn."""
        told = False
        for number, turn in enumerate(turns):
            if not told:
                self.say(line_of(turn.asked))
            told = False
            stream, request_id = self.request(turn.asked)
            written_id = HEADER.unpack_from(turn.reply)[3] if len(turn.reply) >= HEADER.size else 0
            # An id that is another's stays another's.
            reply = with_id(turn.reply, request_id + written_id - turn.asked_id) if written_id else turn.reply
            (stream.trickle if turn.slowly else stream.send)(reply)
            if turn.ends:
                self.drop()
            if turn.kind == "answer":
                said = self.line()
                expect(said == outcome_of(parse(turn.reply)), f"said {said[:200]!r} of {parse(turn.reply)}")
            elif turn.kind == "error":
                error = parse(turn.reply).fields
                again = error["try_again"] == "1" or (
                    turn.asked.message == "PUT_STORE" and int(error["code"]) == CODES["UNCLEAR"]["code"]
                )
                if self.asks_again():
                    expect(again, "asked again for what will not succeed")
                    if number + 1 == len(turns):
                        return
                    told = True
                else:
                    said = self.line()
                    expect(said == f"error {error['code']} {error['try_again']}", f"said {said!r} of {parse(turn.reply)}")
            elif turn.ends:
                if not self.asks_again():
                    expect(self.line().split(" ")[0] not in {"answer", "error"}, "took a cut frame for an answer")
            else:
                said = self.line()
                expect(said == "broken", f"said {said!r} of what is to be refused")
                left = stream.frame()
                expect(left is None, f"goes on with {left}")


def line_of(request: Frame) -> str:
    """How a client under test is told to make a request."""
    words = {"HELLO": "hello", "PING": "ping", "GET_STORE": "get", "PUT_STORE": "put", "SB_FAILURE": "sb-failure"}
    fields = request.fields
    detail = fields["detail"].encode().hex() if "detail" in fields else None
    argument = {"HELLO": None, "PING": fields.get("data"), "GET_STORE": fields.get("reason"), "PUT_STORE": fields.get("store")}
    given = argument.get(request.message, detail)
    return words[request.message] if given is None else f"{words[request.message]} {given}"


def outcome_of(answer: Frame) -> str:
    """What a client under test says of an answer."""
    if answer.message not in {"GET_STORE", "PUT_STORE"}:
        return "answer"
    fields = {**answer.fields, **({"detail": answer.fields["detail"].encode().hex()} if "detail" in answer.fields else {})}
    return " ".join(["answer", *(f"{name}={text}" for name, text in fields.items())])


def turns_of_exchange(case: Vector) -> list[Turn]:
    """Each request with what came for it, one after the other; HELLO's is the client's own affair."""
    frames = [(parse(bytes.fromhex(step["hex"])), bytes.fromhex(step["hex"])) for step in case["steps"]]
    asked = {frame.request_id: frame for frame, _ in frames if frame.form == "request"}
    turns = []
    for frame, data in frames:
        if frame.form != "request":
            request = asked[frame.request_id or max(asked)]
            if request.message == "HELLO" and len(frames) > 2:
                continue
            last = case["connection"] == "ends" and data is frames[-1][1]
            turns.append(Turn(request, data, frame.form, request.request_id, ends=last))
    return turns


def client_cases() -> Iterator[tuple[str, list[Turn]]]:
    """All that can be asked of a client on a VM's socket."""
    samples = {
        each["message"]: parse(bytes.fromhex(each["hex"]))
        for each in reversed(vectors("messages"))
        if each["form"] == "request"
    }
    for case in vectors("messages"):
        if case["to"] != "client" or case["socket"] != "vm" or case["message"] not in {*DRIVEN, "ERROR"}:
            continue
        data = bytes.fromhex(case["hex"])
        names = ("HELLO", "GET_STORE", "PUT_STORE") if case["form"] == "error" else (case["message"],)
        asked = [samples[name] for name in names]
        if case["message"] == "PING":
            # Data comes back as it was sent.
            asked = [Frame("PING", "request", 2, parse(data).fields)]
        for each in asked:
            written = int(case["request_id"]) or each.request_id
            name = f"{case['name']} to {each.message}" if case["form"] == "error" else case["name"]
            yield name, [Turn(each, data, case["form"], written, ends=case["form"] == "error" and case["request_id"] == "0")]
    for case in vectors("frames"):
        if case["to"] == "client":
            asked_name = case["asked"] or "HELLO"
            asked_id = 2 if case["after_hello"] == "yes" else 1
            request = samples[asked_name] if asked_name != "PING" else Frame("PING", "request", 2, {})
            turn = Turn(request, bytes.fromhex(case["hex"]), "bad", asked_id, ends=case["end_of_stream"] == "yes")
            yield case["name"], [turn]
    for case in vectors("exchanges"):
        if case["socket"] == "vm":
            yield case["name"], turns_of_exchange(case)
    yield from generated_cases(samples)


def generated_cases(samples: dict[str, Frame]) -> Iterator[tuple[str, list[Turn]]]:
    """What would be too long for a vector, and what is not about bytes."""
    limits = TABLE["limits"]
    put = parse(build("PUT_STORE", 2, 1, largest_store()))
    written = bytes.fromhex(vector("put-store-answer-yes")["hex"])
    yield "the-largest-store-written", [Turn(put, with_id(written, 2), "answer", 2)]
    fields = bytes.fromhex(vector("get-store-answer-longest-detail")["hex"])[HEADER.size :]
    # Presence, generation and outcome as they are, the largest store in place of its own; an unknown field takes what is left.
    store, detail = bytes(limits["max_store"]), fields[-FIELD.size - limits["max_text"] :]
    payload = fields[: 3 * FIELD.size + 10] + FIELD.pack(4, 0, len(store)) + store + detail
    rest = limits["max_payload"] - len(payload) - FIELD.size
    payload += FIELD.pack(0x100, 0, rest) + bytes(rest)
    answer = HEADER.pack(b"VSCP", 1, MESSAGES["GET_STORE"]["type"] | 0x8000, 2, len(payload)) + payload
    yield "the-largest-store-read-in-the-largest-payload", [Turn(samples["GET_STORE"], answer, "answer", 2)]
    for name in ("get-store-answer", "error-not-here"):
        case = vector(name)
        turn = Turn(samples["GET_STORE"], bytes.fromhex(case["hex"]), case["form"], 2, slowly=True)
        yield f"{name} byte by byte", [turn]


def client_checks(command: Sequence[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """One process of the client for each."""
    for name, turns in client_cases():

        def check(turns: list[Turn] = turns) -> None:
            with tempfile.TemporaryDirectory() as folder, Client(command, Path(folder)) as client:
                client.play(turns)

        yield name, check
