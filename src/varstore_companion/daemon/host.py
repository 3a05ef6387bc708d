"""What all VMs of the daemon share."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

import trio

from varstore_companion.daemon import alerts
from varstore_companion.daemon.errand import Errand
from varstore_companion.daemon.stats import Stats
from varstore_companion.errors import ToolstackError
from varstore_companion.journal.backups import Backups
from varstore_companion.toolstack.interface import Alert, Toolstack, Upstreams
from varstore_companion.trust.certificates import Bodies
from varstore_companion.trust.manifest import Manifest

log = logging.getLogger(__name__)

T = TypeVar("T")

ALERTS_WAITING = 256
"""Alerts that may wait for the toolstack. One more is dropped: its cause is in the log and in `status` all the same."""
ALERT_SECONDS = 30.0
"""For one alert; the next one waits meanwhile, and no boot or write does."""


@dataclass(slots=True)
class Host:
    """The toolstack, the rules and where things are kept. `headroom`: as for `trust.plan.plan`; `now`: epoch seconds.

    `upstreams`: the toolstack, where it has a socket for each VM; `nursery`: the daemon's, while it runs, for calls that
    outlive who made them.
    """

    toolstack: Toolstack
    manifest: Manifest
    bodies: Bodies
    backups: Backups
    now: Callable[[], float]
    headroom: int | None = None
    upstreams: Upstreams | None = None
    nursery: trio.Nursery | None = None
    stats: Stats = field(default_factory=Stats)
    told: alerts.Told = field(default_factory=alerts.Told)
    _alerts: "tuple[trio.MemorySendChannel[tuple[UUID, Alert]], trio.MemoryReceiveChannel[tuple[UUID, Alert]]]" = field(
        default_factory=lambda: trio.open_memory_channel[tuple[UUID, Alert]](ALERTS_WAITING)
    )

    def alert(self, vm: UUID, alert: Alert) -> None:
        """Have the operator told, without waiting for the toolstack."""
        try:
            self._alerts[0].send_nowait((vm, alert))
        except (trio.WouldBlock, trio.ClosedResourceError):
            self.stats.alerts_dropped += 1
            log.warning("vm=%s alert %s dropped: %d wait already, or the daemon stops", vm, alert.name, ALERTS_WAITING)

    def store_is_damaged(self, vm: UUID, reasons: Sequence[str]) -> None:
        """Have the operator told of a damaged store, once for each VM and finding."""
        alert = alerts.store_damaged(vm, reasons)
        if self.told.is_news(vm, alert.body):
            log.warning("vm=%s %s", vm, alert.body)
            self.alert(vm, alert)

    def errand(self, call: Callable[[], Awaitable[T]], name: str) -> Errand[T]:
        """Start a call that may outlive who made it."""
        if self.nursery is None:
            raise AssertionError("the daemon does not run")
        return Errand(self.nursery, call, name)

    def end_alerts(self) -> None:
        """Take no more alerts: `send_alerts` ends once it has sent those that wait."""
        self._alerts[0].close()

    async def send_alerts(self) -> None:
        """Hand the alerts to the toolstack one by one; runs as long as the daemon, or until `end_alerts`."""
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
