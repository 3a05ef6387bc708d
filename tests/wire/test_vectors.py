"""Every vector: whole, a byte at a time, behind others and before others; and built again from its values."""

from typing import Any

import pytest

from support.wire_vectors import (
    PING_BEHIND,
    TABLE,
    chunks,
    feed,
    hello,
    message_class,
    message_of,
    open_pair,
    table_fields,
    vectors,
)
from varstore_companion.wire.codec import encode
from varstore_companion.wire.connection import Answer, BadRequest, Connection, Ended, Event, Failure, Request
from varstore_companion.wire.errors import ErrorCode, RemoteProtocolError
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.messages import (
    AnswerMessage,
    ErrorAnswer,
    Hello,
    Message,
    Ping,
    RequestMessage,
    Socket,
)
from varstore_companion.wire.states import Role, State

MESSAGES = vectors("messages")
FRAMES = vectors("frames")
EXCHANGES = vectors("exchanges")
SIZES = [1, 7, 16, 1 << 20]


def by_name(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def last_error(reply: bytes) -> ErrorAnswer:
    """Read a server's last frame, whatever id it carries, as a client that has asked nothing."""
    client = Connection(Role.CLIENT)
    client.receive_data(reply[:8] + bytes(4) + reply[12:])
    (event,) = client.events()
    assert isinstance(event, Failure)
    return event.error


@pytest.mark.parametrize("vector", MESSAGES, ids=by_name)
def test_builds_again_from_its_values(vector: dict[str, Any]) -> None:
    message = message_of(vector["message"], vector["form"], vector["fields"])
    built = build_frame(message.TYPE, int(vector["request_id"]), encode(message))
    assert (built == bytes.fromhex(vector["hex"])) is (vector["same_when_built"] == "yes")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vector", [v for v in MESSAGES if v["to"] == "server"], ids=by_name)
def test_a_server_reads_a_request(vector: dict[str, Any], size: int) -> None:
    socket = Socket(vector["socket"])
    message = message_of(vector["message"], vector["form"], vector["fields"])
    assert isinstance(message, RequestMessage)
    expected = Request(int(vector["request_id"]), message)
    server = Connection(Role.SERVER, socket=socket) if isinstance(message, Hello) else open_pair(socket)[1]

    data = bytes.fromhex(vector["hex"]) + PING_BEHIND
    assert feed(server, chunks(data, size), end=True) == [expected, Request(0x7001, Ping()), Ended()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vector", [v for v in MESSAGES if v["to"] == "client"], ids=by_name)
def test_a_client_reads_an_answer(vector: dict[str, Any], size: int) -> None:
    message = message_of(vector["message"], vector["form"], vector["fields"])
    request_id = int(vector["request_id"])
    if isinstance(message, ErrorAnswer):
        expected: Event = Failure(request_id, message)
    else:
        assert isinstance(message, AnswerMessage)
        expected = Answer(request_id, message)
    client = waiting_client(vector["message"] if vector["form"] == "answer" else "PING", request_id)

    behind = bytes.fromhex("56534350 0100 0280 01700000 00000000")
    seen = feed(client, chunks(bytes.fromhex(vector["hex"]) + behind, size))
    assert seen[0] == expected
    if request_id == 0:
        assert (len(seen), client.state) == (1, State.CLOSED)
    else:
        # What follows answers nothing that was asked.
        (stray,) = seen[1:]
        assert isinstance(stray, RemoteProtocolError)
        assert (stray.code, stray.reply) == (ErrorCode.BAD_FRAME, b"")


def waiting_client(message: str, request_id: int) -> Connection:
    """A client that waits for the answer to `message`, asked with that id."""
    if message == "HELLO":
        client = Connection(Role.CLIENT)
        assert client.request(hello(Socket.VM))[0] == request_id
        return client
    client, server = open_pair()
    for _ in range(2, request_id):
        skipped, data = client.request(Ping())
        server.receive_data(data)
        list(server.events())
        client.receive_data(server.answer_error(skipped, ErrorCode.BUSY, ""))
        list(client.events())
    sample = next(v for v in MESSAGES if v["message"] == message and v["form"] == "request")
    asked = message_of(message, "request", sample["fields"])
    assert isinstance(asked, RequestMessage)
    assert client.request(asked)[0] == (request_id or 2)
    return client


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vector", [v for v in FRAMES if v["to"] == "server"], ids=by_name)
def test_a_server_refuses(vector: dict[str, Any], size: int) -> None:
    socket, code, request_id = Socket(vector["socket"]), ErrorCode[vector["error"]], int(vector["error_request_id"])
    server = open_pair(socket)[1] if vector["after_hello"] == "yes" else Connection(Role.SERVER, socket=socket)
    end = vector["end_of_stream"] == "yes"
    behind = b"" if end else PING_BEHIND

    seen = feed(server, chunks(bytes.fromhex(vector["hex"]) + behind, size), end=end)

    if vector["connection"] == "ends":
        (error,) = seen
        assert isinstance(error, RemoteProtocolError)
        assert (error.code, server.state) == (code, State.CLOSED)
        assert int.from_bytes(error.reply[8:12], "little") == request_id
        assert last_error(error.reply) == ErrorAnswer(code, code.try_again, error.text)
    else:
        bad, good = seen
        assert isinstance(bad, BadRequest)
        assert (bad.request_id, bad.code) == (request_id, code)
        assert good == Request(0x7001, Ping())
        assert server.answer_error(bad.request_id, bad.code, bad.text)
        assert server.state is State.OPEN


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vector", [v for v in FRAMES if v["to"] == "client"], ids=by_name)
def test_a_client_refuses(vector: dict[str, Any], size: int) -> None:
    after_hello = vector["after_hello"] == "yes"
    client = waiting_client(vector["asked"], 2) if after_hello else waiting_client("HELLO", 1)
    seen = feed(client, chunks(bytes.fromhex(vector["hex"]), size), end=vector["end_of_stream"] == "yes")
    (error,) = seen
    assert isinstance(error, RemoteProtocolError)
    assert (error.code.name, error.reply, client.state) == (vector["error"], b"", State.CLOSED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("vector", EXCHANGES, ids=by_name)
def test_an_exchange_goes_as_written(vector: dict[str, Any], size: int) -> None:
    client = Connection(Role.CLIENT)
    server = Connection(Role.SERVER, socket=Socket(vector["socket"]))
    for step in vector["steps"]:
        data, request_id = bytes.fromhex(step["hex"]), int(step["request_id"])
        asked = step["form"] == "request"
        reader = server if asked else client
        seen: list[object] = []
        for piece in chunks(data, size):
            reader.receive_data(piece)
            seen += reader.events()
        (event,) = seen
        if asked:
            assert isinstance(event, Request)
            message: Message = event.message
            assert client.request(event.message) == (request_id, data)
        elif isinstance(event, Answer):
            message = event.message
            assert server.answer(request_id, event.message) == data
        else:
            assert isinstance(event, Failure)
            message = event.error
            code = ErrorCode(event.error.code)
            built = (
                server.answer_error(request_id, code, event.error.text) if request_id else (server.fail(code, event.error.text))
            )
            assert built == data
        assert type(message) is message_class(step["message"], step["form"])
    assert client.state is server.state is (State.OPEN if vector["connection"] == "lives" else State.CLOSED)


def test_every_message_and_every_error_has_a_vector() -> None:
    names = {(v["message"], v["form"]) for v in MESSAGES}
    assert names == {(m["name"], form) for m in TABLE["messages"] for form in ("request", "answer")} | {("ERROR", "error")}
    codes = {v["fields"]["code"]: v["fields"]["try_again"] for v in MESSAGES if v["form"] == "error"}
    for code in ErrorCode:
        assert codes[str(code.value)] == str(int(code.try_again))


def test_every_optional_field_is_there_once_and_absent_once() -> None:
    for message in TABLE["messages"]:
        for form in ("request", "answer"):
            have = [v["fields"] for v in MESSAGES if (v["message"], v["form"]) == (message["name"], form)]
            for field in message[form]:
                present = {field["name"] in fields for fields in have}
                assert present == ({True} if field["required"] else {True, False}), (message["name"], form, field)


def test_what_every_server_has_to_answer_is_told() -> None:
    for exchange in EXCHANGES:
        assert exchange["server"] in {"any", "scripted"}
        for step in exchange["steps"]:
            names = {field["name"] for field in table_fields(step["message"], step["form"])}
            assert ("checked" in step) is (step["from"] == "server")
            assert set(step.get("checked", "").split()) <= names
            assert exchange["server"] == "any" or not step.get("checked")


def test_names_are_unique() -> None:
    for file in (MESSAGES, FRAMES, EXCHANGES):
        names = [vector["name"] for vector in file]
        assert len(names) == len(set(names))
