"""`make fuzz`: what a fuzzer's line becomes, what is read from its output, and what a finding does."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import run
from fuzz.run import Fuzzer, fuzz, table

Play = Callable[[str], Fuzzer]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(run, "WORK", tmp_path / "work")
    monkeypatch.setattr(run, "CORPUS", tmp_path / "corpus")
    (tmp_path / "corpus" / "played").mkdir(parents=True)
    (tmp_path / "corpus" / "played" / "one").write_bytes(b"12345")

    def make(program: str) -> Fuzzer:
        script = tmp_path / "fuzzer.py"
        script.write_text(program)
        return Fuzzer("played", f"{{python}} {script} {{options}}")

    return make


def test_a_run_is_a_row(play: Play) -> None:
    row, is_fine = fuzz(play("import sys; print('stat::number_of_executed_units: 1234', *sys.argv)"), 7)
    assert is_fine
    assert (row[0], row[1], row[4:]) == ("played", "1,234", ("1", "5", "0"))
    arguments = (run.WORK / "played" / "log").read_text().split()
    assert "-max_total_time=7" in arguments
    assert f"-artifact_prefix={run.WORK}/played/" in arguments
    assert arguments[-3:] == [
        f"{run.WORK}/played/corpus",
        f"{run.CORPUS}/played",
        f"--seeds={run.WORK}/played/seeds",
    ]


def test_one_that_runs_several_in_a_row_is_counted_whole(play: Play) -> None:
    program = "print('client: 1200 executions in 3 s, 5 kept'); print('store: 34 executions in 3 s, 1 kept')"
    row, is_fine = fuzz(play(program), 3)
    assert (row[1], is_fine) == ("1,234", True)


@pytest.mark.parametrize(
    "program",
    [
        "print('stat::number_of_executed_units: 5'); raise SystemExit(77)",
        "print('nothing to count')",
        "print('stat::number_of_executed_units: 5'); open(PATH, 'w')",
    ],
    ids=["status", "no count", "file"],
)
def test_a_finding_is_told(play: Play, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.WORK / "played" / "crash-0123"
    _, is_fine = fuzz(play(f"PATH = {str(path)!r}\n{program}"), 1)
    assert not is_fine
    assert "played: " in capsys.readouterr().err


def test_a_finding_of_an_earlier_run_is_not_counted_again(play: Play) -> None:
    fuzzer = play("print('stat::number_of_executed_units: 5')")
    fuzzer.work.mkdir(parents=True)
    (fuzzer.work / "crash-old").touch()
    row, is_fine = fuzz(fuzzer, 1)
    assert (row[-1], is_fine) == ("0", True)


def test_the_minimised_corpus_takes_the_place_of_the_old_one(play: Play) -> None:
    fuzzer = play(
        "import pathlib, sys\n"
        "assert sys.argv[1] == '-merge=1'\n"
        "pathlib.Path(sys.argv[2], 'new').write_bytes(pathlib.Path(sys.argv[4], 'one').read_bytes())\n"
    )
    run.minimise(fuzzer)
    run.minimise(play("import pathlib, sys\npathlib.Path(sys.argv[2], 'newer').write_bytes(b'')\n"))
    assert [path.name for path in fuzzer.corpus.iterdir()] == ["newer"]


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "pass"], ids=["status", "nothing"])
def test_a_merge_that_fails_leaves_the_corpus(play: Play, program: str) -> None:
    fuzzer = play(program)
    with pytest.raises(SystemExit, match="the merge failed"):
        run.minimise(fuzzer)
    assert [path.name for path in fuzzer.corpus.iterdir()] == ["one"]


def test_the_columns_line_up() -> None:
    lines = table([["a", "1", "2", "3", "4", "5", "6"], ["longer", "1,000,000", "2", "3", "4", "5", "6"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_a_command_may_have_blanks_in_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WORK", Path("/a folder"))
    assert Fuzzer("one", "{python} x {work} {seconds}").filled_in("", 3) == [sys.executable, "x", "/a folder/one", "3"]


def test_a_target_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "nosuch"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no target nosuch" in capsys.readouterr().err
