"""Pure: XML-RPC as xapi and xapi-guard speak it, both directions (xmlrpc.com/spec, with xapi's `Status` convention).

Reading is strict. A document type declaration, a processing instruction, an attribute, another encoding, or an element
where the grammar has none is refused at its first byte, so nothing is ever expanded. Time and memory are linear in the
document, which is at most `MAX_DOCUMENT` bytes.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from math import isfinite
from typing import TypeAlias
from xml.parsers import expat

from varstore_companion.errors import MalformedError
from varstore_companion.toolstack.plain_xmlrpc import DONE, Plain, is_plain

Value: TypeAlias = bool | int | float | str | datetime | list["Value"] | dict[str, "Value"] | None
"""What a call or an answer can hold. Times are in UTC. xapi sends its own integers as text, and so does `build_call`."""

MAX_DOCUMENT = 272 * 1024
"""Bytes of a request, or of an answer to one of ours: varstored reads 256 KiB of an answer, the rest is room."""
MAX_DEPTH = 32
"""Elements inside each other. The deepest of xapi-guard's own answers has 16."""
MAX_ELEMENTS = 8_192
"""Elements in all. A whole VM record of xapi's has several hundred."""

_PROLOGUE = b'<?xml version="1.0"?>'
_CHILDREN: dict[str, frozenset[str]] = {
    "": frozenset({"methodCall", "methodResponse"}),
    "methodCall": frozenset({"methodName", "params"}),
    "methodResponse": frozenset({"params", "fault"}),
    "params": frozenset({"param"}),
    "param": frozenset({"value"}),
    "fault": frozenset({"value"}),
    "value": frozenset({"string", "int", "i4", "boolean", "double", "dateTime.iso8601", "nil", "struct", "array"}),
    "struct": frozenset({"member"}),
    "member": frozenset({"name", "value"}),
    "array": frozenset({"data"}),
    "data": frozenset({"value"}),
}
_NO_CHILDREN: frozenset[str] = frozenset()
_BLANK = " \t\r\n"

