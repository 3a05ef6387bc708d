"""Options: what is taken, what is refused in one line, and that every help page is true."""

import shlex
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from uuid import UUID

import pytest

from support.commands import VM_COMMANDS, Run
from varstore_companion.cli import certcheck
from varstore_companion.cli.arguments import Parser, number, uuid
from varstore_companion.cli.main import COMMANDS

VM = "11111111-2222-3333-4444-55555555555a"
PAGES = [[name] for name in COMMANDS] + [["vm", name] for name in VM_COMMANDS]


def _examples(name: str) -> Iterator[list[str]]:
    text: str = import_module(f"varstore_companion.cli.{name}").EXAMPLES
    for line in text.split("\n\n", maxsplit=1)[0].splitlines():
        words = shlex.split(line)
        stops = [number for number, word in enumerate(words) if word in ("|", "<", ">")]
        for start in [0, *(stop + 1 for stop in stops)]:
            if words[start] == "varstore-companion":
                end = min((stop for stop in stops if stop > start), default=len(words))
                yield words[start + 1 : end]


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help(page: list[str], run: Run) -> None:
    done = run(*page, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith(f"usage: varstore-companion {' '.join(page)}")
    assert f"examples:\n  varstore-companion {page[0]}" in done.text
    assert max(map(len, done.text.splitlines())) <= 128
    assert run(*page, "-h").out == done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_are_right(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class ParsedError(Exception):
        pass

    parse = Parser.parse_args

    def parse_only(self: Parser, arguments: list[str]) -> Any:  # noqa: ANN401  as argparse has it
        parse(self, arguments)
        raise ParsedError

    monkeypatch.setattr(Parser, "parse_args", parse_only)
    found = list(_examples(name))
    assert found
    for example in found:
        assert example[0] == name
        with pytest.raises(ParsedError):
            run(*example)


def test_the_examples_use_the_options_that_matter() -> None:
    words = {word for name in COMMANDS for example in _examples(name) for word in example}
    assert {"--json", "-o", "--vm", "--socket", "--gid", "--resume", "--config", "--state-dir", "--store"} <= words


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_wrong_usage_is_one_line(page: list[str], run: Run) -> None:
    run(*page, "--no-such-option").fails(f"varstore-companion {page[0]}", f"(see varstore-companion {page[0]}", "--help)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect"], "required: FILE"),
        (["inspect", "--js", "x"], "unrecognized arguments: --js"),
        (["inspect", "x", "y"], "unrecognized arguments: y"),
        (["apply", "x"], "-o/--output --in-place is required"),
        (["apply", "x", "-o"], "-o/--output: expected one argument"),
        (["attach", "--socket", "/x"], "required: --vm"),
        (["attach", "--vm", VM], "--socket --interpose is required"),
        (["attach", "--vm", "web-1", "--socket", "/x"], "argument --vm: expected a uuid, found 'web-1'"),
        (["attach", "--vm", f"{{{VM}}}", "--socket", "/x"], "argument --vm: expected a uuid"),
        (["attach", "--vm", VM, "--socket", "/x", "--gid", "-1"], "argument --gid: expected"),
        (["attach", "--vm", VM, "--socket", "/x", "--gid", "xen"], "0 to 4,294,967,294, found 'xen'"),
        (["attach", "--vm", VM, "--socket", "/x", "--gid", "4294967295"], "0 to 4,294,967,294, found '4294967295'"),
        (["attach", "--vm", VM, "--socket", "/x", "--mode", "0888"], "argument --mode: expected"),
        (["attach", "--vm", VM, "--socket", "/x", "--mode", "1777"], "0 to 777 (octal), found '1777'"),
        (["attach", "--vm", VM, "--socket", "/x", "--mode", "rw"], "0 to 777 (octal), found 'rw'"),
        (["plan", "x", "--headroom", "-5"], "argument --headroom"),
        (["plan", "x", "--headroom", "1k"], "argument --headroom: expected a whole number"),
        (["status", "--vm", "1"], "expected a uuid"),
        (["serve", "--toolstack", "libvirt"], "--toolstack: invalid choice: 'libvirt'"),
        (["vm"], f"required: {'|'.join(VM_COMMANDS)}"),
        (["vm", "start"], "invalid choice: 'start'"),
        (["vm", "create", "--kind", "snapshot"], "--kind: invalid choice: 'snapshot'"),
        (["vm", "create", "--kind", "VM"], "--kind: invalid choice: 'VM'"),
        (["vm", "create", "--firmware", "uboot"], "--firmware: invalid choice: 'uboot'"),
        (["vm", "pool", "--auto-update", "maybe"], "--auto-update: invalid choice: 'maybe'"),
        (["vm", "list", "--sort"], "unrecognized arguments: --sort"),
        (["vm", "create", "--na", "x"], "unrecognized arguments: --na"),
        (["vm", "show"], "required: UUID"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_said(arguments: list[str], said: str, run: Run) -> None:
    run(*arguments).fails(f"varstore-companion {arguments[0]}", said)


@pytest.mark.parametrize("text", [VM, VM.upper()])
def test_a_uuid(text: str) -> None:
    assert uuid(text) == UUID(VM)


@pytest.mark.parametrize(
    "text",
    ["", VM[:-1], VM + "0", f"{{{VM}}}", f"urn:uuid:{VM}", VM.replace("-", ""), "1" + VM[2:] + "1", f" {VM}", VM[:-2] + "_5"],
)
def test_not_a_uuid(text: str) -> None:
    with pytest.raises(Exception, match="expected a uuid"):
        uuid(text)


@pytest.mark.parametrize(
    ("text", "base", "value"), [("0", 10, 0), ("65543", 10, 65_543), ("0660", 8, 0o660), ("777", 8, 0o777)]
)
def test_a_number(text: str, base: int, value: int) -> None:
    assert number(text, base=base) == value


@pytest.mark.parametrize("text", ["", "-0", "+1", " 1", "1 ", "1_0", "\u0663", "\u00b2", "0x1", "0o7", "1e3", "9" * 5_000])
def test_not_a_number(text: str) -> None:
    with pytest.raises(Exception, match="expected a whole number from 0 to 4,294,967,294, found") as caught:
        number(text)
    assert len(str(caught.value)) < 200


def test_the_drop_in_is_described_by_its_own_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert certcheck.main(["--help"]) == 0
    assert "examples:" in capsys.readouterr().out
