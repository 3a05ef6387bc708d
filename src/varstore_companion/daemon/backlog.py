"""One VM's store that is in the journal and not yet with the toolstack: putting it there, and delivering it.

Three modes, a VM each:

    direct ──(the toolstack cannot take a write: it is journaled, then acknowledged)──► queued
    queued ──(the toolstack is tried again)──► draining ──(it fails: later, with backoff)──► queued
    draining ──(the newest store is with the toolstack, or set aside, and that is on disk)──► direct

While anything is pending, and while a call that was given up may still be carried out, every write goes to the journal,
where it takes the place of the one before. So there is one store to deliver, and no order to keep between two.

Delivering never turns a store back (invariant 9). An entry knows which stores the toolstack may have held when it was
written; if it holds another one by then, the VM has moved on elsewhere, and the entry is set aside with an alert.
"""

import logging
from enum import StrEnum
from uuid import UUID

import trio

from varstore_companion.daemon import alerts
from varstore_companion.daemon.errand import Errand
from varstore_companion.daemon.held import digest_of
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.upstream import Upstream, admitted
from varstore_companion.errors import (
    JournalError,
    JournalFullError,
    MalformedError,
    OverLimitError,
    ToolstackConflictError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.journal.backups import Why
from varstore_companion.journal.entry import Entry
from varstore_companion.journal.history import What
from varstore_companion.toolstack.interface import VmRecord

log = logging.getLogger(__name__)

MAX_REPLACES = 64
"""Stores of which the toolstack may hold one, that an entry follows on: one more, and the entry is set aside."""
REFUSED_SECONDS = 60.0
"""For how long the toolstack may go on refusing an entry before it is set aside."""
DIRECT_SECONDS = 5.0
"""For a guard to carry out what its varstored was still at with it when its socket was taken over."""
_FOREIGN = "the toolstack holds a store that this one does not follow on"
DECISIONS = 4
"""How often a delivery is decided anew because somebody else changed the store meanwhile."""


class Mode(StrEnum):
    """Where a VM's writes go."""

    DIRECT = "direct"
    QUEUED = "queued"
    DRAINING = "draining"


class Backlog:
    """See the module. The caller orders the calls of `add`; `deliver` may run beside them."""

    __slots__ = ("_append", "_heard", "_host", "_in_hand", "_not_before", "_refused_since", "_upstream", "_uuid", "turn")

    def __init__(self, uuid: UUID, host: Host, upstream: Upstream) -> None:
        self._uuid = uuid
        self._host = host
        self._upstream = upstream
        self._refused_since: float | None = None
        # One that nobody waits for any more: whether its store comes to be pending is not known before it is over.
        self._append: Errand[Entry] | None = None
        # What is being delivered: from then on it may be with the toolstack.
        self._in_hand: Entry | None = None
        self._not_before = float("-inf")
        self._heard: trio.Event | None = None
        self.turn = trio.Semaphore(1, max_value=1)
        """Of one: held by whoever writes to the toolstack."""

    @property
    def pending(self) -> Entry | None:
        """The newest store that the toolstack has not taken yet."""
        return self._host.journal.pending(self._uuid)

    @property
    def mode(self) -> Mode:
        """Where the next write goes."""
        if self.pending is None and self.is_settled:
            return Mode.DIRECT
        return Mode.QUEUED if self.turn.value else Mode.DRAINING

    @property
    def is_settled(self) -> bool:
        """Whether nothing that was given up may still be carried out, here or by the toolstack."""
        return (self._append is None or self._append.is_over) and self._upstream.writer.is_settled

    @property
    def is_doubtful(self) -> bool:
        """Whether the toolstack holds, or may hold, a store that the pending one does not follow on."""
        entry = self.pending
        if entry is None:
            # A digest is not taken with every write.
            return False
        holds = self._upstream.writer.holds
        return holds is not None and not _replaces(entry, holds)

    async def settled(self) -> None:
        """Wait until it is."""
        await self._journaled()
        await self.held_off()
        await self._upstream.writer.settled()
        self._upstream.writer.rest(is_doubtful=self.is_doubtful)

    def hold_off(self) -> None:
        """Deliver nothing for `DIRECT_SECONDS`, or until `go_on`: varstored may still be at a newer store with its guard."""
        self._heard = trio.Event()
        self._not_before = trio.current_time() + DIRECT_SECONDS

    def go_on(self) -> None:
        """It has come here. It makes one call at a time, so that what it was at is over, and shows at the next look."""
        if self._heard is not None:
            self._heard.set()
            self._heard = None
            self._not_before = float("-inf")

    async def held_off(self) -> None:
        """Wait until there is no such reason to deliver nothing."""
        if self._heard is not None:
            with trio.move_on_at(self._not_before):
                await self._heard.wait()

    async def _journaled(self) -> None:
        """Wait until nothing is being journaled; while that is waited for, another store may come."""
        while self._append is not None and not self._append.is_over:
            await self._append.ended()

    async def add(self, store: bytes, reason: str, deadline: float) -> None:
        """Journal a store, until `deadline` (trio's clock); it is durable when this returns, and its delivery is seen to.

        Raises `ToolstackUnavailableError` when the journal is full or there is no telling later whether the store is older than
        the toolstack's, and `ToolstackUnclearError` when the disk does not take it, or not in time.
        """
        with trio.move_on_at(deadline):
            await self._journaled()
            if self.is_doubtful:
                raise ToolstackUnavailableError(
                    f"{reason}; and the toolstack may hold a newer one than that, so it cannot be journaled"
                )
            before = self.pending
            replaces = self._upstream.writer.may_hold if before is None else self._follows_on(before)
            if not replaces:
                raise ToolstackUnavailableError(
                    f"{reason}; and what the toolstack holds is not known, so it cannot be journaled"
                )
            journal, now = self._host.journal, self._host.now()
            errand = self._append = self._host.errand(
                lambda: journal.append(self._uuid, store, replaces, now), f"journal write of vm={self._uuid}"
            )
            try:
                await errand.ended()
            finally:
                self._host.deliver(self._uuid)
            try:
                errand.result()
            except JournalFullError as error:
                raise ToolstackUnavailableError(f"{reason}; and {error}") from None
            except JournalError as error:
                raise ToolstackUnclearError(f"{reason}; and the journal cannot take it: {error}") from None
            self._host.stats.journaled += 1
            if before is None:
                log.warning("vm=%s its writes are journaled for now: %s", self._uuid, reason)
            return
        raise ToolstackUnclearError(f"{reason}; and the journal did not take it in time")

    def _follows_on(self, before: Entry) -> tuple[bytes, ...]:
        """What a store that takes the place of `before` may find with the toolstack."""
        may_hold = self._upstream.writer.may_hold
        # Of what a daemon before this one has sent, the ledger knows.
        may_be_sent = before is self._in_hand or before.digest in may_hold or (before.recovered and not may_hold)
        if before.digest in before.replaces or not may_be_sent:
            return before.replaces
        # It may have been sent, by this daemon or by one before it.
        return (before.replaces[0], *before.replaces[1:][2 - MAX_REPLACES :], before.digest)

    async def reconcile(self) -> None:
        """Set the pending store aside if the toolstack holds one that it does not follow on: nothing may take its place then.

        Raises `ToolstackError` and `JournalError`: to be tried again.
        """
        async with self.turn:
            found = digest_of((await self._look()).store)
            await self._journaled()
            entry = self.pending
            if entry is not None and not _replaces(entry, found):
                await self._set_aside(entry, await self._host.journal.load(entry), _FOREIGN)

    async def newest(self, record: VmRecord | None) -> bytes | None:
        """The pending store, if it is newer than what the toolstack holds (`record`; None: it cannot be asked).

        Raises `ToolstackUnavailableError` when the disk does not give it, or only the toolstack could say which one is newer.
        """
        while (entry := self.pending) is not None:
            if record is None and self.is_doubtful:
                raise ToolstackUnavailableError("the toolstack may hold a newer store than the journal, and cannot be asked")
            if record is not None and not _replaces(entry, digest_of(record.store)):
                return None
            try:
                return await self._host.journal.load(entry)
            except JournalError as error:
                if self.pending is entry:
                    text = f"the VM's newest store is in the journal, which cannot be read: {error}"
                    raise ToolstackUnavailableError(text) from None
        return None

    async def deliver(self, deadline: float) -> None:
        """Hand the pending store to the toolstack; nothing is pending when this returns, unless a write came meanwhile.

        `deadline`: in trio's time, for one store. Raises `ToolstackError` and `JournalError`: to be tried again.
        """
        async with self.turn:
            for _ in range(DECISIONS):
                if not self._upstream.writer.is_settled:
                    raise ToolstackUnavailableError("a call that was given up may still be carried out")
                if self.pending is None:
                    return
                if trio.current_time() < self._not_before:
                    raise ToolstackUnavailableError("its guard may still be at a newer one that came past the daemon")
                try:
                    with trio.move_on_at(deadline) as scope:
                        await self._deliver(deadline)
                    if scope.cancelled_caught:
                        raise ToolstackUnavailableError("the toolstack did not answer in time")
                except ToolstackConflictError:
                    log.info("vm=%s somebody else changed the store: deciding anew on the journaled one", self._uuid)
                    continue
                finally:
                    self._in_hand = None
                self._refused_since = None
                return
        raise ToolstackUnavailableError("the store kept changing during its delivery")

    async def _deliver(self, deadline: float) -> None:
        try:
            record = await self._look()
            # A store that is being journaled goes by what may have been sent when that began: nothing more is sent until then.
            await self._journaled()
            entry = self._in_hand = self.pending
            if entry is None:
                return
            found = digest_of(record.store)
            if found != entry.digest:
                store = await self._host.journal.load(entry)
                if not _replaces(entry, found):
                    await self._set_aside(entry, store, _FOREIGN)
                    return
                try:
                    new = admitted(store, self._uuid)
                except (MalformedError, OverLimitError) as error:
                    await self._set_aside(entry, store, str(error))
                    return
                await self._upstream.write(store, new, deadline)
        except ToolstackRefusedError as error:
            await self._refused(error)
            return
        await self._host.journal.done(entry)
        self._host.stats.delivered += 1
        waited = self._host.now() - entry.at
        log.info("vm=%s the journaled store is with the toolstack, %.1f s after it was acknowledged", self._uuid, waited)

    async def _look(self) -> VmRecord:
        """A read that is refused says nothing about the store that waits, unless the VM is gone."""
        try:
            return await self._upstream.look()
        except ToolstackRefusedError as error:
            if error.code == "HANDLE_INVALID":
                raise
            raise ToolstackUnavailableError(f"what it holds cannot be read: {error}") from None

    async def _refused(self, error: ToolstackRefusedError) -> None:
        if error.code == "HANDLE_INVALID" and self._host.upstreams is not None:
            raise ToolstackUnavailableError(f"{error}: it waits until the VM is attached again") from None
        now, entry = trio.current_time(), self.pending
        if self._refused_since is None:
            self._refused_since = now
        # One that has come meanwhile has not been offered yet.
        if now - self._refused_since < REFUSED_SECONDS or entry is None or self._in_hand not in (None, entry):
            raise error
        await self._set_aside(entry, await self._host.journal.load(entry), f"the toolstack refuses it: {error}")

    async def _set_aside(self, entry: Entry, store: bytes, reason: str) -> None:
        """Keep the store where an operator can bring it back from, durably, and deliver it no more."""
        # Nothing but the reason beside it: whatever its guest made of it must not keep it here.
        name = await self._host.backups.keep(self._uuid, store, Why.SET_ASIDE, self._host.now(), lambda: {"reason": reason})
        await self._host.journal.done(entry)
        self._refused_since = None
        self._host.stats.set_aside += 1
        self._host.note(self._uuid, What.SET_ASIDE, after=store, backup=name, detail=reason)
        log.error("vm=%s a journaled store was set aside as %s and not delivered: %s", self._uuid, name, reason)
        self._host.alert(self._uuid, alerts.set_aside(self._uuid, name, reason))


def _replaces(entry: Entry, digest: bytes) -> bool:
    """Whether the entry follows on the store of this digest, or is that store."""
    return digest == entry.digest or digest in entry.replaces
