"""The C client against a server that sends anything: what the fuzzer starts from and what it found, each once."""

import shutil
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
Seeds = dict[str, list[Path]]
FOUND = sorted((FUZZ / "found").glob("*/*"))
SECONDS = 120


@cache
def fuzzer(kind: str) -> str:
    """The program, with the sanitizers where they are."""
    return c_code.build(f"fuzz-{kind}", [*HARNESSES[kind], FUZZ / "mutate.c"], "-g", "-O1", *c_code.sanitizers())


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    folder = tmp_path_factory.mktemp("seeds")
    subprocess.run([sys.executable, FUZZ / "seeds.py", folder], check=True, timeout=SECONDS)
    return {kind: sorted((folder / kind).iterdir()) for kind in HARNESSES}


def run(kind: str, *arguments: object) -> str:
    done = subprocess.run([fuzzer(kind), *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("kind", HARNESSES)
def test_what_it_starts_from(kind: str, seeds: Seeds) -> None:
    assert run(kind, *seeds[kind]).startswith(f"{len(seeds[kind])} executions in ")


def test_every_case_of_the_suite_is_where_it_starts_from(seeds: Seeds) -> None:
    names = {path.name.rpartition("-")[0] for path in seeds["client"]}
    assert names == {name.replace(" ", "-") for name, _ in client_cases()}
    assert len(seeds["store"]) > 5


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found(path: Path) -> None:
    assert run(path.parent.name, path).startswith("1 executions in ")


@pytest.mark.parametrize("kind", HARNESSES)
def test_it_mutates(kind: str, seeds: Seeds, tmp_path: Path) -> None:
    assert run(kind, "-runs", 20_000, "-found", tmp_path, *seeds[kind]).startswith("20000 executions in ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", HARNESSES)
def test_nothing_is_read_before_it_was_written(kind: str, seeds: Seeds) -> None:
    """Which valgrind sees, and the sanitizers do not."""
    c_code.needs("valgrind")
    program = c_code.build(f"fuzz-{kind}-plain", [*HARNESSES[kind], FUZZ / "mutate.c"], "-g", "-O1")
    command = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=no", program, "-runs", "2000", *map(str, seeds[kind])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2000 executions in ")


CLIENT, STORE = c_code.LIBRARY, c_code.FOLDER / "examples" / "store.c"


@pytest.mark.parametrize(
    ("source", "right", "wrong"),
    [
        (CLIENT, "length > size - at - FIELD_HEADER_BYTES", "length > size - at"),
        (CLIENT, "length > VSC_MAX_PAYLOAD)", "length > 2 * VSC_MAX_PAYLOAD)"),
        (CLIENT, "if (failed != 0 || (client->pending_id != 0 && client->", "if (client->pending_id != 0 && (client->"),
        (CLIENT, "return is_text(value->data, value->size);", "return true;"),
        (CLIENT, "if (value->size < field->min || value->size > field->max)", "if (value->size < field->min)"),
        (CLIENT, "id != client->pending_id || type != (client->pending_type | ANSWER))", "id != client->pending_id)"),
        (STORE, " || length > store->size - *at)", ")"),
        (STORE, " || store->size - next < TAIL_BYTES)", ")"),
        (STORE, "memcmp(one->guid, other->guid, GUID_BYTES) == 0", "1"),
        (STORE, "found = true;", "found = true, count++;"),
    ],
)
def test_it_sees_a_rule_that_is_missing(source: Path, right: str, wrong: str, *, tmp_path: Path, seeds: Seeds) -> None:
    """The harnesses are no use if code without the rule passes them, too."""
    if not c_code.sanitizers():
        pytest.skip("the compiler has no AddressSanitizer")
    kind = "client" if source == CLIENT else "store"
    text = source.read_text()
    assert text.count(right) == 1
    shutil.copytree(c_code.FOLDER, tmp_path / "c")
    (tmp_path / "c" / source.relative_to(c_code.FOLDER)).write_text(text.replace(right, wrong))
    sources = [tmp_path / "c" / each.relative_to(c_code.FOLDER) for each in (*HARNESSES[kind], FUZZ / "mutate.c")]
    program = c_code.build(f"fuzz-{tmp_path.name}", sources, "-O1", "-Wno-error", *c_code.sanitizers())
    command = [program, "-runs", "1000000", "-found", str(tmp_path), *map(str, seeds[kind])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode != 0, "nothing was noticed"
    assert (tmp_path / "found-1").exists()
