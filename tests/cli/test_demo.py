"""`demo`: the whole story as a visitor runs it, and what it says when it goes wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import varstore_companion
from support.certificates import microsoft_folder
from support.commands import PROGRAM, SECONDS, as_somebody_else, process
from support.processes import python_environment
from varstore_companion.cli import demo, demo_scene
from varstore_companion.cli.demo_scene import StepError

STEPS = 9
needs_certificates = pytest.mark.skipif(microsoft_folder() is None, reason="the demo needs the package virt-firmware")


@dataclass(frozen=True, slots=True)
class Told:
    """A demo that ended. `left`: the files that it left behind."""

    code: int
    out: str
    err: str
    left: list[str]


def _processes_in(folder: Path) -> list[str]:
    """The command lines of processes that were told of `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
        if os.fsencode(folder) in line:
            found.append(line.decode(errors="replace"))
    return found


@contextmanager
def _started(*options: str, prefix: tuple[str, ...] = (), **environment: str) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A demo that runs in a temporary folder of its own, and that folder."""
    with tempfile.TemporaryDirectory(prefix="vc-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        with subprocess.Popen(
            [*prefix, *PROGRAM, "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**python_environment(), "TMPDIR": name, **environment},
            start_new_session=True,
        ) as started:
            yield started, folder


def _ended(started: "subprocess.Popen[str]", folder: Path) -> Told:
    out, err = started.communicate(timeout=SECONDS)
    assert _processes_in(folder) == []
    return Told(started.returncode, out, err, [each.name for each in folder.iterdir()])


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Told, Told]]:
    """The story for people, and, told to somebody without rights where that can be had, the one for machines.

    At the same time: each waits some seconds for a database that takes no writes.
    """
    try:
        prefix = as_somebody_else()
    except pytest.skip.Exception:
        prefix = ()
    with _started() as people, _started("--json", prefix=prefix) as machines:
        yield _ended(*people), _ended(*machines)


@needs_certificates
def test_the_story_for_people(both: tuple[Told, Told]) -> None:
    told, _ = both
    assert (told.code, told.err, told.left) == (0, "", [])
    assert [int(number) for number in re.findall(r"^(\d+)\. ", told.out, re.MULTILINE)] == list(range(1, STEPS + 1))
    assert told.out.endswith(f"All {STEPS} steps went as they should.\n")
    assert "\x1b" not in told.out
    for fact in ("6,645 before, 12,644 after", "KEK 2K CA 2023 in KEK, 1,506 bytes", "the old one, byte for byte"):
        assert fact in told.out


@needs_certificates
def test_the_story_for_machines(both: tuple[Told, Told]) -> None:
    _, told = both
    assert (told.code, told.err, told.left) == (0, "", [])
    document = json.loads(told.out)
    assert (document["ok"], document["problem"]) == (True, None)
    assert [step["ok"] for step in document["steps"]] == [True] * len(document["steps"])
    facts: list[dict[str, Any]] = [step["facts"] for step in document["steps"]]
    assert len(facts[0]["missing"]) == 4
    assert facts[2]["outcome"] == "updated"
    assert [each.get("told the toolstack update=") for each in facts[2:5]] == ["yes", "no", "yes"]
    assert (facts[5]["outcome"], facts[5]["field"]) == ("failed", "update_on_boot")


@needs_certificates
def test_without_rights(both: tuple[Told, Told]) -> None:
    as_somebody_else()
    assert both[1].code == 0


@needs_certificates
def test_an_update_that_is_refused(tmp_path: Path) -> None:
    """With a package whose manifest wants more room than any store has."""
    copy = tmp_path / "varstore_companion"
    shutil.copytree(Path(varstore_companion.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    manifest = copy / "trust" / "microsoft-2023.toml"
    manifest.write_text(manifest.read_text().replace("headroom = 21292", "headroom = 131072"))
    with (
        _started(PYTHONPATH=str(tmp_path)) as people,
        _started("--json", PYTHONPATH=str(tmp_path)) as machines,
    ):
        told, machine = _ended(*people), _ended(*machines)
    assert (told.code, told.err, told.left) == (1, "", [])
    last = told.out.rpartition("\n3. ")[2]
    assert last.startswith("It boots")
    assert re.search(r"reason +the update needs 5,999 bytes and would leave [\d,]+ of the 131,072", last)
    assert "went wrong: outcome: expected updated, found failed" in last
    assert "went as they should" not in told.out

    assert (machine.code, machine.err, machine.left) == (1, "", [])
    document = json.loads(machine.out)
    assert (document["ok"], document["problem"]) == (False, "outcome: expected updated, found failed")
    assert [step["ok"] for step in document["steps"]] == [True, True, False]
    assert "would leave" in document["steps"][2]["facts"]["reason"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_without_the_certificates(options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "virt").mkdir()
    (tmp_path / "virt" / "__init__.py").touch()
    sources = python_environment()["PYTHONPATH"]
    done = process("demo", *options, environment={"PYTHONPATH": f"{tmp_path}{os.pathsep}{sources}"})
    done.fails("demo: ", "ms-kek-2011", "virt-firmware", "pip install virt-firmware")


@needs_certificates
def test_a_daemon_that_does_not_start(tmp_path: Path) -> None:
    own, folder = tmp_path / "python", tmp_path / "temporary"
    own.mkdir()
    folder.mkdir()
    (own / "sitecustomize.py").write_text("import sys\nif 'serve' in sys.orig_argv:\n    sys.exit('not today')\n")
    sources = python_environment()["PYTHONPATH"]
    done = process("demo", environment={"TMPDIR": str(folder), "PYTHONPATH": f"{own}{os.pathsep}{sources}"})
    done.fails("demo: the daemon did not become ready: ", "not today")
    assert list(folder.iterdir()) == []


@needs_certificates
def test_where_the_folder_of_temporary_files_has_a_long_path(tmp_path: Path) -> None:
    """It leaves no room for a socket's name."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with _started("--json", TMPDIR=str(folder)) as (started, _):
        told = _ended(started, folder)
    assert (told.code, told.err, told.left) == (0, "", [])
    assert json.loads(told.out)["ok"] is True


@needs_certificates
def test_ctrl_c() -> None:
    with _started() as (started, folder):
        assert started.stdout is not None
        assert started.stdout.readline().startswith("1. ")
        os.killpg(started.pid, signal.SIGINT)
        told = _ended(started, folder)
    assert (told.code, told.err, told.left) == (130, "", [])


def test_a_command_that_prints_no_result(tmp_path: Path) -> None:
    host = demo_scene.Host(tmp_path)
    with pytest.raises(StepError, match=r"status --control .*: exit code 2: varstore-companion status: .*no daemon answers"):
        host.run("status", "--control", str(host.control))


def test_a_step_says_what_it_expected(capsys: pytest.CaptureFixture[str]) -> None:
    story = demo.Story(quiet=False)
    with story.step("Something is tried") as step:
        step.saw("seen", ["one", "two"])
    with pytest.raises(StepError, match="answer: expected 42, found 41"), story.step("Something else") as step:
        step.expect("answer", 41, 42)
    assert not story.ok
    assert [each.describe()["ok"] for each in story.steps] == [True, False]
    assert capsys.readouterr().out == (
        "1. Something is tried\n   seen  one\n         two\n\n"
        "2. Something else\n   answer  41\n   went wrong: answer: expected 42, found 41\n\n"
    )
