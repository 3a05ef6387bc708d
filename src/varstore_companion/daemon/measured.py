"""A toolstack whose calls are counted and timed, and not too many at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import trio

from varstore_companion.daemon.limits import Gate
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

    `gate`: for those that a VM makes itself.
    """

    __slots__ = ("_gate", "_inner", "_stats", "_under_way")

    def __init__(self, inner: Toolstack, stats: Stats, gate: Gate) -> None:
        self._gate = gate
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
        async with self._gate:
            with self._measured("read", vm):
                return await self._inner.read(vm)

    async def write(self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None) -> int:
        """See `Toolstack.write`."""
        async with self._gate:
            with self._measured("write", vm):
                return await self._inner.write(vm, store, update, expected=expected)

    async def mark(self, vm: UUID, *, mark: bool) -> CertificatesState:
        """See `Toolstack.mark`."""
        with self._measured("mark", vm):
            return await self._inner.mark(vm, mark=mark)

    async def alert(self, vm: UUID, alert: Alert) -> None:
        """See `Toolstack.alert`."""
        with self._measured("alert", vm):
            await self._inner.alert(vm, alert)

    async def aclose(self) -> None:
        """See `Toolstack.aclose`."""
        await self._inner.aclose()

    def oldest(self) -> UnderWay | None:
        """The call under way that began first."""
        return next(iter(self._under_way), None)

    @contextmanager
    def _measured(self, call: str, vm: UUID) -> Iterator[None]:
        begun = trio.current_time()
        under_way = UnderWay(call, vm, begun)
        self._under_way[under_way] = None
        try:
            yield
        except Exception as error:
            failure = next((name for kind, name in _FAILURES if isinstance(error, kind)), "bug")
            self._stats.call_failures[call][failure] += 1
            raise
        finally:
            del self._under_way[under_way]
            self._stats.call_seconds[call].add(trio.current_time() - begun)
