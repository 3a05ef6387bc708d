"""A toolstack in memory that goes away, slows down, loses answers and carries out late, and sees what must never be written."""

from pathlib import Path
from uuid import UUID

import trio

from killing.stores import FOREIGN, Version, certcheck, store_of, version_of
from support.memory_toolstack import MemoryToolstack
from varstore_companion.daemon.held import digest_of
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

VMS = (UUID(int=1), UUID(int=2))
FIRST = Version(0, is_updated=False)
LATE_SECONDS = 40.0
AWAY = ToolstackUnavailableError("xapi restarts")


class Moody(MemoryToolstack):
    """`next_write`: what becomes of it; `held`: writes that may still land, each with when it was given up."""

    def __init__(self) -> None:
        super().__init__(certcheck)
        self.late_seconds = LATE_SECONDS
        self.is_away = False
        self.slowness = 0.0
        self.next_write = ""
        self.held: list[tuple[float, UUID, bytes, Update]] = []
        self.attached: set[UUID] = set()
        self.moves = dict.fromkeys(VMS, 0)
        """How often each VM has moved on elsewhere: what was under way to it by then does not reach it any more."""
        self.landed: set[bytes] = set()
        """Digests of the stores that it has ever taken, none of them twice."""
        self.floor = dict.fromkeys(VMS, -1)
        """Of each VM: stores up to this number must not replace what another host has written since."""
        for vm in VMS:
            self.vms[vm] = VmRecord(store_of(FIRST), CertificatesState.UPDATE_AVAILABLE, 0)

    def set_upstream(self, vm: UUID, path: Path | None) -> None:
        """See `Upstreams`."""
        self.attached -= {vm}
        if path is not None:
            self.attached |= {vm}

    async def read(self, vm: UUID) -> VmRecord:
        await self._there(vm)
        return await super().read(vm)

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        with trio.move_on_at(deadline):
            return await self._write_in_mood(vm, store, update, expected)
        raise ToolstackUnclearError("the toolstack did not answer in time")

    async def _write_in_mood(self, vm: UUID, store: bytes, update: Update, expected: int | None) -> int:
        await self._there(vm)
        mood, self.next_write = self.next_write, ""
        if mood == "unclear before":
            raise ToolstackUnclearError("the answer was lost, and nothing done")
        if mood == "late":
            moves = self.moves[vm]
            try:
                await trio.sleep_forever()
            finally:
                if self.moves[vm] == moves:
                    self.held.append((trio.current_time(), vm, store, update))
        generation = await self._land(vm, store, update, expected)
        await trio.sleep(self.slowness)
        if mood == "unclear after":
            raise ToolstackUnclearError("the answer was lost")
        return generation

    async def alert(self, vm: UUID, alert: Alert) -> None:
        self.alerts.append((vm, alert))

    async def land(self) -> None:
        """What was given up arrives, as far as it still can."""
        held, self.held = self.held, []
        for given_up, vm, store, update in held:
            if trio.current_time() < given_up + LATE_SECONDS:
                await self._land(vm, store, update, None)

    async def _land(self, vm: UUID, store: bytes, update: Update, expected: int | None) -> int:
        before = self.vms[vm]
        assert before.store is not None
        generation = await super().write(vm, store, update, expected=expected)
        self.landed.add(digest_of(store))
        old, new = version_of(before.store), version_of(store)
        assert new.number > self.floor[vm] if old.number >= FOREIGN else new >= old, f"{new} over {old}"  # invariant 9
        if before.state is CertificatesState.UPDATE_ON_BOOT and old.is_updated == new.is_updated:
            assert update is not Update.UNSPECIFIED, f"{new} over {old} has ended a mark"  # invariant 7
        return generation

    async def _there(self, vm: UUID) -> None:
        await trio.sleep(self.slowness)
        if self.is_away:
            raise AWAY
        if vm not in self.attached:
            raise ToolstackRefusedError("HANDLE_INVALID", "no socket of this VM is known")
