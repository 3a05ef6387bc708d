"""The one call that changes a VM's store upstream, finding out what came of it, and what the toolstack may hold by then."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

import trio

from varstore_companion.daemon.errand import Errand
from varstore_companion.daemon.held import UNKNOWN, Held
from varstore_companion.daemon.host import Host
from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.trust.state import CertificatesState, Update

log = logging.getLogger(__name__)

READ_BACK_SECONDS = 3.0
"""Kept of a boot's or a write's time to find out what became of a store call whose answer was lost."""
GIVE_UP_SECONDS = 1.0
"""For a toolstack to leave a call that it has begun."""
SENT = 32
"""Stores of unknown outcome that are remembered; one more than these is set aside rather than written over."""


class Writer:
    """Stores for one VM, one call at a time: the caller sees to that.

    A call that was given up may still be carried out, for as long as `Toolstack.late_seconds` says: until then nothing
    else may be stored, or it could land on top (invariant 9).
    """

    __slots__ = ("_held", "_host", "_late_until", "_left", "_sending", "_sent", "_uuid", "is_doubted")

    def __init__(self, uuid: UUID, host: Host) -> None:
        self._uuid = uuid
        self._host = host
        # A write that the toolstack could not leave: what it will have done is not known before it is over.
        self._left: Errand[int] | None = None
        self._late_until = float("-inf")
        self._sending: Held | None = None
        self._sent: tuple[bytes, ...] = ()
        self._held: Held | None = None
        self.is_doubted = False
        """Whether `doubt` was called since the last call began: what that one stored may have been written over."""
        noted = None if host.ledger is None else host.ledger.noted(uuid)
        if noted is not None:
            self._held = Held.of(noted.held, host.recent)
            if noted.sent is not None:
                self._given_up(noted.sent)

    @property
    def is_settled(self) -> bool:
        """Whether nothing that was given up can still be carried out. Nothing may be stored before that."""
        return (self._left is None or self._left.is_over) and trio.current_time() >= self._late_until

    async def settled(self) -> None:
        """Wait until it is."""
        await self.finished()
        await trio.sleep_until(self._late_until)

    def rest(self, *, is_doubtful: bool) -> None:
        """Once settled: have the next daemon wait for nothing. `is_doubtful`: what is held may be newer than what waits."""
        if self._sent and self._sending is None and self.is_settled and self._host.ledger is not None:
            # Else whoever knows of it by the ledger alone would wait for it once more, each time anew.
            if is_doubtful:
                self._host.ledger.note(self._uuid, UNKNOWN)
            else:
                self._host.ledger.forget(self._uuid)

    async def finished(self) -> None:
        """Wait until no call goes on that the toolstack could not leave."""
        if self._left is not None:
            await self._left.ended()
            self._left = None

    @property
    def holds(self) -> bytes | None:
        """Digest of what the toolstack was last known to hold; `UNKNOWN` after `doubt`, None when that counts no more."""
        return None if self._held is None else self._held.digest

    @property
    def may_hold(self) -> tuple[bytes, ...]:
        """Digests of the stores of which the toolstack holds one; none at all when that is not known."""
        if self._held is None or self._held.digest == UNKNOWN:
            return ()
        sending = () if self._sending is None else (self._sending.digest,)
        return (self._held.digest, *self._sent, *sending)

    def saw(self, store: bytes | None) -> None:
        """The toolstack holds this store."""
        self._holds(Held(store, self._host.recent))

    def _holds(self, held: Held) -> None:
        if self._held is not None:
            self._held.forget()
        self._held = held
        if self.is_settled:
            self._sent = ()
        if self._sending is None:
            self._note()

    def doubt(self) -> None:
        """The VM may have written past this daemon, for whoever goes by the ledger too: also while a call is under way."""
        self._holds(Held.of(UNKNOWN, self._host.recent))
        self.is_doubted = True
        self._note()

    def forget(self) -> None:
        """What the toolstack holds may have changed past this daemon; what it may still carry out stays in mind."""
        if not self.is_settled or self._sending is not None:
            self.doubt()
            return
        if self._held is not None:
            self._held.forget()
            self._held = None
        self._sent = ()
        if self._host.ledger is not None:
            self._host.ledger.forget(self._uuid)

    async def store(self, blob: bytes, update: Update, generation: int, deadline: float, *, may_leave: bool) -> int:
        """Store `blob` over `generation`; when the answer is lost or late, read back what the toolstack holds.

        `deadline`: in trio's time. `may_leave`: go on at the deadline even when the toolstack cannot leave its call; that
        takes a task more, so only boots do it. Returns the new generation.

        Raises `ToolstackConflictError` when somebody else has written, `ToolstackUnclearError` when it cannot be known what
        the toolstack holds or will hold, and the other `ToolstackError`s when it surely holds what it held before.
        """
        reason = "the toolstack did not answer in time"
        until = deadline - READ_BACK_SECONDS
        write = partial(self._host.toolstack.write, self._uuid, blob, update, expected=generation, deadline=until)
        is_clear = self.is_doubted = False
        sending = self._sending = Held(blob, self._host.recent)
        self._note()
        try:
            try:
                stored = await (self._leavable(write, until, deadline) if may_leave else write())
            except ToolstackUnclearError as error:
                reason = str(error)
            except (ToolstackConflictError, ToolstackUnavailableError, ToolstackRefusedError):
                is_clear = True
                raise
            else:
                if stored is not None:
                    is_clear = True
                    self._stored(sending)
                    return stored
            if self._left is not None:
                raise ToolstackUnclearError(f"{reason}, and is still at it")
            log.warning("vm=%s a write has no clear outcome, reading back: %s", self._uuid, reason)
            with trio.move_on_at(deadline - READ_BACK_SECONDS / 3):
                try:
                    stored = await self._read_back(blob, update, generation, reason)
                except (ToolstackConflictError, ToolstackUnavailableError):
                    is_clear = True
                    raise
                is_clear = True
                self._stored(sending)
                return stored
            raise ToolstackUnclearError(f"{reason}, nor when it was read back")
        finally:
            self._sending = None
            if not is_clear:
                self._given_up(sending.digest)
            if self._held is not sending:
                sending.forget()
            self._note()

    def _stored(self, sending: Held) -> None:
        if not self.is_doubted:
            self._holds(sending)

    def _given_up(self, digest: bytes) -> None:
        self._sent = (*self._sent[1 - SENT :], digest)
        self._late_until = trio.current_time() + self._host.toolstack.late_seconds

    def _note(self) -> None:
        """Have the next daemon know, should this one be killed."""
        if self._host.ledger is not None and self._held is not None:
            given_up = self._sent[-1] if self._sent else None
            sent = given_up if self._sending is None else self._sending.digest
            self._host.ledger.note(self._uuid, self._held.digest, sent)

    async def _read_back(self, blob: bytes, update: Update, generation: int, reason: str) -> int:
        try:
            back = await self._host.toolstack.read(self._uuid)
        except ToolstackError as error:
            raise ToolstackUnclearError(f"{reason}, and what it holds cannot be read back: {error}") from error
        is_done = update is Update.YES and back.state is CertificatesState.OK
        if back.store == blob and (back.generation != generation or is_done):
            return back.generation
        self.saw(back.store)
        if self._host.toolstack.late_seconds:
            raise ToolstackUnclearError(f"{reason}; it holds another store, and may still take this one")
        if back.generation == generation:
            raise ToolstackUnavailableError(f"{reason}; it still holds the old store")
        raise ToolstackConflictError("somebody else wrote the store meanwhile")

    async def _leavable(self, write: Callable[[], Awaitable[int]], until: float, deadline: float) -> int | None:
        """What `write` returns, None when it was given up. When cancelled, one that goes on is left to itself."""
        errand = self._host.errand(write, f"write of vm={self._uuid}")
        try:
            with trio.move_on_at(until):
                await errand.ended()
        finally:
            if not errand.is_over:
                errand.give_up()
                with trio.CancelScope(deadline=min(trio.current_time() + GIVE_UP_SECONDS, deadline), shield=True):
                    await errand.ended()
            if not errand.is_over:
                self._left = errand
        return errand.result()
