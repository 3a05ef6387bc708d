"""A host with 1,000 VMs: the daemon's memory, how soon it is ready, and how long it takes them all to boot at once."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import trio

from benchmarks import stores
from benchmarks.harness import Effort, Figure, ratio
from benchmarks.memory import IDLE_TARGET, VM_TARGET, resident
from benchmarks.processes import running, script, server, whole_process
from benchmarks.servers import path_of, vm_of
from support.peer import greeted
from varstore_companion.cli.client import Client, control
from varstore_companion.daemon import attachments
from varstore_companion.daemon.attachments import DEFAULT_MODE, Attachment
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Attach, ClientKind, GetStore, GetStoreAnswer, Outcome, Reason

DEPENDENCIES = "import trio, cryptography.x509, construct, h11"
IMPORTS = 1.5
"""Times the start of an interpreter that imports what the daemon depends on."""
START_VM_MS = 1.0
BOOTS_TARGET = 8.0
BOOT_TARGET = 5.0


def memory(effort: Effort) -> Iterator[Figure]:
    """Resident memory of `serve` with all VMs attached, each of which has read its store once."""
    measured = tuple(_resident(script("varstore-companion"), effort.crowd) / 1024 for _ in range(min(effort.daemons, 2)))
    target = IDLE_TARGET + VM_TARGET * effort.crowd / 1024
    yield Figure("crowd-memory", f"serve, resident with {effort.crowd:,} VMs that have booted", measured, "MiB", target)


def _resident(program: str, vms: int) -> int:
    """KiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = folder / "state"
        state.mkdir()
        with Database(state / FILE_NAME) as database:
            for number in range(vms):
                database.create(vm_of(number), f"VM {number}", stores.store(), CertificatesState.UPDATE_AVAILABLE)
        with running(_serve(program, folder)) as process, control(folder / "control") as client:
            for number in range(vms):
                client.call(Attach(vm_of(number), bytes(path_of(folder, number))))
                with Client(path_of(folder, number), ClientKind.VARSTORED, vm=vm_of(number)) as varstored:
                    answer = varstored.call(GetStore(Reason.BOOT))
                    assert isinstance(answer, GetStoreAnswer)
                    assert answer.store == stores.store()
            return resident(process.pid)


def start(effort: Effort) -> Iterator[Figure]:
    """From its command line to the line that says it is ready, with all sockets listed from before."""
    bare = whole_process([sys.executable, "-I", "-c", DEPENDENCIES])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "state").mkdir()
        attach(folder / "state" / "attached.json", folder, effort.crowd)
        command = _serve(script("varstore-companion"), folder)

        def ready() -> float:
            begun = perf_counter()
            with running(command, {"LC_ALL": "C", "PATH": os.defpath}):
                return perf_counter() - begun

        bare(), ready()
        rounds = [(ready(), IMPORTS * bare()[0] + START_VM_MS * effort.crowd / 1e3) for _ in range(effort.daemons)]
    what = f"serve, ready with {effort.crowd:,} saved sockets"
    yield ratio("crowd-start", what, rounds, f"{IMPORTS:g} times its imports, and {START_VM_MS:g} ms a VM", 1.0)


def boots(effort: Effort) -> Iterator[Figure]:
    """All VMs are marked, and their varstoreds ask at the same moment; the toolstack is in memory, the limits are the usual."""
    longest = []
    for _ in range(min(effort.daemons, 3)):
        with crowd(effort.crowd) as folder:
            longest.append(max(trio.run(_boots, folder, effort.crowd)))
    what = f"{effort.crowd:,} boots with an update at once"
    yield Figure("crowd-boots", f"{what}, all of them", tuple(longest), "s", BOOTS_TARGET)
    yield Figure("crowd-boot", f"{what}, the longest", tuple(longest), "s", BOOT_TARGET)


async def _boots(folder: Path, vms: int) -> list[float]:
    """Seconds that each waited for its store."""
    times: list[float] = []
    begin = trio.Event()

    async def boot(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        async with greeted(path_of(folder, number), vm_of(number)) as peer:
            task_status.started()
            await begin.wait()
            begun = perf_counter()
            answer = await peer.get(Reason.BOOT)
            times.append(perf_counter() - begun)
            # One whose turn does not come in time keeps its mark and its store, and has missed the target by then.
            assert answer.outcome is Outcome.UPDATED or times[-1] > BOOT_TARGET, answer.detail

    async with trio.open_nursery() as nursery:
        for number in range(vms):
            await nursery.start(boot, number)
        begin.set()
    return times


def attach(saved: Path, folder: Path, vms: int) -> None:
    """List the crowd's sockets for the next daemon."""
    attachments.save(saved, [Attachment(vm_of(n), path_of(folder, n), None, DEFAULT_MODE, resume=False) for n in range(vms)])


@contextmanager
def crowd(vms: int) -> Iterator[Path]:
    """A daemon with so many VMs on a toolstack in memory; the folder of its sockets."""
    with tempfile.TemporaryDirectory() as name:
        attach(Path(name, "attached.json"), Path(name), vms)
        with server("crowd", name, str(vms)):
            yield Path(name)


def _serve(program: str, folder: Path) -> list[str]:
    options = {"config": os.devnull, "control": folder / "control", "state-dir": folder / "state"}
    return [program, "serve", *(str(each) for name, value in options.items() for each in (f"--{name}", value))]
