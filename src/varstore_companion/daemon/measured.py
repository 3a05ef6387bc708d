"""A toolstack whose calls are counted and timed, and not too many at once: in all, and of one VM."""

from collections.abc import Awaitable
from dataclasses import dataclass
from types import TracebackType
from uuid import UUID

import trio

from varstore_companion.daemon.limits import Gate, Turns
from varstore_companion.daemon.stats import Stats
from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.interface import Alert, Toolstack, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

_FAILURES = (
    (ToolstackUnavailableError, "unavailable"),
    (ToolstackRefusedError, "refused"),
    (ToolstackUnclearError, "unclear"),
    (ToolstackConflictError, "conflict"),
)


@dataclass(frozen=True, slots=True, eq=False)
class UnderWay:
    """A call that has not ended. `begun`: in trio's time."""

    call: str
    vm: UUID
    begun: float


class MeasuredToolstack:
    """Hands every call on, and tells `stats` how long it took and how it failed. One that is cancelled is timed as well.

    `gate`: for those that a VM makes itself. It has one at a time there, so that one whose guard hangs takes one place only.
    Where a call cannot be left (`late_seconds` 0), its reads do not wait for its write: a boot must not hang with a disk.
    """

    __slots__ = ("_gate", "_inner", "_reads", "_stats", "_under_way", "_writes")

    def __init__(self, inner: Toolstack, stats: Stats, gate: Gate) -> None:
        self._gate = gate
        self._reads = Turns()
        self._writes = self._reads if inner.late_seconds else Turns()
        self._inner = inner
        self._stats = stats
        self._under_way: dict[UnderWay, None] = {}  # oldest first

    @property
    def name(self) -> str:
        """The toolstack's own name."""
        return self._inner.name

    @property
    def late_seconds(self) -> float:
        """See `Toolstack.late_seconds`."""
        return self._inner.late_seconds

    def has_field(self, vm: UUID) -> bool | None:
        """See `Toolstack.has_field`."""
        return self._inner.has_field(vm)

    async def read(self, vm: UUID) -> VmRecord:
        """See `Toolstack.read`."""
        await self._reads.enter(vm)
        try:
            async with self._gate:
                with _Measured(self._under_way, self._stats, "read", vm):
                    return await self._inner.read(vm)
        finally:
            self._reads.leave(vm)

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        """See `Toolstack.write`."""
        if not self._writes.enter_now(vm):
            await _in_time(self._writes.enter(vm), deadline)
        try:
            if not self._gate.enter_now():
                await _in_time(self._gate.enter(), deadline)
            try:
                with _Measured(self._under_way, self._stats, "write", vm):
                    return await self._inner.write(vm, store, update, expected=expected, deadline=deadline)
            finally:
                self._gate.leave()
        finally:
            self._writes.leave(vm)

    async def mark(self, vm: UUID, *, mark: bool) -> CertificatesState:
        """See `Toolstack.mark`."""
        with _Measured(self._under_way, self._stats, "mark", vm):
            return await self._inner.mark(vm, mark=mark)

    async def alert(self, vm: UUID, alert: Alert) -> None:
        """See `Toolstack.alert`."""
        with _Measured(self._under_way, self._stats, "alert", vm):
            await self._inner.alert(vm, alert)

    async def aclose(self) -> None:
        """See `Toolstack.aclose`."""
        await self._inner.aclose()

    def oldest(self) -> UnderWay | None:
        """The call under way that began first."""
        return next(iter(self._under_way), None)


async def _in_time(turn: Awaitable[None], deadline: float) -> None:
    """Wait for a turn; raises `ToolstackUnavailableError` when it does not come until `deadline` (trio's clock)."""
    with trio.move_on_at(deadline):
        await turn
        return
    raise ToolstackUnavailableError("its turn to call the toolstack did not come in time")


class _Measured:
    """One call: under way from the beginning to the end, then timed, and counted when it failed."""

    __slots__ = ("_call", "_stats", "_under_way")

    def __init__(self, under_way: dict[UnderWay, None], stats: Stats, call: str, vm: UUID) -> None:
        self._under_way = under_way
        self._stats = stats
        self._call = UnderWay(call, vm, trio.current_time())

    def __enter__(self) -> None:
        self._under_way[self._call] = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        call = self._call
        del self._under_way[call]
        self._stats.call_seconds[call.call].add(trio.current_time() - call.begun)
        if isinstance(error, Exception):
            failure = next((name for kind, name in _FAILURES if isinstance(error, kind)), "bug")
            self._stats.call_failures[call.call][failure] += 1
