"""The runner of certcheck, against small real programs."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.storebytes import make_store
from varstore_companion.toolstack import certcheck as module
from varstore_companion.toolstack.certcheck import Certcheck, CertcheckResult, default_command
from varstore_companion.trust.state import CertificatesState

OK, AVAILABLE = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE

Script = Callable[[str], str]


def _content(path: Path | str) -> bytes:
    return Path(path).read_bytes()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes a shell script of the text and returns its path."""

    def make(text: str) -> str:
        path = tmp_path / "checker"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("echo update_required", AVAILABLE),
        ("echo update_ok", OK),
        ("printf update_required", AVAILABLE),
        ("printf '  update_ok \\n\\n'", OK),
        ("echo update_required; echo to standard error >&2", AVAILABLE),
    ],
)
async def test_an_answer(script: Script, text: str, state: CertificatesState) -> None:
    assert await Certcheck([script(text)]).run(b"store") == CertcheckResult(state)


async def test_what_it_leaves_in_the_background_holds_nobody_up(script: Script, tmp_path: Path) -> None:
    number = tmp_path / "number"
    path = script(f"sleep 1000 & echo $! >{number}; echo update_required")
    assert await Certcheck([path]).run(b"store") == CertcheckResult(AVAILABLE)
    os.kill(int(_content(number)), signal.SIGKILL)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("echo unknown", "answered b'unknown'"),
        ("true", "answered b''"),
        ("echo update_required; echo update_ok", r"answered b'update_required\\nupdate_ok'"),
        ("echo UPDATE_REQUIRED", "answered b'UPDATE_REQUIRED'"),
        ("printf 'update_required\\033[31m'", r"answered b'update_required\\x1b\[31m'"),
        ("echo update_required; exit 1", "failed with status 1"),
        ("echo update_required; kill -9 $$", "failed with status -9"),
        ("yes", "failed with status"),
        ("head -c 10000000 /dev/zero", "failed with status"),
        ("yes update_required | head -c 2000; exit 0", "answered b''"),
    ],
)
async def test_anything_else_is_ok_with_a_warning(script: Script, text: str, warning: str) -> None:
    path = script(text)
    result = await Certcheck([path]).run(b"store")
    assert result.state is OK
    assert result.warning is not None
    assert result.warning.startswith(path)
    with pytest.raises(AssertionError, match=warning):
        raise AssertionError(result.warning)


async def test_a_program_that_prints_on_and_on_keeps_no_memory(script: Script, tmp_path: Path) -> None:
    size = tmp_path / "size"
    path = script(
        "n=0; while [ $n -lt 1000 ]; do echo update_required; n=$((n+1)); done; size=$(stat -Lc %s /proc/$$/fd/1); "
        f"echo $size >{size}"
    )
    result = await Certcheck([path]).run(b"store")
    assert result.state is OK
    assert result.warning is not None
    assert int(_content(size)) == module.OUTPUT_LIMIT


@pytest.mark.parametrize("command", ["/nonexistent/checker", "checker-that-nobody-has", "/", "/etc/hostname"])
async def test_a_program_that_cannot_be_started(command: str) -> None:
    result = await Certcheck([command]).run(b"store")
    assert result.state is OK
    assert result.warning is not None
    assert result.warning.startswith(f"{command} cannot be run: ")


async def test_a_program_without_an_interpreter_line(tmp_path: Path) -> None:
    path = tmp_path / "checker"
    path.write_bytes(b"\0\1\2 no program")
    path.chmod(0o700)
    result = await Certcheck([str(path)]).run(b"store")
    assert (result.state, result.warning) == (OK, f"{path} cannot be run: Exec format error")


async def test_the_program_reads_the_text_of_the_store(script: Script, tmp_path: Path) -> None:
    store = bytes(range(256)) * 500
    seen = tmp_path / "seen"
    command = [script(f'cat "$2" >{seen}.text; base64 -d <"$2" >{seen}.store; echo "$1"'), "update_required"]
    assert await Certcheck(command).run(store) == CertcheckResult(AVAILABLE)
    assert _content(f"{seen}.store") == store
    assert b"\n" not in _content(f"{seen}.text")


