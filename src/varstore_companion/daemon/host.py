"""What all VMs of the daemon share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

import trio

from varstore_companion.daemon.stats import Stats
from varstore_companion.errors import ToolstackError
from varstore_companion.journal.backups import Backups
from varstore_companion.toolstack.interface import Alert, Toolstack
from varstore_companion.trust.certificates import Bodies
from varstore_companion.trust.manifest import Manifest

log = logging.getLogger(__name__)

ALERTS_WAITING = 256
"""Alerts that may wait for the toolstack. One more is dropped: its cause is in the log and in `status` all the same."""
ALERT_SECONDS = 30.0
"""For one alert; the next one waits meanwhile, and no boot or write does."""


@dataclass(slots=True)
class Host:
    """The toolstack, the rules and where things are kept. `headroom`: as for `trust.plan.plan`; `now`: epoch seconds."""

    toolstack: Toolstack
    manifest: Manifest
    bodies: Bodies
    backups: Backups
    now: Callable[[], float]
    headroom: int | None = None
    stats: Stats = field(default_factory=Stats)
    _alerts: "tuple[trio.MemorySendChannel[tuple[UUID, Alert]], trio.MemoryReceiveChannel[tuple[UUID, Alert]]]" = field(
        default_factory=lambda: trio.open_memory_channel[tuple[UUID, Alert]](ALERTS_WAITING)
    )

    def alert(self, vm: UUID, alert: Alert) -> None:
        """Have the operator told, without waiting for the toolstack."""
        try:
            self._alerts[0].send_nowait((vm, alert))
        except trio.WouldBlock:
            self.stats.alerts_dropped += 1
            log.warning("vm=%s alert %s dropped: %d wait for the toolstack already", vm, alert.name, ALERTS_WAITING)

    async def send_alerts(self) -> None:
        """Hand the alerts to the toolstack one by one; runs as long as the daemon."""
        async for vm, alert in self._alerts[1]:
            with trio.move_on_after(ALERT_SECONDS) as scope:
                try:
                    await self.toolstack.alert(vm, alert)
                except ToolstackError as error:
                    log.warning("vm=%s alert %s could not be delivered: %s", vm, alert.name, error)
                except Exception:
                    # One alert that meets a bug must not end the daemon.
                    log.exception("vm=%s alert %s could not be delivered", vm, alert.name)
            if scope.cancelled_caught:
                log.warning("vm=%s alert %s could not be delivered within %g s", vm, alert.name, ALERT_SECONDS)
