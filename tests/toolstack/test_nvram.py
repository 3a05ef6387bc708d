"""NVRAM as xapi's clients speak it: base64 in, canonical base64 out, and everything else refused by xapi's names."""

import string
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.hostile import hostile
from support.strategies import stores
from support.vms import new_store, old_store
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack import nvram
from varstore_companion.toolstack.nvram import EFI_VARIABLES, Nvram, check_entry, nvram_of, store_of
from varstore_companion.toolstack.plain_xmlrpc import Base64, Plain

STORE = old_store()
TEXT = b64encode(STORE).decode()
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"

_KEYS = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\ufffe\uffff"), min_size=1, max_size=20)


@given(stores(), st.dictionaries(_KEYS.filter(lambda key: key != EFI_VARIABLES), _KEYS, max_size=5))
def test_what_was_given_comes_back(store: bytes, others: dict[str, str]) -> None:
    kept = Nvram(store, others)
    assert nvram_of(kept.texts()) == kept
    assert nvram_of(others) == Nvram(None, others)


@pytest.mark.parametrize("text", [TEXT, f"{TEXT}\n", f" {TEXT[:76]}\r\n{TEXT[76:]}\t"])
def test_line_ends_do_not_count_and_the_answer_has_none(text: str) -> None:
    assert store_of(text) == STORE
    assert nvram_of({EFI_VARIABLES: text}).texts() == {EFI_VARIABLES: TEXT}


BAD = {
    "not base64": ("not base64!", "INVALID_VALUE"),
    "cut": (TEXT.rstrip("=")[:-1], "INVALID_VALUE"),
    "after its end": (TEXT + "AAAA" if TEXT.endswith("=") else TEXT + "=", "INVALID_VALUE"),
    "not ASCII": (TEXT[:-4] + "\u00e4\u00e4==", "INVALID_VALUE"),
    "a lone surrogate": ("\udcff", "INVALID_VALUE"),
    "empty": ("", "INVALID_VALUE"),
    "not a store": (b64encode(b"something else entirely, quite long").decode(), "INVALID_VALUE"),
    "a byte too much": (b64encode(STORE + b"\0").decode(), "INVALID_VALUE"),
    "a variable over DATA_LIMIT": (b64encode(hostile("data_over_limit").blob).decode(), "VALUE_NOT_SUPPORTED"),
    "over TOTAL_LIMIT": (b64encode(hostile("total_over_limit").blob).decode(), "VALUE_NOT_SUPPORTED"),
    "longer than any": ("A" * (nvram.STORE_TEXT_LIMIT + 4), "VALUE_NOT_SUPPORTED"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_store_is_refused_by_name(name: str) -> None:
    text, code = BAD[name]
    for read in (lambda: store_of(text), lambda: nvram_of({EFI_VARIABLES: text, "other": "text"})):
        with pytest.raises(ToolstackRefusedError) as refused:
            read()
        assert refused.value.code == code
        assert refused.value.parameters[0] == "NVRAM:EFI-variables"
        assert len(refused.value.parameters) == (2 if code == "INVALID_VALUE" else 3)
        assert sum(map(len, refused.value.parameters)) < 1000


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("", "value", "VALUE_NOT_SUPPORTED"),
        ("k" * (nvram.KEY_LIMIT + 1), "value", "VALUE_NOT_SUPPORTED"),
        ("key", "v" * (nvram.VALUE_LIMIT + 1), "VALUE_NOT_SUPPORTED"),
        ("k\0", "value", "INVALID_VALUE"),
        ("key", "\x1b[31m", "INVALID_VALUE"),
        ("key", "\udc80", "INVALID_VALUE"),
        ("key", "\uffff", "INVALID_VALUE"),
    ],
)
def test_entries_that_no_answer_could_carry_are_refused(key: str, value: str, code: str) -> None:
    for read in (lambda: check_entry(key, value), lambda: nvram_of({key: value})):
        with pytest.raises(ToolstackRefusedError) as refused:
            read()
        assert refused.value.code == code


def test_the_largest_entries_are_taken() -> None:
    others = {f"{number:0{nvram.KEY_LIMIT}}": "\U0001f512" * nvram.VALUE_LIMIT for number in range(nvram.KEYS)}
    assert nvram_of({**others, EFI_VARIABLES: b64encode(new_store()).decode()}) == Nvram(new_store(), others)
    with pytest.raises(ToolstackRefusedError, match="VALUE_NOT_SUPPORTED"):
        nvram_of({**others, "one more": ""})


@given(st.binary(min_size=1, max_size=100), st.data())
def test_what_is_sent_is_canonical_however_it_came(store: bytes, data: st.DataObject) -> None:
    text = b64encode(store).decode()
    digit = len(text.rstrip("=")) - 1
    last = _ALPHABET.index(text[digit])
    # Bits that no byte comes of: two of them before "=", four before "==".
    spare = data.draw(st.integers(0, 4 ** (len(text) - 1 - digit) - 1))
    other = text[:digit] + _ALPHABET[last | spare] + text[digit + 1 :]
    blank = data.draw(st.integers(0, len(other)))
    for each in (text, other, other[:blank] + "\n" + other[blank:]):
        came = nvram.bytes_of(each)
        assert came == store
        assert nvram.plain_text_of(came) == Plain(text.encode())


@given(st.binary(min_size=1, max_size=100))
def test_more_padding_than_there_is_room_for_is_refused(store: bytes) -> None:
    text = b64encode(store).decode()
    for more in ("=", "==", "===", "===="):
        with pytest.raises(ToolstackRefusedError, match="not base64 text"):
            nvram.bytes_of(text + more)


@given(st.binary(min_size=1, max_size=100))
def test_one_that_is_decoded_already_is_taken_as_it_is(store: bytes) -> None:
    given_ = Base64(b64encode(store), bytes(bytearray(store)))
    assert nvram.bytes_of(given_) is given_.data


def test_a_text_that_is_decoded_already_is_no_longer_than_any() -> None:
    text = b"A" * (nvram.STORE_TEXT_LIMIT + 4)
    with pytest.raises(ToolstackRefusedError, match="characters"):
        nvram.bytes_of(Base64(text, bytes(len(text) // 4 * 3)))