_METHOD = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")
_DOUBLE = re.compile(r"[+-]?(?:[0-9]{1,32}\.?[0-9]{0,32}|\.[0-9]{1,32})(?:[eE][+-]?[0-9]{1,3})?")
_TIME = re.compile(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z?")

_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Call:
    """A request: `VM.get_NVRAM` and its parameters, the session first."""

    method: str
    parameters: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Success:
    """The answer `Status` = `Success`. A guard's nil is None."""

    value: Value


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer `Status` = `Failure`. `description`: xapi's error name and its arguments, flat.

    A guard's error is its name alone, or its name and a list of arguments, which may be nested; their texts are put in a
    row here. It is empty where the description is nil.
    """

    description: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """XML-RPC's own kind of failure, which xapi uses only for what is not a call at all."""

    code: int
    text: str


Response = Success | Failure | Fault


def parse_call(document: bytes) -> Call:
    """Read a methodCall. Raises `MalformedError`."""
    method, *parameters = _read(document, "methodCall", MAX_DOCUMENT).result
    return Call(str(method), tuple(parameters))


def parse_response(document: bytes, *, limit: int = MAX_DOCUMENT) -> Response:
    """Read a methodResponse of at most `limit` bytes. Raises `MalformedError`, also when it lacks xapi's `Status`."""
    if document == DONE:
        return Success(None)
    reader = _read(document, "methodResponse", limit)
    (value,) = reader.result
    if reader.is_fault:
        match value:
            case {"faultCode": int(code), "faultString": str(text), **rest} if not rest:
                return Fault(code, text)
        raise _answer_error("a fault with faultCode and faultString")
    match value:
        case {"Status": "Success", "Value": result, **rest} if not rest:
            return Success(result)
        case {"Status": "Failure", "ErrorDescription": description, **rest} if not rest:
            return Failure(tuple(_flat(description)))
    raise _answer_error("Status with Value or ErrorDescription")


def build_call(method: str, parameters: Iterable[Value | Plain]) -> bytes:
    """Write a methodCall as xapi's own clients do: strings without a tag, integers as their digits."""
    parts: list[bytes | bytearray] = [_PROLOGUE, b"<methodCall><methodName>", _escaped(method), b"</methodName><params>"]
    for parameter in parameters:
        if isinstance(parameter, Plain):
            parts += (b"<param><value>", parameter.text, b"</value></param>")
        else:
            out = bytearray()
            _write(out, parameter)
            parts += (b"<param>", out, b"</param>")
    parts.append(b"</params></methodCall>")
    return b"".join(parts)


def build_response(response: Response) -> bytes:
    """Write a methodResponse: `Status` first, then `Value` or `ErrorDescription`, which varstored reads by position.

    A text's characters that XML cannot hold become U+FFFD.
    """
    out = bytearray(_PROLOGUE)
    match response:
        case Success(value):
            out += b"<methodResponse><params><param>"
            _write(out, {"Status": "Success", "Value": value})
            out += b"</param></params></methodResponse>"
        case Failure(description):
            out += b"<methodResponse><params><param>"
            _write(out, {"Status": "Failure", "ErrorDescription": list(description)})
            out += b"</param></params></methodResponse>"
        case Fault(code, text):
            out += b"<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>"
            out += b"%d</int></value></member><member><name>faultString</name><value>" % code
            out += _escaped(text) + b"</value></member></struct></value></fault></methodResponse>"
    return bytes(out)


class StructAnswer:
    """An answer `Success` whose value is a struct, written member by member: for records of which there are many."""

    def __init__(self) -> None:
        # Its value is given out without a copy.
        self._out = BytesIO()
        self._out.write(_PROLOGUE)
        self._out.write(
            b"<methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member>"
            b"<member><name>Value</name><value><struct>"
        )

    def __len__(self) -> int:
        """Bytes so far."""
        return self._out.tell()

    def add(self, name: str, value: Value) -> None:
        """Write a member; each name once."""
        member = bytearray()
        _write_member(member, name, value)
        self._out.write(member)

    def finish(self) -> bytes:
        """The whole answer, as `build_response` writes it."""
        self._out.write(b"</struct></value></member></struct></value></param></params></methodResponse>")
        return self._out.getvalue()


# Reading


def _method(text: str) -> str:
    name = text.strip(_BLANK)
    if not _METHOD.fullmatch(name):
        raise ValueError
    return name


def _integer(text: str) -> int:
    digits = text.strip(_BLANK)
    if not _INTEGER.fullmatch(digits) or not -(2**31) <= int(digits) < 2**31:
        raise ValueError
    return int(digits)


def _boolean(text: str) -> bool:
    return bool(("0", "1").index(text.strip(_BLANK)))


def _double(text: str) -> float:
    number = text.strip(_BLANK)
    if not _DOUBLE.fullmatch(number) or not isfinite(float(number)):
        raise ValueError
    return float(number)


def _time(text: str) -> datetime:
    found = _TIME.fullmatch(text.strip(_BLANK))
    if not found:
        raise ValueError
    year, month, day, hour, minute, second = map(int, found.groups())
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def _nil(text: str) -> None:
    if text.strip(_BLANK):
        raise ValueError


_SCALARS: dict[str, tuple[Callable[[str], Value], str]] = {
    "string": (str, "text"),
    "name": (str, "text"),
    "methodName": (_method, "the name of a method"),
    "int": (_integer, "a number of 32 bits"),
    "i4": (_integer, "a number of 32 bits"),
    "boolean": (_boolean, "0 or 1"),
    "double": (_double, "a number"),
    "dateTime.iso8601": (_time, "a time as 20260131T12:00:00Z"),
    "nil": (_nil, "nothing in nil"),
}
"""What each element that holds text alone reads it as (raising `ValueError`), and what it should hold."""

_WITH_TEXT = frozenset({"value", *_SCALARS})


class _Frame:
    """An element that is open: its texts, and the values of the elements inside it that have ended."""

    __slots__ = ("children", "offset", "tag", "texts", "values")

    def __init__(self, tag: str, offset: int) -> None:
        self.tag = tag
        self.offset = offset
        self.texts: list[str] = []
        self.children: list[str] = []
        self.values: list[Value] = []


class _Reader:
    """Takes expat's events, holds them to the grammar, and folds each element into its parent when it ends."""

    def __init__(self, root: str) -> None:
        self.parser = parser = expat.ParserCreate("UTF-8")
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.ProcessingInstructionHandler = self._instruction
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        self._root = root
        self._stack = [_Frame("", 0)]
        self._elements = 0
        self.is_fault = False
        self.result: list[Value] = []
        """A methodCall's name and parameters, or a methodResponse's one value."""

    def _error(self, expected: str, offset: int | None = None) -> MalformedError:
        return MalformedError("XML-RPC", offset=self.parser.CurrentByteIndex if offset is None else offset, expected=expected)

    def _declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.upper() not in ("UTF-8", "US-ASCII"):
            raise self._error("UTF-8")

    def _doctype(self, *_declared: object) -> None:
        raise self._error("no document type declaration")

    def _instruction(self, *_given: object) -> None:
        raise self._error("no processing instruction")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        parent = self._stack[-1]
        allowed = _CHILDREN.get(parent.tag, _NO_CHILDREN) if parent.tag else {self._root}
        if tag not in allowed:
            raise self._error(" or ".join(sorted(allowed)) if allowed else f"no element in {parent.tag}")
        if attributes:
            raise self._error("an element without attributes")
        self._elements += 1
        if len(self._stack) > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise self._error(f"at most {MAX_DEPTH} elements inside each other and {MAX_ELEMENTS} in all")
        parent.children.append(tag)
        self._stack.append(_Frame(tag, self.parser.CurrentByteIndex))

    def _text(self, text: str) -> None:
        frame = self._stack[-1]
        if frame.tag in _WITH_TEXT:
            frame.texts.append(text)
        elif text.strip(_BLANK):
            raise self._error(f"no text in {frame.tag}")

    def _end(self, _tag: str) -> None:
        frame = self._stack.pop()
        text = "".join(frame.texts)
        if frame.tag in _SCALARS:
            read, expected = _SCALARS[frame.tag]
            try:
                value = read(text)
            except ValueError:
                raise self._error(expected, frame.offset) from None
        else:
            value = self._fold(frame, text)
        if len(self._stack) > 1:
            self._stack[-1].values.append(value)
        else:
            self.result = _items([value])

    def _fold(self, frame: _Frame, text: str) -> Value:
        match frame.tag:
            case "value" if not frame.children:
                return text
            case "value":
                if len(frame.children) != 1 or text.strip(_BLANK):
                    raise self._error("a value of one type", frame.offset)
                return frame.values[0]
            case "member":
                self._confirm(frame, ["name", "value"])
                return frame.values
            case "struct":
                return self._struct(frame)
            case "data" | "params":
                return frame.values
            case "array":
                self._confirm(frame, ["data"])
                return frame.values[0]
            case "param" | "fault":
                self._confirm(frame, ["value"])
                self.is_fault = frame.tag == "fault"
                return frame.values[0]
            case "methodCall":
                self._confirm(frame, ["methodName"] if len(frame.children) == 1 else ["methodName", "params"])
                return [frame.values[0], *_items(frame.values[1:])]
            case _:
                self._confirm(frame, ["fault" if self.is_fault else "params"])
                values = frame.values if self.is_fault else _items(frame.values)
                if len(values) != 1:
                    raise self._error("one value", frame.offset)
                return values

    def _struct(self, frame: _Frame) -> dict[str, Value]:
        members: dict[str, Value] = {}
        for member in frame.values:
            name, value = _items([member])
            if str(name) in members:
                raise self._error(f"one member named {str(name)[:32]!r}", frame.offset)
            members[str(name)] = value
        return members

    def _confirm(self, frame: _Frame, children: Sequence[str]) -> None:
        if frame.children != children:
            raise self._error(f"{' and '.join(children)} in {frame.tag}", frame.offset)


def _items(values: Sequence[Value]) -> list[Value]:
    """What is in the one list of `values`, or nothing."""
    return values[0] if values and isinstance(values[0], list) else []


def _read(document: bytes, root: str, limit: int) -> _Reader:
    if len(document) > limit:
        raise MalformedError("XML-RPC", offset=limit, expected=f"a document of at most {limit:,} bytes")
    reader = _Reader(root)
    try:
        reader.parser.Parse(document, True)  # noqa: FBT003  expat takes it by position only
    except expat.ExpatError as error:
        where = max(reader.parser.ErrorByteIndex, 0)
        raise MalformedError("XML-RPC", offset=where, expected=f"XML ({expat.ErrorString(error.code)})") from None
    return reader


def _answer_error(expected: str) -> MalformedError:
    return MalformedError("an XML-RPC answer", offset=0, expected=expected)


def _flat(description: Value) -> Iterable[str]:
    if isinstance(description, list):
        for each in description:
            yield from _flat(each)
    elif isinstance(description, dict | datetime):
        raise _answer_error("texts and numbers in ErrorDescription")
    elif description is not None:
        yield str(description)


# Writing


def _write(out: bytearray, value: Value) -> None:
    out += b"<value>"
    match value:
        case None:
            out += b"<nil/>"
        case bool():
            out += b"<boolean>1</boolean>" if value else b"<boolean>0</boolean>"
        case str():
            out += _escaped(value)
        case int():
            out += b"%d" % value
        case float():
            out += b"<double>" + repr(value).removesuffix(".0").encode() + b"</double>"
        case datetime():
            at = value.astimezone(UTC)
            # The system's %Y has no zeros before a year below 1000.
            out += f"<dateTime.iso8601>{at.year:04}{at:%m%dT%H:%M:%SZ}</dateTime.iso8601>".encode()
        case dict():
            out += b"<struct>"
            for name, member in value.items():
                _write_member(out, name, member)
            out += b"</struct>"
        case list():
            out += b"<array><data>"
            for item in value:
                _write(out, item)
            out += b"</data></array>"
    out += b"</value>"


def _write_member(out: bytearray, name: str, value: Value) -> None:
    out += b"<member><name>" + _escaped(name) + b"</name>"
    _write(out, value)
    out += b"</member>"


def _escaped(text: str) -> bytes:
    # Nearly always base64 or a name.
    if text.isascii() and is_plain(data := text.encode()):
        return data
    return _NOT_IN_XML.sub(_UNKNOWN, text).translate(_ESCAPES).encode()
