"""For any message and any bytes: it comes back as it was, nothing but our errors is raised, and cuts do not matter."""

import typing
from enum import IntEnum
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from support.wire_vectors import feed, hello, open_pair, vectors
from varstore_companion.wire.codec import ANSWERS, LAYOUTS, REQUESTS, decode, encode
from varstore_companion.wire.connection import BadRequest, Connection, Ended, Event, Failure, Request
from varstore_companion.wire.errors import PayloadError, RemoteProtocolError
from varstore_companion.wire.fields import Choice, Flag, Kind, Number, Octets, Path, Text, Uuid
from varstore_companion.wire.frames import build_frame, join_fields, split_fields
from varstore_companion.wire.messages import ErrorAnswer, Message, Ping, PutStore, Socket
from varstore_companion.wire.states import Role, State

SERVER_FRAMES = [bytes.fromhex(v["hex"]) for name in ("messages", "frames") for v in vectors(name) if v["to"] == "server"]
CLIENT_FRAMES = [bytes.fromhex(v["hex"]) for name in ("messages", "frames") for v in vectors(name) if v["to"] == "client"]


def values(kind: Kind) -> SearchStrategy[object]:
    match kind:
        case Number(_, low, high):
            return st.integers(low, high)
        case Flag():
            return st.booleans()
        case Choice(members):
            return st.sampled_from(list[IntEnum](members))
        case Uuid():
            return st.uuids()
        case Octets(low, high):
            return st.binary(min_size=low, max_size=min(high, 300))
        case Path(high):
            tail = st.binary(min_size=1, max_size=high - 1).map(lambda data: data.replace(b"\0", b"/"))
            return tail.map(lambda data: b"/" + data)
        case Text(low, high):
            letters = st.characters(codec="utf-8", exclude_characters="\0")
            return st.text(letters, min_size=low, max_size=min(high, 300) // 4)
    raise AssertionError(kind)


@st.composite
def any_message(draw: DrawFn) -> Message:
    message = draw(st.sampled_from([*REQUESTS.values(), *ANSWERS.values(), ErrorAnswer]))
    fields = LAYOUTS[message].fields.values()
    drawn = {field.name: draw(values(field.kind) if field.required else st.none() | values(field.kind)) for field in fields}
    made: Message = typing.cast("typing.Any", message)(**drawn)
    return made


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut data where the drawn numbers say."""
    at = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(at)]


def outcome(connection: Connection, parts: list[bytes]) -> tuple[list[Event | tuple[str, bytes]], State, tuple[int, ...]]:
    seen = [
        (str(event), event.reply) if isinstance(event, RemoteProtocolError) else event
        for event in feed(connection, parts, end=True)
    ]
    return seen, connection.state, connection.outstanding


@given(any_message())
def test_any_message_comes_back_as_it_was(message: Message) -> None:
    if message.flaw() is None:
        assert decode(type(message), encode(message)) == message


@given(any_message(), st.sampled_from([0x0040, 0x7FFF]), st.binary(max_size=20))
def test_an_unknown_field_changes_nothing(message: Message, tag: int, value: bytes) -> None:
    if message.flaw() is None:
        assert decode(type(message), encode(message) + join_fields([(tag, value)])) == message


@given(st.binary(max_size=200))
def test_what_was_split_into_fields_joins_to_the_same_bytes(payload: bytes) -> None:
    offset = 0
    try:
        fields = split_fields(payload)
    except PayloadError as error:
        offset = error.offset
    else:
        assert join_fields((tag, payload[start:end]) for tag, start, end in fields) == payload
    assert 0 <= offset <= len(payload)


@given(st.sampled_from(list(LAYOUTS)), st.binary(max_size=200))
def test_any_payload_is_read_or_refused(message: type[Message], payload: bytes) -> None:
    offset = 0
    try:
        decoded = decode(message, payload)
    except PayloadError as error:
        offset = error.offset
    else:
        assert decode(message, encode(decoded)) == decoded
    assert 0 <= offset <= len(payload)


def streams(frames: list[bytes]) -> SearchStrategy[bytes]:
    """Frames from the vectors, some with a byte changed, some cut, and noise between them."""

    def spoil(frame: bytes, at: int, byte: int) -> bytes:
        at %= len(frame)
        return frame[:at] + bytes([byte]) + frame[at + 1 :]

    whole = st.sampled_from(frames)
    spoilt = st.builds(spoil, whole, st.integers(0, 10_000), st.integers(0, 255))
    cut = st.builds(lambda frame, size: frame[:size], whole, st.integers(0, 200))
    return st.lists(whole | spoilt | cut | st.binary(max_size=40), max_size=8).map(b"".join)


CUTS = st.lists(st.integers(0, 1 << 20), max_size=12)


@settings(max_examples=300)
@given(streams(SERVER_FRAMES), CUTS, st.sampled_from(Socket), st.booleans())
def test_a_server_takes_any_bytes_and_cuts_do_not_matter(data: bytes, cuts: list[int], socket: Socket, greeted: bool) -> None:
    def server() -> Connection:
        return open_pair(socket)[1] if greeted else Connection(Role.SERVER, socket=socket)

    seen, state, outstanding = outcome(server(), [data])
    assert (seen, state, outstanding) == outcome(server(), pieces(data, cuts))
    assert all(isinstance(event, Request | BadRequest | Ended | tuple) for event in seen)
    assert state in {State.DRAINING, State.CLOSED}
    # What a server says of any bytes, a client can read.
    for event in seen:
        if isinstance(event, tuple):
            client = Connection(Role.CLIENT)
            client.receive_data(event[1][:8] + bytes(4) + event[1][12:])
            (failure,) = client.events()
            assert isinstance(failure, Failure)


@settings(max_examples=300)
@given(streams(CLIENT_FRAMES), CUTS, st.booleans())
def test_a_client_takes_any_bytes_and_cuts_do_not_matter(data: bytes, cuts: list[int], greeted: bool) -> None:
    def client() -> Connection:
        if not greeted:
            fresh = Connection(Role.CLIENT)
            fresh.request(hello(Socket.VM))
            return fresh
        asking, _server = open_pair()
        asking.request(Ping())
        asking.request(PutStore(b"VARS"))
        return asking

    seen, state, outstanding = outcome(client(), [data])
    assert (seen, state, outstanding) == outcome(client(), pieces(data, cuts))
    assert state is State.CLOSED


@given(st.lists(any_message(), max_size=6), CUTS)
def test_any_pipeline_of_requests_is_read_in_order(messages: list[Message], cuts: list[int]) -> None:
    requests = [m for m in messages if type(m) in REQUESTS.values() and m.TYPE >= 0x10 and m.flaw() is None]
    vm = [m for m in requests if m.TYPE < 0x100]
    data = b"".join(build_frame(m.TYPE, number, encode(m)) for number, m in enumerate(vm, 1))
    seen = feed(open_pair()[1], pieces(data, cuts))
    assert [(event.request_id, event.message) for event in seen if isinstance(event, Request)] == list(enumerate(vm, 1))
    assert len(seen) == len(vm)
