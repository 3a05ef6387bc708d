"""The embedded toolstack: xapi's semantics in one SQLite file, for the demo, for tests and for hosts without xapi."""

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar
from uuid import UUID

import trio

from varstore_companion import threads
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.toolstack.certcheck import Certcheck
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

_log = logging.getLogger(__name__)

T = TypeVar("T")


class EmbeddedToolstack:
    """A `Toolstack` on `database`, which it takes over: `aclose` closes it. Errors are those of `Database`.

    A verdict `unspecified` runs `certcheck` on the new store first; then one transaction stores the store, the field
    that it led to, and the count of the run.

    Cancellation. A call that still waits for its turn is given up, and nothing is changed. A change that has begun is
    finished first, which takes at most the busy timeout and the disk's sync, and then returns as if it had not been
    cancelled. So after a cancelled `write`, `mark` or `alert` nothing is still to come, and a read tells what holds. A
    cancelled `read` returns at once.
    """

    def __init__(self, database: Database, certcheck: Certcheck) -> None:
        self._database = database
        self._certcheck = certcheck
        # The database has one connection for each of the two: a second thread would only wait inside it, and there
        # it could not be cancelled.
        self._read_turn = trio.CapacityLimiter(1)
        self._write_turn = trio.CapacityLimiter(1)

    @property
    def name(self) -> str:
        """As in `serve --toolstack`."""
        return "embedded"

    @property
    def late_seconds(self) -> float:
        """None: a call to SQLite is not left before it is over, and a killed process takes it along."""
        return 0.0

    def has_field(self, vm: UUID) -> bool | None:  # noqa: ARG002  every VM has
        """See `Toolstack.has_field`."""
        return True

    async def read(self, vm: UUID) -> VmRecord:
        """See `Toolstack.read`."""
        return await self.reading(partial(self._database.read, vm))

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        """See `Toolstack.write`."""
        with trio.move_on_at(deadline):
            return await self._write(vm, store, update, expected)
        # A change that had begun would have been finished.
        raise ToolstackUnavailableError("its turn to write did not come in time")

    async def _write(self, vm: UUID, store: bytes, update: Update, expected: int | None) -> int:
        if update is not Update.UNSPECIFIED:
            return await self.changing(partial(self._database.write, vm, store, update, expected=expected))
        await self.reading(partial(self._database.confirm, vm, expected))
        result = await self._certcheck.run(store)
        if result.warning is not None:
            _log.warning("certcheck gave no answer, the field becomes %s: %s vm=%s", result.state, result.warning, vm)
        return await self.changing(partial(self._database.write_checked, vm, store, result.state, expected=expected))

    async def mark(self, vm: UUID, *, mark: bool) -> CertificatesState:
        """See `Toolstack.mark`."""
        return await self.changing(partial(self._database.mark if mark else self._database.unmark, vm))

    async def alert(self, vm: UUID, alert: Alert) -> None:
        """See `Toolstack.alert`."""
        await self.changing(partial(self._database.alert, vm, alert))

    async def aclose(self) -> None:
        """Close the database, also when cancelled; waits for a change that has begun."""
        with trio.CancelScope(shield=True):
            try:
                await threads.run_sync(self._database.close)
            except OSError:  # the system gives no thread, and nothing else goes on that could be held up
                self._database.close()

    async def reading(self, call: Callable[[], T]) -> T:
        """Have a thread make a call that only reads `database`, when it is its turn. Raises as the call does."""
        # An abandoned thread keeps the turn until it has left the connection.
        try:
            return await threads.run_sync(call, abandon_on_cancel=True, limiter=self._read_turn)
        except OSError as error:  # the system gives no thread
            raise ToolstackUnavailableError(str(error)) from error

    async def changing(self, call: Callable[[], T]) -> T:
        """Have a thread make a call that changes `database`, when it is its turn. Raises as the call does."""
        try:
            return await threads.run_sync(call, limiter=self._write_turn)
        except OSError as error:  # the system gives no thread
            raise ToolstackUnavailableError(str(error)) from error
