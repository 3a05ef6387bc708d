"""`serve`: what keeps it from starting, said in one line, and how it ends."""

import signal
import socket
from pathlib import Path

import pytest

from support.commands import Run, daemon, process
from support.own_rules import Rules
from varstore_companion.daemon import main as daemon_main
from varstore_companion.daemon.config import Settings


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told(number: signal.Signals, tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        assert running.stop(number) == 0
    assert not running.control.exists()
    assert running.log[-2:] == [f"INFO {number.name}: stopping\n", "INFO stopped\n"]
    assert all(line.split()[0] in ("INFO", "WARNING") for line in running.log)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--control", "{0}/file/c.sock"], "{0}/file: File exists"),
        (["--control", "{0}"], "{0}: exists and is not a socket"),
        (["--control", "relative.sock"], "relative.sock: expected an absolute path of at most 107 bytes"),
        (["--control", "{0}/{1}"], "expected an absolute path of at most 107 bytes"),
        (["--state-dir", "{0}/file"], "{0}/file: File exists"),
        (["--state-dir", "{0}/file/state"], "{0}/file/state: Not a directory"),
        (["--manifest", "{0}/missing.toml"], "{0}/missing.toml: No such file or directory"),
        (["--certificates", "{0}/missing"], "{0}/missing: expected a folder with certificates"),
        (["--config", "{0}/missing.toml"], "{0}/missing.toml: No such file or directory"),
        (["--config", "{0}"], "{0}: Is a directory"),
        (["--config", "{0}/file"], "{0}/file: cntrol: unknown key"),
        (["--config", "/dev/zero"], "/dev/zero: file at offset 65536: expected at most 65,536 bytes"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_keeps_it_from_starting(options: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text('cntrol = "/x"\n')
    filled = [option.format(tmp_path, "x" * 120) for option in options]
    for name in ("control", "state-dir"):
        if f"--{name}" not in filled:
            filled += [f"--{name}", str(tmp_path / name)]
    done = process("serve", *filled)
    assert (done.code, done.out) == (2, b"")
    last = done.err.splitlines()[-1]
    assert last.startswith("varstore-companion serve: ")
    assert said.format(tmp_path) in last
    assert "Traceback" not in done.err


def test_a_state_folder_has_one_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        done = process("serve", "--control", tmp_path / "other.sock", "--state-dir", running.state_dir)
        done.fails(f"serve: {running.state_dir}: another daemon runs on this state folder")
        done = process("serve", "--control", running.control, "--state-dir", tmp_path / "other")
        assert done.code == 2
        assert f"{running.control}: another process listens there" in done.err.splitlines()[-1]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as still:
            still.connect(str(running.control))


def test_a_list_of_sockets_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "state" / "attached.json").mkdir(parents=True)
    done = process("serve", "--control", tmp_path / "c", "--state-dir", tmp_path / "state")
    assert done.code == 2
    assert done.err.splitlines()[-1] == f"varstore-companion serve: {tmp_path}/state/attached.json: Is a directory"
    assert "Traceback" not in done.err


def test_what_a_crash_left_does_not_keep_it(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        running.process.kill()
        running.process.wait()
    assert running.control.exists()
    with daemon(tmp_path):
        pass


def test_options_go_before_the_file(run: Run, rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    async def started(settings: Settings) -> None:
        seen.append(settings)

    monkeypatch.setattr(daemon_main, "serve", started)
    config = tmp_path / "config.toml"
    config.write_text(f'control = "/from/file"\nheadroom = 7\nmanifest = "{rules.manifest}"\n')
    assert run("serve", "--config", config).code == 0
    assert run("serve", "--config", config, "--control", "/given", "--headroom", "0").code == 0
    assert run("serve").code == 0
    from_file = Settings(control=Path("/from/file"), headroom=7, manifest=rules.manifest)
    given = Settings(control=Path("/given"), headroom=0, manifest=rules.manifest)
    assert seen == [from_file, given, Settings()]


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    process("serve", "--control", tmp_path / "c", "--state-dir", "/proc/none").fails("serve: /proc/none: ")
