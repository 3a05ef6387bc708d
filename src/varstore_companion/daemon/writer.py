"""The one call that changes a VM's store upstream, and finding out what came of it."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

import trio

from varstore_companion.daemon.errand import Errand
from varstore_companion.daemon.host import Host
from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.trust.state import CertificatesState, Update

log = logging.getLogger(__name__)

READ_BACK_SECONDS = 3.0
"""Kept of a boot's or a write's time to find out what became of a store call whose answer was lost."""
GIVE_UP_SECONDS = 1.0
"""For a toolstack to leave a call that it has begun."""


class Writer:
    """Stores for one VM, one call at a time: the caller sees to that."""

    __slots__ = ("_host", "_left", "_uuid")

    def __init__(self, uuid: UUID, host: Host) -> None:
        self._uuid = uuid
        self._host = host
        # A write that the toolstack could not leave: what it will have done is not known before it is over.
        self._left: Errand[int] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a write goes on that nobody waits for any more. Nothing may be stored before it is over."""
        return self._left is not None and not self._left.is_over

    async def finished(self) -> None:
        """Wait until no such write goes on."""
        if self._left is not None:
            await self._left.ended()
            self._left = None

    async def store(self, blob: bytes, update: Update, generation: int, deadline: float, *, may_leave: bool) -> int:
        """Store `blob` over `generation`; when the answer is lost or late, read back what the toolstack holds.

        `deadline`: in trio's time. `may_leave`: go on at the deadline even when the toolstack cannot leave its call; that
        takes a task more, so only boots do it. Returns the new generation.

        Raises `ToolstackConflictError` when somebody else has written, `ToolstackUnclearError` when it cannot be known what
        the toolstack holds, and the other `ToolstackError`s when it surely holds what it held before.
        """
        reason = "the toolstack did not answer in time"
        write = partial(self._host.toolstack.write, self._uuid, blob, update, expected=generation)
        with trio.move_on_at(deadline - READ_BACK_SECONDS):
            try:
                stored = await (self._leavable(write, deadline) if may_leave else write())
            except ToolstackUnclearError as error:
                reason = str(error)
            else:
                if stored is not None:
                    return stored
        if self._left is not None:
            raise ToolstackUnclearError(f"{reason}, and is still at it")
        log.warning("vm=%s a write has no clear outcome, reading back: %s", self._uuid, reason)
        with trio.move_on_at(deadline - READ_BACK_SECONDS / 3):
            return await self._read_back(blob, update, generation, reason)
        raise ToolstackUnclearError(f"{reason}, nor when it was read back")

    async def _read_back(self, blob: bytes, update: Update, generation: int, reason: str) -> int:
        try:
            back = await self._host.toolstack.read(self._uuid)
        except ToolstackError as error:
            raise ToolstackUnclearError(f"{reason}, and what it holds cannot be read back: {error}") from error
        is_done = update is Update.YES and back.state is CertificatesState.OK
        if back.store == blob and (back.generation != generation or is_done):
            return back.generation
        if back.generation == generation:
            raise ToolstackUnavailableError(f"{reason}; it still holds the old store")
        raise ToolstackConflictError("somebody else wrote the store meanwhile")

    async def _leavable(self, write: Callable[[], Awaitable[int]], deadline: float) -> int | None:
        """What `write` returns, None when it was given up. When cancelled, one that goes on is left to itself."""
        errand = self._host.errand(write, f"write of vm={self._uuid}")
        try:
            await errand.ended()
        finally:
            if not errand.is_over:
                errand.give_up()
                with trio.CancelScope(deadline=min(trio.current_time() + GIVE_UP_SECONDS, deadline), shield=True):
                    await errand.ended()
            if not errand.is_over:
                self._left = errand
        return errand.result()
