"""What bounds the work that VMs can make for the daemon: an overload slows the VM that makes it, and no other."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import trio

VM_BYTES = 512 * 1024
"""Of requests that have not been carried out yet, for one VM: two of the largest frames, though it may have 8 connections."""
ALL_BYTES = 64 * 1024 * 1024
"""The same for all VMs together: an ordinary store of each of 1,000."""

FREE_BYTES = 64 * 1024
"""Of one connection, whatever else is in flight: more than any request but a write takes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that an operator can set; each name is its key among the settings. 0: none; `updates_at_once` is 1 or more.

    `write_burst`, `writes_per_second`: of one VM's stores, as varstored's own (its guest may write 100 at once, and 2 a second
    then), for a varstored that does not keep to it; and the same again of its reads, and of its boots. `boots_at_once`,
    `calls_at_once`: of all VMs, which bound memory; `updates_at_once`: boots that are being updated; `failures_to_pause`: VMs
    in a row whose update fails.
    """

    write_burst: int = 100
    writes_per_second: int = 2
    boots_at_once: int = 128
    calls_at_once: int = 256
    updates_at_once: int = 16
    failures_to_pause: int = 5


class Credits:
    """One VM's writes, or reads: as many as it has credit for at once, then as fast as it regains it. Costs two numbers."""

    __slots__ = ("_at", "_spent")

    def __init__(self) -> None:
        self._spent = 0.0
        self._at = float("-inf")

    async def spend(self, limits: Limits, deadline: float = float("inf")) -> None:
        """Take one, and wait as long as there is none, or until `deadline` (trio's clock); it is given back by then.

        Where the order matters, the caller sees to it.
        """
        if not (limits.write_burst and limits.writes_per_second):
            return
        now = trio.current_time()
        self._spent = max(0.0, self._spent - (now - self._at) * limits.writes_per_second)
        self._at = now
        self._spent += 1
        over = self._spent - limits.write_burst
        if over > 0:
            there = now + over / limits.writes_per_second
            has_waited = False
            try:
                await trio.sleep_until(min(there, deadline))
                has_waited = there <= deadline
            finally:
                if not has_waited:
                    # Or one who asks and leaves, over and over, would have nothing left for hours.
                    self._spent -= 1


class Gate:
    """So many at once, first come, first served. `most`: asked each time, since it may be changed; 0: any number."""

    __slots__ = ("_inside", "_most", "_waiting")

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._inside = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        await self.enter()

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    async def enter(self) -> None:
        """Wait for a place; without a turn of the event loop when there is one."""
        if not self.enter_now():
            await self._waiting.park()

    def enter_now(self) -> bool:
        """Take a place if there is one and nobody waits for it; whether there was."""
        if self._is_full or self._waiting:
            return False
        self._inside += 1
        return True

    def leave(self) -> None:
        """Give the place to who has waited longest."""
        self._inside -= 1
        while self._waiting and not self._is_full:
            self._inside += 1
            self._waiting.unpark()

    @property
    def _is_full(self) -> bool:
        most = self._most()
        return bool(most) and self._inside >= most


class Turns:
    """One at a time of each VM, first come, first served. Keeps nothing of a VM that has none."""

    __slots__ = ("_taken",)

    def __init__(self) -> None:
        self._taken: dict[UUID, trio.lowlevel.ParkingLot | None] = {}

    async def enter(self, vm: UUID) -> None:
        """Wait for the VM's turn; without a turn of the event loop when nobody has it."""
        if self.enter_now(vm):
            return
        waiting = self._taken[vm]
        if waiting is None:
            waiting = self._taken[vm] = trio.lowlevel.ParkingLot()
        await waiting.park()

    def enter_now(self, vm: UUID) -> bool:
        """Take the turn if nobody has it; whether it was."""
        if vm in self._taken:
            return False
        self._taken[vm] = None
        return True

    def leave(self, vm: UUID) -> None:
        """Give the turn to who has waited longest."""
        waiting = self._taken[vm]
        if waiting:
            waiting.unpark()
        else:
            del self._taken[vm]


class InFlight:
    """Bytes of all connections' requests that have not been carried out yet."""

    __slots__ = ("_limit", "_waiting", "total")

    def __init__(self, limit: int = ALL_BYTES) -> None:
        self._limit = limit
        self.total = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def is_full(self) -> bool:
        """Whether no more should be read."""
        return self.total >= self._limit

    async def changed(self) -> None:
        """Wait until some have been carried out."""
        await self._waiting.park()

    def count(self, more: int) -> None:
        """Count bytes that came, or, less than 0, that are done with."""
        self.total += more
        if more < 0 and self._waiting:
            self._waiting.unpark_all()


class Share:
    """One VM's part of it.

    Whatever the others hold, each connection may read `FREE_BYTES`, and that one on whose request has begun first: so small
    requests always come through, everybody gets on, and what a VM holds is bounded.
    """

    __slots__ = ("_all", "_held", "_limit")

    def __init__(self, of: InFlight, limit: int = VM_BYTES) -> None:
        self._all = of
        self._limit = limit
        self._held: dict[object, int] = {}

    async def room(self, connection: object) -> None:
        """Wait until a connection may read on."""
        while not self.has_room(connection):
            await self._all.changed()

    def holds(self, connection: object, size: int) -> None:
        """So many bytes of what it has read are not carried out yet; 0 when it has ended, too."""
        more = size - self._held.get(connection, 0)
        if size:
            self._held[connection] = size
        else:
            self._held.pop(connection, None)
        if more:
            self._all.count(more)

    def has_room(self, connection: object) -> bool:
        """Whether a connection may read on now."""
        if self._held.get(connection, 0) < FREE_BYTES or next(iter(self._held)) is connection:
            return True
        return not self.is_full

    @property
    def is_full(self) -> bool:
        """Whether a connection may read no more than what each always may."""
        return sum(self._held.values()) >= self._limit or self._all.is_full
