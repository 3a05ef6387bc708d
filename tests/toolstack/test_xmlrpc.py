"""XML-RPC in both directions: by example, by property, on the toolstack's own data, and against hostile documents."""

import math
from contextlib import suppress
from datetime import UTC, datetime
from time import perf_counter
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.places import FIXTURES
from varstore_companion.errors import MalformedError
from varstore_companion.toolstack import xmlrpc
from varstore_companion.toolstack.xmlrpc import (
    MAX_DEPTH,
    MAX_DOCUMENT,
    MAX_ELEMENTS,
    Call,
    Failure,
    Fault,
    Success,
    Value,
    build_call,
    build_response,
    parse_call,
    parse_response,
)

XAPI_GUARD = FIXTURES / "xapi-guard"
WIRE = FIXTURES / "wire"

needs_guard = pytest.mark.skipif(not XAPI_GUARD.is_dir(), reason=f"{XAPI_GUARD} is absent")
needs_wire = pytest.mark.skipif(not WIRE.is_dir(), reason=f"{WIRE} is absent")

NOON = datetime(2026, 1, 31, 12, 0, 7, tzinfo=UTC)


def call(*values: str, method: str = "VM.get_NVRAM") -> bytes:
    """A methodCall whose parameters hold `values` as they are."""
    params = "".join(f"<param>{value}</param>" for value in values)
    return f"<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>".encode()


def answer(value: str) -> bytes:
    return f"<methodResponse><params><param>{value}</param></params></methodResponse>".encode()


# The toolstack's own data


@needs_guard
def test_every_request_of_a_guards_client_is_understood_and_written_alike() -> None:
    paths = sorted((XAPI_GUARD / "requests").iterdir())
    assert len(paths) == 8
    for path in paths:
        document = path.read_bytes()
        read = parse_call(document)
        assert read.method == path.name.partition(".request.")[0]
        assert all(isinstance(parameter, str) for parameter in read.parameters)
        assert build_call(read.method, read.parameters) == document


@needs_guard
def test_every_answer_of_a_guard_is_read_as_what_it_is() -> None:
    paths = sorted((XAPI_GUARD / "responses").iterdir())
    assert len(paths) == 290
    kinds = {}
    for path in paths:
        document = path.read_bytes()
        read = kinds[path.name] = parse_response(document)
        if path.name.endswith(".response.0"):
            assert isinstance(read, Success)
            assert build_response(read) == document
        else:
            assert isinstance(read, Failure)
            assert read.description[0][0].isupper()
            again = parse_response(build_response(read))
            assert again == read
    assert kinds["VM.get_NVRAM.response.0"] == Success({"NVRAM": "NVRAM"})
    assert kinds["VM.get_by_uuid.response.0"] == Success("string")
    assert kinds["VM.set_NVRAM_EFI_variables_v2.response.0"] == Success(None)
    assert kinds["VM.get_NVRAM.response.12"] == Failure(("Bad_power_state", "Halted", "Suspended"))
    assert kinds["VM.get_NVRAM.response.41"] == Failure(("Storage_backend_error", "error"))
    assert kinds["VM.get_NVRAM.response.23"] == Failure(("Failed_to_shutdown", "error", "0.0"))
    assert kinds["VM.get_NVRAM.response.46"] == Failure(("Internal_error", "error"))
    assert kinds["VM.get_NVRAM.response.47"] == Failure(("Unknown_error",))


@needs_wire
def test_every_request_of_varstoreds_is_understood() -> None:
    for path in sorted(WIRE.glob("*.http")):
        body = path.read_bytes().partition(b"\r\n\r\n")[2]
        read = parse_call(body)
        assert read.method == path.name[3:].removesuffix(".http")
        assert all(isinstance(parameter, str) for parameter in read.parameters)


def test_a_guards_shapes() -> None:
    """The same shapes as in the toolstack's own data, on documents of our own."""
    prologue = b'<?xml version="1.0"?>'
    no_tag = prologue + answer(
        "<value><struct><member><name>Status</name><value>Success</value></member>"
        "<member><name>Value</name><value><struct><member><name>EFI-variables</name><value>VkFSUw==</value></member>"
        "</struct></value></member></struct></value>"
    )
    assert parse_response(no_tag) == Success({"EFI-variables": "VkFSUw=="})
    assert build_response(Success({"EFI-variables": "VkFSUw=="})) == no_tag
    nil = prologue + answer(
        "<value><struct><member><name>Status</name><value>Success</value></member>"
        "<member><name>Value</name><value><nil/></value></member></struct></value>"
    )
    assert parse_response(nil) == Success(None)
    assert build_response(Success(None)) == nil
    for description, flat in [
        ("IO_error", ("IO_error",)),
        ("<array><data><value>A</value><value>b</value></data></array>", ("A", "b")),
        (
            (
                "<array><data><value>A</value><value><array><data><value>b</value><value><double>0</double></value>"
                "<value><array><data></data></array></value></data></array></value></data></array>"
            ),
            ("A", "b", "0.0"),
        ),
        ("<nil/>", ()),
    ]:
        document = answer(
            "<value><struct><member><name>Status</name><value>Failure</value></member>"
            f"<member><name>ErrorDescription</name><value>{description}</value></member></struct></value>"
        )
        assert parse_response(document) == Failure(flat)


