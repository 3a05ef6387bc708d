"""Reading settings, manifest and certificates again while the daemon runs: SIGHUP, and RELOAD on the control socket."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from varstore_companion import threads
from varstore_companion.daemon import config, foresee, rules
from varstore_companion.daemon.config import RELOADABLE, Settings, Source
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.rules import Rules
from varstore_companion.errors import ConfigurationError
from varstore_companion.wire.fields import clip
from varstore_companion.wire.limits import MAX_TEXT

log = logging.getLogger(__name__)

SHOWN = 20
"""Warnings that the answer to RELOAD has; the log has all."""
READ_SECONDS = 30.0
"""For reading the files: one may lie on a file system that hangs."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did. `error`: why everything stays as it was; `manifest`: the one in force now.

    `needs_restart`: the keys that were changed and wait for a restart.
    """

    error: str | None
    manifest: str
    needs_restart: tuple[str, ...]
    warnings: tuple[str, ...]


class Reloader:
    """Puts what the files say in force, all of it or nothing. One reload at a time; the others wait.

    `started`: the settings that the daemon runs with; `followers`: told of rules that are in force from now on.

    A decision on a boot or a write is made between two waits, with the rules of that moment, and what was decided is carried
    out though they change meanwhile.
    """

    def __init__(self, host: Host, source: Source, started: Settings) -> None:
        self._host = host
        self._source = source
        self._started = started
        self.followers: list[Callable[[Rules], None]] = []
        self._turn = trio.Lock()
        # A place of its own for the thread: one that hangs must not take those that backups need.
        self._thread = trio.CapacityLimiter(1)
        self.loaded_at = host.now()
        self.failed: tuple[float, str] | None = None
        self._restart: tuple[str, ...] = ()

    async def reload_soon(self) -> None:
        """Reload, unless a reload that has not begun yet will read what is there now."""
        if not self._turn.statistics().tasks_waiting:
            await self.reload()

    async def reload(self) -> Reloaded:
        """Read everything again and put it in force, unless something of it cannot be used."""
        async with self._turn:
            try:
                settings, read = await self._read()
                _confirm_kept(self._host.rules, read)
            except ConfigurationError as error:
                log.error("reload refused, everything stays as it was: %s", error)  # noqa: TRY400  the reason is enough
                return self._refused(str(error))
            except Exception:
                # Nothing that is in a file may end the daemon.
                log.exception("reload met a bug, everything stays as it was")
                return self._refused("an error inside the daemon: see its log")
            self._host.stats.reloads += 1
            self._host.rules = read
            for follow in self.followers:
                follow(read)
            self.loaded_at = self._host.now()
            self.failed = None
            self._restart = tuple(key for key in config.changed(self._started, settings) if key not in RELOADABLE)
            warnings = tuple(read.warnings())
            log.info("reloaded: %s", read.describe())
            for warning in warnings:
                log.warning("%s", warning)
            if self._restart:
                log.warning("changed in the settings, and in force only after a restart: %s", ", ".join(self._restart))
            return Reloaded(None, read.name, self._restart, warnings[:SHOWN])

    def _refused(self, error: str) -> Reloaded:
        error = clip(error, MAX_TEXT)
        self._host.stats.reloads_refused += 1
        self.failed = self._host.now(), error
        return Reloaded(error, self._host.rules.name, self._restart, ())

    async def _read(self) -> tuple[Settings, Rules]:
        def read() -> tuple[Settings, Rules]:
            settings = self._source.read()
            foresee.confirm(settings, self._source.error, config.changed(self._started, settings))
            return settings, rules.load(settings, self._source.error)

        with trio.move_on_after(READ_SECONDS):
            try:
                return await threads.run_sync(read, abandon_on_cancel=True, limiter=self._thread)
            except OSError as error:  # the system gives no thread, or no descriptor
                raise ConfigurationError(f"the files cannot be read: {error}") from None
        raise ConfigurationError(f"the files were not read within {READ_SECONDS:g} s")

    def describe(self) -> dict[str, object]:
        """For `status`, as plain values for JSON. Times are seconds since the epoch."""
        failed = None if self.failed is None else {"at": self.failed[0], "error": self.failed[1]}
        return {"rules_loaded_at": self.loaded_at, "reload_failed": failed, "needs_restart": list(self._restart)}


def _confirm_kept(before: Rules, after: Rules) -> None:
    """Refuse to lose a certificate that is still required: its file may just be being replaced."""
    for certificate in after.required:
        if certificate.sha256 in before.bodies and certificate.sha256 not in after.bodies:
            origin = before.loaded.origins.get(certificate.sha256)
            raise ConfigurationError(f"no source has the body of {certificate.subject} any more, which came from {origin}")
