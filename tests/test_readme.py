"""README says what is so."""

import dataclasses
import os
import re
import subprocess
from pathlib import Path

import pytest

from varstore_companion.cli.main import COMMANDS
from varstore_companion.daemon import metrics
from varstore_companion.daemon.config import RELOADABLE, Settings
from varstore_companion.trust.check import CertCheck, State

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    """The first cells of the table that begins with this heading."""
    table = README[README.index(f"| {heading} |") :].split("\n\n", 1)[0]
    return [line.split("|")[1].strip().strip("`") for line in table.splitlines()[2:]]


def test_what_a_reload_puts_in_force_is_told() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (restart|reload) \|$", README, re.MULTILINE)
    assert {key for key, _ in rows} == {field.name for field in dataclasses.fields(Settings)}
    assert {key for key, how in rows if how == "reload"} == RELOADABLE


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`varstore_companion_([a-z_]+)`", README))))
def test_every_metric_that_is_named_exists(name: str) -> None:
    plain = {f"{each}_total" for each in metrics.COUNTERS}
    source = Path(metrics.__file__).read_text(encoding="utf-8")
    assert name == "up" or name in plain or f'"{name}"' in source


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


@pytest.mark.parametrize("refuses", [False, True])
def test_taking_it_out_stops_at_the_first_refusal(tmp_path: Path, *, refuses: bool) -> None:
    """A guard's socket that stayed with a daemon which is stopped next would answer nobody."""
    recipe = README[README.index("### Take it out again") :]
    (loop,) = re.findall(r"^    # (varstore-companion list --json .*?done)$", recipe, re.MULTILINE | re.DOTALL)
    programs = {
        "varstore-companion": f'echo "$*" >>"$LOG"; [ "$1" = list ] || {"false" if refuses else "true"}',
        "jq": 'cat >/dev/null; printf "/run/a b\\n/run/c\\n"',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    done = subprocess.run(["sh", "-c", loop], env=environment, timeout=30, check=False)
    said = log.read_text().splitlines()
    assert said == ["list --json", "detach --socket /run/a b", *([] if refuses else ["detach --socket /run/c"])]
    assert (done.returncode != 0) is refuses