# By example


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<value></value>", ""),
        ("<value/>", ""),
        ("<value> plain </value>", " plain "),
        ("<value><string></string></value>", ""),
        ("<value>\n  <string> tagged </string>\n</value>", " tagged "),
        ("<value>&lt;&amp;&#13;&#x10FFFF;</value>", "<&\r\U0010ffff"),
        ("<value><string>one<!-- not text -->two<![CDATA[<three>]]></string></value>", "onetwo<three>"),
        ("<value><int> -17 </int></value>", -17),
        ("<value><i4>+2147483647</i4></value>", 2**31 - 1),
        ("<value><boolean>1</boolean></value>", True),
        ("<value><boolean>0</boolean></value>", False),
        ("<value><double>-1.5e3</double></value>", -1500.0),
        ("<value><dateTime.iso8601>20260131T12:00:07Z</dateTime.iso8601></value>", NOON),
        ("<value><dateTime.iso8601>2026-01-31T12:00:07</dateTime.iso8601></value>", NOON),
        ("<value><nil/></value>", None),
        ("<value><array><data/></array></value>", []),
        ("<value><array><data><value>a</value><value><array><data/></array></value></data></array></value>", ["a", []]),
        ("<value><struct></struct></value>", {}),
        ("<value><struct><member><name> a </name><value><nil/></value></member></struct></value>", {" a ": None}),
    ],
)
def test_a_value(text: str, value: Value) -> None:
    assert parse_call(call(text)) == Call("VM.get_NVRAM", (value,))


@pytest.mark.parametrize(
    "text",
    [
        "<value><base64>QQ==</base64></value>",
        "<value><i8>1</i8></value>",
        "<value><int></int></value>",
        "<value><int>2147483648</int></value>",
        "<value><int>-2147483649</int></value>",
        "<value><int>1_0</int></value>",
        "<value><int>\u0661</int></value>",
        "<value><boolean>true</boolean></value>",
        "<value><boolean></boolean></value>",
        "<value><double>nan</double></value>",
        "<value><double>.</double></value>",
        "<value><double>1e999</double></value>",
        "<value><double>1e9999</double></value>",
        "<value><dateTime.iso8601>20260231T12:00:07Z</dateTime.iso8601></value>",
        "<value><dateTime.iso8601>yesterday</dateTime.iso8601></value>",
        "<value><nil>x</nil></value>",
        "<value>text<int>1</int></value>",
        "<value><int>1</int><int>1</int></value>",
        "<value><string><string>a</string></string></value>",
        "<value><array></array></value>",
        "<value><array><data/><data/></array></value>",
        "<value><array><value>a</value></array></value>",
        "<value><struct>text</struct></value>",
        "<value><struct><member><name>a</name></member></struct></value>",
        "<value><struct><member><value>a</value><name>a</name></member></struct></value>",
        "<value><struct><member><name>a</name><value/></member><member><name>a</name><value/></member></struct></value>",
        "<value type='x'>a</value>",
        "<value>&unknown;</value>",
        "<value>\0</value>",
        "<value>&#0;</value>",
        "<value><?php echo ?></value>",
        "",
        "<value/><value/>",
        "text",
    ],
)
def test_what_is_not_a_value_is_refused(text: str) -> None:
    with pytest.raises(MalformedError) as refused:
        parse_call(call(text))
    assert 0 < refused.value.offset <= len(call(text))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<",
        b"<methodCall/>",
        b"<methodCall><params/></methodCall>",
        b"<methodCall><params/><methodName>a</methodName></methodCall>",
        b"<methodCall><methodName>a</methodName><params/><params/></methodCall>",
        b"<methodCall><methodName>a b</methodName></methodCall>",
        b"<methodCall><methodName></methodName></methodCall>",
        b"<methodCall><methodName>" + b"a" * 129 + b"</methodName></methodCall>",
        b"<methodCall><methodName>a</methodName></methodCall>x",
        b"<methodCall><methodName>a</methodName></methodCall><methodCall/>",
        b"<methodCall><methodName>a</methodName></methodCall",
        b"<methodResponse/>",
        b"<m:methodCall xmlns:m='x'><methodName>a</methodName></m:methodCall>",
        b"<methodCall><methodName>\xff</methodName></methodCall>",
        b'<?xml version="1.0" encoding="ISO-8859-1"?><methodCall><methodName>a</methodName></methodCall>',
        '<?xml version="1.0" encoding="UTF-16"?><methodCall><methodName>a</methodName></methodCall>'.encode("utf-16"),
        b"<?xml-stylesheet href='x'?><methodCall><methodName>a</methodName></methodCall>",
        call("<value/>")[:-1],
    ],
)
def test_what_is_not_a_call_is_refused(document: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_call(document)


def test_a_call_without_parameters_may_leave_them_out() -> None:
    assert parse_call(b"<methodCall><methodName> system.listMethods\n</methodName></methodCall>") == Call(
        "system.listMethods", ()
    )


@pytest.mark.parametrize(
    "document",
    [
        b"<methodResponse/>",
        b"<methodResponse><params/></methodResponse>",
        answer("<value/></param><param><value/>"),
        answer("<value>Success</value>"),
        answer("<value><struct/></value>"),
        answer("<value><struct><member><name>Status</name><value>Success</value></member></struct></value>"),
        answer(
            "<value><struct><member><name>Status</name><value>Failure</value></member>"
            "<member><name>Value</name><value/></member></struct></value>"
        ),
        answer(
            "<value><struct><member><name>Status</name><value>Failure</value></member>"
            "<member><name>ErrorDescription</name><value><struct/></value></member></struct></value>"
        ),
        answer(
            "<value><struct><member><name>Status</name><value>Maybe</value></member>"
            "<member><name>Value</name><value/></member></struct></value>"
        ),
        b"<methodResponse><fault><value/></fault></methodResponse>",
        build_response(Fault(1, "x")).replace(b"</fault>", b"</fault><params/>"),
        build_response(Success(None)).replace(b"<methodResponse>", b"<methodResponse><fault><value/></fault>"),
    ],
)
def test_what_is_not_an_answer_of_xapis_is_refused(document: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_response(document)


def test_an_answer_may_be_let_be_longer() -> None:
    document = build_response(Success("x" * MAX_DOCUMENT))
    with pytest.raises(MalformedError):
        parse_response(document)
    assert parse_response(document, limit=len(document)) == Success("x" * MAX_DOCUMENT)


def test_integers_are_written_as_xapi_writes_them() -> None:
    assert parse_call(build_call("m", [2**40])).parameters == (str(2**40),)


def test_what_xml_cannot_hold_is_written_as_unknown() -> None:
    assert parse_response(build_response(Success("a\0\x1b\ud800\ufffe\rb"))) == Success("a\ufffd\ufffd\ufffd\ufffd\rb")


# By property

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n\r<>&]\"'"))
scalars: st.SearchStrategy[Value] = (
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.datetimes(timezones=st.just(UTC)).map(lambda time: time.replace(microsecond=0))
)
values: st.SearchStrategy[Value] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)


