"""The exact old store of each VM before it is replaced: `backups/VM/ID.vars`, with report and plan in `ID.json` beside it."""

import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import trio

from varstore_companion import threads
from varstore_companion.efi.outline import FILE_LIMIT
from varstore_companion.errors import CompanionError, OverLimitError
from varstore_companion.journal import files

log = logging.getLogger(__name__)

T = TypeVar("T")

KEEP = 10
"""Backups of one VM; the oldest go first. A VM is updated once in years: this bounds what a misbehaving one can fill."""
KEEP_DAYS = 400
"""Older ones go, a VM's newest excepted: over a year, so that what an update broke can be taken back when a yearly job or
the next year's dbx update shows it. The store of a VM that was destroyed stays for somebody to remove."""
CLOCK_SECONDS = 3_600.0
"""After the host's start, in which nothing goes by its age: its clock may be years ahead until the network's time is there."""
AT_ONCE = 4
"""Threads that write or read backups at the same time, those included that nobody waits for any more."""
WRITING = 2
"""Of them, that write. What comes meanwhile waits for the next one to be free: threads that wait for each other cost more."""
BATCH = 8
"""Backups that one call of a thread writes: where many VMs boot at once, each would cost a change to the thread and back."""
ABOUT_LIMIT = 1_048_576
"""Bytes that are read of a description: many times the largest that is written."""

_ID = re.compile(r"([12][0-9]{7}T[0-9]{6}Z)-[0-9a-f]{12}", re.ASCII)
_STAMP = "%Y%m%dT%H%M%SZ"
_WORD = 64
"""Characters of a word that is taken over from a description."""


class BackupError(CompanionError):
    """A backup that is not there, or that is not what it was. The reaction: restore nothing."""


