"""Alerts on their way to the toolstack: kept and tried again while it is away, which is when they matter most.

Every VM's alerts go by themselves and in their order, so that a guard that is away holds up those of no other VM. What was
certainly not delivered is tried again with backoff; what may have been, or was refused, never. All of it is in memory, but
that updates are paused: the file of the pause says whether operators were told (see `Staging`).
"""

import logging
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from uuid import UUID

import trio

from varstore_companion.daemon.alerts import updates_paused
from varstore_companion.daemon.limits import Gate
from varstore_companion.daemon.staging import Paused, Staging
from varstore_companion.daemon.stats import Stats
from varstore_companion.errors import ToolstackError, ToolstackRefusedError, ToolstackUnavailableError
from varstore_companion.toolstack.interface import Alert, Toolstack

log = logging.getLogger(__name__)

ALERTS_WAITING = 256
"""Of all VMs together, of a KiB or two each. One more, and one is dropped: its cause is in the log and in `status`."""
ALERTS_OF_A_VM = 8
"""A guest that boots over and over while its guard is away pushes out no alert but its own."""
ALERT_SECONDS = 30.0
"""For one try."""
PAUSE_SECONDS = 1.0
"""Before the second try; twice as long before each one after it."""
LONGEST_PAUSE_SECONDS = 60.0
KEPT_SECONDS = 6 * 3_600.0
"""Longer than a toolstack is upgraded or repaired. By then the VM has booted again, or its history is where to look."""
END_SECONDS = 5.0
"""For the last tries when the daemon stops, once what was under way is done."""
OTHERS_TRIED = 8
"""Ways over other VMs that one try of an alert about the host takes."""


class _Fate(Enum):
    """What became of a try. NOT_YET, NO_WAY (there is no such VM there) and REFUSED: certainly not delivered."""

    DELIVERED = "delivered"
    NOT_YET = "not yet"
    NO_WAY = "no way"
    REFUSED = "refused"
    UNCLEAR = "unclear"


@dataclass(eq=False, slots=True)
class _Waiting:
    """An alert. `number`: in the order in which they came; `since`: trio's clock; `is_sent`: it is being sent now."""

    alert: Alert
    number: int
    since: float
    is_sent: bool = False


@dataclass(eq=False, slots=True)
class _Retry:
    """When to try again. `wake`: at once."""

    failures: int = 0
    wake: trio.Event = field(default_factory=trio.Event)

    @property
    def is_news(self) -> bool:
        """Whether the last failure is worth a line: the 1st, 2nd, 4th, 8th… An outage must not fill the log."""
        return self.failures.bit_count() == 1

    async def pause(self) -> None:
        """Wait until it is time, or until it is woken."""
        seconds = min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 10))
        # Jitter, so that the VMs of one outage do not come all at once.
        seconds *= random.uniform(0.5, 1.0)  # noqa: S311  no secret depends on it
        with trio.move_on_after(seconds):
            await self.wake.wait()
        self.wake = trio.Event()


@dataclass(eq=False, slots=True)
class _Queue:
    """One VM's alerts, the oldest first."""

    vm: UUID
    waiting: list[_Waiting] = field(default_factory=list)
    retry: _Retry = field(default_factory=_Retry)