def legible(value: Value) -> Value:
    """The value with the characters that XML has none for as they are written."""
    if isinstance(value, str):
        return "".join("\ufffd" if character in "\ufffe\uffff" else character for character in value)
    if isinstance(value, list):
        return [legible(item) for item in value]
    if isinstance(value, dict):
        return {str(legible(name)): legible(item) for name, item in value.items()}
    return value


@given(st.lists(values, max_size=4))
def test_what_is_written_as_a_call_is_read_again(parameters: list[Value]) -> None:
    assert parse_call(build_call("VM.create", parameters)) == Call("VM.create", tuple(map(legible, parameters)))


@given(values)
def test_what_is_written_as_an_answer_is_read_again(value: Value) -> None:
    assert parse_response(build_response(Success(value))) == Success(legible(value))


@given(st.dictionaries(texts, values, max_size=4))
def test_an_answer_may_be_written_member_by_member(members: dict[str, Value]) -> None:
    written = xmlrpc.StructAnswer()
    for name, value in members.items():
        before = len(written)
        written.add(name, value)
        assert len(written) > before
    assert written.finish() == build_response(Success(members))


@given(st.lists(texts, max_size=4).map(tuple))
def test_what_is_written_as_a_failure_is_read_again(description: tuple[str, ...]) -> None:
    expected = tuple(str(legible(each)) for each in description)
    assert parse_response(build_response(Failure(description))) == Failure(expected)


@given(st.integers(-(2**31), 2**31 - 1), texts)
def test_what_is_written_as_a_fault_is_read_again(code: int, text: str) -> None:
    assert parse_response(build_response(Fault(code, text))) == Fault(code, str(legible(text)))


_PIECES = [
    *(f"<{tag}>" for tag in ("methodCall", "methodName", "params", "param", "value", "struct", "member", "name", "array")),
    *(f"</{tag}>" for tag in ("methodCall", "methodName", "params", "param", "value", "struct", "member", "name", "array")),
    *("<data>", "</data>", "<int>", "</int>", "<nil/>", "<methodResponse>", "</methodResponse>", "<fault>", "</fault>"),
    *("1", "a", " ", "&lt;", "&x;", "<!--", "-->", "<![CDATA[", "]]>", "<?xml version='1.0'?>", "<!DOCTYPE a>", "\0", "\xff"),
]


