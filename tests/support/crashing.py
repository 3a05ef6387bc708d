"""A process whose children are killed in the middle of taking a guard's socket over, or of giving it back.

Started once, it forks a child for each line that it reads: a job as JSON, answered with "killed" or "done". The child runs a
daemon, and kills itself with SIGKILL right before its `steps`th system call from the beginning of the operation: as Python's
audit hooks see them, and the exchange of names before and after.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
import trio

from support.guards import Place
from support.processes import TESTS, python
from varstore_companion.daemon import interpose
from varstore_companion.daemon.attachments import interposed
from varstore_companion.daemon.rename import Flag, rename

_CALLS = frozenset({"open", "os.rename", "os.remove", "os.chmod", "os.chown", "socket.bind", "socket.connect"})


@dataclass(slots=True)
class _Steps:
    """How many system calls are left until the end; None while none counts."""

    left: int | None = None

    def take(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


async def _operate(folder: Path, vm: UUID, path: Path, operation: str, steps: int) -> None:
    counted = _Steps()

    def exchange(folder_descriptor: int, old: str, new: str, flag: Flag) -> None:
        counted.take()
        rename(folder_descriptor, old, new, flag)
        counted.take()

    sys.addaudithook(lambda event, _arguments: counted.take() if event in _CALLS else None)
    pytest.MonkeyPatch().setattr(interpose, "rename", exchange)
    async with trio.open_nursery() as nursery:
        place = Place(folder, nursery)
        await nursery.start(place.daemon.run)
        attachment = interposed(vm, path, resume=True)
        if operation == "detach":
            await place.daemon.attach(attachment)
        counted.left = steps
        await (place.daemon.attach(attachment) if operation == "attach" else place.daemon.detach(path))
        os._exit(0)


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                trio.run(_operate, Path(job["folder"]), UUID(job["vm"]), Path(job["path"]), job["operation"], job["steps"])
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        said = {0: "done", -signal.SIGKILL: "killed"}.get(os.waitstatus_to_exitcode(status), f"failed: {status}")
        print(said, flush=True)


class Crasher:
    """The process, from outside."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def operate(self, folder: Path, vm: UUID, path: Path, operation: str, steps: int) -> bool:
        """Have a child do it; whether it was killed before it was done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"folder": str(folder), "vm": str(vm), "path": str(path), "operation": operation, "steps": steps}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline().strip()
        assert said in {"killed", "done"}, said
        return said == "killed"


@contextmanager
def crasher() -> Iterator[Crasher]:
    """The process, as long as this is entered."""
    with python(TESTS + "from support.crashing import main; main()") as (process, _, _):
        yield Crasher(process)
