"""Frames as messages.toml has them, read strictly, and the vectors. Shares nothing with any implementation."""

import json
import socket
import struct
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

HERE = Path(__file__).resolve().parents[1]
TABLE: dict[str, Any] = tomllib.loads((HERE / "messages.toml").read_text(encoding="utf-8"))
MESSAGES = {message["name"]: message for message in TABLE["messages"]}
TYPES = {message["type"]: message["name"] for message in TABLE["messages"]}
CODES = {error["name"]: error for error in TABLE["errors"]}
VM = "6a1f3c52-94b0-4c7e-8d21-0f5e7a9b3c10"
"""The vectors' VM: a server under test serves it."""
SECONDS = 10.0
"""For each thing that is waited for."""
HEADER = struct.Struct("<4sHHII")
FIELD = struct.Struct("<HHI")

Vector = dict[str, Any]


class Failure(Exception):  # noqa: N818 - named after what happened
    """The implementation under test did something else than the specification says."""


def expect(good: bool, what: str) -> None:
    """Raise `Failure` unless it holds."""
    if not good:
        raise Failure(what)


def vectors(name: str) -> list[Vector]:
    """Load one file of vectors."""
    loaded: list[Vector] = json.loads((HERE / "vectors" / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def vector(name: str) -> Vector:
    """One frame of messages.json."""
    return next(each for each in vectors("messages") if each["name"] == name)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that the implementation under test sent; it is in order."""

    message: str
    form: str
    request_id: int
    fields: dict[str, str]

    def __str__(self) -> str:
        shown = {name: text if len(text) < 80 else f"{len(text)} digits" for name, text in self.fields.items()}
        return f"{self.message} {self.form} {self.request_id} {shown}"


def parse(data: bytes) -> Frame:
    """Read one whole frame as strictly as the specification has it."""
    magic, version, kind, request_id, length = HEADER.unpack_from(data)
    expect((magic, version) == (b"VSCP", 1), f"a header {data[:16].hex(' ')}")
    if kind == TABLE["protocol"]["error_type"]:
        name, form, table = "ERROR", "error", TABLE["error"]["fields"]
    else:
        found = TYPES.get(kind & 0x7FFF)
        expect(found is not None, f"a frame of the unknown type {kind:#06x}")
        name, form = str(found), "answer" if kind & 0x8000 else "request"
        table = MESSAGES[name][form]
    payload = data[HEADER.size :]
    expect(len(payload) == length, f"{name}: a payload of {len(payload)} bytes instead of {length}")
    known = {field["tag"]: field for field in table}
    fields: dict[str, str] = {}
    at, last, count = 0, 0, 0
    while at < length:
        count += 1
        expect(count <= TABLE["limits"]["max_fields"], f"{name}: more than {TABLE['limits']['max_fields']} fields")
        expect(length - at >= FIELD.size, f"{name}: a cut field")
        tag, reserved, size = FIELD.unpack_from(payload, at)
        at += FIELD.size
        expect(tag > last and not reserved and size <= length - at, f"{name}: a bad field at {at - FIELD.size}")
        last = tag
        if tag in known:
            fields[known[tag]["name"]] = text_of(known[tag], payload[at : at + size], f"{name}.{known[tag]['name']}")
        else:
            expect(not tag & 0x8000, f"{name}: an unknown field {tag:#06x} that must be understood")
        at += size
    for field in table:
        expect(not field["required"] or field["name"] in fields, f"{name}: {field['name']} is missing")
    if (name, form) == ("GET_STORE", "answer"):
        is_there = "store" in fields
        expect(is_there == (fields["presence"] == "present"), f"{name}: {fields['presence']}, store there: {is_there}")
        expect("detail" not in fields or fields["outcome"] == "failed", f"{name}: a detail of the outcome {fields['outcome']}")
    return Frame(name, form, request_id, fields)


def text_of(field: Vector, value: bytes, where: str) -> str:
    """A value as the vectors write it."""
    expect(field["min"] <= len(value) <= field["max"], f"{where} of {len(value)} bytes")
    match field["kind"]:
        case "number":
            number = int.from_bytes(value, "little")
            expect(field["low"] <= number <= field["high"], f"{where} {number}")
            return str(number)
        case "flag":
            expect(value in {b"\0", b"\1"}, f"{where} {value.hex()}")
            return str(value[0])
        case "choice":
            names = {number: name for name, number in TABLE["enums"][field["enum"]].items()}
            expect(value[0] in names, f"{where} {value[0]}")
            return str(names[value[0]])
        case "uuid":
            return str(UUID(bytes=value))
        case "text":
            try:
                text = value.decode()
            except UnicodeDecodeError as error:
                raise Failure(f"{where}: {error}") from None
            expect("\0" not in text, f"{where}: a NUL")
            return text
        case _:
            return value.hex()


def build(message: str, request_id: int, tag: int, value: bytes) -> bytes:
    """Build a request of one field."""
    head = HEADER.pack(b"VSCP", 1, MESSAGES[message]["type"], request_id, FIELD.size + len(value))
    return head + FIELD.pack(tag, 0, len(value)) + value


def largest_store() -> bytes:
    """A store of as many bytes as one may have: version 2, three variables with all the data that there is room for."""
    count, head, rest, most = 3, 24 + 8 + 0x104, 8 + 2 + 8 + 16 + 4 + 16 + 32, 57_344
    room = TABLE["limits"]["max_store"] - head - count * rest
    variables = b""
    for letter in b"ABC":
        size = min(room, most)
        room -= size
        variables += struct.pack("<QHQ", 2, letter, size) + bytes([letter]) * size
        variables += bytes(16) + struct.pack("<I", 7) + bytes(48)
    return b"VARS" + struct.pack("<IQQ", 2, count, len(variables)) + bytes(8 + 0x104) + variables


def with_id(frame: bytes, request_id: int) -> bytes:
    """The frame with another request id."""
    return frame[:8] + struct.pack("<I", request_id) + frame[12:]


class Stream:
    """A connection to the implementation under test. `frame` gives the next frame, None at the end of the stream."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.settimeout(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send; a peer that has closed shows when it is read from."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def trickle(self, data: bytes) -> None:
        """Send a byte at a time, so that the peer gets to see most of them alone."""
        for byte in data:
            self.send(bytes([byte]))
            time.sleep(0.001)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self.socket.recv(size - len(data))
            except ConnectionResetError:
                piece = b""
            except TimeoutError:
                raise Failure(f"nothing came within {SECONDS:g} s") from None
            if not piece:
                break
            data += piece
        return data

    def frame(self) -> Frame | None:
        """Read a frame."""
        head = self._exactly(HEADER.size)
        if not head:
            return None
        expect(len(head) == HEADER.size, "the stream ended inside a header")
        length = HEADER.unpack(head)[4]
        expect(length <= TABLE["limits"]["max_payload"], f"a payload of {length} bytes")
        return parse(head + self._exactly(length))

    def due(self, what: object) -> Frame:
        """Read a frame that has to come."""
        frame = self.frame()
        if frame is None:
            raise Failure(f"the connection ended before {what}")
        return frame
