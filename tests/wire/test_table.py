"""The code and protocol/messages.toml say the same, in both directions."""

from typing import Any

import pytest

from support.wire_vectors import TABLE, declared, message_class, table_fields
from varstore_companion.wire import frames, limits
from varstore_companion.wire.codec import ANSWERS, LAYOUTS, REQUESTS
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.fields import Choice, Flag, Kind, Number, Octets, Path, Text, Uuid
from varstore_companion.wire.messages import ErrorAnswer, RequestMessage, Socket

FORMS = [(message["name"], form) for message in TABLE["messages"] for form in ("request", "answer")]
ENUMS = {
    "ClientKind": "client_kind",
    "Reason": "reason",
    "Presence": "presence",
    "Outcome": "outcome",
    "Verdict": "verdict",
    "Durable": "durable",
    "LogLevel": "log_level",
    "UpdatesAction": "updates_action",
}


def as_table(kind: Kind) -> dict[str, Any]:
    """Say of a kind what the table says of it."""
    match kind:
        case Number(size, low, high):
            return {"kind": "number", "min": size, "max": size, "low": low, "high": high}
        case Flag():
            return {"kind": "flag", "min": 1, "max": 1}
        case Choice(members):
            return {"kind": "choice", "min": 1, "max": 1, "enum": ENUMS[members.__name__]}
        case Uuid():
            return {"kind": "uuid", "min": 16, "max": 16}
        case Octets(low, high):
            return {"kind": "octets", "min": low, "max": high}
        case Path(high):
            return {"kind": "path", "min": 2, "max": high}
        case Text(low, high):
            return {"kind": "text", "min": low, "max": high}
    raise AssertionError(kind)


@pytest.mark.parametrize(("name", "form"), [*FORMS, ("ERROR", "error")])
def test_fields(name: str, form: str) -> None:
    in_code = [
        {"tag": field.tag, "name": field.name, "required": field.required, **as_table(field.kind)}
        for field in LAYOUTS[message_class(name, form)].fields.values()
    ]
    in_table = [{key: value for key, value in field.items() if key != "doc"} for field in table_fields(name, form)]
    assert in_code == in_table


def test_types() -> None:
    by_name = {message["name"]: message for message in TABLE["messages"]}
    assert {message["type"]: message_class(name, "request") for name, message in by_name.items()} == REQUESTS
    answers = {message["type"] | TABLE["protocol"]["answer_bit"]: name for name, message in by_name.items()}
    assert {type_: message_class(name, "answer") for type_, name in answers.items()} == ANSWERS
    assert TABLE["error"]["type"] == TABLE["protocol"]["error_type"] == ErrorAnswer.TYPE
    assert not set(TABLE["protocol"]["reserved_types"]) & REQUESTS.keys()
    for name, message in by_name.items():
        request = message_class(name, "request")
        assert issubclass(request, RequestMessage)
        assert {socket.value for socket in request.SOCKETS} == set(message["sockets"])
    assert {socket.value for socket in Socket} == {"vm", "control"}


def test_protocol() -> None:
    protocol = TABLE["protocol"]
    assert (protocol["magic"].encode(), protocol["version"]) == (limits.MAGIC, limits.VERSION)
    assert (protocol["answer_bit"], protocol["must_understand"]) == (frames.ANSWER_BIT, frames.MUST_UNDERSTAND)


def test_limits() -> None:
    numbers = {name.lower(): value for name, value in vars(limits).items() if isinstance(value, int)}
    seconds = {name.removesuffix("_seconds"): numbers.pop(name) for name in list(numbers) if name.endswith("_seconds")}
    assert numbers.pop("version") == TABLE["protocol"]["version"]
    assert numbers == TABLE["limits"]
    assert seconds == TABLE["seconds"]


@pytest.mark.parametrize(("layout", "size"), [("header", "header_bytes"), ("field_header", "field_header_bytes")])
def test_layouts_have_no_gap(layout: str, size: str) -> None:
    offset = 0
    for field in TABLE[layout]:
        assert field["offset"] == offset
        offset += field["size"]
    assert offset == TABLE["limits"][size]


def test_header_bytes_lie_where_the_table_says() -> None:
    frame = frames.build_frame(0x0203, 0x04050607, bytes(0x0102))
    found = {f["name"]: frame[f["offset"] : f["offset"] + f["size"]] for f in TABLE["header"]}
    assert found == {
        "magic": b"VSCP",
        "version": b"\x01\x00",
        "type": b"\x03\x02",
        "request_id": b"\x07\x06\x05\x04",
        "length": b"\x02\x01\x00\x00",
    }
    field = frames.join_fields([(0x0809, b"\xff" * 3)])
    found = {f["name"]: field[f["offset"] : f["offset"] + f["size"]] for f in TABLE["field_header"]}
    assert found == {"tag": b"\x09\x08", "reserved": b"\0\0", "length": b"\x03\0\0\0"}


def test_enums() -> None:
    assert set(ENUMS.values()) == TABLE["enums"].keys()
    for name, table in ENUMS.items():
        assert {member.name.lower(): member.value for member in declared(name)} == TABLE["enums"][table]


def test_errors() -> None:
    in_code = [
        {
            "code": code.value,
            "name": code.name,
            "connection": "ends" if code.ends else "lives",
            "try_again": code.try_again,
        }
        for code in ErrorCode
    ]
    said_to_people = {"meaning", "guest"}
    in_table = [{key: value for key, value in error.items() if key not in said_to_people} for error in TABLE["errors"]]
    assert in_code == in_table
    for error in TABLE["errors"]:
        assert error["meaning"]
        assert error["guest"] in {"EFI_DEVICE_ERROR", "EFI_OUT_OF_RESOURCES"}


@pytest.mark.parametrize(("name", "form"), [*FORMS, ("ERROR", "error")])
def test_the_largest_of_every_message_fits_one_frame(name: str, form: str) -> None:
    fields = table_fields(name, form)
    largest = sum(limits.FIELD_HEADER_BYTES + field["max"] for field in fields)
    assert largest <= (limits.MIN_MAX_PAYLOAD if form == "request" else limits.MAX_PAYLOAD)
    assert len(fields) < limits.MAX_FIELDS
