"""One VM's store for whoever asks for it other than to boot: the toolstack's, or a newer one that waits in the journal."""

from uuid import UUID

import trio

from varstore_companion.daemon.backlog import Backlog
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.limits import Credits
from varstore_companion.daemon.upstream import Upstream
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.toolstack.interface import VmRecord

READ_SECONDS = 20.0
"""For the whole answer to a read."""
PENDING_READ_SECONDS = 5.0
"""For the toolstack's part of a read while the newest store is in the journal."""


class Reading:
    """`lock`: of one, held by whoever boots or writes."""

    __slots__ = ("_backlog", "_credits", "_host", "_lock", "_upstream", "_uuid")

    def __init__(self, uuid: UUID, host: Host, upstream: Upstream, backlog: Backlog, lock: trio.Semaphore) -> None:
        self._uuid = uuid
        self._host = host
        self._upstream = upstream
        self._backlog = backlog
        self._lock = lock
        self._credits = Credits()

    async def read(self, deadline: float | None = None) -> VmRecord:
        """Read the store and the field, for a resume, a migration or a tool: never an update (invariant 10).

        A store that waits in the journal is the VM's newest, also while the toolstack cannot be asked. `deadline`: trio's
        clock, else within `READ_SECONDS`. Raises the `ToolstackError`s of `Toolstack.read`.
        """
        deadline = trio.current_time() + READ_SECONDS if deadline is None else deadline
        while (record := await self._read(deadline)) is None:
            pass
        return record

    async def read_for_peer(self) -> VmRecord:
        """As `read`, for who speaks to the VM's own socket: as fast as its credit for reads lets it."""
        deadline = trio.current_time() + READ_SECONDS
        await self.spend(deadline)
        return await self.read(deadline)

    async def spend(self, deadline: float = float("inf")) -> None:
        """Take one of the VM's credit for reads, as `Credits.spend` does: also for what costs the daemon as much as a read."""
        await self._credits.spend(self._host.rules.limits, deadline)

    async def _read(self, deadline: float) -> VmRecord | None:
        """One try of `read`; None when a journaled store was delivered meanwhile: what was read may be from before that."""
        upstream, backlog = self._upstream, self._backlog
        turn, waited = upstream.turn, backlog.pending is not None
        undisturbed = self._lock.value and backlog.turn.value
        record: VmRecord | None = None
        unavailable = ToolstackUnavailableError(f"no store from the toolstack within {READ_SECONDS:g} s")
        pending_deadline = trio.current_time() + PENDING_READ_SECONDS
        with trio.move_on_at(deadline if backlog.pending is None else min(deadline, pending_deadline)):
            try:
                record = await self._host.toolstack.read(self._uuid)
            except ToolstackUnavailableError as error:
                unavailable = error
        # A boot or a write meanwhile knows better: what was read may be from before it.
        if record is not None and undisturbed and turn == upstream.turn and self._lock.value:
            upstream.see(record)
        newest = await backlog.newest(record)
        if newest is not None:
            return VmRecord(
                newest, record.state if record else upstream.field, record.generation if record else upstream.generation
            )
        if waited and backlog.pending is None:
            return None
        if record is None:
            raise unavailable
        return record
