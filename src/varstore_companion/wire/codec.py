"""The one reader and the one builder of payloads, driven by the declarations in `messages` and `observing`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeVar, get_type_hints

from varstore_companion.wire import messages, observing
from varstore_companion.wire.errors import LocalProtocolError, PayloadError, UnsupportedFieldError
from varstore_companion.wire.fields import Kind, Value
from varstore_companion.wire.frames import MUST_UNDERSTAND, join_fields, split_fields
from varstore_companion.wire.messages import AnswerMessage, ErrorAnswer, Message, RequestMessage

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Field:
    """One declared field of a message."""

    tag: int
    name: str
    kind: Kind
    required: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """A message's declared fields by tag, ascending."""

    name: str
    fields: Mapping[int, Field]

    @classmethod
    def of(cls, message: type[Message]) -> "Layout":
        """Collect the declarations of a message's class."""
        hints = get_type_hints(message, include_extras=True)
        fields = {}
        for field in dataclasses.fields(message):
            (tag,) = hints[field.name].__metadata__
            fields[tag.number] = Field(tag.number, field.name, tag.kind, field.default is dataclasses.MISSING)
        return cls(message.__name__, MappingProxyType(dict(sorted(fields.items()))))


def _declared(base: type[M]) -> Iterator[type[M]]:
    for value in (*vars(messages).values(), *vars(observing).values()):
        if isinstance(value, type) and issubclass(value, base) and hasattr(value, "TYPE"):
            yield value


REQUESTS: Final = {message.TYPE: message for message in _declared(RequestMessage)}
"""The classes of all requests by type."""

ANSWERS: Final = {message.TYPE: message for message in _declared(AnswerMessage)}
"""The classes of all answers by type; `ErrorAnswer`, which answers any request, is not among them."""

LAYOUTS: Final = {message: Layout.of(message) for message in (*REQUESTS.values(), *ANSWERS.values(), ErrorAnswer)}


def decode(message: type[M], payload: bytes | memoryview) -> M:
    """Read a message from its payload; large values are copied once.

    Raises `PayloadError`, the first of: broken fields, `UnsupportedFieldError`, a value that does not fit
    (`StoreOverLimitError` for a store), a missing field, fields at odds with each other.
    """
    layout = LAYOUTS[message]
    spans = split_fields(payload)
    known = []
    for tag, start, end in spans:
        field = layout.fields.get(tag)
        if field is not None:
            known.append((field, start, end))
        elif tag & MUST_UNDERSTAND:
            raise UnsupportedFieldError(
                f"{layout.name} with field {tag:#06x}", offset=start, expected="only fields of this version"
            )
    values: dict[str, Value] = {}
    for field, start, end in known:
        kind = field.kind
        value = kind.parse(bytes(payload[start:end]))
        if value is None:
            what = f"{layout.name} field {field.name}, {end - start} long,"
            raise kind.error(what, offset=start, expected=kind.expected)
        values[field.name] = value
    for field in layout.fields.values():
        if field.required and field.name not in values:
            raise PayloadError(layout.name, offset=len(payload), expected=f"a field {field.name} ({field.tag:#06x})")
    make: Callable[..., M] = message
    made = make(**values)
    flaw = made.flaw()
    if flaw is not None:
        raise PayloadError(f"{layout.name} with {flaw}", offset=0, expected="fields that agree")
    return made


def encode(message: Message) -> bytes:
    """Build a message's payload. Raises `LocalProtocolError` for a value that the protocol does not allow."""
    layout = LAYOUTS[type(message)]
    flaw = message.flaw()
    if flaw is not None:
        raise LocalProtocolError(f"{layout.name} with {flaw}")
    fields = []
    for field in layout.fields.values():
        value = getattr(message, field.name)
        if value is None and not field.required:
            continue
        data = field.kind.build(value)
        if data is None:
            raise LocalProtocolError(f"{layout.name} field {field.name}: expected {field.kind.expected}")
        fields.append((field.tag, data))
    return join_fields(fields)
