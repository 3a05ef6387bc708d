"""What one VM that writes as fast as it can costs the others on its host, who write as often as varstored lets a guest."""

import statistics
from collections.abc import Iterator
from pathlib import Path

import trio

from benchmarks import stores
from benchmarks.crowd import crowd
from benchmarks.guarded import RATE
from benchmarks.harness import Effort, Figure, ratio
from benchmarks.processes import server
from benchmarks.servers import path_of, vm_of
from support.peer import greeted

TARGET = 1.5
NOISY = 0
"""The number of the VM."""


def figures(effort: Effort) -> Iterator[Figure]:
    """The 99th percentile of the others' writes, with it and without; each VM has its connection, as a varstored has."""
    vms, seconds = effort.writers // 2, 3 * effort.seconds
    with crowd(vms) as folder:
        without = trio.run(_others, folder, vms, seconds)
        with server("noise", str(folder), str(NOISY)) as noise:
            beside = trio.run(_others, folder, vms, seconds)
            assert noise.poll() is None, "the daemon had it end"
    what = f"99 of 100 writes of {vms - 1} VMs, {RATE:g} a second each, beside one that never stops"
    yield ratio("noisy", what, [(_p99(beside), _p99(without))], "without that one", TARGET)


async def _others(folder: Path, vms: int, seconds: float) -> list[float]:
    """How long each write took, from when it was due; the VMs begin one after the other."""
    times: list[float] = []
    blobs = stores.store(), stores.store_with_boot_entry()

    async def write(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        async with greeted(path_of(folder, number), vm_of(number)) as peer:
            task_status.started()
            await begin.wait()
            for turn in range(round(seconds * RATE)):
                due = begun + (turn + number / vms) / RATE
                await trio.sleep_until(due)
                await peer.put(blobs[turn % 2])
                times.append(trio.current_time() - due)

    begin = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(vms):
            if number != NOISY:
                await nursery.start(write, number)
        begun = trio.current_time()
        begin.set()
    return times


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[98]
