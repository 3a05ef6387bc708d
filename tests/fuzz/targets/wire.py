"""The framed protocol, both sides, whole and in pieces, and the payloads of its messages."""

from collections.abc import Iterator

from fuzz.contract import Target, piece
from support.wire_vectors import chunks, feed, hello, open_pair, vectors
from varstore_companion.wire.codec import LAYOUTS, decode, encode
from varstore_companion.wire.connection import Answer, BadRequest, Connection, Ended, Event, Failure, Request
from varstore_companion.wire.errors import PayloadError, RemoteProtocolError
from varstore_companion.wire.limits import HEADER_BYTES
from varstore_companion.wire.messages import Message, Ping, PutStore, RequestMessage, Socket
from varstore_companion.wire.states import Role, State

SIZES = (1, 2, 7, 64)
LIMIT = 1_280
"""Bytes of one input."""
MESSAGES: tuple[type[Message], ...] = tuple(LAYOUTS)

Outcome = tuple[list[object], State, tuple[int, ...]]


def _outcome(connection: Connection, data: bytes, size: int) -> tuple[list[Event | RemoteProtocolError], Outcome]:
    seen = feed(connection, chunks(data, size), end=True)
    comparable: list[object] = [(str(each), each.reply) if isinstance(each, RemoteProtocolError) else each for each in seen]
    return seen, (comparable, connection.state, connection.outstanding)


def server(data: bytes) -> None:
    """The first byte chooses the socket, whether HELLO is over, and how the rest is cut: which makes no difference."""
    choice, stream = data[:1] or b"\0", data[1:]
    socket = Socket.CONTROL if choice[0] & 1 else Socket.VM

    def fresh() -> Connection:
        return open_pair(socket)[1] if choice[0] & 2 else Connection(Role.SERVER, socket=socket)

    seen, whole = _outcome(fresh(), stream, len(stream) or 1)
    assert _outcome(fresh(), stream, piece(stream, SIZES[choice[0] >> 2 & 3]))[1] == whole
    assert whole[1] in (State.CLOSED, State.DRAINING)
    for event in seen:
        match event:
            case Request(_, message):
                assert decode(type(message), encode(message)) == message
            case BadRequest(request_id, _, text):
                assert request_id
                assert text
            case RemoteProtocolError():
                # What a server says of any bytes, a client can read.
                client = Connection(Role.CLIENT)
                client.receive_data(event.reply[:8] + bytes(4) + event.reply[12:])
                (failure,) = client.events()
                assert isinstance(failure, Failure)
                assert failure.error.code == event.code
            case other:
                assert isinstance(other, Ended)


def client(data: bytes) -> None:
    """The first byte chooses what was asked and how the rest is cut: which makes no difference."""
    choice, stream = data[:1] or b"\0", data[1:]

    def fresh() -> Connection:
        if choice[0] & 1:
            greeting = Connection(Role.CLIENT)
            greeting.request(hello(Socket.VM))
            return greeting
        asking, _ = open_pair()
        asking.request(Ping())
        asking.request(PutStore(b"VARS"))
        return asking

    seen, whole = _outcome(fresh(), stream, len(stream) or 1)
    assert _outcome(fresh(), stream, piece(stream, SIZES[choice[0] >> 2 & 3]))[1] == whole
    assert whole[1] is State.CLOSED
    for event in seen:
        if isinstance(event, Answer):
            assert decode(type(event.message), encode(event.message)) == event.message
        elif isinstance(event, RemoteProtocolError):
            assert event.reply == b""
        else:
            assert isinstance(event, Failure | Ended)


def payload(data: bytes) -> None:
    """The first byte chooses the message."""
    choice, content = data[:1] or b"\0", data[1:]
    message = MESSAGES[choice[0] % len(MESSAGES)]
    try:
        found = decode(message, content)
    except PayloadError as error:
        assert 0 <= error.offset <= len(content)
        assert error.what
        assert error.expected
        assert str(error.code)
        return
    # A field of a later version is skipped, so the bytes may be others.
    assert decode(message, encode(found)) == found
    assert len(encode(found)) <= len(content)


def _streams(to: str) -> Iterator[bytes]:
    for name in ("messages", "frames"):
        for number, vector in enumerate(vectors(name)):
            if vector["to"] == to:
                stream = bytes.fromhex(vector["hex"])
                is_control = vector.get("socket") == "control"
                yield bytes([(number & 3) << 2 | 2 | is_control if to == "server" else 0]) + stream
    for vector in vectors("exchanges"):
        asked = to == "server"
        steps = [bytes.fromhex(step["hex"]) for step in vector["steps"] if (step["form"] == "request") is asked]
        # The fuzzer would cut a longer one itself.
        yield (bytes([vector["socket"] == "control" if asked else 1]) + b"".join(steps))[:LIMIT]


def _payloads() -> Iterator[bytes]:
    for vector in vectors("messages"):
        content = bytes.fromhex(vector["hex"])[HEADER_BYTES:]
        names = [each.__name__.lower() for each in MESSAGES]
        name = vector["message"].replace("_", "").lower() + ("answer" if vector["form"] != "request" else "")
        yield bytes([names.index(name)]) + content


def _requests() -> int:
    return sum(issubclass(each, RequestMessage) for each in MESSAGES)


assert 0 < _requests() < len(MESSAGES) < 256

TARGETS = (
    Target("wire_server", server, lambda: _streams("server"), limit=LIMIT, calls_per_byte=40),
    Target("wire_client", client, lambda: _streams("client"), limit=LIMIT, calls_per_byte=40),
    Target("wire_payload", payload, _payloads, limit=LIMIT, calls_per_byte=6),
)
