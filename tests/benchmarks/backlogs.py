"""What the journal costs: fsyncs of many writes at once, how fast it drains, and what a write pays while it is idle."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, time
from uuid import UUID, uuid4

import trio

from benchmarks import stores
from benchmarks.harness import Effort, Figure, interleaved, ratio, seconds
from benchmarks.processes import server
from benchmarks.puts import connected, exchange, frame_of, greet, put
from benchmarks.servers import SOCKET, PlainToolstack
from support.daemon import written
from support.hosts import host_in
from varstore_companion.daemon import listen
from varstore_companion.daemon.config import Settings, Source
from varstore_companion.daemon.held import digest_of
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.main import Daemon
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.rules import Rules
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.files import load_manifest
from varstore_companion.journal.journal import Journal
from varstore_companion.sources import Loaded
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.messages import PutStore

YARDSTICK = "the same daemon without journal and ledger"
WRITERS = 50
FSYNCS_MOST = 14
"""For a write of each of them."""
DRAINED_A_SECOND = 500
VMS_EACH = 20
"""Entries to drain for each VM that memory is measured with: 10,000 for 500."""
TARGET = 1.05
BEFORE, AFTER = written("ms2011", 0), written("ms2011", 1)
WRITES = 5
"""A round: enough that the clock's own steps do not count."""


class AwayToolstack(PlainToolstack):
    """Takes no write while it is away."""

    is_away = False

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        if self.is_away:
            await trio.lowlevel.checkpoint()
            raise ToolstackUnavailableError("away")
        return await super().write(vm, store, update, expected=expected)


def figures(effort: Effort) -> Iterator[Figure]:
    """The first two in this process, the others over a socket, each daemon in its own process; the toolstack in memory."""
    logging.getLogger("varstore_companion").addHandler(logging.NullHandler())
    fsyncs = [float(trio.run(_fsyncs)) for _ in range(effort.daemons)]
    yield Figure("journal-fsyncs", f"fsyncs of {WRITERS} VMs' journaled writes at once", tuple(fsyncs), "fsyncs", FSYNCS_MOST)
    entries = VMS_EACH * effort.vms
    drained = [trio.run(_drained_a_second, entries) for _ in range(effort.daemons)]
    what = f"stores drained from a journal of {entries:,}"
    yield Figure("journal-drain", what, tuple(drained), "a second", DRAINED_A_SECOND, at_least=True)
    yield ratio("journal-idle", "PUT_STORE with an idle journal", _against_bare("daemon", effort), YARDSTICK, TARGET)
    # A guard or xapi takes milliseconds for a write: against those this is little.
    what = "PUT_STORE with an idle journal and the ledger"
    yield ratio("journal-ledger", what, _against_bare("ledger", effort), YARDSTICK)


class _Place:
    """A daemon with VMs that have no sockets; `folder` may hold what one before it has left in the journal."""

    def __init__(self, folder: Path, vms: list[UUID]) -> None:
        self.toolstack = AwayToolstack()
        for vm in vms:
            self.toolstack.create(vm, BEFORE, CertificatesState.UPDATE_AVAILABLE)
        self.host: Host = host_in(folder, self.toolstack, Rules(load_manifest(), Loaded({}, {}, ())), time)
        control = listen.bind(folder / "control", mode=0o600)
        self.daemon = Daemon(self.host, Reloader(self.host, Source(), Settings()), folder / "attached.json", control)


async def _fsyncs() -> int:
    vms = [uuid4() for _ in range(WRITERS)]
    with tempfile.TemporaryDirectory() as folder:
        place = _Place(Path(folder), vms)
        async with trio.open_nursery() as nursery:
            await nursery.start(place.daemon.run)
            known = [place.daemon.vm(vm) for vm in vms]
            for vm in known:
                await vm.read()
            place.toolstack.is_away = True
            before = place.host.journal.fsyncs
            async with trio.open_nursery() as writers:
                for vm in known:
                    writers.start_soon(vm.put, AFTER)
            fsyncs = place.host.journal.fsyncs - before
            nursery.cancel_scope.cancel()
    assert place.host.stats.journaled == WRITERS
    return fsyncs


async def _drained_a_second(entries: int) -> float:
    vms = [uuid4() for _ in range(entries)]
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        journal.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            async with trio.open_nursery() as writers:
                for vm in vms:
                    writers.start_soon(journal.append, vm, AFTER, (digest_of(BEFORE),), 0.0)
            nursery.cancel_scope.cancel()
        place = _Place(Path(folder), vms)
        async with trio.open_nursery() as nursery:
            begun = perf_counter()
            await nursery.start(place.daemon.run)
            while place.host.journal.pending_count:  # noqa: ASYNC110  nothing tells of it
                await trio.sleep(0.01)
            took = perf_counter() - begun
            nursery.cancel_scope.cancel()
    assert place.host.stats.delivered == entries
    return entries / took


def _against_bare(which: str, effort: Effort) -> list[tuple[float, float]]:
    """One client, blocking, and each daemon in a process of its own, as `put` measures."""
    with ExitStack() as stack:
        clients = []
        for each in (which, "bare"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(server(each, str(folder)))
            client = stack.enter_context(connected(folder / SOCKET))
            greet(client)
            clients.append(client)
        frames = [frame_of(PutStore(blob)) for blob in (stores.store(), stores.store_with_boot_entry())]
        (answer_bytes,) = {len(put(client, frames[0])) for client in clients}
        measured, bare = (seconds(exchange(client, frames, answer_bytes), WRITES) for client in clients)
        return interleaved(effort.exchanges, measured, bare)
