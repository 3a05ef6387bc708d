"""What all VMs of the daemon share."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol, TypeVar
from uuid import UUID

import trio

from varstore_companion.daemon import alerts
from varstore_companion.daemon.alerting import Alerting
from varstore_companion.daemon.errand import Errand
from varstore_companion.daemon.held import Recent
from varstore_companion.daemon.limits import Gate, InFlight
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.staging import Staging
from varstore_companion.daemon.stats import Stats
from varstore_companion.journal.backups import Backups
from varstore_companion.journal.history import Event, History, What
from varstore_companion.journal.journal import Journal
from varstore_companion.journal.ledger import Ledger
from varstore_companion.toolstack.interface import Alert, Toolstack, Upstreams

log = logging.getLogger(__name__)

T = TypeVar("T")


class Drains(Protocol):
    """Who brings journaled stores to the toolstack."""

    def deliver(self, uuid: UUID) -> None:
        """See to it that what is pending for this VM is delivered."""

    def wake(self, uuid: UUID) -> None:
        """Try at once: the way to the toolstack has changed."""


@dataclass(slots=True)
class Host:
    """The toolstack, the rules in force and where things are kept. `now`: epoch seconds.

    `journal`: for writes while the toolstack is away; `staging`: whether marked boots are updated; `ledger`: where a
    toolstack may carry out a call that was given up.
    `upstreams`: the toolstack, where it has a socket for each VM; `nursery`: the daemon's, while it runs, for calls that
    outlive who made them.
    """

    toolstack: Toolstack
    rules: Rules
    backups: Backups
    history: History
    journal: Journal
    staging: Staging
    now: Callable[[], float]
    upstreams: Upstreams | None = None
    nursery: trio.Nursery | None = None
    ledger: Ledger | None = None
    drainer: Drains | None = None
    stats: Stats = field(default_factory=Stats)
    recent: Recent = field(default_factory=Recent)
    in_flight: InFlight = field(default_factory=InFlight)
    boots: Gate = field(init=False)
    told: alerts.Told = field(default_factory=alerts.Told)
    alerting: Alerting = field(init=False)

    def __post_init__(self) -> None:
        self.boots = Gate(lambda: self.rules.limits.boots_at_once)
        self.alerting = Alerting(lambda: self.toolstack, self.staging, self.stats, apart=self.upstreams is not None)

    def alert(self, vm: UUID, alert: Alert) -> None:
        """Have the operator told, without waiting for the toolstack."""
        self.alerting.add(vm, alert)

    def deliver(self, vm: UUID) -> None:
        """See to it that what is pending for this VM is delivered, while the daemon runs."""
        if self.drainer is not None:
            self.drainer.deliver(vm)

    def wake(self, vm: UUID) -> None:
        """Have what is pending for this VM delivered at once: there is another way to its toolstack."""
        self.alerting.wake(vm)
        if self.drainer is not None:
            self.drainer.wake(vm)

    def note(
        self,
        vm: UUID,
        what: What,
        before: bytes | None = None,
        after: bytes | None = None,
        *,
        backup: str | None = None,
        detail: str | None = None,
        rules: Rules | None = None,
    ) -> None:
        """Have an event written into a VM's history, without waiting. `before`, `after`: the stores; `backup`: an id.

        `rules`: what was decided with, where they may have been replaced since.
        """
        name = (rules or self.rules).name
        self.history.note(vm, Event(self.now(), what, name, _digest(before), _digest(after), backup, detail))

    def store_is_damaged(self, vm: UUID, reasons: Sequence[str]) -> None:
        """Have the operator told of a damaged store, once for each VM and finding."""
        alert = alerts.store_damaged(vm, reasons)
        if self.told.is_news(vm, alert.body):
            log.warning("vm=%s %s", vm, alert.body)
            self.alert(vm, alert)

    def updates_paused(self, vm: UUID) -> None:
        """Have the operator told that nothing is updated any more on this host, and the next daemon keep to it."""
        self.alerting.updates_paused(vm)

        async def save() -> None:
            try:
                await self.staging.save()
            except OSError as error:
                log.warning("the pause of updates ends with this daemon: %s", error)

        self.errand(save, "pause of updates")

    def errand(self, call: Callable[[], Awaitable[T]], name: str) -> Errand[T]:
        """Start a call that may outlive who made it."""
        if self.nursery is None:
            raise AssertionError("the daemon does not run")
        return Errand(self.nursery, call, name)

    def end_alerts(self) -> None:
        """Take no more alerts: `send_alerts` ends once it has tried those that wait."""
        self.alerting.end()

    async def send_alerts(self) -> None:
        """Hand the alerts to the toolstack; runs as long as the daemon, or until `end_alerts`."""
        await self.alerting.run()


def _digest(store: bytes | None) -> str | None:
    return None if store is None else sha256(store).hexdigest()
