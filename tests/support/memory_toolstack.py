"""A toolstack in memory with xapi's semantics, and switches that make it fail or hang where a test wants it."""

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal
from uuid import UUID

import trio

from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

Call = Literal["read", "write", "mark", "alert"]
When = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Written:
    """One write as it was asked for, whether or not it was carried out."""

    vm: UUID
    store: bytes
    update: Update
    expected: int | None


@dataclass(eq=False, slots=True)
class Hang:
    """A call that is made to wait: `reached` is set when it has come there, and it goes on when `release` is set."""

    reached: trio.Event = field(default_factory=trio.Event)
    release: trio.Event = field(default_factory=trio.Event)


def always_ok(_store: bytes) -> CertificatesState:
    """The check for tests to which the field does not matter."""
    return CertificatesState.OK


class MemoryToolstack:
    """A `Toolstack` whose VMs live in a dictionary.

    `check` stands for certcheck. What `fail_next` and `hang_next` prepare is used up by the calls that come, one each
    and in order; "before" is before the change is made (or the record read), "after" is once it has been, so that a
    `ToolstackUnclearError` after the change is a lost answer.
    """

    def __init__(self, check: Callable[[bytes], CertificatesState] = always_ok) -> None:
        self.check = check
        self.vms: dict[UUID, VmRecord] = {}
        self.alerts: list[tuple[UUID, Alert]] = []
        self.writes: list[Written] = []
        self.calls: Counter[Call] = Counter()
        self.counters: Counter[str] = Counter()
        self.closed = False
        self.late_seconds = 0.0
        self._prepared: dict[Call, deque[tuple[When, Exception | Hang]]] = {
            "read": deque(),
            "write": deque(),
            "mark": deque(),
            "alert": deque(),
        }

    @property
    def name(self) -> str:
        return "memory"

    def create(self, vm: UUID, store: bytes | None, state: CertificatesState) -> None:
        """Add a VM at generation 0; one that is there already is refused with `DUPLICATE_VM`."""
        if vm in self.vms:
            raise ToolstackRefusedError("DUPLICATE_VM", f"there is already a VM {vm}")
        self.vms[vm] = VmRecord(store, state, 0)

    def fail_next(self, call: Call, *errors: Exception, when: When = "before") -> None:
        """Make the next calls of this kind raise `errors`, one each; one that is not ours stands for a bug."""
        self._prepared[call].extend((when, error) for error in errors)

    def hang_next(self, call: Call, *, when: When = "before") -> Hang:
        """Make the next call of this kind wait."""
        hang = Hang()
        self._prepared[call].append((when, hang))
        return hang

    def has_field(self, vm: UUID) -> bool | None:
        record = self.vms.get(vm)
        return None if record is None else record.state is not None

    async def read(self, vm: UUID) -> VmRecord:
        async with self._prepared_for("read"):
            return self._record(vm)

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        self.writes.append(Written(vm, store, update, expected))
        with trio.move_on_at(deadline):
            return await self._write(vm, store, update, expected)
        raise ToolstackUnclearError("the toolstack did not answer in time")

    async def _write(self, vm: UUID, store: bytes, update: Update, expected: int | None) -> int:
        async with self._prepared_for("write"):
            record = self._record(vm)
            if expected is not None and record.generation != expected:
                raise ToolstackConflictError(f"the store of VM {vm} has generation {record.generation}, not {expected}")
            state = record.state
            if update is Update.YES:
                state = CertificatesState.OK
            elif update is Update.UNSPECIFIED:
                state = self.check(store)
                self.counters["certcheck_runs"] += 1
            self.counters[f"writes_{update}"] += 1
            self.vms[vm] = VmRecord(store, state, record.generation + 1)
            return record.generation + 1

    async def mark(self, vm: UUID, *, mark: bool) -> CertificatesState:
        async with self._prepared_for("mark"):
            record = self._record(vm)
            if record.state is CertificatesState.OK:
                raise ToolstackRefusedError("OPERATION_NOT_ALLOWED", f"VM {vm} has no update to mark: its state is ok")
            state = CertificatesState.UPDATE_ON_BOOT if mark else CertificatesState.UPDATE_AVAILABLE
            self.vms[vm] = replace(record, state=state)
            return state

    async def alert(self, vm: UUID, alert: Alert) -> None:
        async with self._prepared_for("alert"):
            self._record(vm)
            self.alerts.append((vm, alert))

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def _prepared_for(self, call: Call) -> AsyncIterator[None]:
        self.calls[call] += 1
        waiting = self._prepared[call]
        when, what = waiting.popleft() if waiting else ("before", None)
        await trio.lowlevel.checkpoint()
        if when == "before":
            await _meet(what)
        if self.closed:
            raise ToolstackUnavailableError("closed")
        yield
        if when == "after":
            await _meet(what)

    def _record(self, vm: UUID) -> VmRecord:
        try:
            return self.vms[vm]
        except KeyError:
            raise ToolstackRefusedError("HANDLE_INVALID", f"there is no VM {vm}") from None


async def _meet(what: Exception | Hang | None) -> None:
    if isinstance(what, Hang):
        what.reached.set()
        await what.release.wait()
    elif what is not None:
        raise what
