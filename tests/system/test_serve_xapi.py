"""`serve --xapi-socket` as a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import python_environment
from support.xapi_host import short_folder, xapi_client
from varstore_companion.daemon import config
from varstore_companion.errors import ConfigurationError


def serve(folder: Path, *options: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "varstore_companion.cli",
        "serve",
        "--config",
        os.devnull,
        "--control",
        str(folder / "control"),
    ]
    command += ["--state-dir", str(folder / "state"), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=python_environment())


def wait_until_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    assert any("ready: " in line for line in process.stderr), "it ended"


@pytest.mark.parametrize("by_file", [True, False])
def test_it_answers_until_it_is_told_to_stop(*, by_file: bool) -> None:
    with short_folder() as folder:
        socket = folder / "xapi"
        file = folder / "config.toml"
        file.write_text(f'xapi_socket = "{socket}"\n')
        with serve(folder, *(["--config", str(file)] if by_file else ["--xapi-socket", str(socket)])) as process:
            wait_until_ready(process)
            with xapi_client(socket) as session:
                assert session.xenapi.VM.get_all() == []
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
        assert not socket.exists()


def test_there_is_none_unless_it_is_asked_for() -> None:
    with short_folder() as folder, serve(folder) as process:
        wait_until_ready(process)
        assert sorted(path.name for path in folder.iterdir()) == ["control", "state"]
        process.terminate()
        assert process.wait(20) == 0


def test_a_socket_that_cannot_be_made_stops_the_start() -> None:
    with short_folder() as folder, serve(folder, "--xapi-socket", str(folder / "absent" / "xapi")) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(20) == 2
        assert str(folder / "absent") in errors


def test_the_key_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('xapi_socket = "/run/xapi"\n')
    assert config.load(file).xapi_socket == Path("/run/xapi")
    file.write_text("")
    assert config.load(file).xapi_socket is None
    file.write_text("xapi_socket = 1\n")
    with pytest.raises(ConfigurationError, match="xapi_socket: expected a string"):
        config.load(file)
