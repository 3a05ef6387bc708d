"""A VM as on a real host: its varstored calls its guard's path, where the daemon may stand, the guard itself, or nobody."""

from pathlib import Path
from typing import Final

import trio

from killing.interposed_guard import InterposedGuard
from killing.machine import GONE, Load, Machine
from killing.stores import Version, version_of
from support.peer import Refused, greeted
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Attach, AttachAnswer, Detach, DetachAnswer

OPERATING: Final = 1.5
"""Seconds, at most, between two things that an operator does."""
DETACHED: Final = 0.15
"""How often one detaches a socket that is attached."""
BEFORE: Final = 0.5
"""How often a socket is attached before its VM boots; else the boot may go past the daemon, as on a host that cannot do it."""
SAME_PATH: Final = 0.5
"""How often the next domain's guard has the path of the one before."""
DETACHED_AT_END: Final = 0.7
BETWEEN: Final = 0.05
"""Seconds between two tries."""


class Interposed(Machine):
    """What it writes past the daemon is the newest store from then on. What the daemon has journaled, it may not see there."""

    def __init__(self, guard: InterposedGuard, load: Load) -> None:
        super().__init__(guard.held.uuid, guard.serves, load, is_stock=True, upstream=None)
        self._guard = guard
        self._domains = 0
        self._met = ""
        self._set_aside: set[Version] = set()
        self._operating = trio.Lock()
        self._former: list[Path] = []
        self._with_toolstack = self.acknowledged

    async def run(self) -> None:
        """Live until the load is over, whether there is a daemon or not, while an operator goes about it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._operate)
            while not self._load.is_over.is_set():
                try:
                    if self._reads_boot and self._load.random.random() < BEFORE:
                        await self._attach_before_boot()
                    await self._live_stock()
                except GONE as error:
                    if self._met != repr(error):
                        self._met = repr(error)
                        self._happened(f"met {self._met}")
                    await self._think()
            nursery.cancel_scope.cancel()
        self.stopped.set()

    async def settle(self) -> None:
        """Have its guard's socket taken over, and see that it is."""
        while True:
            if not self.is_attached:
                await self._try_attach(resume=True)
            try:
                async with greeted(self.path, self.vm):
                    return
            except GONE:
                await trio.sleep(BETWEEN)

    def confirm_set_aside(self, kept: set[Version]) -> None:
        """See that nothing was set aside but what something newer was written past."""
        kept, self._set_aside = kept - self._set_aside, self._set_aside | kept
        for version in kept:
            if version > self._guard.newest_direct:
                newest = self._guard.newest_direct
                self._load.tally.violated(
                    "lost", self.vm, f"{version} was set aside, and only {newest} was written past the daemon"
                )

    # Who goes about it

    async def _operate(self) -> None:
        random = self._load.random
        while True:
            await trio.sleep(random.uniform(0.05, OPERATING))
            async with self._operating:
                if not self.is_attached:
                    await self._try_attach(resume=True)
                elif random.random() < DETACHED:
                    await self._try_detach(self.path)

    async def _attach_before_boot(self) -> None:
        with trio.move_on_after(OPERATING):
            while not self.is_attached:
                async with self._operating:
                    await self._try_attach(resume=False)
                await trio.sleep(BETWEEN)

    async def _try_attach(self, *, resume: bool) -> None:
        for path in self._former:
            await self._try_detach(path)
        try:
            async with greeted(self._load.control) as control:
                await control.call(Attach(self.vm, bytes(self.path), resume=resume, interpose=True), AttachAnswer)
        except Refused as error:
            self._happened(f"not attached: {error}")
            if error.code is ErrorCode.CONFLICT:
                await self._try_detach(self.path)
        except GONE:
            return
        else:
            self.is_attached = True
            self._happened(f"attached{', to resume' if resume else ''}")

    async def _try_detach(self, path: Path) -> None:
        was_attached = self.is_attached
        if path == self.path:
            # What comes of a call that is cut, by a kill or by the end of the load, is not known: it is attached once more.
            self.is_attached = False
        try:
            async with greeted(self._load.control) as control:
                await control.call(Detach(bytes(path)), DetachAnswer)
        except Refused as error:
            self.is_attached = was_attached
            self._happened(f"{path.parent.name} not detached: {error}")
        except GONE:
            return
        else:
            self._happened(f"{path.parent.name} detached")
            self._former = [each for each in self._former if each != path]

    async def _reboot(self) -> None:
        """The domain ends, and its guard with it; the next one has its own path, or, as it may be, the same."""
        random = self._load.random
        async with self._operating:
            await self._guard.end()
            self._load.tally.reboots += 1
            self._happened("ended")
            if random.random() < DETACHED_AT_END:
                await self._try_detach(self.path)
            if random.random() >= SAME_PATH:
                self._domains += 1
                self._former.append(self.path)
                folder = self.path.parent.parent / f"{self.path.parent.name.partition('-')[0]}-{self._domains}"
                folder.mkdir()
                self.path = self._varstored.path = self._guard.serves = folder / self.path.name
            self.is_attached = False
            self._reads_boot = True
            self._guard.come_back()

    # What it was told

    async def _read_store(self) -> None:
        before = self._guard.direct_reads
        store = await self._varstored.read()
        self._reads_boot = False
        if self._guard.direct_reads == before or store is None:
            self._read(store)
            return
        tally, version = self._load.tally, version_of(store)
        self._happened(f"{version} read past the daemon")
        tally.reads += 1
        tally.reads_past += 1
        self._load.trigger.hit("read answered")
        if version < self._with_toolstack:
            tally.violated("lost", self.vm, f"its guard gave it {version}, {self._with_toolstack} was with the toolstack")
        # What is newer waits in the journal: it may yet come, and must, unless this VM writes past the daemon before.
        self.acknowledged = max(self.acknowledged, version)
        self._has = version

    def _is_acknowledged(self, version: Version, *, is_journaled: bool) -> None:
        super()._is_acknowledged(version, is_journaled=is_journaled)
        self._load.tally.past_daemon += self._guard.newest_direct == version
        if not is_journaled:
            self._with_toolstack = version
