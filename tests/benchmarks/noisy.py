"""What one VM that writes as fast as it can costs the others on its host, who write as often as varstored lets a guest."""

import statistics
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from subprocess import Popen

import trio

from benchmarks import stores
from benchmarks.crowd import crowd
from benchmarks.guarded import RATE
from benchmarks.harness import Effort, Figure, ratio
from benchmarks.processes import server
from benchmarks.servers import path_of, vm_of
from support.peer import Peer, greeted

TARGET = 1.5
NOISY = 0
"""The number of the VM."""
TURN_SECONDS = 1.0
GROUPS = 3
"""Of turns: each gives one ratio. What else the machine does for a moment is in both sides of it."""


def figures(effort: Effort) -> Iterator[Figure]:
    """The 99th percentile of the others' writes, with it and without, in turns; each has its connection, as a varstored has."""
    vms, turns = effort.writers // 2, round(3 * effort.seconds / TURN_SECONDS)
    with crowd(vms) as folder, server("noise", str(folder), str(NOISY)) as noise:
        beside, without = trio.run(_others, folder, vms, turns, noise)
        assert noise.poll() is None, "the daemon had it end"
    rounds = [(_p99(beside[group::GROUPS]), _p99(without[group::GROUPS])) for group in range(GROUPS)]
    what = f"99 of 100 writes of {vms - 1} VMs, {RATE:g} a second each, beside one that never stops"
    yield ratio("noisy", what, rounds, "without that one", TARGET)


async def _others(folder: Path, vms: int, turns: int, noise: "Popen[bytes]") -> tuple[list[list[float]], list[list[float]]]:
    """For each turn how long each write took, from when it was due: beside the one, and while it is stopped."""
    blobs = stores.store(), stores.store_with_boot_entry()
    beside: list[list[float]] = []
    without: list[list[float]] = []

    async def write(peer: Peer, offset: float, times: list[float]) -> None:
        begun = trio.current_time()
        for number in range(round(TURN_SECONDS * RATE)):
            due = begun + (number + offset) / RATE
            await trio.sleep_until(due)
            await peer.put(blobs[number % 2])
            times.append(trio.current_time() - due)

    async with AsyncExitStack() as stack:
        numbers = [number for number in range(vms) if number != NOISY]
        peers = [await stack.enter_async_context(greeted(path_of(folder, number), vm_of(number))) for number in numbers]
        for _ in range(turns):
            for number, all_times in ((SIGCONT, beside), (SIGSTOP, without)):
                noise.send_signal(number)
                times: list[float] = []
                async with trio.open_nursery() as nursery:
                    for place, peer in enumerate(peers):
                        nursery.start_soon(write, peer, place / vms, times)
                all_times.append(times)
    return beside, without


def _p99(turns: list[list[float]]) -> float:
    return statistics.quantiles(chain.from_iterable(turns), n=100, method="inclusive")[98]
