"""Server, Python client and C client held to the vectors by the suite that anybody can run."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from conformance.client import Client, client_cases
from conformance.frames import CODES, MESSAGES, VM, Failure, vectors
from support import c_code
from support.processes import python_environment
from support.serve import Home
from support.wire_vectors import PROTOCOL
from varstore_companion.cli.client import control
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.observing import Log, LogAnswer, Updates, UpdatesAnswer

SECONDS = 120
CLIENT = str(Path(c_code.__file__).with_name("conformance_client.py"))


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run it as its page says."""
    with subprocess.Popen(
        [sys.executable, "-m", "conformance", *map(str, arguments)],
        cwd=PROTOCOL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=python_environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def passed(process: subprocess.Popen[str]) -> list[str]:
    """Wait for its end, and return the names of the checks."""
    output, errors = process.communicate(timeout=SECONDS)
    lines = output.splitlines()
    assert [line for line in lines if not line.startswith("passed")][:-1] == []
    assert (process.returncode, lines[-1:]) == (0, [f"{len(lines) - 1} passed, 0 failed"]), errors
    return [line.split(maxsplit=1)[1] for line in lines[:-1]]


def suite(*arguments: object) -> list[str]:
    """Run it to its end."""
    with started(*arguments) as process:
        return passed(process)


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, subprocess.Popen[str]]]:
    """The daemon, and the suite that tries it: it mostly waits, half a minute, in which the other tests of this file run."""
    home = Home(tmp_path_factory.mktemp("server"))
    with home.serve():
        with home.database() as database:
            database.create(UUID(VM), "name", None, CertificatesState.OK)
        with started("server", home.attach(UUID(VM)), "--control", home.control) as process:
            yield home, process


def test_the_python_client() -> None:
    names = suite("client", sys.executable, CLIENT)
    assert names == [name for name, _ in client_cases()]


def test_the_c_client() -> None:
    names = suite("client", c_code.example("call"))
    assert names == [name for name, _ in client_cases()]


def test_a_client_meets_every_message_error_and_broken_frame() -> None:
    turns = [turn for _, turns in client_cases() for turn in turns]
    assert {turn.asked.message for turn in turns} == {name for name, each in MESSAGES.items() if "vm" in each["sockets"]}
    names = {name for name, _ in client_cases()}
    assert {each["name"] for each in vectors("frames") if each["to"] == "client"} < names
    errors = {
        name.removeprefix("error-").split(" ")[0].replace("-", "_").upper() for name in names if name.startswith("error-")
    }
    assert set(CODES) <= errors


@pytest.mark.parametrize(
    ("says", "case"),
    [
        ("answer", "get-store-answer"),
        ("answer presence=absent generation=0 outcome=not_asked", "get-store-answer"),
        ("answer", "client-magic"),
        ("error 8 1", "ping-answer"),
        ("error 8 1", "error-not-here to PUT_STORE"),
        ("broken", "error-not-here to PUT_STORE"),
        ("broken", "ping-answer"),
    ],
)
def test_a_client_that_understands_nothing_does_not_pass(says: str, case: str) -> None:
    with pytest.raises(Failure, match=f"said '{says}' of"):
        play_saying(says, case)


def play_saying(says: str, case: str) -> None:
    """Play a case with a client that says this, whatever comes."""
    lie = f"dict(print=lambda *_, **__: print({says!r}, flush=True))"
    code = f"import runpy, sys; sys.argv[:1] = []; runpy.run_path({CLIENT!r}, {lie}, '__main__')"
    (turns,) = [turns for name, turns in client_cases() if name == case]
    with tempfile.TemporaryDirectory() as folder, Client([sys.executable, "-c", code, "-"], Path(folder)) as client:
        client.play(turns)


@pytest.mark.parametrize("says", ["broken", "unavailable", "lost"])
def test_a_client_may_say_any_other_word_of_an_answer_that_was_cut(says: str) -> None:
    play_saying(says, "client-cut")


@pytest.mark.parametrize("says", ["answer", "answer presence=absent generation=0 outcome=not_asked", "error 8 1"])
def test_but_not_that_it_came(says: str) -> None:
    with pytest.raises(Failure, match="took a cut frame for an answer"):
        play_saying(says, "client-cut")


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("printf ready; read a; read b", "no end of the line b'ready' within 1 s"),
        ("exit 3", "the client ended with 3"),
        ("exec >&-; read a; read b", "the client closed its output"),
        ("echo ready; read a; read b", "a connection was due, and the client said 'ready'"),
        ("read a; read b", "no connection within 1 s"),
    ],
)
def test_a_client_that_hangs_or_ends_is_told_as_such(program: str, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs it on a client in the making: nothing is waited for without end."""
    monkeypatch.setattr("conformance.client.SECONDS", 1.0)
    (turns,) = [turns for name, turns in client_cases() if name == "ping-answer"]
    with (
        tempfile.TemporaryDirectory() as folder,
        Client(["sh", "-c", program], Path(folder)) as client,
        pytest.raises(Failure, match=re.escape(failure)),
    ):
        client.play(turns)


def test_the_server(server: tuple[Home, subprocess.Popen[str]]) -> None:
    """The last one here: see the fixture."""
    home, process = server
    names = passed(process)
    with control(home.control) as client:
        levels, updates = client.call(Log()), client.call(Updates())
    assert isinstance(levels, LogAnswer)
    assert isinstance(updates, UpdatesAnswer)
    # The host is as it was.
    assert json.loads(levels.json)["levels"] == {"": "info"}
    assert json.loads(updates.json)["paused"] is None
    assert "mark" in names
    assert not {"attach", "log-all", "updates-pause"} & set(names)
    # POST is not the framed protocol's.
    assert {each["name"] for each in vectors("frames") if each["to"] == "server"} - {"post"} < set(names)
    assert {each["name"] for each in vectors("exchanges") if each["server"] == "any"} < set(names)
