"""What the daemon costs between an unmodified varstored and its guard: one write, and 200 VMs that write at once.

A guard stands behind the daemon in a process of its own. It answers from the bytes of a request without reading them as XML,
so that it is not what is measured; the same one is the yardstick, spoken to without the daemon between.
"""

import os
import re
import socket
import statistics
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from uuid import UUID

import trio

from benchmarks import stores
from benchmarks.harness import Effort, Figure, interleaved, ratio
from benchmarks.processes import server
from support.stock import GET_BY_UUID, LOGOUT, SET, S, V, login, request
from varstore_companion.cli.client import control
from varstore_companion.wire.messages import Attach

CPU_TARGET = 2.5
ELAPSED_TARGET = 3.0
LATENCY_TARGET = 250.0
RATE = 2.0
"""Writes a second that varstored allows its guest."""
WRITES = 10
"""In a row, for one measurement of CPU time: the system counts it in hundredths of a second."""


def figures(effort: Effort) -> Iterator[Figure]:
    """The daemon's processor time and the elapsed time of one write; the times of many at once."""
    vms = effort.writers
    with _between(vms) as (daemon, folder):
        yield from _one(daemon, folder, effort)
        with _apart(daemon):
            times = trio.run(_many, folder, vms, effort.seconds)
        yield Figure("guard-many", f"the slowest of a hundred, {vms} VMs at {RATE:g} writes a second each", times, "ms", LATENCY_TARGET)


@contextmanager
def _between(vms: int) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A daemon before a guard for each VM."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server("guards", name, str(vms)), server("guarded", name) as daemon, control(folder / "control") as client:
            for number in range(vms):
                client.call(Attach(vm_of(number), bytes(folder / f"vm-{number}"), upstream=bytes(folder / f"guard-{number}")))
            yield daemon, folder


def _one(daemon: "subprocess.Popen[bytes]", folder: Path, effort: Effort) -> Iterator[Figure]:
    writes = cycle([_write(vm_of(0), blob) for blob in (stores.store(), stores.store_with_boot_entry())])

    def exchange(path: Path) -> Callable[[], float]:
        def measure() -> float:
            begun = time.perf_counter()
            for each in next(writes):
                assert b"Success" in _call(path, each)
            return time.perf_counter() - begun

        return measure

    through, straight = exchange(folder / "vm-0"), exchange(folder / "guard-0")
    cpu = []
    for _ in range(effort.processes + 1):
        before = _cpu(daemon.pid)
        for _ in range(WRITES):
            through()
        cpu.append((_cpu(daemon.pid) - before) / WRITES * 1e3)
    yield Figure("guard-cpu", "CPU of the daemon for a write of varstored's through it to a guard", tuple(cpu[1:]), "ms", CPU_TARGET)
    rounds = interleaved(effort.exchanges, through, straight)
    yield ratio("guard-elapsed", "the same write, elapsed", rounds, "the same without the daemon between", ELAPSED_TARGET)


def _write(vm: UUID, blob: bytes) -> list[bytes]:
    """The connections of a varstored's write; the look for its VM is made with the first one only, and counts here each time."""
    return [login(), request(GET_BY_UUID, S, str(vm)), request(SET, S, V, b64encode(blob).decode()), request(LOGOUT, S)]


def _call(path: Path, sent: bytes) -> bytes:
    """One connection, as varstored makes it: to the end of the stream."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(os.fspath(path))
        connection.sendall(sent)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
        return answer


def vm_of(number: int) -> UUID:
    """The VM behind that guard."""
    return UUID(int=number + 1)


def _cpu(pid: int) -> float:
    """Seconds on a processor so far, of all threads."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