async def test_the_program_gets_nothing_else(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the daemon")
    read, write = os.pipe()
    seen = tmp_path / "seen"
    await Certcheck([script(f"cat >{seen}.stdin; env >{seen}.env; ls -l /proc/$$/fd >{seen}.fds; echo update_ok")]).run(b"")
    os.close(read)
    os.close(write)
    assert _content(f"{seen}.stdin") == b""
    names = {line.split(b"=")[0] for line in _content(f"{seen}.env").splitlines()}
    assert names <= {b"LC_ALL", b"PATH", b"PWD", b"_", b"SHLVL", b"OLDPWD"}
    assert b"pipe:" not in _content(f"{seen}.fds")


def _open_files() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("text", ["echo update_ok", "exit 1", "exec sleep 1000"])
async def test_no_descriptor_is_left_open(script: Script, text: str) -> None:
    checker = Certcheck([script(text)], deadline=0.1)
    await checker.run(b"store")
    before = _open_files()
    await checker.run(b"store")
    assert _open_files() == before


# Says in a named pipe which processes there are, the second started by the first, and hangs.
HANGING = "sleep 1000 & echo $$ $! >{0}; exec sleep 1000"


def _process_numbers(pipe: Path) -> tuple[int, int]:
    first, second = pipe.read_text().split()
    return int(first), int(second)


def _exists(number: int) -> bool:
    return Path(f"/proc/{number}").exists()


async def _ends(process: int) -> None:
    """Wait for the end of a process, given as a pidfd."""
    await trio.lowlevel.wait_readable(process)
    os.close(process)


async def test_at_the_deadline_it_is_killed_and_reaped(script: Script, tmp_path: Path, mock_clock: MockClock) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    results: list[CertcheckResult] = []

    async def run() -> None:
        results.append(await Certcheck([script(HANGING.format(pipe))], deadline=10).run(b"store"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        first, second = await trio.to_thread.run_sync(_process_numbers, pipe)
        grandchild = os.pidfd_open(second)
        mock_clock.jump(9.9)
        await wait_all_tasks_blocked()
        assert _exists(first)
        mock_clock.jump(0.2)
    (result,) = results
    assert result.state is OK
    assert result.warning is not None
    assert result.warning.endswith("did not end within 10 s")
    assert not _exists(first)
    await _ends(grandchild)


async def test_cancelled_it_is_killed_and_reaped(script: Script, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Certcheck([script(HANGING.format(pipe))]).run, b"store")
        first, second = await trio.to_thread.run_sync(_process_numbers, pipe)
        grandchild = os.pidfd_open(second)
        assert _exists(first)
        nursery.cancel_scope.cancel()
    assert not _exists(first)
    await _ends(grandchild)


async def test_no_more_than_so_many_at_once(script: Script, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    os.mkfifo(started)
    os.mkfifo(go)
    checker = Certcheck([script(f"echo x >{started}; read line <{go}; echo update_required")], at_once=2)
    results: list[CertcheckResult] = []

    async def run() -> None:
        results.append(await checker.run(b"store"))

    # Held open at both ends, so that each line is there to be counted.
    starts, goes = os.open(started, os.O_RDWR), os.open(go, os.O_RDWR)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(run)
        for _ in range(2):
            assert await trio.to_thread.run_sync(os.read, starts, 2) == b"x\n"
        assert checker._places.borrowed_tokens == 2
        assert checker._places.statistics().tasks_waiting == 2
        os.set_blocking(starts, False)
        with pytest.raises(BlockingIOError):
            os.read(starts, 2)
        os.write(goes, b"go\n" * 4)
    os.close(starts)
    os.close(goes)
    assert results == [CertcheckResult(AVAILABLE)] * 4


def test_the_program_beside_python_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, on_path = tmp_path / "venv", tmp_path / "path"
    for folder in (beside, on_path):
        folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    monkeypatch.setenv("PATH", str(on_path))
    assert default_command()[0] == str(beside / "python")
    for folder in (on_path, beside):
        program = folder / module.PROGRAM
        program.write_text("#!/bin/sh\n")
        program.chmod(0o700)
        assert default_command() == (str(program),)


async def test_without_a_script_it_is_this_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(bare))
    command = default_command()
    assert command[0] == str(bare)
    monkeypatch.undo()
    assert await Certcheck([sys.executable, *command[1:]]).run(make_store([])) == CertcheckResult(OK)
    unreadable = await Certcheck([sys.executable, *command[1:]]).run(b"no store")
    assert unreadable.warning is not None
    assert "answered b'unknown'" in unreadable.warning
