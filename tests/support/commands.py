"""Commands as a person gives them: in this process, as processes of their own, on a terminal, and beside a daemon."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest

from support.fixtures import index
from support.places import FIXTURES
from support.processes import python_environment

SECONDS = 60
"""After which a process that does not end has failed: far more than any takes."""
PROGRAM = (sys.executable, "-m", "varstore_companion.cli")

VM_COMMANDS = (
    *("list", "show", "create", "import", "export", "clone", "copy"),
    *("snapshot", "revert", "mark", "unmark", "destroy", "pool"),
)
"""What `vm` can do, in the order in which its help has it."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:  # noqa: ANN401  what json gives
        """The one JSON document on standard output."""
        return json.loads(self.out)

    def fails(self, *parts: str, code: int = 2) -> None:
        """Check that this is an error as every command has to say it: one line that holds `parts`, and nothing else."""
        assert (self.code, self.out) == (code, b""), self
        assert self.err.endswith("\n"), self
        assert self.err.count("\n") == 1, self
        assert self.err.startswith("varstore-companion"), self
        assert "Traceback" not in self.err
        for part in parts:
            assert part in self.err, self


class Run(Protocol):
    """Runs one command of varstore-companion."""

    def __call__(self, *arguments: object) -> Done: ...


def process(
    *arguments: object,
    stdin: bytes | None = b"",
    environment: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Done:
    """Run a command as a process of its own; `prefix` is a command that runs it."""
    done = subprocess.run(
        [*prefix, *PROGRAM, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={**python_environment(), **(environment or {})},
        timeout=SECONDS,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


@cache
def as_somebody_else() -> tuple[str, ...]:
    """What runs a command without root's rights; skips the calling test where that cannot be had."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, and setpriv, to become somebody else")
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    # This program, and its interpreter once more: commands that start others run it by its path.
    check = [
        *prefix,
        sys.executable,
        "-c",
        "import os, sys, varstore_companion; sys.exit(not os.access(sys.executable, os.X_OK))",
    ]
    if subprocess.run(check, capture_output=True, env=python_environment(), timeout=SECONDS, check=False).returncode != 0:
        pytest.skip(f"somebody else may not run {sys.executable} with this program")
    return prefix


def shell(text: str, *arguments: object) -> Done:
    """Run a line of bash in which `vc` is the program and `$1`... are `arguments`."""
    line = 'vc() { "${program[@]}" "$@"; }; ' + text
    program = " ".join(f"'{each}'" for each in PROGRAM)
    done = subprocess.run(
        ["bash", "-c", f"program=({program}); {line}", "bash", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=python_environment(),
        timeout=SECONDS,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def on_terminal(*arguments: object, **environment: str) -> tuple[int, str]:
    """Run a command whose standard output is a terminal; the exit code and what was shown, with plain line ends."""
    ours, its = pty.openpty()
    try:
        with subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=its,
            env={**python_environment(), "TERM": "xterm", **environment},
        ) as started:
            os.close(its)
            shown = b""
            while chunk := _read_terminal(ours):
                shown += chunk
            code = started.wait(SECONDS)
    finally:
        os.close(ours)
    return code, shown.decode().replace("\r\n", "\n")


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # EIO: nobody has the other end open any more
        return b""


@dataclass(slots=True)
class Daemon:
    """A running daemon. `log`: its lines so far."""

    process: "subprocess.Popen[str]"
    control: Path
    state_dir: Path
    log: list[str] = field(default_factory=list)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@contextmanager
def daemon(folder: Path, *options: object) -> Iterator[Daemon]:
    """A daemon on the embedded toolstack, ready when this is entered and gone when it is left."""
    control, state_dir = folder / "control.sock", folder / "state"
    # The settings of the machine that runs the tests are none of theirs.
    own = ["--config", os.devnull, "--control", str(control), "--state-dir", str(state_dir)]
    command = [*PROGRAM, "serve", *own, *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=python_environment(), text=True) as started:
        running = Daemon(started, control, state_dir)
        ready = threading.Event()
        reader = threading.Thread(target=_follow, args=(running, ready))
        reader.start()
        try:
            ready.wait(SECONDS)
            assert any("ready:" in line for line in running.log), running.log
            yield running
        finally:
            if started.poll() is None:
                running.stop()
            reader.join()


def _follow(running: Daemon, ready: threading.Event) -> None:
    assert running.process.stderr is not None
    for line in running.process.stderr:
        running.log.append(line)
        if "ready:" in line:
            ready.set()
    ready.set()


def base64_file(folder: Path, blob: bytes, name: str = "nvram.b64") -> Path:
    """A file with a store as the toolstack keeps it: base64 text without a newline."""
    path = folder / name
    path.write_bytes(b64encode(blob))
    return path


def raw_file(folder: Path, blob: bytes, name: str = "nvram.bin") -> Path:
    """A file with a store's bytes."""
    path = folder / name
    path.write_bytes(blob)
    return path


def fixture_file(name: str) -> Path:
    """The file of one fixture store."""
    assert name in index()
    return FIXTURES / "stores" / f"{name}.b64"


FIXTURE_STORES = (
    "setup_mode",
    "ms2011",
    "ms2011_dbx",
    "windows_updated_db_windows",
    "all2023",
    "windows_only2011",
    "custom_keys",
    "ms2011_v1",
    "wrong_owner_2023",
    "oversized_dbx",
    "large",
)
"""The names of the fixture stores."""
