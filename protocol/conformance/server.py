"""The checks of a server."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from conformance.frames import CODES, FIELD, HEADER, MESSAGES, TABLE, Frame, Stream, Vector, expect, parse, vector, vectors

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
        stream = Stream(connection)
        if greeted:
            hello = vector("hello-varstored" if kind == "vm" else "hello-operator")
            stream.send(bytes.fromhex(hello["hex"]))
            answer = stream.due("HELLO's answer")
            expect((answer.message, answer.form) == ("HELLO", "answer"), f"HELLO met {answer}")
        return stream

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
            head = HEADER.pack(b"VSCP", 1, MESSAGES["PUT_STORE"]["type"], 2, FIELD.size + size)
            stream.send(head + FIELD.pack(1, 0, size) + bytes(size))
            self.refuses(stream.due("STORE_OVER_LIMIT"), "STORE_OVER_LIMIT", 2)
            self.lives(stream, alive=True)

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


def _changes_host(case: Vector) -> bool:
    """Whether a request is about more than the VM: which sockets there are, what is logged, whether anything is updated."""
    return case["message"] in {"ATTACH", "DETACH"} or not case["fields"].keys().isdisjoint({"level", "action"})
