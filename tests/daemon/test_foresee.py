"""What is told of the places that the settings name before anything is made."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from varstore_companion.daemon import foresee
from varstore_companion.daemon.config import Settings, by_key
from varstore_companion.errors import ConfigurationError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Good ones, in a folder with a file, a socket and links that lead nowhere."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("none")
    (tmp_path / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    return Settings(control=tmp_path / "run" / "control.sock", state_dir=tmp_path / "lib" / "state")


def trees(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_what_could_be_used(settings: Settings, tmp_path: Path) -> None:
    before = trees(tmp_path)
    for good in (
        settings,
        replace(settings, state_dir=tmp_path, control=tmp_path / "left.sock"),
        replace(settings, xapi_socket=tmp_path / "left.sock"),
        replace(settings, xapi_socket=tmp_path / "run" / "xapi"),
        replace(settings, toolstack="xapi", xapi=tmp_path / "left.sock"),
        # The daemon starts before its toolstack is installed, and looks at the socket of no other.
        replace(settings, toolstack="xapi", xapi=tmp_path / "none" / "xapi"),
        replace(settings, xapi=tmp_path / "file"),
    ):
        foresee.confirm(good, by_key)
    assert trees(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "path", "said"),
    [
        ("state_dir", "file", "file: exists and is not a folder"),
        ("state_dir", "file/state", "file: exists and is not a folder"),
        ("state_dir", "dangling", "dangling: a link that leads nowhere"),
        ("state_dir", "dangling/state", "dangling: a link that leads nowhere"),
        ("state_dir", "circle", "circle: Too many levels"),
        ("state_dir", "x" * 300, "File name too long"),
        ("control", "file", "file: exists and is not a socket"),
        ("control", "file/control.sock", "file: exists and is not a folder"),
        ("xapi_socket", "file", "file: exists and is not a socket"),
        ("xapi_socket", "none/xapi", "none: there is no such folder"),
        ("xapi_socket", "file/xapi", "file: exists and is not a folder"),
        ("xapi", "file", "file: exists and is not a socket"),
        ("xapi", "file/xapi", "file: exists and is not a folder"),
    ],
)
def test_what_could_not(settings: Settings, tmp_path: Path, key: str, path: str, said: str) -> None:
    bad = settings if key != "xapi" else replace(settings, toolstack="xapi")
    given: dict[str, Any] = {key: tmp_path / path}
    bad = replace(bad, **given)
    with pytest.raises(ConfigurationError) as error:
        foresee.confirm(bad, by_key)
    assert str(error.value).startswith(f"{key}: {tmp_path}/")
    assert said in str(error.value)
    foresee.confirm(bad, by_key, {"late_seconds"})


@pytest.mark.skipif(os.geteuid() != 0, reason="what root may write to is told to root only")
def test_what_could_not_be_written_to(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/system/test_broken_disk.py has a file system that is mounted read-only."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigurationError, match=r"^state_dir: .*: Permission denied$"):
        foresee.confirm(settings, by_key)
    with pytest.raises(ConfigurationError, match=r"^control: .*: Permission denied$"):
        foresee.confirm(settings, by_key, {"control"})
    settings.control.parent.mkdir()
    foresee.confirm(settings, by_key, {"control"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    foresee.confirm(settings, by_key)