class Alerting:
    """`apart`: whether each VM has its own way to the toolstack; where all have one, one alert is sent at a time.

    `attached`: the VMs that have a socket, over any of which an alert about the host can go.
    """

    def __init__(self, toolstack: Callable[[], Toolstack], staging: Staging, stats: Stats, *, apart: bool) -> None:
        self._toolstack = toolstack
        self._staging = staging
        self._stats = stats
        self._apart = apart
        self.attached: Callable[[], Collection[UUID]] = tuple
        self._numbers = count()
        self._queues: dict[UUID, _Queue] = {}
        self._turn = Gate(lambda: 0 if apart else 1)
        self._nursery: trio.Nursery | None = None
        self._end = trio.Event()
        self._paused_by: UUID | None = None
        self._let_be: Paused | None = None
        self._pause_retry = _Retry()

    @property
    def waiting(self) -> int:
        """Alerts that wait, that updates are paused among them."""
        return sum(len(queue.waiting) for queue in self._queues.values()) + (self._untold is not None)

    def add(self, vm: UUID, alert: Alert) -> None:
        """Have the operator told, without waiting for the toolstack. What waits already is not told twice."""
        if self._end.is_set():
            self._drop(vm, alert, "the daemon stops")
            return
        queue = self._queues.get(vm)
        if queue is None:
            queue = self._queues[vm] = _Queue(vm)
            if self._nursery is not None:
                self._start(queue, self._nursery)
        elif any(each.alert == alert for each in queue.waiting):
            return
        queue.waiting.append(_Waiting(alert, next(self._numbers), trio.current_time()))
        if len(queue.waiting) > ALERTS_OF_A_VM:
            self._make_room([queue], f"{ALERTS_OF_A_VM} of the VM wait already")
        elif sum(len(each.waiting) for each in self._queues.values()) > ALERTS_WAITING:
            self._make_room(self._queues.values(), f"{ALERTS_WAITING} wait already")

    def updates_paused(self, vm: UUID) -> None:
        """Have the operator told of the pause that `Staging` knows of. `vm`: the last one that had trouble."""
        self._paused_by = vm
        self._pause_retry.wake.set()

    def wake(self, vm: UUID) -> None:
        """Try at once: there is another way to this VM's toolstack."""
        if vm in self._queues:
            self._queues[vm].retry.wake.set()
        self._pause_retry.wake.set()

    def end(self) -> None:
        """Take no more alerts: `run` ends once each that waits was tried once more, within `END_SECONDS`."""
        self._end.set()
        self._wake_all()

    async def run(self) -> None:
        """Deliver as long as the daemon runs, or until `end`. What is lost by its end is in the log."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._tell_of_pause, name="alert of the pause of updates")
                for queue in self._queues.values():
                    self._start(queue, nursery)
                await self._end.wait()
                nursery.cancel_scope.deadline = trio.current_time() + END_SECONDS
        finally:
            self._end.set()
            if self._untold is not None:
                log.warning("nobody was alerted that updates are paused: the next daemon goes on with that")
            for queue in self._queues.values():
                for each in queue.waiting:
                    self._drop(queue.vm, each.alert, "the daemon ended before")
            self._queues.clear()

    # A VM's alerts

    def _start(self, queue: _Queue, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._deliver, queue, name=f"alerts of vm={queue.vm}")

    async def _deliver(self, queue: _Queue) -> None:
        while queue.waiting:
            first, retry = queue.waiting[0], queue.retry
            first.is_sent = True
            async with self._turn:
                fate, reason = await self._try(queue.vm, first.alert)
            first.is_sent = False
            if fate is _Fate.NOT_YET or (fate is _Fate.NO_WAY and self._apart):
                # Without a socket of the VM's: it may be attached again.
                retry.failures += 1
                if not self._end.is_set() and trio.current_time() - first.since < KEPT_SECONDS:
                    if retry.is_news:
                        what = first.alert.name
                        log.warning("vm=%s alert %s not delivered yet (try %d): %s", queue.vm, what, retry.failures, reason)
                    await retry.pause()
                    continue
            queue.waiting.remove(first)
            if fate is not _Fate.DELIVERED:
                self._drop(queue.vm, first.alert, reason)
                continue
            if retry.failures:
                self._wake_all()
            retry.failures = 0
        del self._queues[queue.vm]

    def _make_room(self, queues: Iterable[_Queue], reason: str) -> None:
        """Drop the oldest of those that are worth least; not one that is being sent."""
        able = [(queue, each) for queue in queues for each in queue.waiting if not each.is_sent]
        queue, least = min(able, key=lambda one: (-one[1].alert.priority, one[1].number))
        queue.waiting.remove(least)
        self._drop(queue.vm, least.alert, reason)

    # The pause of updates, which is the host's: kept by `Staging`, never dropped, and told over whichever VM can

    @property
    def _untold(self) -> Paused | None:
        """The pause that operators are still to be told of."""
        paused = self._staging.paused
        return None if paused is None or paused.told or paused is self._let_be else paused

    async def _tell_of_pause(self) -> None:
        retry = self._pause_retry
        while not self._end.is_set() or self._untold is not None:
            paused = self._untold
            if paused is None:
                retry.failures = 0
                await retry.wake.wait()
                retry.wake = trio.Event()
                continue
            fate, reason = await self._try_ways(paused, retry.failures)
            if fate is _Fate.DELIVERED:
                if retry.failures:
                    self._wake_all()
                await self._was_told(paused)
            elif fate in (_Fate.REFUSED, _Fate.UNCLEAR):
                self._let_be = paused
                self._stats.alerts_dropped += 1
                log.warning("the alert that updates are paused could not be delivered, the next daemon tries: %s", reason)
            elif self._end.is_set():
                return
            else:
                retry.failures += 1
                if retry.is_news:
                    log.warning("the alert that updates are paused is not delivered yet (try %d): %s", retry.failures, reason)
                await retry.pause()

    async def _try_ways(self, paused: Paused, failures: int) -> tuple[_Fate, str]:
        """Try the VM that paused them first, then others, each time other ones. REFUSED: by all of them."""
        others = sorted(set(self.attached()) - {self._paused_by})
        start = failures * OTHERS_TRIED % max(1, len(others))
        ways = (others[start:] + others[:start])[:OTHERS_TRIED]
        result = _Fate.NO_WAY, "no VM is attached"
        may_come = False
        for vm in [*([] if self._paused_by is None else [self._paused_by]), *ways]:
            result = await self._try(vm, updates_paused(vm, paused.reason))
            if result[0] in (_Fate.DELIVERED, _Fate.UNCLEAR) or (result[0] is _Fate.NOT_YET and not self._apart):
                return result
            may_come = may_come or result[0] is not _Fate.REFUSED
        return (_Fate.NOT_YET if may_come else result[0]), result[1]

    async def _was_told(self, paused: Paused) -> None:
        self._staging.was_told(paused)
        try:
            await self._staging.save()
        except OSError as error:
            log.warning("the next daemon alerts of the pause of updates again: %s", error)

    # Either

    async def _try(self, vm: UUID, alert: Alert) -> tuple[_Fate, str]:
        """Send an alert; what became of it, and the reason."""
        try:
            with trio.move_on_after(ALERT_SECONDS):
                await self._toolstack().alert(vm, alert)
                return _Fate.DELIVERED, ""
        except ToolstackUnavailableError as error:
            return _Fate.NOT_YET, str(error)
        except ToolstackRefusedError as error:
            return (_Fate.NO_WAY if error.code == "HANDLE_INVALID" else _Fate.REFUSED), str(error)
        except ToolstackError as error:
            return _Fate.UNCLEAR, str(error)
        except Exception:
            # One alert that meets a bug must not end the daemon.
            log.exception("vm=%s alert %s met a bug", vm, alert.name)
            return _Fate.UNCLEAR, "an error inside the daemon"
        return _Fate.UNCLEAR, f"the toolstack did not take it within {ALERT_SECONDS:g} s"

    def _wake_all(self) -> None:
        """The toolstack is back for one VM, so it may be for all."""
        for queue in self._queues.values():
            queue.retry.wake.set()
        self._pause_retry.wake.set()

    def _drop(self, vm: UUID, alert: Alert, reason: str) -> None:
        self._stats.alerts_dropped += 1
        log.warning("vm=%s alert %s could not be delivered: %s: %s", vm, alert.name, reason, alert.body)
