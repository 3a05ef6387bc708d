"""One life of the daemon: a process of its own, its log, and its end by SIGKILL."""

import re
import subprocess
from collections.abc import Callable
from typing import Final

import trio

from support.processes import python_environment

KEPT: Final = 400
"""Lines of the log."""
_READY: Final = "ready:"
_BUG = re.compile(r"Traceback|met a bug")
_WAITED = re.compile(r"with the toolstack, ([0-9.]+) s after")


class Life:
    """`lines`: the end of its log; `bugs`: how many of them tell of a bug; `longest_wait`: of a store in the journal."""

    def __init__(self, process: trio.Process, said: Callable[[str], None]) -> None:
        self._said = said
        self.process = process
        self.lines: list[str] = []
        self.bugs = 0
        self.longest_wait = 0.0
        self.ready = trio.Event()
        self.read = trio.Event()

    @classmethod
    async def begin(cls, command: list[str], nursery: trio.Nursery, said: Callable[[str], None]) -> "Life":
        """Start a daemon; `said` gets each line of its log."""
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=python_environment(), start_new_session=True
        )
        life = cls(process, said)
        nursery.start_soon(life._read)
        return life

    @property
    def has_ended(self) -> bool:
        """Whether it is not there any more."""
        return self.process.poll() is not None

    def killer(self, before: Callable[[], None]) -> Callable[[], None]:
        """Kills it, in the very moment; `before` is called first."""

        def kill() -> None:
            before()
            self.process.kill()

        return kill

    async def ended(self) -> None:
        """Wait until it is gone and all that it said has been read."""
        await self.process.wait()
        await self.read.wait()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        rest = b""
        try:
            async for data in self.process.stderr:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line.decode(errors="replace"))
        except BaseException:
            # Whatever ends the loop before, leaves no daemon behind.
            self.process.kill()
            raise
        self.read.set()
        self.ready.set()

    def _take(self, line: str) -> None:
        self._said(line)
        self.lines = [*self.lines[1 - KEPT :], line]
        if _READY in line:
            self.ready.set()
        self.bugs += _BUG.search(line) is not None
        if waited := _WAITED.search(line):
            self.longest_wait = max(self.longest_wait, float(waited[1]))
