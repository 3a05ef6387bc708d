"""Whether the daemon is well, for systemd's watchdog: its event loop, its threads, and its calls of the toolstack."""

import logging
from typing import Protocol

import trio

from varstore_companion.daemon.host import Host
from varstore_companion.daemon.measured import MeasuredToolstack
from varstore_companion.daemon.systemd import Service

log = logging.getLogger(__name__)

STUCK_SECONDS = 150.0
"""No call of a toolstack goes on so long: a guard's and xapi's have their own deadlines, 25 s for the longest step of one, and
are left when they hang; a change of the embedded toolstack waits 3 s for others and then for the disk. One that does is a
worker that is stuck, and with it every write of every VM."""
STATUS_SECONDS = 10.0
"""Between two looks, where no watchdog asks for more."""


def stuck(toolstack: MeasuredToolstack) -> str | None:
    """The call that goes on longer than any may, in words for the log; None when there is none."""
    oldest = toolstack.oldest()
    if oldest is None or (seconds := trio.current_time() - oldest.begun) < STUCK_SECONDS:
        return None
    return f"vm={oldest.vm} {oldest.call} at the {toolstack.name} toolstack goes on for {seconds:.0f} s"


def status_line(mode: object, sockets: int, connections: int, host: Host) -> str:
    """How the daemon does, in one line for `systemctl status`."""
    stats = host.stats
    return (
        f"toolstack {host.toolstack.name}, {mode}, attached {sockets}, connections {connections}; boots {stats.boots}, "
        f"updates {stats.updates} (failed {stats.updates_failed}), writes {sum(stats.writes.values())}"
    )


class Watchable(Protocol):
    """What is looked after: the daemon."""

    def stuck(self) -> str | None:
        """A call that is stuck, in words for the log."""

    @property
    def status_line(self) -> str:
        """How it does."""


async def look_after(service: Service, daemon: Watchable) -> None:
    """Tell systemd, for ever, that all is well as long as it is, and how the daemon does.

    Nothing is said when the event loop does not turn, when threads do not run, or when a call of the toolstack does not end
    even past its deadline. A toolstack that hangs or is away is none of these: its calls end, with an error.
    """
    said = daemon.status_line
    was_stuck = False
    # Its own: where a disk hangs, others' threads may all be taken, and what needs none goes on.
    limiter = trio.CapacityLimiter(1)
    seconds = STATUS_SECONDS if service.watchdog is None else min(STATUS_SECONDS, service.watchdog / 3)
    while True:
        try:
            await trio.to_thread.run_sync(_nothing, abandon_on_cancel=True, limiter=limiter)
            stuck = daemon.stuck()
        except RuntimeError as error:  # the standard library's, when the system gives no thread
            stuck = str(error)
        if stuck is None:
            if service.watchdog is not None:
                await service.alive()
        elif not was_stuck:
            log.error("%s: systemd is told no more that all is well", stuck)
        was_stuck = stuck is not None
        if daemon.status_line != said:
            said = daemon.status_line
            await service.status(said)
        await trio.sleep(seconds)


def _nothing() -> None:
    """For a thread to do: that it is done shows that threads come to be and end."""
