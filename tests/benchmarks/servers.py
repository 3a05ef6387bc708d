"""The servers that are measured from outside: `python -m benchmarks.servers daemon|echo|guarded FOLDER`, `guards FOLDER COUNT`.

Each says "ready" on standard error once its socket answers: `SOCKET` in the folder, of `guarded` its control socket, of
`guards` each of `guard_of`.
"""

import logging
import os
import sys
from pathlib import Path
from time import time
from uuid import UUID

import trio

from benchmarks import fast_guard, stores
from support.hosts import host_in
from support.memory_toolstack import MemoryToolstack
from varstore_companion.daemon import listen
from varstore_companion.daemon.attachments import DEFAULT_MODE, Attachment
from varstore_companion.daemon.config import Settings, Source
from varstore_companion.daemon.limits import Limits
from varstore_companion.daemon.main import Daemon
from varstore_companion.daemon.process import spare_what_stands
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.session import CHUNK
from varstore_companion.errors import ToolstackConflictError
from varstore_companion.files import load_manifest
from varstore_companion.sources import Loaded
from varstore_companion.toolstack.guard import GuardToolstack
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update

SOCKET = "socket"
VM = UUID("5b6d1f0a-9c3e-4a57-8f21-0d4c7e8b9a63")


class PlainToolstack(MemoryToolstack):
    """Takes writes with nothing of a test's in their way, neither prepared failures nor a list of them that grows."""

    async def write(self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None) -> int:
        await trio.lowlevel.checkpoint()
        record = self.vms[vm]
        if expected is not None and record.generation != expected:
            raise ToolstackConflictError(f"the store of VM {vm} has generation {record.generation}, not {expected}")
        self.vms[vm] = VmRecord(store, CertificatesState.OK if update is Update.YES else record.state, record.generation + 1)
        return record.generation + 1


async def daemon(folder: Path) -> None:
    """The daemon with one attached VM, on a toolstack in memory. It logs as `serve` does, to nowhere."""
    logging.basicConfig(filename=os.devnull, level=logging.INFO, format="%(levelname)s %(message)s")
    toolstack = PlainToolstack()
    toolstack.create(VM, stores.store(), CertificatesState.UPDATE_AVAILABLE)
    host = host_in(folder, toolstack, _rules(), time)
    control = listen.bind(folder / "control", mode=0o600)
    served = Daemon(host, Reloader(host, Source(), Settings()), folder / "attached.json", control)
    async with trio.open_nursery() as nursery:
        await nursery.start(served.run)
        await served.attach(Attachment(VM, folder / SOCKET, None, DEFAULT_MODE, resume=False))
        _ready()


async def guarded(folder: Path) -> None:
    """The daemon on guards, with nothing attached. It logs as `daemon` does."""
    logging.basicConfig(filename=os.devnull, level=logging.INFO, format="%(levelname)s %(message)s")
    toolstack = GuardToolstack()
    host = host_in(folder, toolstack, _rules(), time, upstreams=toolstack)
    control = listen.bind(folder / "control", mode=0o600)
    async with trio.open_nursery() as nursery:
        await nursery.start(Daemon(host, Reloader(host, Source(), Settings()), folder / "attached.json", control).run)
        _ready()


async def echo(folder: Path) -> None:
    """The least that a trio server can do with what it receives: send it back."""

    async def serve(stream: trio.SocketStream) -> None:
        while data := await stream.receive_some(CHUNK):
            await stream.send_all(data)

    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listener:
        await listener.bind(str(folder / SOCKET))
        listener.listen()
        async with trio.SocketListener(listener) as accepting:
            _ready()
            await trio.serve_listeners(serve, [accepting])


def _rules() -> Rules:
    """Without varstored's limit of two writes a second: what is measured is how long one takes."""
    return Rules(load_manifest(), Loaded({}, {}, ()), limits=Limits(write_burst=0))


def _ready() -> None:
    spare_what_stands()
    sys.stderr.write("ready\n")


def main(which: str, folder: str, *count: str) -> None:
    if which == "guards":
        fast_guard.main(Path(folder), int(*count))
    trio.run({"daemon": daemon, "echo": echo, "guarded": guarded}[which], Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
