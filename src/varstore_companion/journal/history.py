"""What was done to each VM's store and when: `history/VM.jsonl`, one event a line, bounded."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import trio

from varstore_companion import threads
from varstore_companion.journal import files

log = logging.getLogger(__name__)

T = TypeVar("T")

KEEP = 200
"""Events of one VM. The file is written anew, with so many, each time it has a quarter more."""
WAITING = 1_024
"""Events of all VMs that may wait for the disk. One more is dropped, and logged: no boot waits for its history."""
BATCH = 64
"""Events that are written by one call of the thread."""
DETAIL = 1_024
"""Characters of a detail."""
READ_LIMIT = 4_194_304
"""Bytes that are read of a file, from its end: more than its events can have."""


class What(StrEnum):
    """What was done."""

    UPDATED = "updated"
    UPDATE_FAILED = "update_failed"
    NOTHING_TO_DO = "nothing_to_do"
    RESTORED = "restored"
    RESTORE_FAILED = "restore_failed"
    SET_ASIDE = "set_aside"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `at`: seconds since the epoch; `manifest`: the rules' name and revision.

    `before`, `after`: the SHA-256 of the store, None where there was none or it did not change; `backup`: the id of the one
    that holds the store before.
    """

    at: float
    what: str
    manifest: str | None = None
    before: str | None = None
    after: str | None = None
    backup: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """An event as it was written. `number`: counts a VM's events from 1, so that what is no longer kept shows as a gap."""

    number: int
    event: Event

    def describe(self) -> dict[str, object]:
        """As plain values for JSON."""
        return {"number": self.number, **asdict(self.event)}

    def build(self) -> bytes:
        """The line of the file."""
        return json.dumps(self.describe()).encode() + b"\n"


class History:
    """The histories below `folder`, which is made with the first event. `write_all` has to run for anything to happen."""

    def __init__(self, folder: Path, *, keep: int = KEEP) -> None:
        self._folder = folder
        self._keep = keep
        # Its own: a disk that hangs must not use up the threads that everything else needs.
        self._threads = trio.CapacityLimiter(1)
        self._give, self._take = trio.open_memory_channel[tuple[UUID, Event] | trio.Event](WAITING)
        self._finished = trio.Event()

    def note(self, vm: UUID, event: Event) -> None:
        """Have an event written, without waiting for it. One that cannot be is logged, and nothing else comes of it."""
        if event.detail is not None:
            event = replace(event, detail=event.detail[:DETAIL])
        try:
            self._give.send_nowait((vm, event))
        except (trio.WouldBlock, trio.ClosedResourceError):
            log.warning("vm=%s %s is not in its history: %d events wait already, or the daemon stops", vm, event.what, WAITING)

    async def read(self, vm: UUID) -> tuple[list[Line], int]:
        """The VM's events, the oldest first, with all that were noted before; and how many lines cannot be read.

        Raises `OSError`.
        """
        reached = trio.Event()
        try:
            await self._give.send(reached)
        except trio.ClosedResourceError:
            await self._finished.wait()
        else:
            await reached.wait()
        return await self._run(lambda: _parse(_content(self._path(vm))))

    async def write_all(self) -> None:
        """Write what is noted, in its order; runs as long as the daemon, or until `finish`."""
        async for noted in self._take:
            batch = [noted, *self._waiting()]
            events = [each for each in batch if not isinstance(each, trio.Event)]
            if events:
                await self._write(events)
            for each in batch:
                if isinstance(each, trio.Event):
                    each.set()
        self._finished.set()

    async def finish(self) -> None:
        """Take no more events, and wait until those that wait are written."""
        self._give.close()
        await self._finished.wait()

    async def _run(self, call: Callable[[], T]) -> T:
        return await threads.run_sync(call, abandon_on_cancel=True, limiter=self._threads)

    def _waiting(self) -> Iterator[tuple[UUID, Event] | trio.Event]:
        """What has come meanwhile: where many VMs boot at once, each event would cost a change to the thread and back."""
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            for _ in range(BATCH - 1):
                yield self._take.receive_nowait()

    async def _write(self, events: list[tuple[UUID, Event]]) -> None:
        try:
            await self._run(partial(self._append_all, events))
        except OSError as error:
            # A system that gives no thread must not end the daemon.
            what, more = events[0][1].what, len(events) - 1
            log.warning("vm=%s %s is not in its history, with %d more: %s", events[0][0], what, more, error)
        except Exception:
            # Nor must a bug.
            log.exception("vm=%s %s is not in its history, with %d more", events[0][0], events[0][1].what, len(events) - 1)

    def _append_all(self, events: list[tuple[UUID, Event]]) -> None:
        has_new = False
        for vm, event in events:
            try:
                has_new = self._append(vm, event) or has_new
            except OSError as error:
                log.warning("vm=%s %s is not in its history: %s", vm, event.what, error)
            except Exception:
                # Nor must an event that meets a bug.
                log.exception("vm=%s %s is not in its history", vm, event.what)
        if has_new:
            try:
                files.sync_folder(self._folder)
            except OSError as error:
                log.warning("vm=%s its new history may be gone after a crash: %s", events[-1][0], error)

    def _path(self, vm: UUID) -> Path:
        return self._folder / f"{vm}.jsonl"

    def _append(self, vm: UUID, event: Event) -> bool:
        """Append an event, durably; whether the file is a new one, whose folder is not synced yet. Raises `OSError`."""
        path = self._path(vm)
        content = _content(path)
        last = next((line for text in reversed(content.splitlines()) if (line := _line(text)) is not None), None)
        line = Line(1 if last is None else last.number + 1, event)
        if content.count(b"\n") >= self._keep + self._keep // 4:
            lines, unreadable = _parse(content)
            if unreadable:
                log.warning("vm=%s %d lines of its history cannot be read, and go", vm, unreadable)
            files.write(path, b"".join(each.build() for each in _kept([*lines, line], self._keep)))
            return False
        # What a crash cut short stays a line of its own.
        data = (b"" if not content or content.endswith(b"\n") else b"\n") + line.build()
        descriptor = self._open(path)
        try:
            with files.named(path):
                files.write_all(descriptor, data)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return not content

    def _open(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            files.make_folder(self._folder)
            return os.open(path, flags, 0o600)


def _kept(lines: list[Line], most: int) -> list[Line]:
    """The events to keep: the oldest of the most frequent kind go, so that no flood pushes out the others."""
    counts = Counter(line.event.what for line in lines)
    surplus: Counter[str] = Counter()
    for _ in range(len(lines) - most):
        ((what, _),) = (counts - surplus).most_common(1)
        surplus[what] += 1
    kept = []
    for line in lines:
        if surplus[line.event.what] > 0:
            surplus[line.event.what] -= 1
        else:
            kept.append(line)
    return kept


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - READ_LIMIT))
            return file.read(READ_LIMIT)
    except FileNotFoundError:
        return b""


def _parse(content: bytes) -> tuple[list[Line], int]:
    found = [_line(text) for text in content.splitlines()]
    lines = [line for line in found if line is not None]
    return lines, len(found) - len(lines)


def _line(text: bytes) -> Line | None:
    """A line of the file; None for what cannot be one. Members that a later version added are left out."""
    try:
        document = json.loads(text)
        number, at, what = document["number"], float(document["at"]), document["what"]
        rest = [document.get(name) for name in ("manifest", "before", "after", "backup", "detail")]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    is_whole = type(number) is int and isinstance(what, str) and all(each is None or isinstance(each, str) for each in rest)
    if not (is_whole and isfinite(at)):
        return None
    return Line(number, Event(at, what, *rest))
