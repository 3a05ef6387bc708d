"""A `serve` process with the embedded toolstack, and what speaks to it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID, uuid4

from support.processes import python_environment
from varstore_companion.cli.client import Client
from varstore_companion.cli.client import control as control_client
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Attach, ClientKind

SECONDS = 30
"""For a daemon to start or to stop; far more than it needs."""

_WITH_FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
del sys.argv[1]
from varstore_companion.cli.main import run
run()
"""


_RUN = "from varstore_companion.cli.main import run; run()"


class Home:
    """A folder in which daemons run, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.control = folder / "control.sock"

    def command(self, *more: object, descriptors: int | None = None, before: str | None = None) -> list[str]:
        """The command line of a daemon here. `before`: code that its process runs first."""
        start = ["-m", "varstore_companion.cli"] if before is None else ["-c", f"{before}\n{_RUN}"]
        if descriptors is not None:
            start = ["-c", _WITH_FEW_DESCRIPTORS, str(descriptors)]
        # The settings of the machine that runs the tests are none of theirs.
        options = [
            "--config",
            os.devnull,
            "--control",
            self.control,
            "--state-dir",
            self.state,
            "--auth-dir",
            self.folder / "none",
            *more,
        ]
        return [sys.executable, *start, "serve", *map(str, options)]

    @contextmanager
    def serve(
        self, *more: object, descriptors: int | None = None, prefix: Sequence[str] = (), before: str | None = None
    ) -> Iterator["Serve"]:
        """Run a daemon; it is ready. Killed at the end if it runs still. `prefix`: a command that runs it."""
        with self.serving([*prefix, *self.command(*more, descriptors=descriptors, before=before)]) as serve:
            yield serve

    @contextmanager
    def serving(self, command: list[str]) -> Iterator["Serve"]:
        """Run a daemon by its command line, as `serve` does."""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=python_environment(),
            start_new_session=True,
        ) as process:
            serve = Serve(process)
            try:
                serve.wait_until_ready()
                yield serve
            finally:
                # With what runs it: its session is its own.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                serve.wait()

    def database(self) -> Database:
        """The toolstack, as an operator opens it beside the daemon."""
        return Database(self.state / FILE_NAME)

    def create(self, store: bytes | None, state: CertificatesState) -> UUID:
        """Add a VM."""
        vm = uuid4()
        with self.database() as database:
            if state is CertificatesState.UPDATE_ON_BOOT:
                database.create(vm, "name", store, CertificatesState.UPDATE_AVAILABLE)
                database.mark(vm)
            else:
                database.create(vm, "name", store, state)
        return vm

    def attach(self, vm: UUID, name: str = "vm.sock") -> Path:
        """Have the daemon serve a VM's socket."""
        path = self.folder / name
        with control_client(self.control) as control:
            control.call(Attach(vm, bytes(path)))
        return path


class Serve:
    """A running daemon; its log is in `lines`, whole once it has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Wait for the line that says so."""
        assert self._ready.wait(SECONDS), "the daemon is not ready"
        assert any("ready:" in line for line in self.lines), "".join(self.lines)

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "ready:" in line:
                self._ready.set()
        self._ready.set()


def varstored(path: Path, vm: UUID) -> Client:
    """A connection as a varstored makes it."""
    return Client(path, ClientKind.VARSTORED, vm=vm)
