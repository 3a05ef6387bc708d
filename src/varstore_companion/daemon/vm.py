"""One VM: its boots and its writes, one at a time, whichever of its sockets they come from."""

import logging
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

import trio

from varstore_companion.daemon import alerts
from varstore_companion.daemon.host import ALERT_SECONDS, Host
from varstore_companion.daemon.writer import READ_BACK_SECONDS, Writer
from varstore_companion.efi.names import printable
from varstore_companion.efi.outline import FILE_LIMIT, Outline, admit
from varstore_companion.errors import (
    CompanionError,
    MalformedError,
    OverLimitError,
    ToolstackConflictError,
    ToolstackError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
    UnknownVersionError,
)
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.check import State, check
from varstore_companion.trust.describe import describe_plan
from varstore_companion.trust.plan import Plan, plan
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.trust.verdict import NO_KEYS, Keys, Verdict, decide, read_keys
from varstore_companion.wire.fields import clip
from varstore_companion.wire.limits import MAX_TEXT

log = logging.getLogger(__name__)

BOOT_SECONDS = 18.0
"""For the whole answer to a boot: varstored's starter gives up at 30 s, the design promises 20."""
READ_SECONDS = 20.0
"""For the whole answer to any other read."""
WRITE_SECONDS = 30.0
"""For the whole answer to a write. The guest's processor waits in SetVariable meanwhile."""
RETRY_SECONDS = 0.25
"""Between two tries to read the store at boot while the toolstack is unavailable, as when it restarts."""
DECISIONS = 4
"""How often a boot or a write is decided anew because somebody else changed the store meanwhile."""
SB_FAILURE_SECONDS = 60.0
"""At least between two alerts of one VM about Secure Boot: a guest must not fill the operator's list."""


