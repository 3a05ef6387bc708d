"""The C client against a server that sends anything: what the fuzzer starts from and what it found, each once."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from support import c_code

FUZZ = c_code.FOLDER / "fuzz"
FOUND = sorted((FUZZ / "found").iterdir())
SECONDS = 120


@cache
def fuzzer() -> str:
    """The program, with the sanitizers where they are; mutate.c needs them."""
    if not c_code.sanitizers():
        pytest.skip("the compiler has no AddressSanitizer")
    options = ("-g", "-O1", *c_code.sanitizers())
    return c_code.build("fuzz", [FUZZ / "harness.c", FUZZ / "mutate.c"], *options)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("seeds")
    subprocess.run([sys.executable, FUZZ / "seeds.py", folder], check=True, timeout=SECONDS)
    return sorted(folder.iterdir())


def run(*arguments: object) -> str:
    done = subprocess.run([fuzzer(), *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_it_starts_from(seeds: list[Path]) -> None:
    assert len(seeds) > 150
    assert run(*seeds).startswith(f"{len(seeds)} executions in ")


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found(path: Path) -> None:
    assert run(path).startswith("1 executions in ")


def test_it_mutates(seeds: list[Path], tmp_path: Path) -> None:
    assert run("-runs", 20_000, "-found", tmp_path, *seeds).startswith("20000 executions in ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("length > size - at - FIELD_HEADER_BYTES", "length > size - at"),
        ("length > VSC_MAX_PAYLOAD)", "length > 2 * VSC_MAX_PAYLOAD)"),
        ("if (failed != 0 || (client->pending_id != 0 && client->pending_type != PUT_STORE))", "if (client->pending_id != 0)"),
        ("return is_text(value->data, value->size);", "return true;"),
        ("if (value->size < field->min || value->size > field->max)", "if (value->size < field->min)"),
        ("id != client->pending_id || type != (client->pending_type | ANSWER))", "id != client->pending_id)"),
    ],
    ids=["field", "frame", "half a frame", "text", "size", "answer"],
)
def test_it_sees_a_rule_that_is_missing(right: str, wrong: str, *, tmp_path: Path, seeds: list[Path]) -> None:
    """The harness is no use if a client without the rule passes it, too."""
    fuzzer()
    source = c_code.LIBRARY.read_text()
    assert source.count(right) == 1
    (tmp_path / "fuzz").mkdir()
    (tmp_path / "varstore_companion.c").write_text(source.replace(right, wrong))
    (tmp_path / "varstore_companion.h").write_text(c_code.LIBRARY.with_suffix(".h").read_text())
    (tmp_path / "fuzz" / "harness.c").write_text((FUZZ / "harness.c").read_text())
    sources = [tmp_path / "fuzz" / "harness.c", FUZZ / "mutate.c"]
    program = c_code.build(f"fuzz-{tmp_path.name}", sources, "-O1", "-Wno-error", *c_code.sanitizers())
    command = [program, "-runs", "400000", "-found", str(tmp_path), *map(str, seeds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode != 0, "nothing was noticed"
    assert (tmp_path / "found-1").exists()
