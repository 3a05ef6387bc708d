"""What systemd and the daemon tell each other: news in datagrams (sd_notify(3)), sockets as descriptors (sd_listen_fds(3)).

Written here, since bindings of libsystemd would be a compiled package for these lines. Without systemd nothing is sent.
"""

import logging
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

import trio

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START: those before it are the standard streams."""
SEND_SECONDS = 5.0
"""For systemd to take one datagram: its queue is full only while it is busy with something else."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A socket that systemd passed to this process. `name`: empty from a systemd that gives none (before 227)."""

    name: str
    socket: socket.socket


def passed(environment: MutableMapping[str, str]) -> list[Passed]:
    """Take over the sockets that systemd passed to this very process, and close what is no socket.

    The variables are removed, so that no child takes its own descriptors for them.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    pid, count, labels, _ = (environment.pop(name, "") for name in names)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    number = int(count)
    named = labels.split(":")
    found = []
    for index in range(number):
        descriptor = FIRST_DESCRIPTOR + index
        try:
            taken = socket.socket(fileno=descriptor)
        except OSError as error:
            log.warning("descriptor %d from systemd is no socket, it is closed: %s", descriptor, error.strerror)
            with suppress(OSError):
                os.close(descriptor)
            continue
        taken.set_inheritable(False)
        found.append(Passed(named[index] if len(named) == number else "", taken))
    return found


class Service:
    """The unit as the daemon sees it. `watchdog`: seconds after which systemd kills a daemon that says nothing, None for never.

    `address`: the socket of its manager, None when there is none. What cannot be sent is logged, and nothing else comes of it.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        self.watchdog = watchdog

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """The unit that this process is the main process of. The variables are removed."""
        address = environment.pop("NOTIFY_SOCKET", "")
        period, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if address and not address.startswith(("/", "@")):
            log.warning("NOTIFY_SOCKET=%s: only a Unix socket's path can be used", address)
            address = ""
        mine = period.isdecimal() and int(period) > 0 and pid in ("", str(os.getpid()))
        return cls(address or None, int(period) / 1e6 if address and mine else None)

    @property
    def has_manager(self) -> bool:
        """Whether somebody is told, and can keep descriptors."""
        return self._address is not None

    async def ready(self, status: str) -> None:
        """Everything answers; also the end of `reloading`."""
        await self._send("READY=1", f"STATUS={_line(status)}")

    async def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        await self._send(f"STATUS={_line(status)}")

    async def alive(self) -> None:
        """All is well: the watchdog's time begins anew."""
        await self._send("WATCHDOG=1")

    async def stopping(self, status: str) -> None:
        """The daemon has begun to stop."""
        await self._send("STOPPING=1", f"STATUS={_line(status)}")

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """While the configuration is read anew: `systemctl reload` returns when this is left, whatever came of it."""
        await self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._send("READY=1")

    async def store(self, name: str, kept: socket.socket) -> None:
        """Have a socket kept and passed to the next process; the unit's FileDescriptorStoreMax says how many.

        `name`: at most 255 ASCII characters without a colon.
        """
        await self._send("FDSTORE=1", f"FDNAME={name}", descriptor=kept.fileno())

    async def remove(self, name: str) -> None:
        """Have what is kept under a name closed."""
        await self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    async def _send(self, *assignments: str, descriptor: int | None = None) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", descriptor))]
        try:
            with trio.fail_after(SEND_SECONDS), trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
                # Connected, so that a full queue is waited for: the system wakes only those who are.
                await datagram.connect(address)
                await datagram.sendmsg(["\n".join(assignments).encode()], rights)
        except OSError as error:
            log.warning("systemd at %s was not told %s: %s", self._address, assignments[0], error.strerror or error)
        except trio.TooSlowError:
            log.warning("systemd at %s was not told %s: it takes nothing", self._address, assignments[0])


def _line(text: str) -> str:
    return " ".join(text.split())
