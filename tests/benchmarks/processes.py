"""Processes to measure: the program's own scripts, and servers of this folder."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from threading import Thread
from typing import IO

from benchmarks.harness import UnavailableError
from support.processes import python_environment

SECONDS = 30.0
"""To become ready."""
_TESTS = Path(__file__).resolve().parents[1]


def script(name: str) -> str:
    """A console script of the program, as it is installed for this interpreter."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise UnavailableError(f"the program is not installed for this interpreter: there is no {path}")
    return str(path)


def cpu_seconds(who: int) -> float:
    """User and system time so far, of this process (RUSAGE_SELF) or of its ended children (RUSAGE_CHILDREN)."""
    usage = getrusage(who)
    return usage.ru_utime + usage.ru_stime


def all_cpu_seconds() -> float:
    """User and system time so far, of this process and of its ended children."""
    return cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN)


def whole_process(command: list[str]) -> Callable[[], tuple[float, float]]:
    """A measurement of a process from start to end: wall and CPU seconds."""
    # The scripts are run as a toolstack runs them, with nothing of this process's environment.
    environment = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

    def measure() -> tuple[float, float]:
        cpu, begun = cpu_seconds(RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
        return time.perf_counter() - begun, cpu_seconds(RUSAGE_CHILDREN) - cpu

    return measure


@contextmanager
def server(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of `benchmarks.servers` in a process of its own, ready; killed at the end."""
    environment = python_environment()
    environment["PYTHONPATH"] += f"{os.pathsep}{_TESTS}"
    with running([sys.executable, "-m", "benchmarks.servers", *arguments], environment) as process:
        yield process


@contextmanager
def running(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said "ready" on its standard error; killed at the end."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stderr is not None
            _wait_until_ready(process.stderr)
            # What it says from here on must not fill the pipe and stop it.
            Thread(target=process.stderr.read, daemon=True).start()
            yield process
        finally:
            process.kill()


def _wait_until_ready(stderr: IO[bytes]) -> None:
    said = b""
    deadline = time.monotonic() + SECONDS
    while b"ready" not in said:
        if not select.select([stderr], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise UnavailableError(f"not ready within {SECONDS:g} s: {said!r}")
        data = os.read(stderr.fileno(), 65_536)
        if not data:
            raise UnavailableError(f"ended before it was ready: {said.decode(errors='replace').strip()}")
        said += data
