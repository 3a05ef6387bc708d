"""README says what is so."""

import dataclasses
import re
from pathlib import Path

import pytest

from varstore_companion.cli.main import COMMANDS
from varstore_companion.daemon.config import Settings
from varstore_companion.trust.check import CertCheck, State

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    """The first cells of the table that begins with this heading."""
    table = README[README.index(f"| {heading} |") :].split("\n\n", 1)[0]
    return [line.split("|")[1].strip().strip("`") for line in table.splitlines()[2:]]


def test_the_two_commands_are_named_first() -> None:
    assert 0 < README.index("$ make demo") < README.index("$ make test") < README.index("## Look at a store")


def test_every_state_is_explained() -> None:
    assert first_cells("state") == list(State)
    assert all(f"`{answer}`" in README for answer in CertCheck)


def test_every_key_of_the_settings_is_explained() -> None:
    assert set(first_cells("key")) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_named(command: str) -> None:
    assert re.search(rf"(varstore-companion |`){command}\b", README) or f"make {command}" in README


def test_every_command_that_is_shown_exists() -> None:
    shown = set(re.findall(r"^    [$#] varstore-companion ([a-z]+)", README, re.MULTILINE))
    assert shown
    assert shown <= set(COMMANDS)
