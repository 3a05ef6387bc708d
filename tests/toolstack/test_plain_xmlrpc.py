"""What is read without an XML parser is what a parser reads, and nothing that a parser would refuse."""

import re
from base64 import b64decode, b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support import stock
from varstore_companion.errors import MalformedError
from varstore_companion.toolstack import xmlrpc
from varstore_companion.toolstack.plain_xmlrpc import DONE, LONG, Base64, Plain, is_plain, read_call
from varstore_companion.toolstack.xmlrpc import MAX_DOCUMENT, Call, Success, Value, build_call, build_response, parse_call


def parsed(document: bytes) -> Call | None:
    """What the parser reads; None for what it refuses."""
    try:
        method, *parameters = xmlrpc._read(document, "methodCall", MAX_DOCUMENT).result
    except MalformedError:
        return None
    return Call(str(method), tuple(parameters))


def read(document: bytes) -> Call | None:
    """What is read without it; what is decoded by then is what its text says."""
    found = read_call(document)
    if found is None:
        return None
    for each in found[1]:
        if isinstance(each, Base64):
            assert b64decode(each.text) == each.data
            assert is_plain(each.text)
    return Call(found[0], tuple(each.text.decode() if isinstance(each, Base64) else each for each in found[1]))


def body(sent: bytes) -> bytes:
    return sent.partition(b"\r\n\r\n")[2]


STORE = "VkFS" * 20_000 + "Vg=="
CALLS = {
    "login": body(stock.login()),
    "by uuid": body(stock.request(stock.GET_BY_UUID, stock.S, "11111111-2222-3333-4444-555555555555")),
    "read": body(stock.request(stock.GET, stock.S, stock.V)),
    "write": body(stock.request(stock.SET, stock.S, stock.V, STORE)),
    "write with a word": body(stock.request(stock.SET_V2, stock.S, stock.V, STORE, "yes")),
    "logout": body(stock.request(stock.LOGOUT, stock.S)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_varstoreds_is_read(name: str) -> None:
    assert read(CALLS[name]) == parse_call(CALLS[name])


@pytest.mark.parametrize("name", ["01-session.login_with_password", "06-VM.set_NVRAM_EFI_variables", "07-session.logout"])
def test_a_recorded_one_is_read(name: str) -> None:
    document = body(stock.recorded(f"{name}.http"))
    assert read(document) == parse_call(document)


_TEXTS = st.text(st.sampled_from("aZ09+/= ~!]<>&;'\"\r\n\t\0\x7f\u00e4")) | st.sampled_from(
    [
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "&lt;",
        "&x;",
        "</string>",
        "<string>",
        "</string></value></param><param><value><string>",
    ]
)


@given(st.lists(_TEXTS, min_size=1, max_size=20), st.text(st.sampled_from("aZ0._:/- <"), max_size=70))
@example(["]]>"], "VM.x")
@example(["</string></value></param><param><value><string>"], "VM.x")
@example(["x"] * 17, "VM.x")
def test_whatever_is_read_is_what_a_parser_reads(texts: list[str], method: str) -> None:
    document = body(stock.request(method, *texts))
    found = read(document)
    if found is not None:
        assert found == parsed(document)
    elif len(texts) <= 16 and re.fullmatch("[A-Za-z0-9_.]{1,64}", method):
        assert not all(is_plain(text.encode()) for text in texts)


@given(st.sampled_from(sorted(CALLS)), st.data())
def test_a_call_that_is_cut_or_changed_is_never_read_otherwise(name: str, data: st.DataObject) -> None:
    # Without the long text, so that changes meet what holds it.
    document = bytearray(CALLS[name].replace(STORE.encode(), b"VkFS"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(document)))
        piece = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"<", b"</string>", b"<string>", b"<!--", b" ", b"&", b"\0"])
        )
        document[at : at + data.draw(st.integers(0, 9))] = piece
    for changed in (bytes(document), bytes(document[: data.draw(st.integers(0, len(document)))])):
        found = read(changed)
        assert found is None or found == parsed(changed)


def test_every_character_that_xml_writes_otherwise_or_not_at_all_is_not_plain() -> None:
    for each in range(256):
        character = bytes([each])
        assert is_plain(character) == (32 <= each < 127 and character not in b"<>&")
    assert is_plain(b"")


_LONG = b64encode(bytes(range(256)) * 4).decode()


@pytest.mark.parametrize(
    "text",
    [
        _LONG,
        _LONG[:-4] + "====",
        _LONG + "=",
        _LONG[:-1],
        _LONG[:-1] + "<",
        _LONG[:-4] + "\n" + _LONG[-4:],
        " " + _LONG,
        "x" * LONG,
    ],
)
@given(st.data())
def test_a_long_text_is_base64_or_left_to_the_parser(text: str, data: st.DataObject) -> None:
    for each in (text, text.replace("A", data.draw(st.characters(blacklist_categories=["Cs"])), 1)):
        document = body(stock.request(stock.SET, stock.S, stock.V, each))
        found = read(document)
        assert found is None or found == parsed(document)
    assert read(body(stock.request(stock.SET, stock.S, stock.V, _LONG))) is not None


@given(st.lists(st.from_regex(r"[A-Za-z0-9+/=]{0,40}", fullmatch=True)))
def test_a_plain_parameter_is_written_as_any_text(texts: list[str]) -> None:
    parameters: list[Value | Plain] = [Plain(text.encode()) for text in texts]
    assert build_call("VM.x", parameters) == build_call("VM.x", texts)


def test_a_guards_plain_answer_is_what_a_parser_reads() -> None:
    assert build_response(Success(None)) == DONE
    assert xmlrpc._read(DONE, "methodResponse", MAX_DOCUMENT).result == [{"Status": "Success", "Value": None}]
