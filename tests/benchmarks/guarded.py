"""What the daemon costs between an unmodified varstored and its guard: one write, and 200 VMs that write at once.

A guard stands behind the daemon in a process of its own. It does what any guard must (`fast_guard`), and is not what is
measured; the same one is the yardstick, spoken to without the daemon between.
"""

import os
import socket
import statistics
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from uuid import UUID

import trio

from benchmarks import stores
from benchmarks.harness import Effort, Figure, interleaved, ratio
from benchmarks.placement import apart, free, place, placed, threads, together, two
from benchmarks.processes import server
from support.stock import GET, GET_BY_UUID, LOGOUT, SET, S, V, login, request
from varstore_companion.cli.client import control
from varstore_companion.wire.messages import Attach

CPU_TARGET = 2.5
ELAPSED_TARGET = 3.0
LATENCY_TARGET = 250.0
RATE = 2.0
"""Writes a second that varstored allows its guest."""
WRITES = 20
"""In a row, for one measurement of CPU time."""


def figures(effort: Effort) -> Iterator[Figure]:
    """The daemon's processor time and the elapsed time of one write; how long a write takes while all VMs write."""
    vms = effort.writers
    with _between(vms) as (daemon, guards, folder):
        yield from _one(daemon, guards, folder, effort)
        its, ours = two()
        place(daemon.pid, {its})
        place(guards.pid, {ours})
        with placed({ours}):
            times = trio.run(_many, folder, vms, effort.seconds)
        p99 = statistics.quantiles(times, n=100, method="inclusive")[98] * 1e3
        yield Figure("guard-many", f"99 of 100 writes, {vms} VMs with {RATE:g} a second each", (p99,), "ms", LATENCY_TARGET)


@contextmanager
def _between(vms: int) -> Iterator[tuple["subprocess.Popen[bytes]", "subprocess.Popen[bytes]", Path]]:
    """A daemon, and a guard for each VM."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            server("guards", name, str(vms)) as guards,
            server("guarded", name) as daemon,
            control(folder / "control") as client,
        ):
            for number in range(vms):
                upstream = bytes(folder / f"guard-{number}")
                client.call(Attach(_vm(number), bytes(folder / f"vm-{number}"), upstream=upstream, resume=True))
                # As each varstored does at its start.
                assert b"Success" in _call(folder / f"vm-{number}", request(GET, S, V))
            yield daemon, guards, folder


# One write


def _one(
    daemon: "subprocess.Popen[bytes]", guards: "subprocess.Popen[bytes]", folder: Path, effort: Effort
) -> Iterator[Figure]:
    # The guest changes a boot entry back and forth: the keys stay, the bytes do not.
    writes = cycle(_write(blob) for blob in (stores.store(), stores.store_with_boot_entry()))

    def exchange(path: Path) -> Callable[[], float]:
        def measure() -> float:
            begun = time.perf_counter()
            for each in next(writes):
                assert b"Success" in _call(path, each)
            return time.perf_counter() - begun

        return measure

    through, straight = exchange(folder / "vm-0"), exchange(folder / "guard-0")
    assert b"DUMMYVM" in _call(folder / "vm-0", request(GET_BY_UUID, S, str(_vm(0))))

    def cpu() -> float:
        before = _cpu_seconds(daemon.pid)
        for _ in range(WRITES):
            through()
        return (_cpu_seconds(daemon.pid) - before) / WRITES * 1e3

    taken = tuple(islice(iter(cpu, None), 1, effort.processes + 1))
    yield Figure("guard-cpu", "CPU of the daemon, a varstored's write through it to a guard", taken, "ms", CPU_TARGET)
    for where, target in ((apart(), ELAPSED_TARGET), (together(), None), (free(), None)):
        place(daemon.pid, where.answers)
        place(guards.pid, where.answers)
        with placed(where.asks):
            rounds = interleaved(effort.exchanges, through, straight)
        what = f"the same write, elapsed, {where.words}"
        yield ratio(f"guard-elapsed{where.name}", what, rounds, "straight to a parsing, storing guard", target)


def _write(blob: bytes) -> tuple[bytes, ...]:
    """What a varstored sends for a write, each on a connection of its own; it has looked for its VM at its first."""
    return login(), request(SET, S, V, b64encode(blob).decode()), request(LOGOUT, S)


def _call(path: Path, sent: bytes) -> bytes:
    """One connection, as varstored makes it: to the end of the stream."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(os.fspath(path))
        connection.sendall(sent)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
        return answer


def _vm(number: int) -> UUID:
    return UUID(int=number + 1)


def _cpu_seconds(pid: int) -> float:
    """Seconds on a processor so far, of all threads: the kernel counts them to the nanosecond here."""
    return sum(int(Path(f"/proc/{pid}/task/{each}/schedstat").read_text().split()[0]) for each in threads(pid)) / 1e9


# Many at once


async def _many(folder: Path, vms: int, seconds: float) -> list[float]:
    """How long each write took, from when it was due; the VMs begin one after the other. Any error ends it."""
    times: list[float] = []
    writes = [_write(blob) for blob in (stores.store(), stores.store_with_boot_entry())]
    begun = trio.current_time()

    async def write(number: int) -> None:
        path = os.fspath(folder / f"vm-{number}")
        for turn in range(round(seconds * RATE)):
            due = begun + (turn + number / vms) / RATE
            await trio.sleep_until(due)
            for each in writes[turn % 2]:
                await _call_many(path, each)
            times.append(trio.current_time() - due)

    async with trio.open_nursery() as nursery:
        for number in range(vms):
            nursery.start_soon(write, number)
    return times


async def _call_many(path: str, sent: bytes) -> None:
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as connection:
        await connection.connect(path)
        await trio.SocketStream(connection).send_all(sent)
        answer = b""
        while data := await connection.recv(65_536):
            answer += data
        assert b"Success" in answer, answer
