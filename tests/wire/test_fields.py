"""Each kind of value at its bounds, read and built."""

from enum import IntEnum
from uuid import UUID

import pytest

from varstore_companion.wire.fields import Choice, Flag, Kind, Number, Octets, Path, Text, Uuid, Value, clip


class Colour(IntEnum):
    RED = 1
    BLUE = 3


VM = UUID("00112233-4455-6677-8899-aabbccddeeff")


@pytest.mark.parametrize(
    ("kind", "value", "data"),
    [
        (Number(2, 1, 9), 1, b"\x01\x00"),
        (Number(2, 1, 9), 9, b"\x09\x00"),
        (Number(8, 0, 2**64 - 1), 2**64 - 1, b"\xff" * 8),
        (Flag(), False, b"\x00"),
        (Flag(), True, b"\x01"),
        (Choice(Colour), Colour.BLUE, b"\x03"),
        (Uuid(), VM, bytes.fromhex("00112233445566778899aabbccddeeff")),
        (Octets(0, 2), b"", b""),
        (Octets(0, 2), b"\x00\xff", b"\x00\xff"),
        (Path(4), b"/a", b"/a"),
        (Path(4), b"/\xff/b", b"/\xff/b"),
        (Text(0, 3), "", b""),
        (Text(0, 3), "€", b"\xe2\x82\xac"),
        (Text(0, 3), "\n\x7f", b"\n\x7f"),
    ],
)
def test_fits(kind: Kind, value: Value, data: bytes) -> None:
    read = kind.parse(data)
    assert read == value
    assert type(read) is type(value)
    assert kind.build(value) == data


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Number(2, 1, 9), b"\x00\x00"),
        (Number(2, 1, 9), b"\x0a\x00"),
        (Number(2, 1, 9), b"\x01"),
        (Number(2, 1, 9), b"\x01\x00\x00"),
        (Number(2, 0, 9), b""),
        (Flag(), b""),
        (Flag(), b"\x02"),
        (Flag(), b"\x01\x00"),
        (Choice(Colour), b"\x02"),
        (Choice(Colour), b""),
        (Choice(Colour), b"\x01\x00"),
        (Uuid(), bytes(15)),
        (Uuid(), bytes(17)),
        (Octets(1, 2), b""),
        (Octets(1, 2), b"abc"),
        (Path(4), b"/"),
        (Path(4), b"a/b"),
        (Path(4), b"/abcd"),
        (Path(4), b"/a\x00"),
        (Path(4), b"\x00abc"),
        (Text(1, 3), b""),
        (Text(1, 3), b"abcd"),
        (Text(1, 3), b"a\x00b"),
        (Text(1, 3), b"\xe2\x82"),
        (Text(1, 3), b"\xc0\x80"),
        (Text(1, 3), b"\xed\xa0\x80"),
    ],
)
def test_bytes_that_do_not_fit(kind: Kind, data: bytes) -> None:
    assert kind.parse(data) is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Number(2, 1, 9), 0),
        (Number(2, 1, 9), 10),
        (Number(2, 1, 9), -1),
        (Number(2, 1, 9), "1"),
        (Flag(), 1),
        (Choice(Colour), 1),
        (Uuid(), str(VM)),
        (Octets(1, 2), b""),
        (Octets(1, 2), b"abc"),
        (Octets(1, 2), "ab"),
        (Path(4), b"ab"),
        (Path(4), "/a"),
        (Text(1, 3), ""),
        (Text(1, 3), "€a"),
        (Text(1, 3), "a\x00"),
        (Text(1, 3), "\ud800"),
        (Text(1, 3), b"a"),
        (Text(1, 3), None),
    ],
)
def test_values_that_do_not_fit(kind: Kind, value: object) -> None:
    assert kind.build(value) is None


@pytest.mark.parametrize("kind", [Number(4, 3, 70), Choice(Colour), Octets(2, 9), Path(107), Text(0, 64)])
def test_an_error_can_name_the_bounds(kind: Kind) -> None:
    numbers = {Number: "from 3 to 70", Choice: "1 (red), 3 (blue)", Octets: "2 to 9", Path: "2 to 107", Text: "0 to 64"}
    assert numbers[type(kind)] in kind.expected


@pytest.mark.parametrize(
    ("text", "clipped"),
    [
        ("plain", "plain"),
        ("12345678", "12345678"),
        ("123456789", "12345678"),
        ("1234567€", "1234567"),
        ("a\x00b\ud800c", "a?b?c"),
    ],
)
def test_clip_makes_any_text_fit(text: str, clipped: str) -> None:
    assert clip(text, 8) == clipped
    assert Text(0, 8).build(clipped) is not None
