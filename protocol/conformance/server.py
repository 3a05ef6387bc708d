"""The checks of a server."""

import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from conformance.frames import (
    CODES,
    FIELD,
    HEADER,
    MESSAGES,
    SECONDS,
    TABLE,
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
)

PING_ID = 0x7001
NOT_UNDERSTOOD = (
    "BAD_FRAME", "UNSUPPORTED_VERSION", "HELLO_REQUIRED", "WRONG_VM",
    "UNKNOWN_TYPE", "BAD_MESSAGE", "UNSUPPORTED_FIELD", "NOT_HERE",
)  # fmt: skip
"""What no good request is answered with."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where it listens, by kind of socket."""

    paths: dict[str, str]

    def connect(self, kind: str, *, greeted: bool) -> Stream:
        """A new connection; greeted with request id 1."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.paths[kind])
        with ExitStack() as undo:
            stream = undo.enter_context(Stream(connection))
            if greeted:
                self.greet(stream, kind)
            undo.pop_all()
        return stream

    def greet(self, stream: Stream, kind: str = "vm") -> dict[str, int]:
        """Say HELLO; the limits that its answer announces."""
        hello = vector("hello-varstored" if kind == "vm" else "hello-operator")
        stream.send(bytes.fromhex(hello["hex"]))
        answer = stream.due("HELLO's answer")
        expect((answer.message, answer.form) == ("HELLO", "answer"), f"HELLO met {answer}")
        return {name: int(answer.fields[name]) for name in ("max_payload", "max_requests")}

    def lives(self, stream: Stream, *, alive: bool) -> None:
        """The connection answers a PING, or has ended."""
        if alive:
            stream.send(HEADER.pack(b"VSCP", 1, MESSAGES["PING"]["type"], PING_ID, 0))
            answer = stream.frame()
            expect(answer == Frame("PING", "answer", PING_ID, {}), f"a PING afterwards met {answer}")
        else:
            left = stream.frame()
            expect(left is None, f"the connection goes on with {left}")

    def good(self, case: Vector) -> None:
        """A request of messages.json is understood: answered, or refused for what it asks."""
        hello = case["message"] == "HELLO"
        with self.connect(case["socket"], greeted=not hello) as stream:
            stream.send(bytes.fromhex(case["hex"]))
            answer = stream.due(f"an answer to {case['name']}")
            expect(answer.request_id == int(case["request_id"]), f"another request's answer: {answer}")
            if answer.form == "error" and not hello:
                outside = [CODES[name]["code"] for name in NOT_UNDERSTOOD]
                expect(int(answer.fields["code"]) not in outside, f"not understood: {answer}")
            else:
                expect((answer.message, answer.form) == (case["message"], "answer"), f"met {answer}")
            self.lives(stream, alive=True)

    def bad(self, case: Vector) -> None:
        """A frame of frames.json is refused as it says."""
        with self.connect(case["socket"], greeted=case["after_hello"] == "yes") as stream:
            stream.send(bytes.fromhex(case["hex"]))
            if case["end_of_stream"] == "yes":
                stream.socket.shutdown(socket.SHUT_WR)
            self.refuses(stream.due(case["error"]), case["error"], int(case["error_request_id"]))
            self.lives(stream, alive=case["connection"] == "lives")

    def refuses(self, answer: Frame, name: str, request_id: int) -> None:
        """What came is that error."""
        expect((answer.form, answer.request_id) == ("error", request_id), f"{name} was due, and came {answer}")
        code, again = answer.fields["code"], answer.fields["try_again"]
        expect((int(code), int(again)) == (CODES[name]["code"], CODES[name]["try_again"]), f"{name} was due, and came {answer}")

    def exchange(self, case: Vector) -> None:
        """A conversation of exchanges.json goes as it is written; what is not `checked` depends on the server."""
        with self.connect(case["socket"], greeted=False) as stream:
            for step in case["steps"]:
                written = parse(bytes.fromhex(step["hex"]))
                if step["from"] == "client":
                    stream.send(bytes.fromhex(step["hex"]))
                    continue
                answer = stream.due(written)
                names = step.get("checked", "").split()
                same = [
                    (each.message, each.form, each.request_id, [each.fields.get(n) for n in names])
                    for each in (answer, written)
                ]
                expect(same[0] == same[1], f"{written} was due, and came {answer}")
            self.lives(stream, alive=case["connection"] == "lives")

    def store_over_limit(self) -> None:
        """A store of one byte too many has a code of its own (no vector: it would be 256 KiB of digits)."""
        size = TABLE["limits"]["max_store"] + 1
        with self.connect("vm", greeted=True) as stream:
            stream.send(build("PUT_STORE", 2, 1, bytes(size)))
            self.refuses(stream.due("STORE_OVER_LIMIT"), "STORE_OVER_LIMIT", 2)
            self.lives(stream, alive=True)

    def holds(self, stream: Stream, store: bytes) -> None:
        """What is read there is that store."""
        stream.send(build("GET_STORE", 9, 1, bytes([TABLE["enums"]["reason"]["tool"]])))
        answer = stream.due("the store")
        expect(answer.fields.get("store") == store.hex(), f"the store that was acknowledged was due, and came {answer}")

    def puts(self, stream: Stream, store: bytes) -> None:
        """A store is acknowledged there."""
        stream.send(build("PUT_STORE", 8, 1, store))
        answer = stream.due("PUT_STORE's answer")
        expect((answer.message, answer.form, answer.request_id) == ("PUT_STORE", "answer", 8), f"PUT_STORE met {answer}")

    def store_at_limit(self) -> None:
        """The largest store is one."""
        with self.connect("vm", greeted=True) as stream:
            self.puts(stream, largest_store())
            self.holds(stream, largest_store())

    def payload_at_limit(self) -> None:
        """The largest payload that was announced is read; of one that is longer nothing but the header."""
        with self.connect("vm", greeted=False) as stream:
            most = self.greet(stream)["max_payload"]
            stream.send(build("PING", 5, 2, bytes(most - FIELD.size)))
            answer = stream.due("PING's answer")
            expect(answer == Frame("PING", "answer", 5, {}), f"the largest payload met {answer}")
            stream.send(HEADER.pack(b"VSCP", 1, MESSAGES["PING"]["type"], 6, most + 1))
            self.refuses(stream.due("BAD_FRAME"), "BAD_FRAME", 0)
            self.lives(stream, alive=False)

    def byte_by_byte(self) -> None:
        """Nothing depends on how the stream is cut."""
        put, store = _stored("put-store")
        with self.connect("vm", greeted=False) as stream:
            stream.trickle(bytes.fromhex(vector("hello-varstored")["hex"]))
            stream.due("HELLO's answer")
            stream.trickle(put)
            answer = stream.due("PUT_STORE's answer")
            expect((answer.message, answer.form) == ("PUT_STORE", "answer"), f"PUT_STORE met {answer}")
            self.holds(stream, store)

    def as_many_as_announced(self) -> None:
        """None of so many requests is one too many, and they are answered in their order."""
        with self.connect("vm", greeted=False) as stream:
            many = self.greet(stream)["max_requests"]
            reason = bytes([TABLE["enums"]["reason"]["tool"]])
            pings = [HEADER.pack(b"VSCP", 1, MESSAGES["PING"]["type"], 2 + number, 0) for number in range(1, many)]
            stream.send(build("GET_STORE", 2, 1, reason) + b"".join(pings))
            for number in range(many):
                answer = stream.due(f"answer {number + 1} of {many}")
                found, due = (answer.message, answer.form, answer.request_id), "PING" if number else "GET_STORE"
                expect(found == (due, "answer", 2 + number), f"answer {number + 1} of {many}: {answer}")

    def several_connections(self) -> None:
        """They live beside each other, and a store that was acknowledged on one is seen on the others."""
        (_, one), (_, other) = _stored("put-store-no-variables"), _stored("put-store")
        with (
            self.connect("vm", greeted=False),
            self.connect("vm", greeted=True) as first,
            self.connect("vm", greeted=True) as second,
        ):
            self.puts(first, one)
            self.holds(second, one)
            self.puts(second, other)
            self.holds(first, other)

    def half_closed(self) -> None:
        """A client that has sent its last request still reads."""
        put, store = _stored("put-store-version-2")
        with self.connect("vm", greeted=True) as stream:
            stream.send(put + bytes.fromhex(vector("sb-failure")["hex"]))
            stream.socket.shutdown(socket.SHUT_WR)
            for due in ("PUT_STORE", "SB_FAILURE"):
                answer = stream.due(f"{due}'s answer")
                expect((answer.message, answer.form) == (due, "answer"), f"{due} met {answer}")
            self.lives(stream, alive=False)
        with self.connect("vm", greeted=True) as stream:
            self.holds(stream, store)

    def too_slow(self) -> None:
        """Who is silent before HELLO, or sends a byte a second, is told when the time is over; who is silent later is not."""
        seconds = TABLE["seconds"]
        hello, later = (bytes.fromhex(vector(name)["hex"]) for name in ("hello-varstored", "sb-failure-detail"))
        with (
            self.connect("vm", greeted=True) as idle,
            self.connect("vm", greeted=False) as silent,
            self.connect("vm", greeted=False) as greeting,
            self.connect("vm", greeted=True) as asking,
        ):
            slow = [(silent, b"", seconds["hello"]), (greeting, hello, seconds["hello"]), (asking, later, seconds["frame"])]
            self._await_end(slow)
            self.lives(idle, alive=True)

    def _await_end(self, slow: Sequence[tuple[Stream, bytes, int]]) -> None:
        """Send each its bytes, one a second, until all have ended, each when its time was over."""
        begun, left = time.monotonic(), dict(enumerate(slow))
        for second in range(max(limit for _, _, limit in slow) + int(SECONDS)):
            for stream, data, _ in left.values():
                stream.send(data[second : second + 1])
            while left:
                wait = begun + second + 1 - time.monotonic()
                ready, _, _ = select.select([stream.socket for stream, _, _ in left.values()], [], [], max(wait, 0))
                if not ready:
                    break
                for index, (stream, _, limit) in list(left.items()):
                    if stream.socket in ready:
                        passed = time.monotonic() - begun
                        # A server counts from its own moment, a little before or after ours.
                        expect(passed > limit - 1, f"{limit} s are allowed, and it ended after {passed:.1f} s")
                        expect(passed < limit + SECONDS, f"{limit} s are allowed, and it lived for {passed:.1f} s")
                        self.refuses(stream.due("TIMED_OUT"), "TIMED_OUT", 0)
                        self.lives(stream, alive=False)
                        del left[index]
            if not left:
                return
        times = ", ".join(f"{limit} s" for _, _, limit in left.values())
        raise Failure(f"{times} are allowed, and it lives after {time.monotonic() - begun:.0f} s")

    def checks(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """All that can be asked of it."""
        for case in vectors("messages"):
            if case["to"] == "server" and case["socket"] in self.paths and not _changes_host(case):
                yield case["name"], partial(self.good, case)
        for case in vectors("frames"):
            # What begins with POST may be answered XML-RPC.
            if case["to"] == "server" and case["socket"] in self.paths and not case["hex"].startswith("504f5354"):
                yield case["name"], partial(self.bad, case)
        for case in vectors("exchanges"):
            if case["server"] == "any" and case["socket"] in self.paths:
                yield case["name"], partial(self.exchange, case)
        yield "store-over-limit", self.store_over_limit
        yield "store-at-limit", self.store_at_limit
        yield "payload-at-limit", self.payload_at_limit
        yield "byte-by-byte", self.byte_by_byte
        yield "as-many-as-announced", self.as_many_as_announced
        yield "several-connections", self.several_connections
        yield "half-closed", self.half_closed
        yield "too-slow", self.too_slow


def _stored(name: str) -> tuple[bytes, bytes]:
    """A PUT_STORE of messages.json, and its store."""
    case = vector(name)
    return bytes.fromhex(case["hex"]), bytes.fromhex(case["fields"]["store"])


def _changes_host(case: Vector) -> bool:
    """Whether a request is about more than the VM: which sockets there are, what is logged, whether anything is updated."""
    return case["message"] in {"ATTACH", "DETACH"} or not case["fields"].keys().isdisjoint({"level", "action"})
