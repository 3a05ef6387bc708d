"""One VM: its boots and its writes, one at a time, whichever of its sockets they come from."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

import trio

from varstore_companion.daemon import alerts
from varstore_companion.daemon.alerting import ALERT_SECONDS
from varstore_companion.daemon.backlog import Backlog, Mode
from varstore_companion.daemon.cold_boot import Boot, BootOutcome, ColdBoot, LastUpdate
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.limits import Credits, InFlight
from varstore_companion.daemon.reading import Reading
from varstore_companion.daemon.upstream import Upstream, admitted
from varstore_companion.daemon.verdicts import Verdicts
from varstore_companion.efi.outline import Outline
from varstore_companion.errors import (
    JournalError,
    MalformedError,
    OverLimitError,
    ToolstackConflictError,
    ToolstackError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.check import State
from varstore_companion.trust.plan import Plan
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.trust.verdict import Verdict

log = logging.getLogger(__name__)

BOOT_SECONDS = 18.0
"""For the whole answer to a boot: varstored's starter gives up at 30 s, the design promises 20."""
WRITE_SECONDS = 30.0
"""For the whole answer to a write. The guest's processor waits in SetVariable meanwhile."""
STRAIGHT_SECONDS = 12.0
"""Of it, for the toolstack, before the store goes to the journal."""
_TOO_LATE = f"the store could not be written within {WRITE_SECONDS:g} s"
ANSWER_SECONDS = 1.0
"""Of a write's time, for saying that the journal did not take it."""
FLUSH_SECONDS = 8.0
"""For what is under way, and then for what is journaled, to be with the toolstack before the way there goes with the socket."""
DECISIONS = 4
"""How often a write is decided anew because somebody else changed the store meanwhile."""
SB_FAILURE_SECONDS = 60.0
"""At least between two alerts of one VM about Secure Boot: a guest must not fill the operator's list."""


@dataclass(frozen=True, slots=True)
class Written:
    """The answer to a write. `generation`: the toolstack's last one; `journaled`: the toolstack does not have the store yet."""

    verdict: Verdict
    generation: int
    journaled: bool = False


