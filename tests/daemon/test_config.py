"""The settings file."""

from pathlib import Path

import pytest

from varstore_companion.daemon import config
from varstore_companion.daemon.config import FILE_LIMIT, Settings
from varstore_companion.errors import ConfigurationError


def load(folder: Path, text: str) -> Settings:
    path = folder / "config.toml"
    path.write_text(text)
    return config.load(path)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Settings()


def test_every_setting_can_be_given(tmp_path: Path) -> None:
    text = """
        control = "/run/c.sock"
        state_dir = "/srv/state"
        toolstack = "embedded"
        certificates = "/etc/certificates"
        auth_dir = "/srv/auth"
        manifest = "/etc/manifest.toml"
        headroom = 0
        xapi = "/run/xapi"
    """
    assert load(tmp_path, text) == Settings(
        control=Path("/run/c.sock"),
        state_dir=Path("/srv/state"),
        toolstack="embedded",
        certificates=Path("/etc/certificates"),
        auth_dir=Path("/srv/auth"),
        manifest=Path("/etc/manifest.toml"),
        headroom=0,
        xapi=Path("/run/xapi"),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("contrl = '/run/c.sock'", "contrl: unknown key"),
        ("control = 7", "control: expected a string"),
        ("control = ''", "control: expected a string that is not empty"),
        ("headroom = -1", "headroom: expected a whole number from 0"),
        ("headroom = '1'", "headroom: expected a whole number"),
        ("headroom = true", "headroom: expected a whole number"),
        ("toolstack = 'xen'", "toolstack: expected one of embedded, guard, xapi"),
        ("xapi = 7", "xapi: expected a string"),
        ("[control]", "control: expected a string"),
        ("control = ", "not TOML"),
        ("a = '" + "x" * FILE_LIMIT + "'", "at most 65,536 bytes"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, text)
    assert str(tmp_path / "config.toml") in str(error.value)
    assert named in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing: No such file"):
        config.load(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="binary"):
        config.load(tmp_path / "binary")


@pytest.mark.parametrize("toolstack", ["embedded", "guard", "xapi"])
def test_every_toolstack_can_be_named(tmp_path: Path, toolstack: str) -> None:
    assert load(tmp_path, f'toolstack = "{toolstack}"') == Settings(toolstack=toolstack)
