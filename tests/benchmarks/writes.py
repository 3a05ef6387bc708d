"""What a verdict saves the host: a write with `no` against one with `unspecified`, in the embedded toolstack."""

import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from uuid import uuid4

import trio

from benchmarks import stores
from benchmarks.harness import Effort, Figure, ratio
from benchmarks.processes import all_cpu_seconds, script
from varstore_companion.toolstack.certcheck import Certcheck
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.toolstack.embedded import EmbeddedToolstack
from varstore_companion.trust.state import CertificatesState, Update

TARGET = 20.0
WRITES = 10
"""With `no` a round: one is too short for the system's accounting of CPU time."""


def figures(effort: Effort) -> Iterator[Figure]:
    """CPU time of this process and of its children: certcheck is one."""
    rounds = trio.run(_rounds, effort.processes, script("varstore-nvram-certcheck"))
    what = "CPU of a write with `unspecified`, certcheck counted"
    yield ratio("certcheck-avoided", what, rounds, "a write with `no`", TARGET, at_least=True)


async def _rounds(count: int, program: str) -> list[tuple[float, float]]:
    vm = uuid4()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder, FILE_NAME))
        database.create(vm, "benchmark", stores.store(), CertificatesState.UPDATE_AVAILABLE)
        toolstack = EmbeddedToolstack(database, Certcheck([program]))
        # SQLite leaves a page alone whose bytes stay the same: the guest changes a boot entry back and forth.
        blobs = cycle((stores.store_with_boot_entry(), stores.store()))

        async def cpu(update: Update, times: int) -> float:
            begun = all_cpu_seconds()
            for _ in range(times):
                await toolstack.write(vm, next(blobs), update)
            return (all_cpu_seconds() - begun) / times

        await cpu(Update.UNSPECIFIED, 1), await cpu(Update.NO, 1)
        rounds = [(await cpu(Update.UNSPECIFIED, 1), await cpu(Update.NO, WRITES)) for _ in range(count)]
        # Had certcheck given no answer, the field would have become ok.
        assert (await toolstack.read(vm)).state is CertificatesState.UPDATE_AVAILABLE
        await toolstack.aclose()
    return rounds
