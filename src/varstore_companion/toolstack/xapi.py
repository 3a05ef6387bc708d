"""xapi itself as the toolstack, over its own Unix socket (`/var/lib/xcp/xapi`, root's): XML-RPC with a session."""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import trio

from varstore_companion.errors import ToolstackError, ToolstackRefusedError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.toolstack.interface import LATE_SECONDS, Alert, VmRecord
from varstore_companion.toolstack.nvram import plain_text_of
from varstore_companion.toolstack.plain_xmlrpc import Plain
from varstore_companion.toolstack.remote import Digest, MissingCalls, Seen, call, state_in, store_in
from varstore_companion.toolstack.xapi_errors import SessionInvalidError, UnknownCallError
from varstore_companion.toolstack.xmlrpc import Value
from varstore_companion.trust.state import CertificatesState, Update

T = TypeVar("T")

LOGOUT_SECONDS = 1.0
"""For xapi to take a logout at the end: a session that is left behind costs it little."""

GET_STATE = "VM.get_secureboot_certificates_state"
SET = "VM.set_NVRAM_EFI_variables"
MARK = "VM.update_secureboot_certificates_on_boot"


class XapiToolstack:
    """A `Toolstack` on xapi's socket at `path`.

    One session for all calls, renewed once in a call that finds it ended. A VM's reference is kept until xapi calls it
    invalid; the VM is then looked up again, once. An xapi from before the field takes `VM.set_NVRAM_EFI_variables` without
    `update` and has `VmRecord.state` None; it is asked again after an hour, or when the session had to be renewed.

    Generations of stores are counted here as in `GuardToolstack`, with the same limits; calls that change one VM, and
    reads of it, are made one at a time.

    On a host that is not its pool's master xapi refuses with `HOST_IS_SLAVE`, or with a redirect; the text names the master. It
    is never followed: another host's xapi is not to be had over this socket.
    """

    def __init__(self, path: Path, numbers: Iterator[int] | None = None, *, late_seconds: float = LATE_SECONDS) -> None:
        self._path = path
        self._numbers = count(time.time_ns() // 1_000_000) if numbers is None else numbers
        self._vms: dict[UUID, _Vm] = {}
        self._session: str | None = None
        self._logins = 0
        self._login_lock = trio.Lock()
        self._missing = MissingCalls()
        self._has_field: bool | None = None
        self._closed = False
        self._late_seconds = late_seconds

    @property
    def name(self) -> str:
        """As in `serve --toolstack`."""
        return "xapi"

    @property
    def late_seconds(self) -> float:
        """See `Toolstack.late_seconds`."""
        return self._late_seconds

    def has_field(self, vm: UUID) -> bool | None:  # noqa: ARG002  xapi is one for all
        """See `Toolstack.has_field`."""
        return self._has_field

    async def read(self, vm: UUID) -> VmRecord:
        """See `Toolstack.read`."""

        async def both(reference: str) -> tuple[bytes | None, CertificatesState | None]:
            return store_in(await self._call("VM.get_NVRAM", reference)), await self._state(reference)

        known = self._vm(vm)
        async with known.lock:
            store, state = await self._on(vm, known, both)
            return VmRecord(store, state, known.seen.read(store))

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        """See `Toolstack.write`."""
        text = plain_text_of(store)
        known = self._vm(vm)
        may_be_sent = False

        async def put(reference: str) -> None:
            nonlocal may_be_sent
            if self._session is None:
                await self._login(None)
            may_be_sent = True
            await self._set(reference, text, update)

        with trio.move_on_at(deadline):
            async with known.lock:
                known.seen.confirm(expected)
                await self._on(vm, known, put)
                return known.seen.wrote(Digest(store))
        if may_be_sent:
            raise ToolstackUnclearError("xapi did not answer in time")
        raise ToolstackUnavailableError("the write's turn at xapi did not come in time")

    async def mark(self, vm: UUID, *, mark: bool) -> CertificatesState:
        """See `Toolstack.mark`."""

        async def both(reference: str) -> CertificatesState | None:
            await self._call(MARK, reference, mark, changes=True)
            try:
                return await self._state(reference)
            except ToolstackUnavailableError as error:
                raise ToolstackUnclearError(f"{MARK} was carried out, and the field cannot be read back: {error}") from None

        known = self._vm(vm)
        async with known.lock:
            state = await self._on(vm, known, both)
        if state is None:
            raise ToolstackUnclearError(f"{MARK} was carried out, and the field cannot be read back")
        return state

    async def alert(self, vm: UUID, alert: Alert) -> None:
        """See `Toolstack.alert`."""
        self._confirm_open()
        await self._call("message.create", alert.name, alert.priority, "VM", str(vm), alert.body, changes=True)

    async def aclose(self) -> None:
        """Log out, if xapi takes it at once, and make no more calls."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            with trio.move_on_after(LOGOUT_SECONDS, shield=True), suppress(ToolstackError):
                await call(self._path, "session.logout", session)

    # A VM

    def _vm(self, vm: UUID) -> "_Vm":
        self._confirm_open()
        if vm not in self._vms:
            self._vms[vm] = _Vm(Seen(self._numbers))
        return self._vms[vm]

    async def _on(self, vm: UUID, known: "_Vm", act: Callable[[str], Awaitable[T]]) -> T:
        """Do what is to be done with the VM's reference; once more with a new one when xapi calls the kept one invalid."""
        if known.reference is not None:
            try:
                return await act(known.reference)
            except ToolstackRefusedError as error:
                if error.code != "HANDLE_INVALID":
                    raise
                known.reference = None
        try:
            reference = await self._call("VM.get_by_uuid", str(vm))
            if not isinstance(reference, str):
                raise ToolstackUnavailableError("VM.get_by_uuid: an answer that is not a text")
            result = await act(reference)
        except ToolstackRefusedError as error:
            if error.code == "HANDLE_INVALID":
                self._vms.pop(vm, None)
            raise
        known.reference = reference
        return result

    async def _state(self, reference: str) -> CertificatesState | None:
        self._missing.look(self._logins)
        if GET_STATE in self._missing:
            return None
        state = None
        try:
            state = state_in(await self._call(GET_STATE, reference))
        except UnknownCallError:
            self._missing.add(GET_STATE)
        self._has_field = state is not None
        return state

    async def _set(self, reference: str, text: Plain, update: Update) -> None:
        self._missing.look(self._logins)
        if SET not in self._missing:
            try:
                await self._call(SET, reference, text, update.value, changes=True)
            except UnknownCallError as error:
                if error.code != "MESSAGE_PARAMETER_COUNT_MISMATCH":
                    raise
                self._missing.add(SET)
            else:
                return
        await self._call(SET, reference, text, changes=True)

    # The session

    async def _call(self, method: str, *parameters: Value | Plain, changes: bool = False) -> Value:
        """Make a call in the session, which is renewed once when it has ended."""
        session = await self._login(None)
        try:
            return await call(self._path, method, session, *parameters, changes=changes)
        except SessionInvalidError:
            session = await self._login(session)
        return await call(self._path, method, session, *parameters, changes=changes)

    async def _login(self, ended: str | None) -> str:
        """The session, a new one when there is none or it is the one that has ended."""
        async with self._login_lock:
            if self._session is None or self._session == ended:
                self._session = None
                # Over the local socket xapi asks for no password.
                session = await call(self._path, "session.login_with_password", "root", "", "1.0", "varstore-companion")
                if not isinstance(session, str):
                    raise ToolstackUnavailableError("session.login_with_password: an answer that is not a text")
                self._session = session
                self._logins += 1
            return self._session

    def _confirm_open(self) -> None:
        if self._closed:
            raise ToolstackUnavailableError("the xapi toolstack is closed")


class _Vm:
    """One VM. `reference`: xapi's for it, None until it is asked for."""

    __slots__ = ("lock", "reference", "seen")

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.reference: str | None = None
        self.lock = trio.Lock()
