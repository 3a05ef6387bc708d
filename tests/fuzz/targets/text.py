"""A store as text, a whole NVRAM, an export of the embedded toolstack's, and a manifest."""

from collections.abc import Iterator
from uuid import UUID

from fuzz.contract import Target
from fuzz.scenes import manifest_text, stores
from varstore_companion.cli import store_file
from varstore_companion.errors import ConfigurationError, MalformedError, ToolstackRefusedError
from varstore_companion.toolstack import metadata, nvram
from varstore_companion.toolstack.records import Firmware, VmKind, VmMetadata
from varstore_companion.trust import manifest
from varstore_companion.trust.state import CertificatesState

SEPARATOR = b"\xfe"


def base64(data: bytes) -> None:
    """The text of a store, as an NVRAM's value and in a file: both read the same, and write it so that it is read again."""
    text = data.decode("utf-8", "surrogateescape")
    store = None
    try:
        store = nvram.bytes_of(text)
    except ToolstackRefusedError as error:
        _refused(error)
    else:
        assert nvram.plain_text_of(store).text.decode() == nvram.text_of(store)
        assert nvram.bytes_of(nvram.text_of(store)) == store
    try:
        file = store_file.decode(data)
    except MalformedError as error:
        assert 0 <= error.offset <= len(data)
        assert store is None
        return
    if file.base64:
        assert file.blob == store
        # Text that begins as a store does is taken for one, and no store's text does.
        again = b"\n" + file.encode(file.blob)
        assert store_file.decode(again).blob == file.blob
    else:
        assert file.blob == data
        assert file.encode(data) == data


def whole_nvram(data: bytes) -> None:
    """Keys and values in turn; the store's is among them."""
    parts = [each.decode("utf-8", "surrogatepass" if len(data) & 1 else "replace") for each in _parts(data)]
    texts = dict(zip(parts[::2], parts[1::2], strict=False))
    try:
        found = nvram.nvram_of(texts)
    except ToolstackRefusedError as error:
        _refused(error)
        return
    assert nvram.nvram_of(found.texts()) == found
    assert found.others == {key: value for key, value in texts.items() if key != nvram.EFI_VARIABLES}


def _parts(data: bytes) -> list[bytes]:
    found = []
    for each in data.split(SEPARATOR)[:200]:
        try:
            each.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            continue
        found.append(each)
    return found


def _refused(error: ToolstackRefusedError) -> None:
    assert error.code in ("INVALID_VALUE", "VALUE_NOT_SUPPORTED")
    assert len(str(error)) < 1_000
    # It goes out as XML.
    assert all(len(each) < 1_000 for each in error.parameters)


def export(data: bytes) -> None:
    """An exported VM: what was read is what is read again."""
    try:
        found = metadata.parse(data)
    except MalformedError as error:
        assert 0 <= error.offset <= len(data)
    except ToolstackRefusedError as error:
        _refused(error)
    else:
        assert metadata.parse(metadata.build(found)) == found


def rules(data: bytes) -> None:
    """A manifest of an operator's."""
    try:
        found = manifest.parse(data.decode("utf-8", "replace"), "a file")
    except ConfigurationError as error:
        assert str(error).startswith("a file: ")
        assert len(str(error)) < 4 * len(data) + 400
        return
    assert found.rules
    assert found.signature_owner not in found.wrong_owners
    for rule in found.rules:
        assert {rule.present, *rule.required} <= set(found.certificates.values())


def _texts() -> Iterator[bytes]:
    for each in [blob for blob in stores() if len(blob) < 400][::4]:
        yield nvram.text_of(each).encode()
        yield each
    text = nvram.text_of(b"VARS" * 20).encode()
    yield b"\n".join(text[at : at + 20] for at in range(0, len(text), 20)) + b"\n"
    yield from (b"", b"QQ==", b"QR==", b"QQ=", b"Q", b"=", b"QQ==QQ==", b"VARS", "VkFSUw=é".encode(), b"\xff")


def _nvrams() -> Iterator[bytes]:
    for each in [blob for blob in stores() if len(blob) < 400][::6]:
        yield SEPARATOR.join((b"EFI-variables", nvram.text_of(each).encode(), b"other", b"value"))
    yield SEPARATOR.join((b"key", "\u20ac".encode(), b"", b"empty", b"\x01", b"control"))


def _exports() -> Iterator[bytes]:
    vm = UUID("6a1f3c52-94b0-4c7e-8d21-0f5e7a9b3c10")
    store = next(stores())
    for kind, parent, state in (
        (VmKind.VM, None, CertificatesState.OK),
        (VmKind.SNAPSHOT, vm, CertificatesState.UPDATE_AVAILABLE),
        (VmKind.TEMPLATE, None, None),
    ):
        texts = nvram.Nvram(None if parent else store, {"k": "v"})
        yield metadata.build(VmMetadata(vm, "a name", kind, Firmware.UEFI, parent, texts, state))
    yield b'{"format": 1e5, "a": [' + b"[" * 30


def _manifests() -> Iterator[bytes]:
    text = manifest_text()
    yield text.encode()
    yield text.replace('"db"', '"dbx"', 1).encode()
    yield text.replace("headroom = 500", "headroom = -1").encode()
    yield text.partition("[[rule]]")[0].encode()
    yield b"format = 1\nname.a.b = [1, {c = 2020-01-01T00:00:00Z}]\n"


TARGETS = (
    Target("base64", base64, _texts, limit=2_048),
    Target("nvram", whole_nvram, _nvrams, limit=2_048),
    Target("export", export, _exports, limit=2_048),
    Target("manifest", rules, _manifests, limit=3_072, calls_per_byte=30),
)
