"""Scenes and fixture stores under one roof: what must hold for every store is tested on all of them.

@pytest.mark.parametrize("name", EVERY)
def test_it(name): ... known(name).blob ...
"""

from collections.abc import Mapping
from dataclasses import dataclass

from support import fixtures
from support.storemaker import SCENES, scene

EVERY = (*SCENES, *(f"fixture {name}" for name in fixtures.STORES))
"""The names of all stores of which the report is known."""

LOADING = tuple(name for name in EVERY if name.removeprefix("fixture ") not in ("oversized_dbx", "version3"))
"""Those that varstored loads."""


@dataclass(frozen=True, slots=True)
class Known:
    """A store and what is true of it; see `Scene`."""

    blob: bytes
    report: str
    certcheck: str
    missing: Mapping[str, tuple[str, ...]]
    loads: bool


def known(name: str) -> Known:
    """The scene or the fixture of that name; the calling test is skipped where what it needs is absent."""
    if not name.startswith("fixture "):
        made = scene(name)
        return Known(made.blob, made.report, made.certcheck, made.missing, made.loads)
    short = name.removeprefix("fixture ")
    entry = fixtures.index()[short]
    missing = {variable: tuple(names) for variable, names in entry["missing"].items()}
    like = scene(short)
    return Known(fixtures.store(short), like.report, entry["certcheck"], missing, like.loads)
