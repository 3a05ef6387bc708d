"""An export's document: what is written is read back the same, and nothing else is read at all."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.strategies import stores
from support.vms import old_store
from varstore_companion.errors import MalformedError, ToolstackRefusedError
from varstore_companion.toolstack import metadata
from varstore_companion.toolstack.nvram import EFI_VARIABLES, KEY_LIMIT, KEYS, VALUE_LIMIT, Nvram
from varstore_companion.toolstack.records import Firmware, VmKind, VmMetadata
from varstore_companion.trust.state import CertificatesState

VM, PARENT = UUID("11111111-2222-3333-4444-55555555555a"), UUID("22222222-2222-3333-4444-55555555555a")
SNAPSHOT = VmMetadata(VM, "söme\tname", VmKind.SNAPSHOT, Firmware.UEFI, PARENT, Nvram(old_store(), {"k": "v"}), None)


METADATA = st.builds(
    VmMetadata,
    uuid=st.uuids(),
    name=st.text(max_size=100),
    kind=st.sampled_from(VmKind),
    firmware=st.sampled_from(Firmware),
    snapshot_of=st.none() | st.uuids(),
    nvram=st.builds(Nvram, st.none() | stores(), st.dictionaries(st.sampled_from("kl"), st.text(max_size=20))),
    state=st.none() | st.sampled_from(CertificatesState),
)


@settings(max_examples=50)
@given(METADATA)
def test_what_is_written_is_read_back(exported: VmMetadata) -> None:
    document = metadata.build(exported)
    values = "".join(exported.nvram.others.values())
    if exported.snapshot_of is not None and exported.kind is not VmKind.SNAPSHOT:
        with pytest.raises(MalformedError, match="null for what is not a snapshot"):
            metadata.parse(document)
    elif any((character < " " and character not in "\t\n\r") or character in "\ufffe\uffff" for character in values):
        with pytest.raises(ToolstackRefusedError, match="INVALID_VALUE"):
            metadata.parse(document)
    else:
        assert metadata.parse(document) == exported


def test_the_largest_document_fits() -> None:
    others = {f"{number:0{KEY_LIMIT}}": "\U0001f512" * VALUE_LIMIT for number in range(KEYS)}
    largest = VmMetadata(VM, "\U0001f512" * 4096, VmKind.VM, Firmware.UEFI, None, Nvram(old_store(0, 50_000), others), None)
    assert metadata.parse(metadata.build(largest)) == largest


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(metadata.build(SNAPSHOT))
    return document


@pytest.mark.parametrize("key", sorted(_document()))
def test_every_key_has_to_be_there(key: str) -> None:
    document = _document()
    del document[key]
    with pytest.raises(MalformedError, match=f"'{key}'.*to be there"):
        metadata.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("format", 2, "expected 1"),
        ("format", True, "expected 1"),
        ("format", "1", "expected 1"),
        ("uuid", "1", "a uuid"),
        ("uuid", str(VM).upper(), "a uuid"),
        ("uuid", VM.hex, "a uuid"),
        ("uuid", 7, "a uuid"),
        ("uuid", None, "a uuid"),
        ("name", None, "a text"),
        ("name", "n" * 4097, "at most 4,096"),
        ("kind", "VM", "one of vm, snapshot"),
        ("kind", "host", "one of vm, snapshot"),
        ("kind", ["vm"], "one of vm, snapshot"),
        ("firmware", "", "one of uefi, bios"),
        ("snapshot_of", "", "a uuid"),
        ("secureboot_certificates_state", "OK", "one of ok, update_available, update_on_boot"),
        ("secureboot_certificates_state", "unknown", "one of ok"),
        ("secureboot_certificates_state", None, "one of ok"),
        ("NVRAM", None, "an object"),
        ("NVRAM", [], "an object"),
        ("NVRAM", {"key": 1}, "whose values are texts"),
        ("NVRAM", {EFI_VARIABLES: None}, "whose values are texts"),
        ("VCPUs_max", 1, "one of format"),
        ("", 1, "one of format"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, expected: str) -> None:
    with pytest.raises(MalformedError) as refused:
        metadata.parse(json.dumps({**_document(), key: value}).encode())
    assert repr(key) in str(refused.value)
    assert expected in str(refused.value)


@pytest.mark.parametrize("text", ["broken", "QUJD"])
def test_a_store_that_is_none_is_refused_as_everywhere(text: str) -> None:
    document = _document()
    document["NVRAM"][EFI_VARIABLES] = text
    with pytest.raises(ToolstackRefusedError, match="INVALID_VALUE"):
        metadata.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"VARS"',
        b"\xff",
        b"{}{}",
        b'{"format": NaN}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b" " * (metadata.LIMIT + 1),
        old_store(),
    ],
    ids=range(13),
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        metadata.parse(data)


def test_a_key_that_stands_there_twice_is_refused_wherever_it_is() -> None:
    text = metadata.build(SNAPSHOT).decode()
    make: list[Callable[[str], str]] = [
        lambda text: text.replace('"format": 1,', '"format": 1, "format": 1,'),
        lambda text: text.replace('"k": "v"', '"k": "v", "k": "v"'),
    ]
    for twice in make:
        assert twice(text) != text
        with pytest.raises(MalformedError, match="to be there once"):
            metadata.parse(twice(text).encode())
