"""A daemon in this process, on real sockets and a toolstack in memory."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import trio

from support.hosts import host_in
from support.memory_toolstack import MemoryToolstack
from support.peer import Peer, greeted
from support.storemaker import Variable, make_store, scene
from varstore_companion.daemon import listen
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.config import Settings, Source
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.main import Daemon
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.vm import Vm
from varstore_companion.files import load_manifest
from varstore_companion.journal.backups import Backups
from varstore_companion.journal.entry import Entry
from varstore_companion.journal.history import History
from varstore_companion.journal.journal import Journal, _head
from varstore_companion.sources import Loaded, load_bodies
from varstore_companion.toolstack.interface import Toolstack, Upstreams, VmRecord
from varstore_companion.trust.check import State, check
from varstore_companion.trust.plan import plan
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.limits import BOOT_ANSWER_SECONDS
from varstore_companion.wire.messages import GetStoreAnswer, PutStoreAnswer, Reason

T = TypeVar("T")

VENDOR = UUID("9d0da369-540b-46f8-85a0-2b5f2c301e15")
NOW = 1_800_000_000.0
MANIFEST = load_manifest()


@cache
def loaded() -> Loaded:
    """The certificate bodies that virt-firmware has."""
    return load_bodies(MANIFEST, auth_folder=None)


def certcheck(store: bytes) -> CertificatesState:
    """What xapi makes of a store."""
    needs = check(store, MANIFEST).state is State.UPDATE_AVAILABLE
    return CertificatesState.UPDATE_AVAILABLE if needs else CertificatesState.OK


def updated(store: bytes) -> bytes:
    """The store after its update; what that is, the tests of the plan prove."""
    return plan(store, MANIFEST, loaded().bodies).store


def written(name: str, number: int, size: int = 8) -> bytes:
    """The scene's store after its guest wrote a variable of its own: the keys are as they were."""
    return make_store([*scene(name).variables, Variable("Counter", VENDOR, number.to_bytes(8, "little") * (size // 8))])


class DirectBackups(Backups):
    """Backups without a thread: the virtual clock does not wait for threads."""

    async def _run(self, call: Callable[[], T]) -> T:
        return call()


class DirectHistory(History):
    """Histories without a thread, likewise."""

    async def _run(self, call: Callable[[], T]) -> T:
        return call()


class DirectJournal(Journal):
    """A journal without a thread."""

    async def _in_thread(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        result = call()
        self._on_disk = self._segments.bytes_on_disk
        return result

    async def load(self, entry: Entry) -> bytes:
        await trio.lowlevel.checkpoint()
        place = self._find(entry)
        if place is None:
            raise self._error("a store cannot be read", "it is not pending any more")
        return self._segments.read(place, _head(entry))


def still_host(folder: Path, toolstack: Toolstack, *, upstreams: Upstreams | None = None) -> Host:
    """A host whose clock stands still."""
    return host_in(
        folder,
        toolstack,
        Rules(MANIFEST, loaded()),
        lambda: NOW,
        backups=DirectBackups,
        history=DirectHistory,
        journal=DirectJournal,
        upstreams=upstreams,
    )


@dataclass(frozen=True)
class Machine:
    """An attached VM."""

    vm: UUID
    path: Path

    def peer(self) -> AbstractAsyncContextManager[Peer]:
        """A greeted connection to its socket."""
        return greeted(self.path, self.vm)

    async def boot(self, reason: Reason = Reason.BOOT) -> GetStoreAnswer:
        """Ask for the store; the answer must come in the time that the protocol promises."""
        async with self.peer() as peer:
            begun = trio.current_time()
            try:
                return await peer.get(reason)
            finally:
                assert trio.current_time() - begun <= BOOT_ANSWER_SECONDS

    async def put(self, store: bytes) -> PutStoreAnswer:
        """Write the store."""
        async with self.peer() as peer:
            return await peer.put(store)


class Place:
    """The daemon, its toolstack and its folder. `daemon.run` is the caller's to start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toolstack = MemoryToolstack(certcheck)
        self.host = still_host(folder, self.toolstack)
        self.backups, self.history = self.host.backups, self.host.history
        self.control = folder / "control.sock"
        self.saved = folder / "attached.json"
        self.bound = listen.bind(self.control, mode=0o600)
        self.reloader = Reloader(self.host, Source(), Settings())
        self.daemon = Daemon(self.host, self.reloader, self.saved, self.bound)

    async def machine(
        self,
        store: bytes | None,
        state: CertificatesState | None = CertificatesState.OK,
        *,
        name: str = "vm.sock",
        resume: bool = False,
    ) -> Machine:
        """Add a VM and attach its socket."""
        vm = uuid4()
        self.toolstack.vms[vm] = VmRecord(store, state, 0)
        return await self.attach(vm, name, resume=resume)

    async def attach(self, vm: UUID, name: str, *, resume: bool = False) -> Machine:
        """Attach a socket of a VM that is there."""
        path = self.folder / name
        assert not await self.daemon.attach(Attachment(vm, path, None, 0o660, resume))
        return Machine(vm, path)

    def new_vm(self, store: bytes | None, state: CertificatesState) -> Vm:
        """A VM without a socket."""
        vm = uuid4()
        self.toolstack.vms[vm] = VmRecord(store, state, 0)
        return Vm(vm, self.host)

    def record(self, machine: Machine | Vm) -> VmRecord:
        """What the toolstack holds of a VM."""
        return self.toolstack.vms[machine.vm if isinstance(machine, Machine) else machine.uuid]

    def write_elsewhere(self, machine: Machine | Vm, store: bytes) -> None:
        """As another client of the toolstack writes."""
        old = self.record(machine)
        vm = machine.vm if isinstance(machine, Machine) else machine.uuid
        self.toolstack.vms[vm] = replace(old, store=store, generation=old.generation + 1)

    def alerts(self) -> list[str]:
        """The names of the alerts that the operator got."""
        return [alert.name for _, alert in self.toolstack.alerts]
