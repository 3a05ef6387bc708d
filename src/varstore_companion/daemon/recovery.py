"""What the control socket is told of backups and histories, and how a backup is brought back."""

import json
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import trio

from varstore_companion.daemon.host import Host
from varstore_companion.daemon.keeping import back_up
from varstore_companion.daemon.session import RequestRefusedError
from varstore_companion.daemon.vm import Vm
from varstore_companion.errors import CompanionError, OverLimitError, ToolstackError
from varstore_companion.journal.backups import Backup, BackupError, Why
from varstore_companion.journal.history import What
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.check import State, check
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire import messages
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.limits import MAX_CURSOR, MAX_JSON, MAX_LIST
from varstore_companion.wire.messages import AnswerMessage

log = logging.getLogger(__name__)

T = TypeVar("T")

DISK_SECONDS = 20.0
"""For the disk to give a page of backups or a history: on one that hangs, no connection may wait for ever."""
FIELD_SECONDS = 5.0
"""For a look at the field after a restore: with the disk's and the write's time it stays below the 60 s of our client."""
_ROOM = MAX_JSON - 256
"""Bytes of a page's entries: the rest is for what encloses them."""


class Recovery:
    """Backups, histories and restores of all VMs.

    `vm`: gives the daemon's side of a VM; `in_use`: says why a VM may be running, None when nothing shows that it does.
    """

    def __init__(self, host: Host, vm: Callable[[UUID], Vm], in_use: Callable[[UUID], str | None]) -> None:
        self._host = host
        self._vm = vm
        self._in_use = in_use

    async def answer(self, request: messages.Restore | messages.Backups | messages.History) -> AnswerMessage:
        """Carry out a request. Raises `RequestRefusedError`, `OverLimitError`, `ToolstackError`."""
        match request:
            case messages.Restore(vm=vm, backup=name):
                return messages.RestoreAnswer(json.dumps(await self._restore(vm, name)))
            case messages.Backups(vm=vm, after=after, limit=limit):
                return await self._backups(vm, after, limit or MAX_LIST)
            case messages.History(vm=vm, after=after, limit=limit):
                return await self._history(vm, after, limit or MAX_LIST)

    async def _backups(self, vm: UUID | None, after: bytes | None, most: int) -> AnswerMessage:
        key = (after or b"").decode(errors="replace")
        found = await _in_time(self._host.backups.page(vm, key, most + 1))
        shown = _fitting([backup.describe() for backup in found[:most]])
        following = found[len(shown) - 1].key.encode() if len(shown) < len(found) else None
        return messages.BackupsAnswer(f'{{"backups": [{", ".join(shown)}]}}', following)

    async def _history(self, vm: UUID, after: bytes | None, most: int) -> AnswerMessage:
        if after is not None and not (after.isdigit() and len(after) <= MAX_CURSOR // 8):
            raise RequestRefusedError(ErrorCode.INVALID_ARGUMENT, "after: expected the next of a page before")
        lines, unreadable = await _in_time(self._host.history.read(vm))
        later = [line for line in lines if line.number > int(after or b"0")]
        shown = _fitting([line.describe() for line in later[:most]])
        following = b"%d" % later[len(shown) - 1].number if len(shown) < len(later) else None
        return messages.HistoryAnswer(f'{{"events": [{", ".join(shown)}], "unreadable": {unreadable}}}', following)

    async def _restore(self, uuid: UUID, name: str | None) -> dict[str, object]:
        if self._host.upstreams is not None:
            text = f"the {self._host.toolstack.name} toolstack reaches a VM only while it runs: put the backup back with xapi"
            raise RequestRefusedError(ErrorCode.NOT_ALLOWED, text)
        self._refuse_running(uuid)
        backup, store = await self._load(uuid, name)
        report = _loadable(backup, store, self._host)
        held: list[VmRecord] = []
        kept: str | None = None

        async def prepare(record: VmRecord) -> None:
            nonlocal kept
            self._refuse_running(uuid)
            if record.store is not None:
                kept = await self._back_up(uuid, record.store, spare=backup.id)
                self._refuse_running(uuid)
            held.append(record)

        vm = self._vm(uuid)
        try:
            generation = await vm.restore(store, prepare)
        except CompanionError as error:
            if held:
                self._host.note(uuid, What.RESTORE_FAILED, held[0].store, backup=kept, detail=f"{backup.id}: {error}")
            raise
        log.info("vm=%s restored backup %s, and kept what was there as %s", uuid, backup.id, kept)
        self._host.note(uuid, What.RESTORED, held[0].store, store, backup=kept, detail=f"backup {backup.id}")
        return {
            "vm": str(uuid),
            "restored": backup.describe(),
            "kept": kept,
            "changed": held[0].store != store,
            "report": report,
            "field": await _field(vm),
            "generation": generation,
        }

    def _refuse_running(self, uuid: UUID) -> None:
        reason = self._in_use(uuid)
        if reason is not None:
            raise RequestRefusedError(ErrorCode.NOT_ALLOWED, f"VM {uuid} may be running: {reason}")

    async def _load(self, uuid: UUID, name: str | None) -> tuple[Backup, bytes]:
        try:
            return await _in_time(self._host.backups.load(uuid, name))
        except BackupError as error:
            raise RequestRefusedError(ErrorCode.INVALID_ARGUMENT, str(error)) from None

    async def _back_up(self, uuid: UUID, store: bytes, spare: str) -> str:
        rules = self._host.rules
        try:
            return await back_up(self._host, uuid, store, rules.plan(store), rules, why=Why.RESTORE, spare=spare)
        except OSError as error:
            text = f"what VM {uuid} has now cannot be backed up, and stays: {error}"
            raise RequestRefusedError(ErrorCode.INTERNAL, text) from None


def _loadable(backup: Backup, store: bytes, host: Host) -> State:
    """The report on a store that varstored loads (invariant 2). Raises for any other."""
    report = check(store, host.rules.manifest)
    if report.state not in (State.DAMAGED, State.UNKNOWN):
        return report.state
    reason = f"backup {backup.id} is {report.state}, varstored would refuse it: {'; '.join(report.reasons)}"
    if report.excesses and not (report.damage or report.violations):
        raise OverLimitError(reason)
    raise RequestRefusedError(ErrorCode.NOT_A_STORE, reason)


async def _field(vm: Vm) -> CertificatesState | None:
    """What became of the field. The restore is done: that this cannot be told is no failure of it."""
    reason = f"no answer within {FIELD_SECONDS:g} s"
    with trio.move_on_after(FIELD_SECONDS):
        try:
            return (await vm.read()).state
        except ToolstackError as error:
            reason = str(error)
    log.warning("vm=%s its field cannot be read after the restore: %s", vm.uuid, reason)
    return None


async def _in_time(reading: Awaitable[T]) -> T:
    try:
        with trio.move_on_after(DISK_SECONDS):
            return await reading
    except OSError as error:
        raise RequestRefusedError(ErrorCode.INTERNAL, str(error)) from None
    raise RequestRefusedError(ErrorCode.INTERNAL, f"the disk did not answer within {DISK_SECONDS:g} s")


def _fitting(entries: list[dict[str, object]]) -> list[str]:
    """The first entries, each as JSON: as many as fit an answer."""
    shown: list[str] = []
    room = _ROOM
    for entry in entries:
        text = json.dumps(entry)
        room -= len(text) + 2
        if room < 0:
            break
        shown.append(text)
    return shown
