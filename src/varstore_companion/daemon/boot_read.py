"""Which read through an attached socket is the cold boot, where the peer does not say (invariant 10)."""

import trio

from varstore_companion.daemon.cold_boot import Boot
from varstore_companion.daemon.vm import BOOT_SECONDS, Vm
from varstore_companion.errors import OverLimitError, ToolstackUnavailableError
from varstore_companion.wire.limits import MAX_STORE


class BootRead:
    """The one boot that an attach allows. `left`: whether it is still to come.

    An unmodified varstored reads its store once, when it starts, and so does each of its tools, with the very same call,
    while the VM runs: an update at that time would be lost with the guest's next write, and the mark with it (invariant 7).
    So the first read after an attach is the boot, and takes the update; every read after it never does.

    - A boot that fails leaves it as it was: the VM did not start. One that is answered uses it up, also with an update
      that failed, and whichever protocol asked for it: framed clients name their boots, and a tool may come after one.
    - Reads that come together wait for the boot. The one that was first has the update, the others see the store after it;
      if it fails, the next one is the boot.
    - A write uses it up, since who writes has read before, and so does a framed peer that says it resumes.
    - It ends with the daemon. A socket that comes back from disk, or is made again because somebody removed it, has none
      left: whether its VM runs by then nobody knows. What that can cost is an update that waits for the next attach,
      marked as before; a file that says "not yet" could be wrong after a crash, and would cost a store.
    """

    __slots__ = ("_lock", "_vm", "left")

    def __init__(self, vm: Vm, *, left: bool) -> None:
        self._vm = vm
        self._lock = trio.Lock()
        self.left = left

    async def boot(self) -> Boot:
        """A boot that the peer names as such. Raises as `Vm.boot`, and `OverLimitError` as `fitting`."""
        deadline = trio.current_time() + BOOT_SECONDS
        await self._wait(deadline)
        try:
            return await self._boot(deadline)
        finally:
            self._lock.release()

    async def read(self) -> bytes | None:
        """The store for a peer that does not say why it reads: the boot, if it is still to come; None at a first boot.

        Raises as `boot` and as `Vm.read_for_peer`.
        """
        if self.left or self._lock.locked():
            deadline = trio.current_time() + BOOT_SECONDS
            await self._wait(deadline)
            try:
                if self.left:
                    return (await self._boot(deadline)).store
            finally:
                self._lock.release()
        return fitting((await self._vm.read_for_peer()).store)

    def runs(self) -> None:
        """The VM is known to run: it writes its store, or resumes."""
        self.left = False

    async def _wait(self, deadline: float) -> None:
        with trio.move_on_at(deadline):
            await self._lock.acquire()
            return
        raise ToolstackUnavailableError(f"another boot of the VM was not done within {BOOT_SECONDS:g} s")

    async def _boot(self, deadline: float) -> Boot:
        boot = await self._vm.boot(deadline)
        fitting(boot.store)
        self.left = False
        return boot


def fitting(store: bytes | None) -> bytes | None:
    """The store, if varstored can load it. Raises `OverLimitError`."""
    if store is not None and len(store) > MAX_STORE:
        raise OverLimitError(f"the toolstack holds a store of {len(store):,} bytes: varstored loads at most {MAX_STORE:,}")
    return store
