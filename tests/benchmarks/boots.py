"""What a boot costs with an update and without. To know: it has no target."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import trio

from benchmarks import stores
from benchmarks.harness import Effort, Figure, ratio
from support.hosts import host_in
from support.memory_toolstack import MemoryToolstack
from varstore_companion.daemon.cold_boot import BootOutcome
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.vm import Vm
from varstore_companion.files import load_manifest
from varstore_companion.sources import load_bodies
from varstore_companion.trust.state import CertificatesState


def figures(effort: Effort) -> Iterator[Figure]:
    """The daemon's side of it: the toolstack is in memory, the backup of the old store goes to the disk."""
    yield ratio("boot-update", "boot with an update, backup and plan", trio.run(_rounds, effort.processes), "a boot without")


async def _rounds(count: int) -> list[tuple[float, float]]:
    store, manifest = stores.store(), load_manifest()
    rules = Rules(manifest, load_bodies(manifest, auth_folder=None))
    toolstack = MemoryToolstack()
    with tempfile.TemporaryDirectory() as folder:
        host = host_in(Path(folder), toolstack, rules, time.time)

        async def boot(state: CertificatesState, expected: BootOutcome) -> float:
            vm = Vm(uuid4(), host)
            toolstack.create(vm.uuid, store, state)
            begun = time.perf_counter()
            outcome = (await vm.boot()).outcome
            took = time.perf_counter() - begun
            assert outcome is expected
            return took

        async def both() -> tuple[float, float]:
            return (
                await boot(CertificatesState.UPDATE_ON_BOOT, BootOutcome.UPDATED),
                await boot(CertificatesState.UPDATE_AVAILABLE, BootOutcome.NOT_ASKED),
            )

        async with trio.open_nursery() as nursery:
            host.nursery = nursery
            nursery.start_soon(host.send_alerts)
            nursery.start_soon(host.history.write_all)
            await both()
            rounds = [await both() for _ in range(count)]
            nursery.cancel_scope.cancel()
    return rounds
