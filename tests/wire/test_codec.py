"""Reading and building at the bounds that are too large for a vector, and what a caller may not build."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from varstore_companion.wire.codec import decode, encode
from varstore_companion.wire.errors import (
    ErrorCode,
    LocalProtocolError,
    PayloadError,
    StoreOverLimitError,
    UnsupportedFieldError,
)
from varstore_companion.wire.frames import join_fields
from varstore_companion.wire.limits import MAX_JSON, MAX_STORE
from varstore_companion.wire.messages import (
    Attach,
    ClientKind,
    GetStore,
    GetStoreAnswer,
    Hello,
    Message,
    Outcome,
    Ping,
    PlanAnswer,
    Presence,
    PutStore,
    SbFailure,
)

VM = UUID("6a1f3c52-94b0-4c7e-8d21-0f5e7a9b3c10")


def test_the_largest_store_passes_and_one_byte_more_does_not() -> None:
    largest = bytes(range(256)) * (MAX_STORE // 256)
    assert decode(PutStore, join_fields([(1, largest)])) == PutStore(largest)
    assert encode(PutStore(largest)) == join_fields([(1, largest)])
    with pytest.raises(StoreOverLimitError) as caught:
        decode(PutStore, join_fields([(1, largest + b"\0")]))
    assert caught.value.code is ErrorCode.STORE_OVER_LIMIT
    assert caught.value.offset == 8
    with pytest.raises(LocalProtocolError, match="expected 0 to 131072 bytes"):
        encode(PutStore(largest + b"\0"))


def test_the_largest_json_passes_and_one_byte_more_does_not() -> None:
    plan = PlanAnswer('"' + "x" * (MAX_JSON - 2) + '"')
    assert decode(PlanAnswer, encode(plan)) == plan
    with pytest.raises(LocalProtocolError, match="PlanAnswer field json"):
        encode(PlanAnswer(plan.json + " "))


@pytest.mark.parametrize(
    ("message", "payload", "error", "text"),
    [
        (GetStore, b"", PayloadError, "GetStore at offset 0: expected a field reason (0x0001)"),
        (
            GetStore,
            join_fields([(1, b"\x07")]),
            PayloadError,
            "GetStore field reason, 1 long, at offset 8: expected 1 byte, one of 1 (boot), 2 (resume), 3 (tool)",
        ),
        (
            GetStore,
            join_fields([(1, b"\x01"), (0x8005, b"x")]),
            UnsupportedFieldError,
            "GetStore with field 0x8005 at offset 17: expected only fields of this version",
        ),
        (Ping, b"\x01", PayloadError, "a field's header, 1 long, at offset 0: expected 8 bytes"),
        (Ping, join_fields([(1, b""), (1, b"")]), PayloadError, "tag 0x0001 at offset 8: expected a tag above 0x0001"),
        (
            Ping,
            bytes.fromhex("0100 0000 05000000 ff"),
            PayloadError,
            "field 0x0001 of 5 bytes at offset 4: expected at most the 1 left",
        ),
        (
            Ping,
            bytes.fromhex("0100 0200 00000000"),
            PayloadError,
            "reserved bytes 0x0002 at offset 2: expected zero",
        ),
    ],
)
def test_an_error_says_what_where_and_what_was_expected(
    message: type[Message], payload: bytes, error: type[PayloadError], text: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        decode(message, payload)
    assert type(caught.value) is error
    assert str(caught.value) == text


def test_64_fields_are_read_and_65_are_not() -> None:
    fields = [(0x100 + number, b"") for number in range(65)]
    assert decode(Ping, join_fields(fields[:64])) == Ping()
    with pytest.raises(PayloadError, match="field 65 at offset 512: expected at most 64 fields"):
        decode(Ping, join_fields(fields))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Hello(2, 1, 0, ClientKind.TOOL), "min_version 2 above max_version 1"),
        (Hello(0, 1, 0, ClientKind.TOOL), "Hello field min_version"),
        (Hello(1, 1, 1 << 64, ClientKind.TOOL), "Hello field features"),
        (Hello(1, 1, 0, ClientKind.TOOL, None, "n" * 65), "Hello field name"),
        (SbFailure("a\0b"), "SbFailure field detail"),
        (SbFailure("\ud800"), "SbFailure field detail"),
        (Attach(VM, b"relative"), "Attach field path"),
        (Attach(VM, b"/a", mode=0o1000), "Attach field mode"),
        (GetStoreAnswer(Presence.PRESENT, 0, Outcome.NOT_ASKED), "presence present and no store"),
        (GetStoreAnswer(Presence.ABSENT, 0, Outcome.NOT_ASKED, b""), "presence absent and a store"),
        (GetStoreAnswer(Presence.PRESENT, 0, Outcome.UPDATED, b"", "why"), "a detail with outcome updated"),
    ],
)
def test_the_caller_cannot_build_what_a_peer_would_refuse(message: Message, text: str) -> None:
    with pytest.raises(LocalProtocolError, match=text):
        encode(message)


def test_a_required_field_is_never_left_out() -> None:
    without: dict[str, Any] = {"store": None}
    with pytest.raises(LocalProtocolError, match="PutStore field store"):
        encode(replace(PutStore(b""), **without))
