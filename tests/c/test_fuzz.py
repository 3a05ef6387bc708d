"""The C client against a server that sends anything: what the fuzzer starts from and what it found, each once."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from conformance.client import client_cases
from support import c_code

FUZZ = c_code.FOLDER / "fuzz"
HARNESSES = {
    "client": (FUZZ / "harness.c",),
    "store": (FUZZ / "store_harness.c", c_code.FOLDER / "examples" / "store.c"),
}
"""What is fuzzed, and the sources."""
FOUND = sorted((FUZZ / "found").glob("*/*"))
SECONDS = 120


@cache
def fuzzer(kind: str) -> str:
    """The program, with the sanitizers; mutate.c needs them."""
    if not c_code.sanitizers():
        pytest.skip("the compiler has no AddressSanitizer")
    return c_code.build(f"fuzz-{kind}", [*HARNESSES[kind], FUZZ / "mutate.c"], "-g", "-O1", *c_code.sanitizers())


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("seeds")
    subprocess.run([sys.executable, FUZZ / "seeds.py", folder], check=True, timeout=SECONDS)
    return {kind: sorted((folder / kind).iterdir()) for kind in HARNESSES}


def run(kind: str, *arguments: object) -> str:
    done = subprocess.run([fuzzer(kind), *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("kind", HARNESSES)
def test_what_it_starts_from(kind: str, seeds: dict[str, list[Path]]) -> None:
    assert run(kind, *seeds[kind]).startswith(f"{len(seeds[kind])} executions in ")


def test_every_case_of_the_suite_is_where_it_starts_from(seeds: dict[str, list[Path]]) -> None:
    names = {path.name.rpartition("-")[0] for path in seeds["client"]}
    assert names == {name.replace(" ", "-") for name, _ in client_cases()}
    assert len(seeds["store"]) > 5


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found(path: Path) -> None:
    assert run(path.parent.name, path).startswith("1 executions in ")


@pytest.mark.parametrize("kind", HARNESSES)
def test_it_mutates(kind: str, seeds: dict[str, list[Path]], tmp_path: Path) -> None:
    assert run(kind, "-runs", 20_000, "-found", tmp_path, *seeds[kind]).startswith("20000 executions in ")
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
def test_it_sees_a_rule_that_is_missing(right: str, wrong: str, *, tmp_path: Path, seeds: dict[str, list[Path]]) -> None:
    """The harness is no use if a client without the rule passes it, too."""
    fuzzer("client")
    source = c_code.LIBRARY.read_text()
    assert source.count(right) == 1
    (tmp_path / "fuzz").mkdir()
    (tmp_path / "varstore_companion.c").write_text(source.replace(right, wrong))
    (tmp_path / "varstore_companion.h").write_text(c_code.LIBRARY.with_suffix(".h").read_text())
    (tmp_path / "fuzz" / "harness.c").write_text((FUZZ / "harness.c").read_text())
    sources = [tmp_path / "fuzz" / "harness.c", FUZZ / "mutate.c"]
    program = c_code.build(f"fuzz-{tmp_path.name}", sources, "-O1", "-Wno-error", *c_code.sanitizers())
    command = [program, "-runs", "400000", "-found", str(tmp_path), *map(str, seeds["client"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode != 0, "nothing was noticed"
    assert (tmp_path / "found-1").exists()
