"""XML-RPC as a guest's varstored, a guard and xapi's clients send it, and what is made of an error's text."""

from collections.abc import Iterator
from datetime import UTC, datetime

from fuzz.contract import Target
from support.stock import login, request
from varstore_companion.errors import MalformedError, ToolstackError
from varstore_companion.toolstack.plain_xmlrpc import Base64, read_call
from varstore_companion.toolstack.xapi_errors import failure
from varstore_companion.toolstack.xmlrpc import (
    Call,
    Failure,
    Fault,
    Response,
    Success,
    Value,
    build_call,
    build_response,
    parse_call,
    parse_response,
)


def _digits(value: Value) -> Value:
    """The value as it is written: xapi's integers are texts."""
    match value:
        case bool():
            return value
        case int():
            return str(value)
        case list():
            return [_digits(each) for each in value]
        case dict():
            return {name: _digits(each) for name, each in value.items()}
    return value


def _refused(error: MalformedError, document: bytes) -> None:
    assert 0 <= error.offset <= len(document), error
    assert error.what
    assert error.expected


def call(document: bytes) -> None:
    """What was read is what is read again from what is written of it; what is read without a parser is what that reads."""
    plain = read_call(document)
    try:
        found = parse_call(document)
    except MalformedError as error:
        assert plain is None
        _refused(error, document)
        return
    if plain is not None:
        texts = tuple(each.text.decode() if isinstance(each, Base64) else each for each in plain[1])
        assert Call(plain[0], texts) == found
    again = parse_call(build_call(found.method, found.parameters))
    assert again == Call(found.method, tuple(map(_digits, found.parameters)))


def response(document: bytes) -> None:
    """As with a call; and every failure becomes one of the toolstack's errors."""
    try:
        found = parse_response(document)
    except MalformedError as error:
        _refused(error, document)
        return
    expected: Response = Success(_digits(found.value)) if isinstance(found, Success) else found
    assert parse_response(build_response(found)) == expected
    if isinstance(found, Failure):
        for changes in (False, True):
            made = failure("VM.get_NVRAM", found.description, changes=changes, may_be_missing=not changes)
            assert isinstance(made, ToolstackError)
            assert len(str(made)) < 2_000


VALUES: tuple[Value, ...] = (
    "text with <&> and \r",
    True,
    -1,
    2.5,
    1e300,
    datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC),
    None,
    ["a", ["b", []]],
    {"EFI-variables": "VkFSUw==", "nested": {"empty": {}}},
)
ERRORS = (
    ("Internal_error", "Server_error(HANDLE_INVALID, [ VM; OpaqueRef:1 ])"),
    ("Internal_error", 'Unix.Unix_error(Unix.ECONNREFUSED, "connect", "")'),
    ("Internal_error", "UnknownMethod VM.set_NVRAM_EFI_variables_v2"),
    ("MESSAGE_METHOD_UNKNOWN", "VM.x"),
    ("HOST_IS_SLAVE", "10.0.0.1"),
    ("SESSION_INVALID", "OpaqueRef:1"),
    (),
)
TYPED = (
    "<string>a</string>",
    "<i4>-7</i4>",
    "<int>+7</int>",
    "<boolean>0</boolean>",
    "<double>-1.5e3</double>",
    "<dateTime.iso8601>2026-01-31T12:00:00</dateTime.iso8601>",
    "<nil/>",
    "<array><data><value><int>1</int></value></data></array>",
    "<struct><member><name>a</name><value>b</value></member></struct>",
)


def _calls() -> Iterator[bytes]:
    yield build_call("session.login_with_password", ["root", "", "1.0", "fuzz"])
    for own in (login(), request("VM.set_NVRAM_EFI_variables", "s", "v", "VkFSUw==" * 140)):
        yield own.partition(b"\r\n\r\n")[2]
    for value in VALUES:
        yield build_call("VM.get_NVRAM", ["session", value])
    for typed in TYPED:
        param = f"<param><value>{typed}</value></param>"
        yield f"<?xml version='1.0'?>\n<methodCall><methodName>m</methodName><params>{param}</params></methodCall>".encode()
    yield b"<methodCall><methodName> m </methodName></methodCall>"
    text = b"<value><![CDATA[x]]>&#65;</value>"
    yield b"<methodCall><methodName>m</methodName><params><param>" + text + b"</param></params></methodCall>"
    yield b"<?xml version='1.0' encoding='US-ASCII'?><methodCall><!-- c --><methodName>m</methodName><params/></methodCall>"
    yield b"<!DOCTYPE x [<!ENTITY e 'e'>]><methodCall><methodName>&e;</methodName></methodCall>"


def _responses() -> Iterator[bytes]:
    for value in VALUES:
        yield build_response(Success(value))
    for description in ERRORS:
        yield build_response(Failure(description))
    yield build_response(Fault(-32_601, "no such method"))
    nested = b"<value>Internal_error</value><value><array><data><value>Server_error(A, [ b ])</value></data></array></value>"
    yield (
        b"<methodResponse><params><param><value><struct><member><name>Status</name><value>Failure</value></member><member>"
        b"<name>ErrorDescription</name><value><array><data>" + nested + b"</data></array></value></member></struct></value>"
        b"</param></params></methodResponse>"
    )


TARGETS = (
    Target("xmlrpc_call", call, _calls, limit=2_048),
    Target("xmlrpc_response", response, _responses, limit=2_048),
)
