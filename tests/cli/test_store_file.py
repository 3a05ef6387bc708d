"""A store in a file: what is taken, what is refused and where, and the form in which it goes back."""

from base64 import b64decode, b64encode, encodebytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import own_rules
from varstore_companion.cli import store_file
from varstore_companion.cli.store_file import StoreFile, decode
from varstore_companion.errors import MalformedError

BLOB = own_rules.store()
TEXT = b64encode(BLOB)


@given(blob=st.binary(max_size=300), newline=st.booleans())
def test_base64_goes_back_as_it_came(blob: bytes, newline: bool) -> None:
    text = b64encode(blob) + (b"\n" if newline else b"")
    read = decode(text)
    assert read == StoreFile(blob, base64=True, newline=newline, data=text)
    assert read.encode(blob) == text


@given(rest=st.binary(max_size=300))
def test_raw_bytes_go_back_as_they_came(rest: bytes) -> None:
    read = decode(b"VARS" + rest)
    assert read == StoreFile(b"VARS" + rest, base64=False, newline=False, data=b"VARS" + rest)
    assert read.encode(b"VARS other") == b"VARS other"


@given(data=st.binary(max_size=200))
def test_anything_else_is_refused_within_its_bytes(data: bytes) -> None:
    try:
        blob, offset = decode(data).blob, 0
    except MalformedError as error:
        blob, offset = data, error.offset
    if blob != data:
        assert blob == b64decode(data)
    assert 0 <= offset <= len(data)


@pytest.mark.parametrize("text", [TEXT, encodebytes(BLOB), b"  " + TEXT, TEXT + b" \r\n", TEXT.replace(b"A", b"\nA", 5)])
def test_blanks_do_not_matter(text: bytes) -> None:
    assert decode(text).blob == BLOB


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (b"\x80binary", 0),
        (b"Vars" + bytes(20), 4),
        (TEXT[:100] + b"!" + TEXT[101:], 100),
        (TEXT[:100] + b"\n-" + TEXT[102:], 101),
        (TEXT[:101], 101),
        (TEXT[:103], 103),
        (b"QUI=QUJD", 3),
        (b"QU=I", 2),
        (b"====", 0),
        (b"QUJD=", 4),
        (b"QUJD====", 4),
        (TEXT.replace(b"+", b"-").replace(b"/", b"_") + b"_", None),
        (b'"' + TEXT + b'"', 0),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER V}ARS".encode(), 0),
    ],
)
def test_broken_text_is_refused_where_it_breaks(text: bytes, offset: int | None) -> None:
    with pytest.raises(MalformedError, match="base64 text, or a raw store, which begins with VARS") as caught:
        decode(text)
    if offset is not None:
        assert caught.value.offset == offset


def test_the_limit_is_far_above_varstoreds() -> None:
    assert store_file.LIMIT >= 4 * 131_072
