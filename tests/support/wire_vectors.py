"""The protocol's table and vectors, read as any other program would read them, and connections to try them on."""

import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from varstore_companion.wire import messages, observing
from varstore_companion.wire.connection import Connection, Event, Request
from varstore_companion.wire.errors import RemoteProtocolError
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.messages import ClientKind, ErrorAnswer, Hello, HelloAnswer, Message, Ping, Socket
from varstore_companion.wire.states import Role

PROTOCOL = Path(__file__).resolve().parents[2] / "protocol"
TABLE: dict[str, Any] = tomllib.loads((PROTOCOL / "messages.toml").read_text())
VM = UUID("6a1f3c52-94b0-4c7e-8d21-0f5e7a9b3c10")
PING_BEHIND = build_frame(Ping.TYPE, 0x7001, b"")


def vectors(name: str) -> list[dict[str, Any]]:
    """Load one file of vectors."""
    loaded: list[dict[str, Any]] = json.loads((PROTOCOL / "vectors" / f"{name}.json").read_text())
    return loaded


def message_class(name: str, form: str) -> type[Message]:
    """Find the class by the table's name: GET_STORE is GetStore, its answer GetStoreAnswer."""
    if form == "error":
        return ErrorAnswer
    pascal = "".join(word.capitalize() for word in name.split("_"))
    found = declared(pascal + ("Answer" if form == "answer" else ""))
    assert isinstance(found, type)
    assert issubclass(found, Message)
    return found


def declared(name: str) -> Any:  # noqa: ANN401  a message's class or a set of values
    """Find what one of the modules that declare messages has under that name."""
    return getattr(messages, name, None) or getattr(observing, name)


def table_fields(name: str, form: str) -> list[dict[str, Any]]:
    """Give the table's fields of a message."""
    if form == "error":
        fields = TABLE["error"]["fields"]
    else:
        fields = next(message for message in TABLE["messages"] if message["name"] == name)[form]
    assert isinstance(fields, list)
    return fields


def message_of(name: str, form: str, texts: dict[str, str]) -> Message:
    """Build a message from a vector's texts, by the table alone."""
    values: dict[str, object] = {}
    for field in table_fields(name, form):
        text = texts.get(field["name"])
        if text is None:
            continue
        match field["kind"]:
            case "number":
                value: object = int(text)
            case "flag":
                value = {"0": False, "1": True}[text]
            case "choice":
                enum = "".join(word.capitalize() for word in field["enum"].split("_"))
                value = declared(enum)[text.upper()]
            case "uuid":
                value = UUID(text)
            case "octets" | "path":
                value = bytes.fromhex(text)
            case _:
                value = text
        values[field["name"]] = value
    assert values.keys() == texts.keys()
    made = message_class(name, form)(**values)
    assert isinstance(made, Message)
    return made


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    """Cut data into pieces of `size` bytes."""
    for offset in range(0, len(data), size):
        yield data[offset : offset + size]


def feed(connection: Connection, pieces: Iterable[bytes], *, end: bool = False) -> list[Event | RemoteProtocolError]:
    """Give a connection bytes and collect what they mean; a server's HELLO is answered, and nothing else."""
    seen: list[Event | RemoteProtocolError] = []

    def drain() -> None:
        for event in connection.events():
            seen.append(event)
            if isinstance(event, Request) and isinstance(event.message, Hello):
                connection.answer(event.request_id, HelloAnswer.of("test"))

    try:
        for piece in pieces:
            connection.receive_data(piece)
            drain()
        if end:
            connection.receive_eof()
            drain()
    except RemoteProtocolError as error:
        seen.append(error)
    return seen


def hello(socket: Socket) -> Hello:
    """Greet as that socket's usual client."""
    if socket is Socket.VM:
        return Hello.of(ClientKind.VARSTORED, vm=VM, name="test")
    return Hello.of(ClientKind.OPERATOR, vm=None, name="test")


def open_pair(socket: Socket = Socket.VM) -> tuple[Connection, Connection]:
    """A client and a server that have greeted each other."""
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER, socket=socket)
    request_id, data = client.request(hello(socket))
    server.receive_data(data)
    (event,) = server.events()
    assert event == Request(request_id, hello(socket))
    client.receive_data(server.answer(request_id, HelloAnswer.of("test")))
    (_,) = client.events()
    return client, server
