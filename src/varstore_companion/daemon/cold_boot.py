"""One VM's cold boot: the journaled store first, then the update if one is marked, and the old store whatever fails."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

import trio

from varstore_companion.daemon import alerts
from varstore_companion.daemon.backlog import Backlog
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.keeping import back_up
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.upstream import Seen, Upstream
from varstore_companion.daemon.verdicts import Occasion
from varstore_companion.daemon.writer import READ_BACK_SECONDS
from varstore_companion.efi.names import printable
from varstore_companion.errors import (
    CompanionError,
    JournalError,
    ToolstackConflictError,
    ToolstackError,
    ToolstackUnavailableError,
)
from varstore_companion.journal.backups import Why
from varstore_companion.journal.history import What
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.check import State
from varstore_companion.trust.plan import Plan
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.fields import clip
from varstore_companion.wire.limits import MAX_TEXT

log = logging.getLogger(__name__)

UPDATE_SECONDS = 9.0
"""Of a boot's time, that an update must have left when its turn comes."""
DELIVER_SECONDS = 8.0
"""Of a boot's time, for bringing a journaled store to the toolstack first."""
RETRY_SECONDS = 0.25
"""Between two tries to read the store while the toolstack is unavailable, as when it restarts."""
FAILED_SECONDS = 60.0
"""At least between two alerts of one VM about failed updates, and two lines of log and history about its boots that say the
same: who asks for its boot over and over must not fill them.
"""
DECISIONS = 4
"""How often a boot is decided anew because somebody else changed the store meanwhile."""


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
class LastUpdate:
    """What became of the last marked boot. `at`: seconds since the epoch."""

    at: float
    outcome: BootOutcome
    detail: str | None