@given(
    st.binary(max_size=200) | st.lists(st.sampled_from(_PIECES), max_size=40).map(lambda all_: "".join(all_).encode("latin-1"))
)
@example(b"")
def test_any_bytes_are_read_or_refused_and_nothing_else(document: bytes) -> None:
    for parse in (parse_call, parse_response):
        try:
            parse(document)
        except MalformedError as refused:
            assert 0 <= refused.offset <= len(document)  # noqa: PT017  either outcome is right


@given(st.data())
def test_a_call_that_is_cut_or_changed_is_read_or_refused(data: st.DataObject) -> None:
    document = bytearray(build_call("VM.create", ["s", {"NVRAM": {"EFI-variables": "VkFSUw=="}, "set": ["a", None, True]}]))
    for _ in range(data.draw(st.integers(1, 3))):
        document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(document[: data.draw(st.integers(0, len(document)))])
    for changed in (bytes(document), cut):
        try:
            parse_call(changed)
        except MalformedError as refused:
            assert 0 <= refused.offset <= len(changed)  # noqa: PT017  either outcome is right


# Hostile documents


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE methodCall SYSTEM "file:///etc/passwd">',
        '<!DOCTYPE methodCall [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE methodCall [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        "<!DOCTYPE methodCall>",
        "<!DOCTYPE methodCall [",
    ],
)
def test_a_document_type_declaration_is_refused_where_it_begins(declaration: str) -> None:
    document = declaration.encode() + call("<value>&b;</value>")
    with pytest.raises(MalformedError) as refused:
        parse_call(document)
    assert refused.value.expected == "no document type declaration"
    assert refused.value.offset <= len(declaration)


def test_depth_is_bounded() -> None:
    def nested(arrays: int) -> bytes:
        return call("<value><array><data>" * arrays + "<value/>" + "</data></array></value>" * arrays)

    most = (MAX_DEPTH - 4) // 3
    parse_call(nested(most))
    for arrays in (most + 1, 5_000):
        with pytest.raises(MalformedError, match="inside each other"):
            parse_call(nested(arrays))


def test_elements_are_counted() -> None:
    def wide(items: int) -> bytes:
        return call("<value><array><data>" + "<value/>" * items + "</data></array></value>")

    most = MAX_ELEMENTS - 7
    assert len(parse_call(wide(most)).parameters) == 1
    with pytest.raises(MalformedError, match="in all"):
        parse_call(wide(most + 1))


def test_the_size_is_bounded() -> None:
    room = MAX_DOCUMENT - len(call("<value></value>"))
    assert parse_call(call(f"<value>{'x' * room}</value>")).parameters == ("x" * room,)
    with pytest.raises(MalformedError) as refused:
        parse_call(call(f"<value>{'x' * (room + 1)}</value>"))
    assert refused.value.offset == MAX_DOCUMENT


@pytest.mark.parametrize(
    "filling",
    [
        "<",
        "&amp;",
        "\n",
        "<!---->",
        "<![CDATA[a]]>",
        "]]",
        "é",
        "<value/>",
        "<value><int>",
        "9",
        "<a ",
        "a='b' ",
        "<?a?>",
        " ",
    ],
)
@pytest.mark.parametrize("inside", ["<value>{}</value>", "<value><double>{}</double></value>", "{}", "<value {}/>"])
def test_no_filling_takes_more_than_linear_time(filling: str, inside: str) -> None:
    text = inside.format(filling * ((MAX_DOCUMENT - 500) // len(filling.encode())))
    begin = perf_counter()
    with suppress(MalformedError):
        parse_call(call(text))
    # Some milliseconds; anything that is not linear takes minutes.
    assert perf_counter() - begin < 2


def test_a_large_store_costs_a_fraction_of_a_millisecond() -> None:
    text = "QUJD" * 20_480
    document = build_call("VM.set_NVRAM_EFI_variables", ["session", "vm", text, "yes"])

    reading, writing = [], []
    for _ in range(20):
        begin = perf_counter()
        parse_call(document)
        reading.append(perf_counter() - begin)
        begin = perf_counter()
        build_call("VM.set_NVRAM_EFI_variables", ["session", "vm", text, "yes"])
        writing.append(perf_counter() - begin)
    assert min(reading) < 0.001
    assert min(writing) < 0.001


def test_escaping_is_the_standard_librarys() -> None:
    text = "a<b>&c]]>\"'"
    assert escape(text).encode() in xmlrpc.build_call("m", [text])
    assert math.isclose(0.1, float(str(parse_call(build_call("m", [0.1])).parameters[0])))
