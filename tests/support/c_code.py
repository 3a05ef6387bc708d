"""The C client and its examples, built into a temporary folder; the calling test is skipped where there is no compiler."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "protocol" / "c"
LIBRARY = FOLDER / "varstore_companion.c"
SOURCES = {
    "backend": (FOLDER / "examples" / "backend.c", FOLDER / "examples" / "store.c", LIBRARY),
    "call": (FOLDER / "examples" / "call.c", LIBRARY),
}
"""The example programs."""
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-pedantic")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
SECONDS = 120
"""To build one program."""

_BUILT = tempfile.TemporaryDirectory(prefix="varstore-companion-c-")


def compilers() -> list[str]:
    """Those that are here."""
    return [name for name in ("gcc", "clang") if shutil.which(name) is not None]


def compiler() -> str:
    """The one to build with."""
    found = compilers()
    if not found:
        pytest.skip("there is no C compiler (gcc or clang)")
    return found[0]


def needs(program: str) -> None:
    """Skip the calling test where a program is absent."""
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}")


@cache
def sanitizers() -> tuple[str, ...]:
    """The options for them; none where a program with them cannot be built and run."""
    source, program = Path(_BUILT.name) / "empty.c", Path(_BUILT.name) / "empty"
    source.write_text("int main(void) { return 0; }\n")
    works = _works([compiler(), *SANITIZERS, str(source), "-o", str(program)]) and _works([str(program)])
    return SANITIZERS if works else ()


@cache
def example(name: str) -> str:
    """The path of an example, built with the sanitizers where they are."""
    return build(name, SOURCES[name], "-g", "-O1", *sanitizers())


def build(name: str, sources: Sequence[Path], *options: str) -> str:
    """Build a program."""
    path = Path(_BUILT.name) / name
    done = subprocess.run(
        [compiler(), *STRICT, *options, *map(str, sources), "-o", str(path)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(path)


def _works(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).returncode == 0
