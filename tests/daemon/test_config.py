"""The settings file."""

import dataclasses
import re
from pathlib import Path

import pytest

from varstore_companion.daemon import config
from varstore_companion.daemon.config import FILE_LIMIT, Settings, Source
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
        ("headroom = 57345", "headroom: expected a whole number from 0 to 57,344, found '57345' (at line 1)"),
        ("\nupdates_at_once = 0", "updates_at_once: expected a whole number from 1 to 100,000, found '0' (at line 2)"),
        ("# one\n\nheadroom = 57345", "(at line 3)"),
        ("manifest = 'm.toml'", "manifest: expected an absolute path, found 'm.toml' (at line 1)"),
        ('state_dir = "/a\\u0000b"', "state_dir: expected an absolute path"),
        ("contrl = 1", "contrl: unknown key: expected one of control, state_dir, toolstack, xapi, certificates, auth_dir,"),
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


def test_every_key_has_a_reader_and_no_reader_has_no_key() -> None:
    assert set(config._READERS) == {field.name for field in dataclasses.fields(Settings)}
    assert set(config._READERS) > config.RELOADABLE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(toolstack="xapi", xapi_socket=Path("/run/x")), "xapi_socket: only the embedded toolstack"),
        (Settings(control=Path("/run/x"), xapi_socket=Path("/run/x")), "xapi_socket: /run/x is the control socket"),
        (Settings(control=Path("x")), "control: x: expected an absolute path of at most 107 bytes"),
        (Settings(xapi_socket=Path("/" + "ü" * 54)), "expected an absolute path of at most 107 bytes"),
    ],
)
def test_settings_that_do_not_go_together(settings: Settings, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        config.confirmed(settings)
    as_options = said.replace("xapi_socket", "--xapi-socket").replace("control: x", "--control: x")
    with pytest.raises(ConfigurationError, match=re.escape(as_options)):
        Source.fixed(settings).read()


def test_an_error_says_where_a_key_was_given(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    source = Source(path, {"state_dir": Path("/given")})
    path.write_text("# one\nmanifest = '/m'\n")
    assert str(source.error("manifest", "why")) == f"{path}, line 2: manifest: why"
    assert str(source.error("state_dir", "why")) == "--state-dir: why"
    assert str(source.error("control", "why")) == "control, by default: why"
    # Somebody is at work on the file; that must not take the reason away.
    path.unlink()
    assert str(source.error("manifest", "why")) == f"{path}: manifest: why"
    assert str(Source().error("manifest", "why")) == "manifest, by default: why"
    assert str(Source(path, may_be_absent=True).error("manifest", "why")) == "manifest, by default: why"


def test_keys_that_do_not_go_together_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('toolstack = "guard"\nxapi_socket = "/run/x"\n')
    with pytest.raises(ConfigurationError, match=rf"^{re.escape(str(path))}, line 2: xapi_socket: only the embedded"):
        Source(path).read()


def test_the_usual_file_is_read_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tmp_path / "usual.toml"
    monkeypatch.setattr(config, "CONFIG", usual)
    without = Source.of(None, {"headroom": 3})
    assert without.read() == Settings(headroom=3)
    # One that comes later is found by a reload.
    usual.write_text('manifest = "/m"\nheadroom = 1\n')
    assert without.read() == Settings(headroom=3, manifest=Path("/m"))
    # One that was there may not just be gone: that is an editor at work, and no wish for the defaults.
    there = Source.of(None, {})
    usual.unlink()
    with pytest.raises(ConfigurationError, match=r"usual\.toml: No such file"):
        there.read()


def test_a_usual_file_that_cannot_be_looked_at_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(config, "CONFIG", tmp_path / "file" / "config.toml")
    with pytest.raises(ConfigurationError, match="Not a directory"):
        Source.of(None, {}).read()


def test_a_file_that_is_named_goes_before_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, named = tmp_path / "usual.toml", tmp_path / "named.toml"
    monkeypatch.setattr(config, "CONFIG", usual)
    usual.write_text("headroom = 1\n")
    named.write_text("")
    assert Source.of(named, {}).read() == Settings()