class ColdBoot:
    """The caller sees to it that no write of the VM's own comes meanwhile."""

    __slots__ = ("_alerted", "_backlog", "_host", "_told", "_upstream", "_uuid", "_was_updated", "last_update")

    def __init__(self, uuid: UUID, host: Host, upstream: Upstream, backlog: Backlog) -> None:
        self._uuid = uuid
        self._host = host
        self._upstream = upstream
        self._backlog = backlog
        self.last_update: LastUpdate | None = None
        self._was_updated = False
        # In trio's time: the last alert about a failed update; what the log was told of a boot last, and when that was.
        self._alerted = float("-inf")
        self._told = "", float("-inf")

    async def answer(self, deadline: float) -> Boot:
        """The answer, with the update if one is marked, within `deadline` (trio's clock), which the caller enforces.

        Raises `ToolstackError` only when the store itself cannot be had: an update that fails never does (invariant 5).
        """
        self._was_updated = False
        waits = await self._deliver_first(deadline)
        if waits is not None and (boot := await self._boot_from_journal(waits)) is not None:
            return boot
        async with self._backlog.turn:
            return await self._boot_from_toolstack(deadline)

    async def _deliver_first(self, deadline: float) -> str | None:
        """Read your writes: a journaled store goes first. Why it still waits, None when none does."""
        if self._backlog.pending is None:
            return None
        reason = "the toolstack did not answer in time"
        deadline = min(trio.current_time() + DELIVER_SECONDS, deadline - READ_BACK_SECONDS)
        with trio.move_on_at(deadline):
            while True:
                try:
                    await self._backlog.deliver(deadline)
                except ToolstackUnavailableError as error:
                    reason = str(error)
                except (ToolstackError, JournalError, OSError) as error:
                    return str(error)
                else:
                    return None
                await trio.sleep(RETRY_SECONDS)
        return reason

    async def _boot_from_journal(self, reason: str) -> Boot | None:
        """Hand out the newest store while it is only in the journal, None when it is delivered meanwhile.

        Raises `ToolstackUnavailableError`.
        """
        record: VmRecord | None = None
        with trio.move_on_after(READ_BACK_SECONDS / 3), suppress(ToolstackError):
            record = await self._host.toolstack.read(self._uuid)
        store = await self._backlog.newest(record)
        if store is None:
            if self._backlog.pending is None:
                return None
            if record is None:
                raise ToolstackUnavailableError(reason)
            store = record.store
        generation = self._upstream.generation if record is None else record.generation
        if store is not None and record is not None and record.state is CertificatesState.UPDATE_ON_BOOT:
            return self._failed(VmRecord(store, record.state, generation), store, f"its journaled store goes first: {reason}")
        if self._is_news(reason):
            log.warning("vm=%s boots with its journaled store, which the toolstack does not have yet: %s", self._uuid, reason)
        return Boot(store, generation, BootOutcome.NOT_ASKED)

    async def _boot_from_toolstack(self, deadline: float) -> Boot:
        with trio.move_on_at(deadline - READ_BACK_SECONDS):
            await self._upstream.writer.finished()
        for decision in range(DECISIONS + 1):
            seen = await self._read_patiently()
            record = seen.record
            if record.store is None:
                if self._is_news("first boot"):
                    log.info("vm=%s first boot: the toolstack has no store yet", self._uuid)
                return Boot(None, record.generation, BootOutcome.NOT_ASKED)
            if decision == DECISIONS:
                return self._give_up(record, record.store, "the store kept changing during the boot")
            if not self._upstream.writer.is_settled:
                return self._give_up(record, record.store, "the toolstack may still be at an earlier write")
            try:
                if record.state is CertificatesState.UPDATE_ON_BOOT:
                    return await self._update(seen, record.store, deadline)
                return await self._tell_the_truth(record, record.store, deadline)
            except ToolstackConflictError:
                log.info("vm=%s the store changed during the boot: reading it again", self._uuid)
            except Exception:
                # Whatever a guest's store leads to here, the VM boots (invariant 5).
                log.exception("vm=%s the boot met a bug, and goes on with the store as it was", self._uuid)
                self._upstream.known = None
                if record.state is CertificatesState.UPDATE_ON_BOOT:
                    self._trouble("an error inside the daemon: see its log")
                return self._give_up(record, record.store, "an error inside the daemon: see its log")
        raise AssertionError("the last decision gives up")

    async def _read_patiently(self) -> Seen:
        failures = 0
        while True:
            try:
                return await self._upstream.examine()
            except ToolstackUnavailableError as error:
                failures += 1
                if failures == 1:
                    log.warning("vm=%s the store cannot be read at boot, trying again: %s", self._uuid, error)
            await trio.sleep(RETRY_SECONDS)

    def _give_up(self, record: VmRecord, store: bytes, reason: str) -> Boot:
        if record.state is CertificatesState.UPDATE_ON_BOOT:
            return self._failed(record, store, reason)
        if self._is_news(reason):
            log.warning("vm=%s boots with its store as it is: %s", self._uuid, reason)
        return Boot(store, record.generation, BootOutcome.NOT_ASKED)

    async def _update(self, seen: Seen, store: bytes, deadline: float) -> Boot:
        """Carry out the marked update, or answer with the old store and the reason. Raises `ToolstackConflictError`."""
        staging = self._host.staging
        record, rules = seen.record, seen.rules
        planned = rules.plan(store, seen.report)
        if planned.refused is not None:
            return self._failed(record, store, planned.refused, rules)
        has_turn = False
        with trio.move_on_at(deadline - UPDATE_SECONDS):
            await staging.gate.enter()
            has_turn = True
        if not has_turn:
            return self._held_back(record, store, "too many VMs are being updated at once")
        try:
            if staging.paused is not None:
                return self._held_back(record, store, f"updates are paused on this host: {staging.paused.reason}")
            return await self._carry_out(planned, rules, record, store, deadline)
        finally:
            staging.gate.leave()

    async def _carry_out(self, planned: Plan, rules: Rules, record: VmRecord, store: bytes, deadline: float) -> Boot:
        backup: str | None = None
        try:
            if planned.changes:
                backup = await self._back_up(store, planned, rules, deadline)
            generation = await self._upstream.store(planned.store, Update.YES, record.generation, deadline, may_leave=True)
        except ToolstackConflictError:
            raise
        except (CompanionError, OSError) as error:
            self._trouble(str(error))
            return self._failed(record, store, str(error), rules)
        report = planned.after if rules is self._host.rules else None
        self._upstream.see(VmRecord(planned.store, CertificatesState.OK, generation), report)
        if not planned.changes:
            log.info("vm=%s marked, and nothing to do: the mark is ended", self._uuid)
            self._remember(BootOutcome.NOTHING_TO_DO, None)
            self._host.note(self._uuid, What.NOTHING_TO_DO, store, rules=rules)
            return Boot(planned.store, generation, BootOutcome.NOTHING_TO_DO)
        self._host.stats.updates += 1
        self._host.staging.succeeded()
        self._was_updated = True
        changes = alerts.describe_changes(planned)
        log.info("vm=%s updated at boot: %s (%d to %d bytes)", self._uuid, changes, planned.bytes_before, planned.bytes_after)
        self._remember(BootOutcome.UPDATED, None)
        self._host.note(self._uuid, What.UPDATED, store, planned.store, backup=backup, detail=changes, rules=rules)
        self._host.alert(self._uuid, alerts.updated(self._uuid, planned))
        return Boot(planned.store, generation, BootOutcome.UPDATED)

    def secure_boot_failed(self) -> None:
        """The guest failed Secure Boot verification: with the certificates it has just got, or as it always would have."""
        if self._was_updated:
            reason = self._host.staging.broken(self._uuid)
            if reason is not None:
                self._host.updates_paused(self._uuid)

    def _trouble(self, reason: str) -> None:
        """Count a failure that is not of the store's own making."""
        paused = self._host.staging.failed(self._uuid, clip(printable(reason), MAX_TEXT))
        if paused is not None:
            self._host.updates_paused(self._uuid)

    def _held_back(self, record: VmRecord, store: bytes, reason: str) -> Boot:
        """Not updated this time, and nothing failed: the operator knows of it."""
        self._host.stats.updates_held_back += 1
        if self._is_news(reason):
            log.warning("vm=%s is not updated at this boot and stays marked: %s", self._uuid, reason)
        self._remember(BootOutcome.FAILED, reason)
        return Boot(store, record.generation, BootOutcome.FAILED, reason)

    async def _back_up(self, store: bytes, planned: Plan, rules: Rules, deadline: float) -> str:
        with trio.move_on_at(deadline - READ_BACK_SECONDS):
            return await back_up(self._host, self._uuid, store, planned, rules, why=Why.UPDATE)
        raise _UpdateFailedError("the backup of the old store did not reach the disk in time")

    def _failed(self, record: VmRecord, store: bytes, reason: str, rules: Rules | None = None) -> Boot:
        # It goes into the log, the list and the answer, and a guest's store can make it long.
        reason = clip(printable(reason), MAX_TEXT)
        self._host.stats.updates_failed += 1
        self._remember(BootOutcome.FAILED, reason)
        now = trio.current_time()
        if self._is_news(reason):
            log.error("vm=%s update at boot failed, it boots with its old store and stays marked: %s", self._uuid, reason)
            self._host.note(self._uuid, What.UPDATE_FAILED, store, detail=reason, rules=rules)
        if now - self._alerted >= FAILED_SECONDS:
            self._alerted = now
            self._host.alert(self._uuid, alerts.update_failed(self._uuid, reason))
        return Boot(store, record.generation, BootOutcome.FAILED, reason)

    async def _tell_the_truth(self, record: VmRecord, store: bytes, deadline: float) -> Boot:
        """Without a mark: when field and store disagree, write the same store again so that the field is derived anew."""
        verdict = _truth(self._upstream.report, record.state)
        generation = record.generation
        if verdict is not None:
            reason = f"the field said {record.state} of a store that is {self._upstream.report}"
            log.info("vm=%s %s: it is written again", self._uuid, reason)
            try:
                generation = await self._upstream.store(store, verdict, generation, deadline, may_leave=True)
            except ToolstackConflictError:
                raise
            except ToolstackError as error:
                log.warning("vm=%s the field could not be corrected, the boot goes on: %s", self._uuid, error)
            else:
                self._upstream.verdicts.add(self._host.now(), Occasion.CORRECTION, verdict, reason)
        return Boot(store, generation, BootOutcome.NOT_ASKED)

    def _is_news(self, what: str) -> bool:
        """Whether the last boot with anything to say said something else, or was longer than `FAILED_SECONDS` ago."""
        now, (told, told_at) = trio.current_time(), self._told
        if what == told and now - told_at < FAILED_SECONDS:
            return False
        self._told = what, now
        return True

    def _remember(self, outcome: BootOutcome, detail: str | None) -> None:
        now = self._host.now()
        self.last_update = LastUpdate(now, outcome, detail)
        verdict = None if outcome is BootOutcome.FAILED else Update.YES
        reason = outcome.value if detail is None else f"{outcome.value}: {detail}"
        self._upstream.verdicts.add(now, Occasion.UPDATE, verdict, reason)


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
