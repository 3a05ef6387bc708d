"""The toolstack behind xapi-guard: one Unix socket for each VM, which is the VM's identity, speaking XML-RPC.

Which calls. Sessions and VM references are dummies that the guard never looks at, and every generation of it takes each call
on a connection of its own: so there is no login, no `VM.get_by_uuid` and no logout, and the dummies are those that the guard
itself gives out. A read is two calls, a write is one.
"""

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from uuid import UUID

import trio

from varstore_companion.errors import ToolstackError, ToolstackRefusedError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.toolstack.interface import LATE_SECONDS, Alert, VmRecord
from varstore_companion.toolstack.nvram import plain_text_of
from varstore_companion.toolstack.plain_xmlrpc import Plain
from varstore_companion.toolstack.remote import Digest, MissingCalls, Seen, call, state_in, store_in
from varstore_companion.toolstack.xapi_errors import UnknownCallError
from varstore_companion.trust.state import CertificatesState, Update

SESSION = "DUMMYSESSION"
VM = "DUMMYVM"
ALERT_NAME = "VM_SECURE_BOOT_FAILED"
"""What every alert through a guard is called."""

GET_STATE = "VM.get_secureboot_certificates_state"
SET_VERSIONED = "VM.set_NVRAM_EFI_variables_v2"
SET_PLAIN = "VM.set_NVRAM_EFI_variables"


