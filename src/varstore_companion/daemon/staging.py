"""Updates at boot on this host: so many at a time, and none any more once too many VMs have had trouble with theirs."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from uuid import UUID

import trio

from varstore_companion import threads
from varstore_companion.daemon.limits import Gate, Limits
from varstore_companion.journal import files
from varstore_companion.wire.fields import clip
from varstore_companion.wire.limits import MAX_TEXT

log = logging.getLogger(__name__)

FILE_LIMIT = 65_536
NAMED = 64
"""VMs in trouble that are told of, the last ones: with the longest reasons they still fit an answer (`MAX_JSON`)."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Since when nothing is updated (seconds since the epoch), why, and whether operators know of it."""

    at: float
    reason: str
    told: bool = False


class Staging:
    """Whether a marked boot may be updated. The pause is kept in the file `path`: it outlives the daemon until it is resumed.

    Two kinds of trouble pause it, each of so many different VMs as `Limits.failures_to_pause` says: updates that fail for a
    reason of the host's, one after the other, and guests that fail Secure Boot verification with the update they got. What a
    VM's own store makes impossible does not count: a guest could make it so. Nor does one VM count twice.
    """

    def __init__(self, path: Path, limits: Callable[[], Limits], now: Callable[[], float]) -> None:
        self._path = path
        self._limits = limits
        self._now = now
        self._failed: dict[UUID, str] = {}
        self._broken: dict[UUID, str] = {}
        self.paused = self._read()
        self.gate = Gate(lambda: max(1, limits().updates_at_once))
        self._turn = trio.Lock()

    def succeeded(self) -> None:
        """A VM was updated."""
        self._failed.clear()

    def failed(self, vm: UUID, reason: str) -> str | None:
        """A VM could not be updated. Why updates are paused from now on, None when they are not, or were already."""
        return self._count(self._failed, vm, reason, "could not be updated one after the other")

    def broken(self, vm: UUID) -> str | None:
        """A guest failed Secure Boot verification after its update. As `failed`."""
        return self._count(self._broken, vm, "it failed Secure Boot verification", "did not boot with their update")

    def pause(self, reason: str, *, told: bool = True) -> None:
        """Update nothing from now on; also after a restart, once it is saved. `told`: an operator asked for it."""
        self.paused = Paused(self._now(), clip(reason, MAX_TEXT), told)
        log.warning("updates at boot are paused on this host: %s", self.paused.reason)

    def was_told(self, paused: Paused) -> None:
        """Operators know of this pause; also after a restart, once it is saved. Nothing, where it is over."""
        if self.paused is paused:
            self.paused = replace(paused, told=True)

    def resume(self) -> bool:
        """Update again; whether it was paused."""
        was = self.paused is not None
        self.paused = None
        self._failed.clear()
        self._broken.clear()
        if was:
            log.info("updates at boot go on on this host")
        return was

    async def save(self) -> None:
        """Have the next daemon find what is in force now. Raises `OSError`."""
        async with self._turn:
            text = None if self.paused is None else json.dumps(asdict(self.paused)) + "\n"
            await threads.run_sync(partial(self._write, text))

    def describe(self) -> dict[str, object]:
        """As plain values for JSON."""
        trouble = {**self._failed, **self._broken}
        named = islice(trouble.items(), max(0, len(trouble) - NAMED), None)
        return {
            "paused": None if self.paused is None else asdict(self.paused),
            "in_trouble": [{"vm": str(vm), "reason": reason} for vm, reason in named],
            "failures_to_pause": self._limits().failures_to_pause,
            "at_once": max(1, self._limits().updates_at_once),
        }

    def _count(self, trouble: dict[UUID, str], vm: UUID, reason: str, what: str) -> str | None:
        most = self._limits().failures_to_pause
        trouble[vm] = reason
        if self.paused is not None or not most or len(trouble) < most:
            # A bound on what is remembered, whatever the limit.
            if len(trouble) > max(most, NAMED):
                del trouble[next(iter(trouble))]
            return None
        text = f"{len(trouble)} VMs {what}, the last of them {vm}: {reason}"
        self.pause(text, told=False)
        return text

    def _read(self) -> Paused | None:
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(FILE_LIMIT))
            # A file from before `told` does not say: rather once too often than never.
            return Paused(float(found["at"]), clip(str(found["reason"]), MAX_TEXT), found.get("told") is True)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            # Somebody paused, and why cannot be read: that is no reason to go on.
            log.error("updates at boot are paused: %s cannot be read: %s", self._path, error)  # noqa: TRY400  the reason is enough
            return Paused(self._now(), f"{self._path} cannot be read")

    def _write(self, text: str | None) -> None:
        if text is not None:
            files.write(self._path, text.encode())
            return
        self._path.unlink(missing_ok=True)
        files.sync_folder(self._path.parent)