class BootOutcome(Enum):
    """What became of the update that was marked for this boot."""

    NOT_ASKED = "not_asked"
    UPDATED = "updated"
    NOTHING_TO_DO = "nothing_to_do"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Boot:
    """The answer to a boot. `store`: None for a first boot; `detail`: why an update failed."""

    store: bytes | None
    generation: int
    outcome: BootOutcome
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the toolstack holds as far as this daemon knows. `keys`: None when its store cannot be read."""

    generation: int
    keys: Keys | None


@dataclass(frozen=True, slots=True)
class LastUpdate:
    """What became of the last marked boot. `at`: seconds since the epoch."""

    at: float
    outcome: BootOutcome
    detail: str | None


class Vm:
    """The daemon's side of one VM. Costs a few hundred bytes: the store itself stays with the toolstack."""

    __slots__ = (
        "__weakref__",
        "_alerted",
        "_host",
        "_known",
        "_lock",
        "_turn",
        "_writer",
        "field",
        "last_update",
        "last_verdict",
        "report",
        "uuid",
    )

    def __init__(self, uuid: UUID, host: Host) -> None:
        self.uuid = uuid
        self._host = host
        self._lock = trio.Lock()
        self._writer = Writer(uuid, host)
        self._turn = 0
        self._known: Known | None = None
        self._alerted = float("-inf")
        self.report: State | None = None
        self.field: CertificatesState | None = None
        self.last_verdict: Update | None = None
        self.last_update: LastUpdate | None = None

    async def read(self) -> VmRecord:
        """Read the store and the field, for a resume, a migration or a tool: never an update (invariant 10).

        Raises the `ToolstackError`s of `Toolstack.read`.
        """
        turn = self._turn
        undisturbed = not self._lock.locked()
        record: VmRecord | None = None
        with trio.move_on_after(READ_SECONDS):
            record = await self._host.toolstack.read(self.uuid)
        if record is None:
            raise ToolstackUnavailableError(f"no store from the toolstack within {READ_SECONDS:g} s")
        # A boot or a write meanwhile knows better: what was read may be from before it.
        if undisturbed and turn == self._turn and not self._lock.locked():
            self._see(record)
        return record

    async def boot(self, deadline: float | None = None) -> Boot:
        """Answer a cold boot, with the update if one is marked, until `deadline` (trio's clock), else within `BOOT_SECONDS`.

        Raises `ToolstackError` only when the store itself cannot be had: an update that fails never does (invariant 5).
        """
        self._host.stats.boots += 1
        deadline = trio.current_time() + BOOT_SECONDS if deadline is None else deadline
        with trio.move_on_at(deadline):
            async with self._lock:
                return await self._boot(deadline)
        self._known = None
        raise ToolstackUnavailableError(f"no store from the {self._host.toolstack.name} toolstack within {BOOT_SECONDS:g} s")

    async def put(self, blob: bytes) -> tuple[Verdict, int]:
        """Write the VM's store with its verdict; return the verdict and the generation once the toolstack holds it.

        Raises `MalformedError` for what is not a store, `OverLimitError`, and `ToolstackError`; after any of them but
        `ToolstackUnclearError` the old store stays.
        """
        try:
            new = admit(blob)
        except UnknownVersionError as error:
            if len(blob) > FILE_LIMIT:
                self._host.stats.refused += 1
                raise OverLimitError(f"a store of {len(blob):,} bytes: varstored loads at most {FILE_LIMIT:,}") from None
            log.warning("vm=%s passes a store through unread: %s", self.uuid, error)
            new = None
        except (MalformedError, OverLimitError):
            self._host.stats.refused += 1
            raise
        deadline = trio.current_time() + WRITE_SECONDS
        with trio.move_on_at(deadline):
            await self._take_turn()
            try:
                return await self._put(blob, new, deadline)
            finally:
                self._lock.release()
        raise ToolstackUnavailableError(f"the store could not be written within {WRITE_SECONDS:g} s")

    async def _take_turn(self) -> None:
        """Acquire the lock; without a turn of the event loop, a twelfth of a write, when nobody else has it or waits for it."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def plan(self) -> Plan | None:
        """What the next marked boot would do; None for a VM without a store. Raises `ToolstackError`."""
        record = await self.read()
        return None if record.store is None else self._plan(record.store)

    async def mark(self, *, mark: bool) -> CertificatesState:
        """Mark the VM for an update at its next boot, or take the mark back. Raises as `Toolstack.mark`."""
        self.field = await self._host.toolstack.mark(self.uuid, mark=mark)
        log.info("vm=%s %s: the field is now %s", self.uuid, "marked" if mark else "unmarked", self.field)
        return self.field

    async def secure_boot_failed(self, detail: str | None) -> None:
        """Alert the operator that the guest failed Secure Boot verification; repeats within a minute are only counted.

        Raises `ToolstackError`.
        """
        self._host.stats.secure_boot_failures += 1
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

    # One boot

    async def _boot(self, deadline: float) -> Boot:
        with trio.move_on_at(deadline - READ_BACK_SECONDS):
            await self._writer.finished()
        for decision in range(DECISIONS + 1):
            record = await self._read_patiently()
            if record.store is None:
                log.info("vm=%s first boot: the toolstack has no store yet", self.uuid)
                return Boot(None, record.generation, BootOutcome.NOT_ASKED)
            if decision == DECISIONS:
                return self._give_up(record, record.store, "the store kept changing during the boot")
            if self._writer.is_busy:
                return self._give_up(record, record.store, "the toolstack is still at the write of an earlier boot")
            try:
                if record.state is CertificatesState.UPDATE_ON_BOOT:
                    return await self._update(record, record.store, deadline)
                return await self._tell_the_truth(record, record.store, deadline)
            except ToolstackConflictError:
                log.info("vm=%s the store changed during the boot: reading it again", self.uuid)
            except Exception:
                # Whatever a guest's store leads to here, the VM boots (invariant 5).
                log.exception("vm=%s the boot met a bug, and goes on with the store as it was", self.uuid)
                self._known = None
                return self._give_up(record, record.store, "an error inside the daemon: see its log")
        raise AssertionError("the last decision gives up")

    async def _read_patiently(self) -> VmRecord:
        failures = 0
        while True:
            try:
                record = await self._host.toolstack.read(self.uuid)
            except ToolstackUnavailableError as error:
                failures += 1
                if failures == 1:
                    log.warning("vm=%s the store cannot be read at boot, trying again: %s", self.uuid, error)
            else:
                self._see(record)
                return record
            await trio.sleep(RETRY_SECONDS)

    def _give_up(self, record: VmRecord, store: bytes, reason: str) -> Boot:
        if record.state is CertificatesState.UPDATE_ON_BOOT:
            return self._failed(record, store, reason)
        log.warning("vm=%s boots with its store as it is: %s", self.uuid, reason)
        return Boot(store, record.generation, BootOutcome.NOT_ASKED)

    async def _update(self, record: VmRecord, store: bytes, deadline: float) -> Boot:
        """Carry out the marked update, or answer with the old store and the reason. Raises `ToolstackConflictError`."""
        planned = self._plan(store)
        try:
            if planned.refused is not None:
                raise _UpdateFailedError(planned.refused)
            if planned.changes:
                await self._back_up(store, planned, deadline)
            generation = await self._store(planned.store, Update.YES, record.generation, deadline, may_leave=True)
        except ToolstackConflictError:
            raise
        except (CompanionError, OSError) as error:
            return self._failed(record, store, str(error))
        self._see(VmRecord(planned.store, CertificatesState.OK, generation))
        if not planned.changes:
            log.info("vm=%s marked, and nothing to do: the mark is ended", self.uuid)
            self._remember(BootOutcome.NOTHING_TO_DO, None)
            return Boot(planned.store, generation, BootOutcome.NOTHING_TO_DO)
        self._host.stats.updates += 1
        changes = alerts.describe_changes(planned)
        log.info("vm=%s updated at boot: %s (%d to %d bytes)", self.uuid, changes, planned.bytes_before, planned.bytes_after)
        self._remember(BootOutcome.UPDATED, None)
        self._host.alert(self.uuid, alerts.updated(self.uuid, planned))
        return Boot(planned.store, generation, BootOutcome.UPDATED)

    async def _back_up(self, store: bytes, planned: Plan, deadline: float) -> None:
        with trio.move_on_at(deadline - READ_BACK_SECONDS) as scope:
            await self._host.backups.keep(self.uuid, store, describe_plan(planned), self._host.now())
        if scope.cancelled_caught:
            raise _UpdateFailedError("the backup of the old store did not reach the disk in time")

    def _failed(self, record: VmRecord, store: bytes, reason: str) -> Boot:
        # It goes into the log, the list and the answer, and a guest's store can make it long.
        reason = clip(printable(reason), MAX_TEXT)
        self._host.stats.updates_failed += 1
        log.error("vm=%s update at boot failed, it boots with its old store and stays marked: %s", self.uuid, reason)
        self._remember(BootOutcome.FAILED, reason)
        self._host.alert(self.uuid, alerts.update_failed(self.uuid, reason))
        return Boot(store, record.generation, BootOutcome.FAILED, reason)

    async def _tell_the_truth(self, record: VmRecord, store: bytes, deadline: float) -> Boot:
        """Without a mark: when field and store disagree, write the same store again so that the field is derived anew."""
        verdict = _truth(self.report, record.state)
        generation = record.generation
        if verdict is not None:
            log.info("vm=%s the field says %s of a store that is %s: it is written again", self.uuid, record.state, self.report)
            try:
                generation = await self._store(store, verdict, generation, deadline, may_leave=True)
            except ToolstackConflictError:
                raise
            except ToolstackError as error:
                log.warning("vm=%s the field could not be corrected, the boot goes on: %s", self.uuid, error)
        return Boot(store, generation, BootOutcome.NOT_ASKED)

    # One write

    async def _put(self, blob: bytes, new: Outline | None, deadline: float) -> tuple[Verdict, int]:
        await self._writer.finished()
        for _ in range(DECISIONS):
            known = self._known
            verdict, keys = Verdict(Update.UNSPECIFIED, "a store of this version cannot be judged", State.UNKNOWN), None
            if new is None:
                known = known or await self._look()
            else:
                keys = read_keys(new, None if known is None else known.keys)
                if known is None or known.keys is None or keys.members != known.keys.members:
                    # Only a change of the keys needs the field; it is read together with the store it belongs to.
                    known = await self._look()
                verdict = decide(known.keys, keys, new, self.field, self._host.manifest)
            try:
                generation = await self._store(blob, verdict.update, known.generation, deadline)
            except ToolstackConflictError:
                log.info("vm=%s somebody else changed the store: deciding anew", self.uuid)
                continue
            self._known = Known(generation, keys)
            self.report = verdict.report or self.report
            # A guest can change its boot entries all day long, which is no news.
            level = logging.DEBUG if verdict.update is Update.NO else logging.INFO
            log.log(level, "vm=%s wrote %d bytes, update=%s: %s", self.uuid, len(blob), verdict.update, verdict.reason)
            return verdict, generation
        raise ToolstackUnavailableError("the store kept changing during the write")

    async def _look(self) -> Known:
        return self._see(await self._host.toolstack.read(self.uuid))

    # Both

    async def _store(self, blob: bytes, update: Update, generation: int, deadline: float, *, may_leave: bool = False) -> int:
        """Store `blob` over `generation` as `Writer.store` does, and remember it."""
        self._turn += 1
        self._known = None
        stored = await self._writer.store(blob, update, generation, deadline, may_leave=may_leave)
        self._written(update)
        return stored

    # What is known

    def _see(self, record: VmRecord) -> Known:
        """Remember what the toolstack holds, in digests."""
        self.field = record.state
        keys: Keys | None = NO_KEYS
        self.report = None
        if record.store is not None:
            keys = None
            try:
                report = check(record.store, self._host.manifest)
                self.report = report.state
                if report.state is State.DAMAGED:
                    self._host.store_is_damaged(self.uuid, report.reasons)
                if report.outline is not None and report.outline.damage is None:
                    keys = read_keys(report.outline, None if self._known is None else self._known.keys)
            except Exception:
                # A store that a guest made must not keep its VM from starting or resuming.
                log.exception("vm=%s the report on its store met a bug", self.uuid)
        self._known = Known(record.generation, keys)
        return self._known

    def _written(self, update: Update) -> None:
        self.last_verdict = update
        self._host.stats.count_write(update)
        if update is Update.YES:
            self.field = CertificatesState.OK
        elif update is Update.UNSPECIFIED:
            self.field = None  # the toolstack derives it anew; known again after the next look

    def _remember(self, outcome: BootOutcome, detail: str | None) -> None:
        self.last_update = LastUpdate(self._host.now(), outcome, detail)

    def _plan(self, store: bytes) -> Plan:
        return plan(store, self._host.manifest, self._host.bodies, headroom=self._host.headroom)


class _UpdateFailedError(CompanionError):
    """The plan refused; the text is its reason."""


def _truth(report: State | None, field: CertificatesState | None) -> Update | None:
    """The verdict that makes an unmarked VM's field tell the truth about its store, None when it does."""
    if field is None:
        return None
    if report is State.OK and field is not CertificatesState.OK:
        return Update.YES
    if (report is State.UPDATE_AVAILABLE and field is CertificatesState.OK) or (
        report in (State.SETUP_MODE, State.CUSTOM) and field is CertificatesState.UPDATE_AVAILABLE
    ):
        return Update.UNSPECIFIED
    return None
