"""Reading files that a person names: bounded, and with errors that name the file."""

from pathlib import Path

import pytest

from support.shipped import own_manifest, own_text
from varstore_companion.errors import ConfigurationError, MalformedError
from varstore_companion.files import MANIFEST_LIMIT, SHIPPED_MANIFEST, load_manifest, read_file


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    assert read_file(str(path), 6) == b"12345"
    with pytest.raises(MalformedError, match=r"file at offset 4: expected at most 4 bytes") as caught:
        read_file(path, 4)
    assert caught.value.what == "file"


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(MalformedError, match="at most 1,000 bytes"):
        read_file("/dev/zero", 1_000)


def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent", 1)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 1)


def test_the_shipped_manifest_is_the_default() -> None:
    assert load_manifest() == load_manifest(SHIPPED_MANIFEST) == load_manifest(Path(SHIPPED_MANIFEST))
    assert load_manifest().name == "microsoft-2023"
    assert Path(SHIPPED_MANIFEST).stat().st_size * 20 < MANIFEST_LIMIT


def test_an_operators_manifest_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(own_text(), encoding="utf-8")
    assert load_manifest(path) == own_manifest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "not a manifest: 'utf-8' codec"),
        (b"x" * (MANIFEST_LIMIT + 1), "expected at most 262,144 bytes"),
        (b"format = ", "not TOML"),
        (b"format = 9", "format: expected 1, which this version reads, found '9'"),
    ],
    ids=["not text", "too large", "not TOML", "another format"],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        load_manifest(tmp_path / "absent.toml")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        load_manifest(tmp_path)