class Why(StrEnum):
    """What was about to replace the store."""

    UPDATE = "update"
    RESTORE = "restore"
    SET_ASIDE = "set_aside"
    """Nothing was: a journaled store that must not be delivered any more. It is brought back only by its id."""


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup as its description has it.

    `id`: when it was taken (UTC), or a second after the one before where the clock had been set back, and the start of the
    SHA-256; `at`: seconds since the epoch, by the clock; `state`: the report's; `problem`: why the description cannot be
    used, None when it can. What cannot be read is None.
    """

    vm: UUID
    id: str
    at: float | None = None
    why: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    state: str | None = None
    problem: str | None = None

    @property
    def key(self) -> str:
        """Its place in the list of all: by VM, then by age."""
        return f"{self.vm}/{self.id}"

    def describe(self) -> dict[str, object]:
        """As plain values for JSON."""
        return {**asdict(self), "vm": str(self.vm)}


@dataclass(slots=True, eq=False)
class _Request:
    """A backup that somebody waits for, as in `Backups.keep`. `id`: of what was kept; `error`: why it was not.

    `turn`: the wait for one, which ends early when somebody else's call has taken the request along.
    """

    vm: UUID
    store: bytes
    why: Why
    now: float
    describe: Callable[[], Mapping[str, object]]
    spare: str | None
    turn: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_over: trio.Event = field(default_factory=trio.Event)
    id: str | None = None
    error: Exception | None = None


class Backups:
    """The backups below `folder`, which is made when the first one is kept. All of it happens off the event loop.

    `uptime`: gives seconds since the host's start.
    """

    def __init__(self, folder: Path, *, keep: int = KEEP, uptime: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._keep = keep
        self._uptime = uptime
        # Their own: on a disk that hangs they must not use up the threads that everything else needs.
        self._threads = trio.CapacityLimiter(AT_ONCE)
        self._writing = trio.Semaphore(WRITING)
        # The threads take from it: no operation on it runs code of Python's, so none is interrupted by another.
        self._waiting: deque[_Request] = deque()
        # VMs' folders that were made, and how many of them are known to be durable: a life before may have been cut short.
        self._made, self._synced = 1, 0

    async def keep(
        self,
        vm: UUID,
        store: bytes,
        why: Why,
        now: float,
        describe: Callable[[], Mapping[str, object]],
        *,
        spare: str | None = None,
    ) -> str:
        """Keep `store`, durably; return the backup's id. `now`: seconds since the epoch.

        `describe`: gives what is to stand beside it, as `report` and `plan`; it is called off the event loop, too. `spare`: one
        that must not go for this one. A store that is the VM's newest backup already is not kept twice: a boot that fails over
        and over must not push the older ones out.

        Raises `OSError`, and what `describe` raises. When cancelled it may still come to be kept.
        """
        request = _Request(vm, store, why, now, describe, spare)
        self._waiting.append(request)
        try:
            await self._wait_for(request)
        finally:
            with suppress(ValueError):
                self._waiting.remove(request)
        if request.id is None:
            raise request.error or AssertionError("neither kept nor failed")
        return request.id

    async def page(self, vm: UUID | None, after: str, most: int) -> list[Backup]:
        """The first `most` backups whose `key` comes after `after`, of one VM or of all. Raises `OSError`."""
        return await self._run(lambda: self._page(vm, after, most))

    async def load(self, vm: UUID, name: str | None) -> tuple[Backup, bytes]:
        """A backup of the VM and its store, which is what it was when it was kept. `name` None: the newest that was replaced.

        Raises `BackupError`, `OverLimitError` for one that is larger than any store, `OSError`.
        """
        return await self._run(lambda: self._load(vm, name))

    async def expire(self, now: float) -> None:
        """Remove what is older than `KEEP_DAYS`, of every VM, once the clock is set. What cannot be removed is logged."""
        try:
            await self._run(lambda: self._expire(now))
        except OSError as error:  # the system gives no thread
            log.warning("old backups stay until the next start: %s", error)

    async def _run(self, call: Callable[[], T]) -> T:
        return await threads.run_sync(call, abandon_on_cancel=True, limiter=self._threads)

    async def _wait_for(self, request: _Request) -> None:
        has_turn = False
        with request.turn:
            await self._writing.acquire()
            has_turn = True
        if has_turn:
            try:
                while request in self._waiting:
                    await self._run(partial(self._write_waiting, trio.lowlevel.current_trio_token()))
            finally:
                self._writing.release()
        await request.is_over.wait()

    def _write_waiting(self, token: trio.lowlevel.TrioToken) -> None:
        """Write the oldest of what waits and tell those that wait for it, also when nobody waits for this thread any more."""
        batch: list[_Request] = []
        with suppress(IndexError):
            while len(batch) < BATCH:
                batch.append(self._waiting.popleft())
        try:
            kept = [(request, name) for request in batch if (name := self._written(request)) is not None]
            self._sync_made(kept)
        finally:
            # The event loop may have ended by now.
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(_tell, batch)

    def _written(self, request: _Request) -> str | None:
        try:
            return self._write(request)
        except Exception as error:  # noqa: BLE001  raised to who asked for it
            request.error = error
        return None

    def _sync_made(self, kept: list[tuple[_Request, str]]) -> None:
        """Make the new folders durable, and with them what was kept there."""
        made = self._made
        try:
            if kept and made != self._synced:
                files.sync_folder(self._folder)
                self._synced = max(made, self._synced)
        except OSError as error:
            for request, _ in kept:
                request.error = error
            return
        for request, name in kept:
            request.id = name

    def _write(self, request: _Request) -> str:
        """Keep a store, durably but for a new folder's own name; return the backup's id."""
        vm, store, why, now = request.vm, request.store, request.why, request.now
        folder = self._folder / str(vm)
        names = [] if self._make(folder) else [path.name for path in folder.iterdir()]
        ids = _ids_among(names)
        digest = sha256(store).hexdigest()
        newest = ids[-1] if ids else None
        if newest is not None and _holds(folder, _read(folder, vm, newest), why, store, digest):
            # Who kept it may have failed, or been killed, before that was done.
            files.sync_folder(folder)
            return newest
        name = f"{_stamp(now, newest)}-{digest[:12]}"
        about = {"vm": str(vm), "at": now, "why": why, "sha256": digest, "bytes": len(store), **request.describe()}
        # The description first: no store without one, whenever the power goes.
        files.write(folder / f"{name}.json", f"{json.dumps(about)}\n".encode())
        files.write(folder / f"{name}.vars", store)
        try:
            self._remove_old(folder, [*ids, name], now, {name, request.spare})
            _remove_cut_short(folder, names)
        except OSError as error:
            log.warning("vm=%s its old backups cannot be removed: %s", vm, error)
        return name

    def _make(self, folder: Path) -> bool:
        """Make a VM's folder; whether it was not there."""
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            return False
        except FileNotFoundError:
            files.make_folder(self._folder)
            folder.mkdir(0o700, exist_ok=True)
        self._made += 1
        return True

    def _remove_old(self, folder: Path, ids: list[str], now: float, spared: set[str | None]) -> None:
        surplus = set(ids[: max(0, len(ids) - self._keep)])
        oldest = f"{datetime.fromtimestamp(now, UTC) - timedelta(days=KEEP_DAYS):{_STAMP}}"
        is_set = self._uptime() >= CLOCK_SECONDS
        for name in ids[:-1]:
            if name not in spared and (name in surplus or (is_set and name < oldest)):
                (folder / f"{name}.vars").unlink(missing_ok=True)
                (folder / f"{name}.json").unlink(missing_ok=True)

    def _expire(self, now: float) -> None:
        try:
            vms = list(self._vms())
        except OSError as error:
            log.warning("old backups cannot be removed: %s", error)
            return
        for vm in vms:
            try:
                folder = self._folder / str(vm)
                self._remove_old(folder, _ids(folder), now, set())
            except OSError as error:
                log.warning("vm=%s its old backups cannot be removed: %s", vm, error)

    def _page(self, vm: UUID | None, after: str, most: int) -> list[Backup]:
        found: list[Backup] = []
        for each in self._vms() if vm is None else (vm,):
            if after[:36] > str(each):
                continue
            folder = self._folder / str(each)
            later = [name for name in _ids(folder) if f"{each}/{name}" > after]
            found += [_read(folder, each, name) for name in later[: most - len(found)]]
            if len(found) == most:
                break
        return found

    def _load(self, vm: UUID, name: str | None) -> tuple[Backup, bytes]:
        folder = self._folder / str(vm)
        ids = _ids(folder)
        if not ids:
            raise BackupError(f"VM {vm} has no backup")
        name = _newest_replaced(folder, vm, ids) if name is None else name
        # Only a name that was found is put into a path.
        if name not in ids:
            raise BackupError(f"VM {vm} has no backup of that name: its newest is {ids[-1]}")
        backup = _read(folder, vm, name)
        if backup.problem is not None:
            raise BackupError(f"backup {name} is damaged: {backup.problem}")
        store = _content(folder, name)
        if len(store) > FILE_LIMIT:
            raise OverLimitError(f"backup {name} has more than {FILE_LIMIT:,} bytes: varstored would not load it")
        if len(store) != backup.bytes or sha256(store).hexdigest() != backup.sha256:
            raise BackupError(f"backup {name} is damaged: its {len(store):,} bytes are not those that were kept")
        return backup, store

    def _vms(self) -> Iterator[UUID]:
        try:
            names = sorted(path.name for path in self._folder.iterdir())
        except FileNotFoundError:
            return
        for name in names:
            try:
                vm = UUID(name)
            except ValueError:
                continue
            if str(vm) == name:
                yield vm


