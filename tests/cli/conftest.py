"""What the tests of the commands share."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from support import own_rules
from support.commands import Done, Run
from support.own_rules import Rules
from varstore_companion.cli import main


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may want none."""
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: object) -> Done:
        capsysbinary.readouterr()
        code = main.main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Done(code, out, err.decode())

    return run


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    """Rules that need no certificate of Microsoft's."""
    return own_rules.write(tmp_path)


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Gives the next command its standard input."""

    def give(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give
