"""Runs `varstore-nvram-certcheck` as xapi does: a process of its own that reads a file and prints one line."""

import os
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import F_ADD_SEALS, F_SEAL_GROW, fcntl
from pathlib import Path

import trio

from varstore_companion.trust.state import CertificatesState

PROGRAM = "varstore-nvram-certcheck"

DEADLINE = 10.0
"""Seconds that one run may take. It is CPU work of milliseconds; most of it is the start of a process."""

AT_ONCE = 2
"""Runs at the same time: a dom0 has few processors, and a guest decides how often one is needed."""

OUTPUT_LIMIT = 64
"""Bytes that the program can print; its answers have at most 16."""

_ANSWERS = {b"update_required": CertificatesState.UPDATE_AVAILABLE, b"update_ok": CertificatesState.OK}

_OWN = "import sys; sys.path[:] = sys.argv.pop(1).split(':'); from varstore_companion.cli.certcheck import run; run()"

_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True, slots=True)
class CertcheckResult:
    """What the field becomes; `warning` says why when the program gave no usable answer."""

    state: CertificatesState
    warning: str | None = None


def default_command() -> tuple[str, ...]:
    """The program beside this Python interpreter, else the one on PATH, else this package's own, run without a script."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.exists() else shutil.which(PROGRAM)
    return (sys.executable, "-c", _OWN, ":".join(filter(os.path.isabs, sys.path))) if found is None else (found,)


class Certcheck:
    """Asks the program about stores.

    `command` is the program and its first arguments; the file comes last. `deadline` is in seconds and counts from
    the start of the process, not the wait for one of the `at_once` places.
    """

    def __init__(self, command: Sequence[str] | None = None, *, deadline: float = DEADLINE, at_once: int = AT_ONCE) -> None:
        self._command = tuple(default_command() if command is None else command)
        self._deadline = deadline
        self._places = trio.CapacityLimiter(at_once)

    async def run(self, store: bytes) -> CertcheckResult:
        """Ask about `store`. An answer other than the two that xapi knows, a failure included, is `ok` and a warning.

        The program gets the store as base64 text in a memory file, so nothing is left behind or raced for on disk.
        When this is cancelled, or at the deadline, its process group is killed and the process reaped.
        """
        async with self._places:
            try:
                return await self._run(store)
            except OSError as error:
                return _unusable(f"{self._command[0]} cannot be run: {error.strerror}")

    async def _run(self, store: bytes) -> CertcheckResult:
        # A regular file for the output, as xapi gives it. It cannot grow past the limit, and unlike a pipe it needs
        # neither a reader nor an end of file that a process left in the background would hold back.
        with _memory_file(b64encode(store)) as asked, _memory_file(bytes(OUTPUT_LIMIT)) as answered:
            fcntl(answered, F_ADD_SEALS, F_SEAL_GROW)
            with trio.move_on_after(self._deadline) as scope:
                done = await trio.run_process(
                    [*self._command, f"/proc/self/fd/{asked}"],
                    stdin=subprocess.DEVNULL,
                    stdout=answered,
                    stderr=subprocess.DEVNULL,
                    check=False,
                    deliver_cancel=_kill,
                    env=_ENVIRONMENT,
                    pass_fds=(asked,),
                    start_new_session=True,
                )
            if scope.cancelled_caught:
                return _unusable(f"{self._command[0]} did not end within {self._deadline:g} s")
            if done.returncode != 0:
                return _unusable(f"{self._command[0]} failed with status {done.returncode}")
            output = os.pread(answered, OUTPUT_LIMIT, 0).rstrip(b"\0").strip()
        state = _ANSWERS.get(output)
        return _unusable(f"{self._command[0]} answered {output!r}") if state is None else CertcheckResult(state)


def _unusable(why: str) -> CertcheckResult:
    return CertcheckResult(CertificatesState.OK, why)


@contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("varstore-nvram-certcheck", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.seek(0)  # flushes, too
        yield descriptor


async def _kill(process: trio.Process) -> None:
    # Not yet reaped, so the number is still this group's.
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
