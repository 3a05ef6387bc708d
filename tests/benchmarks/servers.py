"""The servers that are measured from outside: `python -m benchmarks.servers WHICH FOLDER`, or `crowd|guards FOLDER COUNT`.

`daemon`, `ledger` and `bare` are the daemon as it is, beside a guard, and without a journal; `echo` the yardstick; `guarded`
the daemon on guards. `noise FOLDER NUMBER` is a client.

Each says "ready" on standard error once its socket answers: `SOCKET` in the folder, of `guarded` its control socket, of
`crowd` and `guards` each of theirs.
"""

import itertools
import logging
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from time import time
from unittest.mock import patch
from uuid import UUID

import trio

from benchmarks import fast_guard, stores
from support.hosts import host_in
from support.memory_toolstack import MemoryToolstack
from support.peer import greeted
from varstore_companion.daemon import listen, process
from varstore_companion.daemon.attachments import DEFAULT_MODE, Attachment
from varstore_companion.daemon.config import Settings, Source
from varstore_companion.daemon.journals import opened_ledger
from varstore_companion.daemon.limits import Limits
from varstore_companion.daemon.main import Daemon
from varstore_companion.daemon.process import spare_what_stands
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.session import CHUNK
from varstore_companion.daemon.sockets import VM_CONNECTIONS
from varstore_companion.daemon.vm import Vm, Written
from varstore_companion.daemon.writer import Writer
from varstore_companion.efi.outline import Outline
from varstore_companion.errors import ToolstackConflictError
from varstore_companion.files import load_manifest
from varstore_companion.sources import Loaded, load_bodies
from varstore_companion.toolstack.guard import GuardToolstack
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.codec import encode
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.messages import PutStore

SOCKET = "socket"
VM = UUID("5b6d1f0a-9c3e-4a57-8f21-0d4c7e8b9a63")


def vm_of(number: int) -> UUID:
    """One of the VMs of `crowd`."""
    return UUID(int=number + 1)


def path_of(folder: Path, number: int) -> Path:
    """Its socket."""
    return folder / f"vm-{number}"


class PlainToolstack(MemoryToolstack):
    """Takes writes with nothing of a test's in their way, neither prepared failures nor a list of them that grows."""

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        record = self.vms[vm]
        if expected is not None and record.generation != expected:
            raise ToolstackConflictError(f"the store of VM {vm} has generation {record.generation}, not {expected}")
        self.vms[vm] = VmRecord(store, CertificatesState.OK if update is Update.YES else record.state, record.generation + 1)
        return record.generation + 1


async def daemon(folder: Path, *, has_ledger: bool = False) -> None:
    """The daemon with one attached VM, on a toolstack in memory. It logs as `serve` does, to nowhere."""
    logging.basicConfig(filename=os.devnull, level=logging.INFO, format="%(levelname)s %(message)s")
    toolstack = PlainToolstack()
    toolstack.create(VM, stores.store(), CertificatesState.UPDATE_AVAILABLE)
    host = host_in(folder, toolstack, _rules(), time)
    host.ledger = opened_ledger(folder / "ledger") if has_ledger else None
    control = listen.bind(folder / "control", mode=0o600)
    served = Daemon(host, Reloader(host, Source(), Settings()), folder / "attached.json", control)
    async with trio.open_nursery() as nursery:
        await nursery.start(served.run)
        await served.attach(Attachment(VM, folder / SOCKET, None, DEFAULT_MODE, resume=False))
        _ready()


async def crowd(folder: Path, vms: int) -> None:
    """The daemon with the VMs of `crowd.attach`, all marked, and the rules and limits of a host. It logs as `daemon` does."""
    logging.basicConfig(filename=os.devnull, level=logging.INFO, format="%(levelname)s %(message)s")
    process.raise_descriptor_limit()
    toolstack = PlainToolstack()
    for number in range(vms):
        toolstack.create(vm_of(number), stores.store(), CertificatesState.UPDATE_ON_BOOT)
    manifest = load_manifest()
    host = host_in(folder, toolstack, Rules(manifest, load_bodies(manifest, auth_folder=None)), time)
    control = listen.bind(folder / "control", mode=0o600)
    async with trio.open_nursery() as nursery:
        await nursery.start(Daemon(host, Reloader(host, Source(), Settings()), folder / "attached.json", control).run)
        _ready()


async def noise(folder: Path, number: int) -> None:
    """No server: one VM of `crowd` that writes as fast as it can, on as many connections as it may have."""
    frames = [
        build_frame(PutStore.TYPE, 2, encode(PutStore(blob))) for blob in (stores.store(), stores.store_with_boot_entry())
    ]

    async def write(stream: trio.SocketStream) -> None:
        for frame in itertools.cycle(frames):
            await stream.send_all(frame)

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        for _ in range(VM_CONNECTIONS):
            peer = await stack.enter_async_context(greeted(path_of(folder, number), vm_of(number)))
            nursery.start_soon(write, peer.raw)
            nursery.start_soon(peer.rest)
        _ready()
        await trio.sleep_forever()


async def guarded(folder: Path) -> None:
    """The daemon on guards, with nothing attached. It logs as `daemon` does, and has its ledger."""
    logging.basicConfig(filename=os.devnull, level=logging.INFO, format="%(levelname)s %(message)s")
    toolstack = GuardToolstack()
    host = host_in(folder, toolstack, _rules(), time, upstreams=toolstack)
    host.ledger = opened_ledger(folder / "ledger")
    control = listen.bind(folder / "control", mode=0o600)
    async with trio.open_nursery() as nursery:
        await nursery.start(Daemon(host, Reloader(host, Source(), Settings()), folder / "attached.json", control).run)
        _ready()


async def ledger(folder: Path) -> None:
    """The daemon as it is beside a guard: it notes what is under way."""
    await daemon(folder, has_ledger=True)


async def bare(folder: Path) -> None:
    """The daemon with neither journal nor ledger on a write's way: what a write cost before there were any."""

    async def put(vm: Vm, blob: bytes, new: Outline | None, deadline: float) -> Written:
        return await vm._put_straight(blob, new, deadline)

    def know_nothing(_writer: Writer, *_given: object) -> None:
        """Neither a digest nor a note is kept."""

    with patch.multiple(Vm, _put=put), patch.multiple(Writer, _holds=know_nothing, saw=know_nothing, _note=know_nothing):
        await daemon(folder)


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
    elif count:
        trio.run({"crowd": crowd, "noise": noise}[which], Path(folder), int(*count))
    else:
        servers = {"daemon": daemon, "ledger": ledger, "bare": bare, "echo": echo, "guarded": guarded}
        trio.run(servers[which], Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
