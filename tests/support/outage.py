"""A toolstack that is away for a while, and the VMs of a place meanwhile."""

import trio
from trio.testing import wait_all_tasks_blocked

from support.daemon import Machine, Place
from support.memory_toolstack import MemoryToolstack
from support.storemaker import scene
from varstore_companion.errors import ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.messages import Reason

AWAY = ToolstackUnavailableError("xapi restarts")
LOST = ToolstackUnclearError("the answer was lost")


class Outage(MemoryToolstack):
    """What the toolstack of a place is while it is away: every call fails until `end`."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._there = place.toolstack
        self.tries = 0
        place.host.toolstack = self

    async def read(self, vm: object) -> VmRecord:
        self.tries += 1
        await trio.lowlevel.checkpoint()
        raise AWAY

    async def write(
        self, vm: object, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        self.tries += 1
        await trio.lowlevel.checkpoint()
        raise AWAY

    def end(self) -> None:
        self._place.host.toolstack = self._there


async def known(
    place: Place, name: str = "ms2011", state: CertificatesState = CertificatesState.UPDATE_ON_BOOT, socket: str = "vm.sock"
) -> Machine:
    """A VM whose store the daemon has seen."""
    machine = await place.machine(scene(name).blob, state, name=socket)
    await machine.boot(Reason.RESUME)
    return machine


async def delivered(place: Place) -> None:
    """Wait until nothing is pending any more: some of it nothing tells of."""
    with trio.fail_after(120):
        while place.host.journal.pending_count or not all(vm.is_direct for vm in place.daemon._vms.values()):  # noqa: ASYNC110
            await trio.sleep(0.05)
    await wait_all_tasks_blocked()
