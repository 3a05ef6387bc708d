"""Other processes of this program, for tests of what is shared between processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import varstore_companion

_SOURCES = Path(varstore_companion.__file__).parents[1]

TESTS = f"import sys; sys.path.append({str(Path(__file__).parents[1])!r})\n"
"""The beginning of code that imports the tests' support."""


def python_command(code: str, *arguments: object) -> list[str]:
    """The command line of a Python process that runs `code` with `arguments` in sys.argv."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def python_environment() -> dict[str, str]:
    """An environment in which this program's sources are found, and no manager of these tests' own."""
    own = {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")}
    return {**own, "PYTHONPATH": str(_SOURCES)}


@contextmanager
def python(code: str, *arguments: object, close_fds: bool = True) -> Iterator[tuple[subprocess.Popen[str], IO[str], IO[str]]]:
    """Run `code` in a process of its own: the process, its standard input, its standard output. Killed at the end."""
    with subprocess.Popen(
        python_command(code, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=python_environment(),
        close_fds=close_fds,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process, process.stdin, process.stdout
        finally:
            process.kill()