def _tell(batch: list[_Request]) -> None:
    for request in batch:
        request.is_over.set()
        request.turn.cancel()


def _ids(folder: Path) -> list[str]:
    """The ids of the backups in a VM's folder, the oldest first."""
    try:
        return _ids_among(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []


def _ids_among(names: Iterable[str]) -> list[str]:
    stems = (name.removesuffix(".vars") for name in names if name.endswith(".vars"))
    return sorted(stem for stem in stems if _taken(stem) is not None)


def _newest_replaced(folder: Path, vm: UUID, ids: list[str]) -> str:
    for name in reversed(ids):
        if _read(folder, vm, name).why != Why.SET_ASIDE:
            return name
    raise BackupError(f"VM {vm} has no backup but of stores that were set aside: name the one to restore, as {ids[-1]}")


def _holds(folder: Path, there: Backup, why: Why, store: bytes, digest: str) -> bool:
    """Whether a backup that is brought back for `why` is of this very store, whose SHA-256 is `digest`."""
    is_alike = there.why == why or Why.SET_ASIDE not in (there.why, why)
    try:
        return is_alike and there.sha256 == digest and _content(folder, there.id) == store
    except OSError:
        return False


def _remove_cut_short(folder: Path, names: list[str]) -> None:
    """Remove what a crash left of backups that did not come to be. `names`: what was there before the last one was kept."""
    for name in names:
        store = name.removesuffix(".json") + ".vars"
        # By now it may have its store after all: from a call that was given up and went on.
        is_alone = name.endswith(".json") and store not in names and not (folder / store).exists()
        if is_alone or name.endswith(files.NEW):
            (folder / name).unlink(missing_ok=True)


def _taken(name: str) -> datetime | None:
    """When a backup of this name was taken; None for what is no backup's name."""
    match = _ID.fullmatch(name)
    try:
        return None if match is None else datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


def _stamp(now: float, newest: str | None) -> str:
    """The time for a new backup's name, always after the newest one's: which is newer does not depend on the clock."""
    stamp = f"{datetime.fromtimestamp(now, UTC):{_STAMP}}"
    taken = None if newest is None else _taken(newest)
    if newest is None or taken is None or stamp > newest[: len(stamp)]:
        return stamp
    return f"{taken + timedelta(seconds=1):{_STAMP}}"


def _read(folder: Path, vm: UUID, name: str) -> Backup:
    try:
        with (folder / f"{name}.json").open("rb") as file:
            about = json.loads(file.read(ABOUT_LIMIT))
        at, size, digest = float(about["at"]), about["bytes"], about["sha256"]
        report = about.get("report")
        state = None if report is None else str(report["state"])[:_WORD]
        why = str(about.get("why", Why.UPDATE))[:_WORD]
    except FileNotFoundError:
        return Backup(vm, name, problem="its description is missing")
    except OSError as error:
        return Backup(vm, name, problem=f"its description cannot be read: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return Backup(vm, name, problem="its description is not what was written")
    is_whole = isinstance(size, int) and isinstance(digest, str) and len(digest) == 64 and name.endswith(digest[:12])
    if not (is_whole and isfinite(at)):
        return Backup(vm, name, problem="its description is not what was written")
    return Backup(vm, name, at, why, size, digest, state)


def _content(folder: Path, name: str) -> bytes:
    """A backup's store, as far as it can be one."""
    with (folder / f"{name}.vars").open("rb") as file:
        return file.read(FILE_LIMIT + 1)
