"""Every figure can be measured, here and now; how fast this machine is, is nothing to fail for."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest

from support.certificates import microsoft_folder
from support.processes import python_environment

RUN = Path(__file__).with_name("run.py")

FIGURES = {
    "verdict-same": "x",
    "verdict-boot-entry": "x",
    "verdict-db": "x",
    "put": "x",
    "guard-cpu": "ms",
    "guard-elapsed": "x",
    "guard-elapsed-together": "x",
    "guard-elapsed-free": "x",
    "guard-many": "ms",
    "c-put-p50": "x",
    "c-put-p99": "x",
    "c-put-p50-together": "x",
    "c-put-p99-together": "x",
    "c-put-p50-free": "x",
    "c-put-p99-free": "x",
    "journal-fsyncs": "fsyncs",
    "journal-drain": "a second",
    "journal-idle": "x",
    "journal-ledger": "x",
    "certcheck-avoided": "x",
    "upgrade": "s",
    "certcheck-wall": "x",
    "certcheck-cpu": "x",
    "memory-idle": "MiB",
    "memory-vm": "KiB",
    "crowd-memory": "MiB",
    "crowd-start": "x",
    "crowd-boots": "s",
    "crowd-boot": "s",
    "noisy": "x",
    "boot-update": "x",
    "inspect": "x",
    "plan": "x",
}
WITH_SCRIPTS = {
    "varstore-nvram-certcheck": {"certcheck-avoided", "certcheck-wall", "certcheck-cpu"},
    "varstore-companion": {"memory-idle", "memory-vm", "crowd-memory", "crowd-start"},
}


class Measured(TypedDict):
    name: str
    unit: str
    median: float
    yardstick: str | None
    yardstick_seconds: float | None


class Said(TypedDict):
    figures: list[Measured]
    skipped: dict[str, str]


def _smoke(*options: str) -> str:
    # -P as in isolated mode: the script has to find the tests' folder by itself.
    command = [sys.executable, "-P", str(RUN), "--smoke", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=python_environment()).stdout


@pytest.fixture(scope="module")
def said() -> Said:
    if microsoft_folder() is None:
        pytest.skip("Microsoft's certificates come from the package virt-firmware, which is not installed")
    document: Said = json.loads(_smoke("--json"))
    return document


def test_every_figure_is_there_and_finite(said: Said) -> None:
    absent = {name for script, names in WITH_SCRIPTS.items() if not _has(script) for name in names}
    assert said["skipped"].keys() == absent
    assert {figure["name"]: figure["unit"] for figure in said["figures"]} == {
        name: unit for name, unit in FIGURES.items() if name not in absent
    }
    for figure in said["figures"]:
        assert math.isfinite(figure["median"]), figure
        assert figure["median"] > 0, figure


def test_a_ratio_names_its_yardstick_and_how_long_it_took(said: Said) -> None:
    for figure in said["figures"]:
        if figure["unit"] == "x":
            assert figure["yardstick"]
            assert (figure["yardstick_seconds"] or 0) > 0


def _has(script: str) -> bool:
    return Path(sys.executable).with_name(script).exists()