class Vm:
    """The daemon's side of one VM. Costs a few hundred bytes: the store itself stays with the toolstack."""

    __slots__ = (
        "__weakref__",
        "_alerted",
        "_backlog",
        "_boot_credits",
        "_cold_boot",
        "_credits",
        "_host",
        "_lock",
        "_reading",
        "_upstream",
        "asks_again",
        "is_given_back",
        "uuid",
    )

    def __init__(self, uuid: UUID, host: Host) -> None:
        self.uuid = uuid
        self.is_given_back = False
        """Whether it may call its guard itself. Nothing is written for it then: the guard could carry that out over what the VM
        writes to it next, and nobody would deliver what is journaled."""
        self._host = host
        # Of one, for whoever boots or writes: a lock that knows whose it is takes a twenty-fifth of a write.
        self._lock = trio.Semaphore(1, max_value=1)
        self._upstream = Upstream(uuid, host)
        self._backlog = Backlog(uuid, host, self._upstream)
        self._alerted = float("-inf")
        # Its varstored makes one call at a time. What it was still at with the guard when its socket was taken over may have
        # escaped the look that followed; by its first write here that has come to its end.
        self.asks_again = False
        self._credits = Credits()
        self._boot_credits = Credits()
        self._cold_boot = ColdBoot(uuid, host, self._upstream, self._backlog)
        self._reading = Reading(uuid, host, self._upstream, self._backlog, self._lock)

    @property
    def report(self) -> State | None:
        """On the store that the toolstack held last, as far as it was looked at."""
        return self._upstream.report

    def forget_report(self) -> None:
        """It was made with rules that are no longer in force: made anew at the next look."""
        self._upstream.report = None

    @property
    def field(self) -> CertificatesState | None:
        """The toolstack's field, None when it has none, or derives it anew since the last look."""
        return self._upstream.field

    @property
    def last_update(self) -> LastUpdate | None:
        """What became of the last marked boot."""
        return self._cold_boot.last_update

    @property
    def last_verdict(self) -> Update | None:
        """What the toolstack was told with the last write."""
        return self._upstream.last_verdict

    @property
    def verdicts(self) -> Verdicts:
        """The last verdicts on its store."""
        return self._upstream.verdicts

    @property
    def certcheck_saved(self) -> int:
        """Runs of certcheck that the toolstack did not have to make for its writes."""
        return self._upstream.certcheck_saved

    async def read(self, deadline: float | None = None) -> VmRecord:
        """See `Reading.read`."""
        return await self._reading.read(deadline)

    async def read_for_peer(self) -> VmRecord:
        """See `Reading.read_for_peer`."""
        return await self._reading.read_for_peer()

    async def spend_read(self, deadline: float = float("inf")) -> None:
        """See `Reading.spend`."""
        await self._reading.spend(deadline)

    async def boot(self, deadline: float | None = None) -> Boot:
        """Answer a cold boot, with the update if one is marked, until `deadline` (trio's clock), else within `BOOT_SECONDS`.

        Raises `ToolstackError` only when the store itself cannot be had: an update that fails never does (invariant 5).
        """
        self._host.stats.boots += 1
        deadline = trio.current_time() + BOOT_SECONDS if deadline is None else deadline
        with self._host.stats.boot_seconds.timed(), trio.move_on_at(deadline):
            # A framed peer can ask for one after the other, each as much work as several reads.
            await self._boot_credits.spend(self._host.rules.limits, deadline)
            async with self._lock, self._host.boots:
                try:
                    if self.is_given_back:
                        record = await self.read(deadline)
                        return Boot(record.store, record.generation, BootOutcome.NOT_ASKED)
                    return await self._cold_boot.answer(deadline)
                finally:
                    self._settle_later()
        self._upstream.known = None
        raise ToolstackUnavailableError(f"no store from the {self._host.toolstack.name} toolstack within {BOOT_SECONDS:g} s")

    async def put(self, blob: bytes) -> Written:
        """Write the VM's store with its verdict; it is durable when this returns.

        Raises `MalformedError` for what is not a store, `OverLimitError`, and `ToolstackError`; after any of them but
        `ToolstackUnclearError` the old store stays.
        """
        begun = trio.current_time()
        # Each wait has this deadline for itself: where there is none, a scope for them all would be a twentieth of a write.
        deadline = begun + WRITE_SECONDS
        try:
            await _take(self._lock, deadline)
            try:
                # Before the store is looked at: one that is refused is as much work as any.
                await self._credits.spend(self._host.rules.limits, deadline)
                if trio.current_time() >= deadline:
                    raise ToolstackUnavailableError(_TOO_LATE)
                if self.is_given_back:
                    raise ToolstackUnavailableError("the VM's socket has been given back to its guard, which takes its writes")
                return await self._put(blob, self._admitted(blob), deadline)
            finally:
                self._lock.release()
        finally:
            self._host.stats.write_seconds.add(trio.current_time() - begun)

    # What the journal holds of it

    @property
    def in_flight(self) -> InFlight:
        """The bytes of all VMs' requests that are not carried out yet."""
        return self._host.in_flight

    @property
    def mode(self) -> Mode:
        """Where the VM's next write goes."""
        return self._backlog.mode

    @property
    def is_direct(self) -> bool:
        """Whether nothing waits to be delivered, nor may a call that was given up still be carried out."""
        return self._backlog.mode is Mode.DIRECT

    @property
    def is_known(self) -> bool:
        """Whether it is known what the toolstack may hold, without which no write can be journaled."""
        return bool(self._upstream.writer.may_hold) and not self._backlog.is_doubtful

    def forget(self) -> None:
        """The guest may have written past this daemon, or the VM have been elsewhere: what the toolstack held counts no more.

        Not while a store of it waits: that one knows itself what it follows on.
        """
        if self._backlog.pending is None:
            self._upstream.forget()

    def doubt(self) -> None:
        """As `forget`, where the guest could write past this daemon: what waits may be older than what the toolstack holds."""
        self.asks_again = True
        if self._backlog.pending is None:
            self._upstream.forget()
        else:
            self._upstream.doubt()
            self._backlog.hold_off()

    async def look(self) -> None:
        """Find out what the toolstack holds, and whether what waits follows on it. Raises `ToolstackError`, `JournalError`."""
        if self._backlog.is_doubtful:
            await self._backlog.reconcile()
        else:
            await self.read()

    async def settled(self) -> None:
        """Wait until no call that was given up can still be carried out."""
        await self._backlog.settled()

    async def flush(self) -> None:
        """Bring what is journaled to the toolstack while there is a way to it, within `FLUSH_SECONDS`; what fails is logged.

        After `Backlog.hold_off` it takes `DIRECT_SECONDS` more.
        """
        if self._backlog.pending is None:
            return
        await self._backlog.held_off()
        reason: object = f"the toolstack did not take it within {FLUSH_SECONDS:g} s"
        deadline = trio.current_time() + FLUSH_SECONDS
        with trio.move_on_at(deadline):
            try:
                await self._backlog.deliver(deadline)
            except (ToolstackError, JournalError, OSError) as error:
                reason = error
            else:
                return
        log.warning("vm=%s its newest store is not with its toolstack, and stays in the journal: %s", self.uuid, reason)

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[bool]:
        """Whether nothing of the VM is under way or in the journal: both are waited for, and nothing begins until this is left.

        False when either takes longer than `FLUSH_SECONDS`.
        """
        with trio.move_on_after(FLUSH_SECONDS) as waiting:
            await self._lock.acquire()
        if waiting.cancelled_caught:
            yield False
            return
        try:
            await self.flush()
            yield self.is_direct
        finally:
            self._lock.release()

    async def deliver(self, deadline: float) -> None:
        """Hand the journaled store to the toolstack, until `deadline` (trio's clock).

        Raises `ToolstackError`, `JournalError` and `OSError`: to be tried again.
        """
        await self._backlog.deliver(deadline)

    async def plan(self) -> Plan | None:
        """What the next marked boot would do; None for a VM without a store. Raises `ToolstackError`."""
        record = await self.read()
        if record.store is None:
            return None
        return self._host.rules.plan(record.store)

    async def mark(self, *, mark: bool) -> CertificatesState:
        """Mark the VM for an update at its next boot, or take the mark back. Raises as `Toolstack.mark`."""
        field = self._upstream.field = await self._host.toolstack.mark(self.uuid, mark=mark)
        log.info("vm=%s %s: the field is now %s", self.uuid, "marked" if mark else "unmarked", field)
        return field

    async def restore(self, store: bytes, prepare: Callable[[VmRecord], Awaitable[None]]) -> int:
        """Replace the VM's store by an older one, whose field the toolstack derives; return the new generation.

        `prepare` is called with what the toolstack holds, when no boot and no write of the VM is under way and none can
        begin: what it raises ends the restore with nothing changed. Raises `ToolstackError`; after any of them but
        `ToolstackUnclearError` the old store stays.
        """
        deadline = trio.current_time() + WRITE_SECONDS
        with trio.move_on_at(deadline):
            async with self._lock:
                if self._backlog.pending is not None:
                    await self._deliver_first(deadline)
                async with self._backlog.turn:
                    if not self._backlog.is_settled:
                        raise ToolstackUnavailableError("an earlier write may still be carried out")
                    record = await self._upstream.look()
                    await prepare(record)
                    try:
                        return await self._upstream.store(
                            store, Update.UNSPECIFIED, record.generation, deadline, may_leave=True
                        )
                    finally:
                        self._settle_later()
        raise ToolstackUnavailableError(f"the store could not be restored within {WRITE_SECONDS:g} s")

    def _settle_later(self) -> None:
        """Have what is known of a call that was given up kept until nothing more can come of it."""
        if not self._backlog.is_settled:
            self._host.deliver(self.uuid)

    async def _deliver_first(self, deadline: float) -> None:
        """Bring the journaled store to the toolstack. Raises `ToolstackUnavailableError`."""
        try:
            await self._backlog.deliver(deadline)
        except (ToolstackError, JournalError, OSError) as error:
            raise ToolstackUnavailableError(f"the VM's journaled store goes first: {error}") from None

    async def secure_boot_failed(self, detail: str | None) -> None:
        """Alert the operator that the guest failed Secure Boot verification; repeats within a minute are only counted.

        Raises `ToolstackError`.
        """
        self._host.stats.secure_boot_failures += 1
        self._cold_boot.secure_boot_failed()
        before, now = self._alerted, trio.current_time()
        if now - before < SB_FAILURE_SECONDS:
            return
        self._alerted = now
        delivered = False
        try:
            with trio.move_on_after(ALERT_SECONDS):
                await self._host.toolstack.alert(self.uuid, alerts.secure_boot_failed(detail))
                delivered = True
        finally:
            if not delivered:
                self._alerted = before
        if not delivered:
            raise ToolstackUnclearError(f"the alert was not taken within {ALERT_SECONDS:g} s")
        log.warning("vm=%s the guest failed Secure Boot verification; the operator was alerted", self.uuid)

    # One write

    def _admitted(self, blob: bytes) -> Outline | None:
        """See `admitted`; what is refused is counted."""
        try:
            return admitted(blob, self.uuid)
        except (MalformedError, OverLimitError):
            self._host.stats.refused += 1
            raise

    async def _put(self, blob: bytes, new: Outline | None, deadline: float) -> Written:
        backlog, reason = self._backlog, "an earlier one waits for the toolstack"
        backlog.go_on()
        if backlog.is_doubtful:
            await self._reconcile(deadline)
        elif self.asks_again:
            await self._ask_again(deadline)
        self.asks_again = False
        if backlog.pending is None:
            reason = "a call that was given up may still be carried out"
            await _take(backlog.turn, deadline)
            try:
                if backlog.is_settled:
                    return await self._put_straight(blob, new, deadline)
            except _KeepsChangingError:
                raise
            except (ToolstackUnavailableError, ToolstackUnclearError) as error:
                if not self._upstream.writer.may_hold:
                    raise
                reason = str(error)
            finally:
                backlog.turn.release()
        await backlog.add(blob, reason, deadline - ANSWER_SECONDS)
        return Written(
            Verdict(Update.UNSPECIFIED, "decided when the toolstack takes it"), self._upstream.generation, journaled=True
        )

    async def _reconcile(self, deadline: float) -> None:
        """Journaled onto a store that waits, this one would be set aside with it. Raises `ToolstackUnavailableError`."""
        reason: object = "the toolstack did not say in time what it holds"
        with trio.move_on_at(min(trio.current_time() + STRAIGHT_SECONDS, deadline)):
            try:
                await self._backlog.reconcile()
            except (ToolstackError, JournalError, OSError) as error:
                reason = error
            else:
                return
        raise ToolstackUnavailableError(f"the toolstack may hold a newer store than the one that waits: {reason}")

    async def _ask_again(self, deadline: float) -> None:
        """Go by what the toolstack holds now rather than at the last look; by that one while the toolstack is away."""
        self._upstream.known = None
        # Else it is looked at before it is written to.
        if not self.is_direct:
            with suppress(ToolstackUnavailableError):
                await self._reconcile(deadline)

    async def _put_straight(self, blob: bytes, new: Outline | None, deadline: float) -> Written:
        deadline = min(trio.current_time() + STRAIGHT_SECONDS, deadline)
        for _ in range(DECISIONS):
            try:
                return Written(*await self._upstream.write(blob, new, deadline))
            except ToolstackConflictError:
                log.info("vm=%s somebody else changed the store: deciding anew", self.uuid)
        raise _KeepsChangingError("the store kept changing during the write")


class _KeepsChangingError(ToolstackUnavailableError):
    """Somebody else writes the same VM's store all the time: journaled, it would only be set aside."""


async def _take(lock: trio.Semaphore, deadline: float) -> None:
    """Acquire a lock of one; without a turn of the event loop, a twelfth of a write, when nobody else has it or waits for it.

    Raises `ToolstackUnavailableError` when it is not to be had until `deadline` (trio's clock).
    """
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        with trio.move_on_at(deadline):
            await lock.acquire()
            return
        raise ToolstackUnavailableError(_TOO_LATE) from None
