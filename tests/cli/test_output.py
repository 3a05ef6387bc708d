"""What commands print, and what becomes of it when nobody can take it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support import own_rules
from support.commands import on_terminal, process, shell
from support.own_rules import Rules
from varstore_companion.cli import output


class Terminal:
    """A standard output that says it is a terminal."""

    def __init__(self) -> None:
        self.shown = ""

    def write(self, text: str) -> None:
        self.shown += text

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", made)
        yield made


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def _buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that fails does so at another place when Python does not buffer it."""
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


buffering = pytest.mark.usefixtures("_buffering")
ROWS = [["a", "12345", "last "], ["longer", "1", ""]]


def test_a_table_on_a_terminal_is_aligned_under_its_headings() -> None:
    with terminal() as made:
        output.table(ROWS, ["name", "n", "x"], indent=" ")
    assert made.shown == " \x1b[2mname    n      x\x1b[0m\n a       12345  last\n longer  1\n"


def test_a_table_without_headings_begins_with_its_first_row() -> None:
    with terminal() as made:
        output.table(ROWS, ["", "", ""])
    assert made.shown == "a       12345  last\nlonger  1\n"


def test_an_empty_table_has_its_headings_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal() as made:
        output.table([], ["name", "n"])
    assert made.shown == "\x1b[2mname  n\x1b[0m\n"
    output.table([], ["name", "n"])
    assert capsys.readouterr().out == ""


def test_a_table_elsewhere_is_tabs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(ROWS, ["name", "n", "x"], indent="  ")
    assert capsys.readouterr().out == "a\t12345\tlast \nlonger\t1\t\n"


def test_a_cell_is_one_cell_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([["a\tb", "c\nd", "\x1b[31me\r"]], ["", "", ""])
    assert capsys.readouterr().out == "a\ufffdb\tc\ufffdd\t\ufffd[31me\ufffd\n"


def test_no_colours_for_whom_they_are_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal():
        assert output.coloured("ok", "good") == "ok"


def test_colours_are_for_terminals() -> None:
    with terminal():
        assert output.coloured("ok", "good") == "\x1b[32mok\x1b[0m"
    assert output.coloured("ok", "good") == "ok"


def test_json_is_one_document_of_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"path": "/tmp/ä\udcff", "none": None}
    output.print_json(document)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert printed.endswith("}\n")
    assert json.loads(printed) == document


@buffering
@pytest.mark.parametrize("command", ["--help", "--version", "attach --help", 'inspect "$1"', 'inspect --json "$1"'])
def test_a_full_disk_under_standard_output(command: str, rules: Rules) -> None:
    shell(f"vc {command} >/dev/full", rules.manifest.with_name("nvram")).fails(
        "No such file" if "$1" in command else "standard output: No space left on device"
    )


@buffering
def test_a_full_disk_under_a_report(rules: Rules) -> None:
    path = rules.manifest.with_name("nvram")
    path.write_bytes(own_rules.store())
    for options in ("", "--json"):
        shell(f'vc inspect {options} "$1" >/dev/full', path).fails("inspect: standard output: No space left on device")


@buffering
@pytest.mark.parametrize("command", ["--help", "attach --help", 'inspect --json "$1"'])
def test_a_reader_that_has_seen_enough(command: str, rules: Rules) -> None:
    path = rules.manifest.with_name("nvram")
    path.write_bytes(own_rules.store())
    done = shell(f'vc {command} | true; echo "${{PIPESTATUS[0]}}"', path)
    assert done.err == ""
    assert done.text.strip() == "141"


@buffering
def test_the_first_line_of_a_long_report(rules: Rules) -> None:
    path = rules.manifest.with_name("nvram")
    path.write_bytes(own_rules.store())
    done = shell('vc inspect --json "$1" | head -1', path)
    assert (done.text, done.err) == ("{\n", "")


def test_closed_streams(rules: Rules) -> None:
    path = rules.manifest.with_name("nvram")
    path.write_bytes(own_rules.store())
    shell('vc inspect "$1" >&-', path).fails("standard output: Bad file descriptor")
    shell("vc inspect - <&-").fails("standard input: Bad file descriptor")
    done = shell('vc inspect "$1" 2>&- <&-; echo $?; vc inspect /missing 2>&-; echo $?', path)
    assert done.text.splitlines()[-2:] == ["0", "2"]
    assert done.err == ""


def test_names_that_no_encoding_has(rules: Rules) -> None:
    path = rules.manifest.with_name("nvram-\udcff-ä")
    path.write_bytes(own_rules.store())
    for encoding in ("utf-8", "ascii", "latin-1"):
        done = process("inspect", path, environment={"PYTHONIOENCODING": encoding})
        assert (done.code, done.err) == (0, "")
        assert b"custom (certcheck: update_ok)" in done.out
    missing = process("inspect", rules.manifest.with_name("missing-\udcff"))
    missing.fails("missing-\\udcff: No such file")
    code, shown = on_terminal("inspect", path)
    assert code == 0
    assert "nvram-\\udcff-ä: \x1b[1mcustom\x1b[0m" in shown
