"""systemd/config.toml: every key is in it, each default is the true one, and it can be used as it is."""

import dataclasses
import re
from pathlib import Path

import pytest

from varstore_companion.daemon import config
from varstore_companion.daemon.config import RELOADABLE, Settings
from varstore_companion.errors import ConfigurationError
from varstore_companion.files import load_manifest

PATH = Path(__file__).parents[1] / "systemd" / "config.toml"
LINES = PATH.read_text(encoding="utf-8").splitlines()
SETTING = re.compile(r"#([a-z_]+) = \S.*")
KEYS = [field.name for field in dataclasses.fields(Settings)]
WITHOUT_DEFAULT = {key for key in KEYS if getattr(Settings(), key) is None}


def given(tmp_path: Path) -> Settings:
    """The settings when every line that is one counts."""
    path = tmp_path / "config.toml"
    path.write_text("\n".join(line[1:] if SETTING.fullmatch(line) else line for line in LINES))
    return config.load(path)


def about(key: str) -> str:
    """The comment above a key."""
    (number,) = (number for number, line in enumerate(LINES) if line.startswith(f"#{key} ="))
    first = number
    while LINES[first - 1].startswith("# "):
        first -= 1
    return " ".join(line.removeprefix("# ") for line in LINES[first:number])


def test_as_it_is_it_changes_nothing() -> None:
    assert config.load(PATH) == Settings()


def test_every_key_is_there_once_and_its_value_is_the_default(tmp_path: Path) -> None:
    found = [match[1] for line in LINES if (match := SETTING.fullmatch(line))]
    assert sorted(found) == sorted(KEYS)
    settings = given(tmp_path)
    for key in set(KEYS) - WITHOUT_DEFAULT:
        assert getattr(settings, key) == getattr(Settings(), key), key
    for key in WITHOUT_DEFAULT:
        assert getattr(settings, key) is not None
    assert settings.headroom == load_manifest().headroom


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_explained(key: str) -> None:
    assert len(about(key)) > 30
    said = "no default" in about(key).lower() or "default is the manifest's" in about(key)
    assert said is (key in WITHOUT_DEFAULT)


def test_the_keys_that_a_reload_puts_in_force_are_under_their_heading() -> None:
    heading = next(number for number, line in enumerate(LINES) if line.startswith("# In force after"))
    below = {match[1] for line in LINES[heading:] if (match := SETTING.fullmatch(line))}
    assert below == RELOADABLE


@pytest.mark.parametrize(("key", "number"), [("control", "107"), ("xapi_socket", "107"), ("headroom", "57344")])
def test_the_limits_are_those_of_the_program(key: str, number: str, tmp_path: Path) -> None:
    assert f"t most {number}" in about(key)
    value = int(number) if key == "headroom" else f'"/{"x" * (int(number) - 1)}"'
    more = int(number) + 1 if key == "headroom" else f'"/{"x" * int(number)}"'
    path = tmp_path / "config.toml"
    path.write_text(f"{key} = {value}\n")
    config.confirmed(config.load(path))
    path.write_text(f"{key} = {more}\n")
    with pytest.raises(ConfigurationError, match=f"^({path}: )?{key}: "):
        config.confirmed(config.load(path))