class GuardToolstack:
    """A `Toolstack` on guards' sockets; `set_upstream` says which one is a VM's. A VM without one is `HANDLE_INVALID`.

    Generations of guards. A guard that lacks a call is known by its answer; until its socket is made anew, or for an hour, it
    is spared the question. It has no field: `VmRecord.state` is None, and every write is `unspecified` to it.

    Generations of stores. A guard has none, so they are counted here: what another one wrote is noticed at the next read,
    and `expected` is compared with what this adapter has seen or written last. A write of somebody else between a
    caller's read and its write is not noticed (best effort), and one that was undone meanwhile never is.

    The calls for one VM, but for alerts, are made one at a time: a guard has room for hardly more. Store and field of one
    read come from two calls, so a change from elsewhere can fall between them.
    """

    def __init__(self, numbers: Iterator[int] | None = None, *, late_seconds: float = LATE_SECONDS) -> None:
        # From the clock, so that a restarted daemon's generations go on growing.
        self._numbers = count(time.time_ns() // 1_000_000) if numbers is None else numbers
        self._guards: dict[UUID, _Guard] = {}
        self._closed = False
        self._late_seconds = late_seconds

    @property
    def name(self) -> str:
        """As in `serve --toolstack`."""
        return "guard"

    @property
    def late_seconds(self) -> float:
        """See `Toolstack.late_seconds`."""
        return self._late_seconds

    def set_upstream(self, vm: UUID, path: Path | None) -> None:
        """The VM's guard is at `path` from now on; None forgets the VM. Calls that have begun go on where they are."""
        if path is None:
            self._guards.pop(vm, None)
        elif vm in self._guards:
            self._guards[vm].path = path
        else:
            self._guards[vm] = _Guard(path, Seen(self._numbers))

    def has_field(self, vm: UUID) -> bool | None:
        """See `Toolstack.has_field`."""
        guard = self._guards.get(vm)
        return None if guard is None else guard.has_field

    async def read(self, vm: UUID) -> VmRecord:
        """See `Toolstack.read`."""
        guard = self._guard(vm)
        await guard.enter()
        try:
            return await guard.read()
        finally:
            guard.lock.release()

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        """See `Toolstack.write`."""
        guard = self._guard(vm)
        await guard.enter(deadline)
        try:
            guard.seen.confirm(expected)
            digest = Digest(store)  # taken while the guard is at it
            await guard.write(plain_text_of(store), update, digest, deadline)
            return guard.seen.wrote(digest)
        finally:
            guard.lock.release()

    async def mark(self, vm: UUID, *, mark: bool) -> CertificatesState:
        """Refused with `NOT_IMPLEMENTED`: a guard has no call for it."""
        self._guard(vm)
        what = "marked" if mark else "unmarked"
        why = f"VM {vm} cannot be {what} through its guard: ask xapi (VM.update_secureboot_certificates_on_boot)"
        raise ToolstackRefusedError("NOT_IMPLEMENTED", why)

    async def alert(self, vm: UUID, alert: Alert) -> None:
        """See `Toolstack.alert`. The guard gives every alert one name, so another one goes before the body."""
        guard = self._guard(vm)
        body = alert.body if alert.name == ALERT_NAME else f"{alert.name}: {alert.body}"
        await call(guard.path, "message.create", SESSION, alert.name, alert.priority, "VM", str(vm), body, changes=True)

    async def aclose(self) -> None:
        """Make no more calls. Nothing is held open between them."""
        self._closed = True
        await trio.lowlevel.checkpoint()

    def _guard(self, vm: UUID) -> "_Guard":
        if self._closed:
            raise ToolstackUnavailableError("the guard toolstack is closed")
        try:
            return self._guards[vm]
        except KeyError:
            raise ToolstackRefusedError("HANDLE_INVALID", f"no guard's socket is known for VM {vm}") from None


class _Guard:
    """One VM's guard. `seen`: the store last seen there; `has_field`: what it said when it was last asked for the field."""

    __slots__ = ("_missing", "has_field", "lock", "path", "seen")

    def __init__(self, path: Path, seen: Seen) -> None:
        self.path = path
        self.seen = seen
        self.lock = trio.Lock()
        self.has_field: bool | None = None
        self._missing = MissingCalls()

    async def enter(self, deadline: float = float("inf")) -> None:
        """Acquire `lock`; without a turn of the event loop when nobody has it, since each call makes some of its own.

        Raises `ToolstackUnavailableError` when it is not to be had until `deadline` (trio's clock).
        """
        try:
            self.lock.acquire_nowait()
        except trio.WouldBlock:
            with trio.move_on_at(deadline):
                await self.lock.acquire()
                return
            raise ToolstackUnavailableError("an earlier call to the VM's guard did not end in time") from None

    async def read(self) -> VmRecord:
        self._missing.look(self._identity())
        store = store_in(await call(self.path, "VM.get_NVRAM", SESSION, VM))
        state = await self._state()
        return VmRecord(store, state, self.seen.read(store))

    async def write(self, text: Plain, update: Update, meanwhile: Callable[[], object], deadline: float) -> None:
        self._missing.look(self._identity())
        if SET_VERSIONED not in self._missing:
            try:
                await call(
                    self.path,
                    SET_VERSIONED,
                    SESSION,
                    VM,
                    text,
                    update.value,
                    changes=True,
                    may_be_missing=True,
                    meanwhile=meanwhile,
                    deadline=deadline,
                )
            except UnknownCallError as error:
                if error.is_guess:
                    await self._confirm_old(error, deadline)
                self._missing.add(SET_VERSIONED)
            else:
                return
        await call(self.path, SET_PLAIN, SESSION, VM, text, changes=True, meanwhile=meanwhile, deadline=deadline)

    async def _confirm_old(self, error: UnknownCallError, deadline: float) -> None:
        """See that the guard is one without the call, since it has no field. Raises `ToolstackUnclearError`."""
        try:
            has_call = await self._state(deadline) is not None
        except ToolstackError as other:
            raise ToolstackUnclearError(f"{error}, and whether the guard has the call is not known: {other}") from None
        if has_call:
            raise ToolstackUnclearError(f"{error}, from a guard that has the call") from None

    async def _state(self, deadline: float = float("inf")) -> CertificatesState | None:
        if GET_STATE in self._missing:
            return None
        state = None
        try:
            state = state_in(await call(self.path, GET_STATE, SESSION, VM, may_be_missing=True, deadline=deadline))
        except UnknownCallError:
            self._missing.add(GET_STATE)
        self.has_field = state is not None
        return state

    def _identity(self) -> tuple[int, int, int] | None:
        """The socket's file, which a guard makes anew when it starts: its number alone is given out again."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns
