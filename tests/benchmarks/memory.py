"""What the daemon keeps in memory while nothing happens: it stays on the host for as long as the host runs."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from benchmarks.harness import Effort, Figure
from benchmarks.processes import running, script
from varstore_companion.cli.client import control
from varstore_companion.wire.messages import Attach

IDLE_TARGET = 45.0
VM_TARGET = 20.0


def figures(effort: Effort) -> Iterator[Figure]:
    """Resident memory of `serve` once it is ready, and what each attached VM adds."""
    measured = [_daemon(script("varstore-companion"), effort.vms) for _ in range(effort.daemons)]
    idle = tuple(before / 1024 for before, _ in measured)
    yield Figure("memory-idle", "serve, resident when idle", idle, "MiB", IDLE_TARGET)
    per_vm = tuple((after - before) / effort.vms for before, after in measured)
    yield Figure("memory-vm", f"serve, more for each of {effort.vms} VMs", per_vm, "KiB", VM_TARGET)


def _daemon(program: str, vms: int) -> tuple[int, int]:
    """KiB when it is ready, and with that many sockets attached."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        socket = folder / "control"
        with running(
            [program, "serve", "--config", os.devnull, "--control", str(socket), "--state-dir", str(folder / "state")]
        ) as process:
            idle = resident(process.pid)
            with control(socket) as client:
                for number in range(vms):
                    client.call(Attach(uuid4(), bytes(folder / f"vm-{number}")))
            return idle, resident(process.pid)


def resident(pid: int) -> int:
    """KiB of a process's VmRSS."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no VmRSS: it ended")
