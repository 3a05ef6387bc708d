"""Pure: what an export holds of a VM, as one JSON document, and the strict reading of it."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

from varstore_companion.errors import MalformedError
from varstore_companion.toolstack.nvram import nvram_of
from varstore_companion.toolstack.records import Firmware, VmKind, VmMetadata
from varstore_companion.toolstack.rows import TEXT_LIMIT
from varstore_companion.trust.state import CertificatesState

FORMAT = 1

LIMIT = 4_194_304
"""Bytes of a document: the largest NVRAM, each of its characters written as an escape."""

FIELD = "secureboot_certificates_state"

_REQUIRED = ("format", "uuid", "name", "kind", "firmware", "snapshot_of", "NVRAM")

E = TypeVar("E", bound=StrEnum)


def build(metadata: VmMetadata) -> bytes:
    """The document; without the field when the metadata have none."""
    document: dict[str, object] = {
        "format": FORMAT,
        "uuid": str(metadata.uuid),
        "name": metadata.name,
        "kind": metadata.kind,
        "firmware": metadata.firmware,
        "snapshot_of": None if metadata.snapshot_of is None else str(metadata.snapshot_of),
        "NVRAM": metadata.nvram.texts(),
    }
    if metadata.state is not None:
        document[FIELD] = metadata.state
    return json.dumps(document, indent=1).encode() + b"\n"


def parse(data: bytes) -> VmMetadata:
    """Read a document: every key known and there, but for the field, which a toolstack from before it does not write.

    Raises `MalformedError`, and `ToolstackRefusedError` for the NVRAM as `nvram_of` does.
    """
    if len(data) > LIMIT:
        raise MalformedError("export", offset=LIMIT, expected=f"at most {LIMIT:,} bytes")
    document = _load(data)
    for key in _REQUIRED:
        if key not in document:
            raise _wrong(key, "to be there")
    for key in document:
        if key not in _REQUIRED and key != FIELD:
            raise _wrong(key, f"one of {', '.join((*_REQUIRED, FIELD))}")
    # bool is an int, and True == 1.
    if type(document["format"]) is not int or document["format"] != FORMAT:
        raise _wrong("format", str(FORMAT))
    name = document["name"]
    if not isinstance(name, str) or len(name) > TEXT_LIMIT:
        raise _wrong("name", f"a text of at most {TEXT_LIMIT:,} characters")
    texts = document["NVRAM"]
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise _wrong("NVRAM", "an object whose values are texts")
    kind = _choice(document, "kind", VmKind)
    parent = None if document["snapshot_of"] is None else _uuid(document, "snapshot_of")
    if parent is not None and kind is not VmKind.SNAPSHOT:
        raise _wrong("snapshot_of", f"null for what is not a {VmKind.SNAPSHOT}")
    return VmMetadata(
        uuid=_uuid(document, "uuid"),
        name=name,
        kind=kind,
        firmware=_choice(document, "firmware", Firmware),
        snapshot_of=parent,
        nvram=nvram_of(texts),
        state=_choice(document, FIELD, CertificatesState) if FIELD in document else None,
    )


def _load(data: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(data.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise MalformedError("export", offset=error.start, expected="UTF-8") from None
    except json.JSONDecodeError as error:
        raise MalformedError("export", offset=error.pos, expected=f"JSON: {error.msg}") from None
    except RecursionError:
        raise MalformedError("export", offset=0, expected="JSON that is less deeply nested") from None
    except ValueError as error:
        # A whole number of more digits than Python converts.
        raise MalformedError("export", offset=0, expected=f"smaller numbers: {error}") from None
    if not isinstance(document, dict):
        raise MalformedError("export", offset=0, expected="a JSON object")
    return document


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _wrong(key, "to be there once")
        found[key] = value
    return found


def _choice(document: Mapping[str, object], key: str, allowed: type[E]) -> E:
    for value in allowed:
        if value == document[key]:
            return value
    raise _wrong(key, f"one of {', '.join(allowed)}, found {str(document[key])[:40]!r}")


def _uuid(document: Mapping[str, object], key: str) -> UUID:
    text = document[key]
    try:
        found = UUID(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    # UUID itself takes braces, a prefix and any grouping.
    if found is None or str(found) != text:
        raise _wrong(key, f"a uuid, found {str(text)[:40]!r}")
    return found


def _wrong(key: str, expected: str) -> MalformedError:
    return MalformedError(f"export: key {key[:40]!r}", offset=0, expected=expected)
