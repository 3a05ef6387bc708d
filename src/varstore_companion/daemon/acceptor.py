"""Accepting connections on one socket, within limits that no peer can push another VM's socket out with."""

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import trio

from varstore_companion.daemon.host import Host
from varstore_companion.daemon.listen import Bound
from varstore_companion.unix_stream import UnixStream

log = logging.getLogger(__name__)

ACCEPT_PAUSE_SECONDS = 0.1
"""When the system has no descriptor, watch or memory for one more connection, or forbids it: for one to be given back."""
RETIRE_SECONDS = 2.0
"""For the calls of an unmodified varstored, each a connection of its own, to be made by those that have connected."""


@dataclass(slots=True)
class Places:
    """How many connections all sockets together may still take: a bound on descriptors and memory."""

    left: int


class Served(Protocol):
    """One connection's session, whichever protocol it speaks."""

    async def run(self) -> "Served | None":
        """Serve the connection until either side ends it, and close it; or give the session that goes on with it."""

    def stop(self) -> None:
        """End it at once when it waits for its peer, otherwise after the request that is being carried out."""


class Acceptor:
    """Accepts connections on one socket and runs a session for each, at most `most` at a time.

    `busy`: what one connection too many is told before it is closed. `make` gives a connection's session, or bytes: the whole
    answer to one that needs none.
    """

    __slots__ = (
        "__weakref__",
        "_accepting",
        "_busy",
        "_emptied",
        "_host",
        "_make",
        "_most",
        "_nursery",
        "_places",
        "_sessions",
        "_stopped",
        "_who",
        "bound",
        "scope",
    )

    def __init__(
        self,
        bound: Bound,
        *,
        busy: bytes,
        who: str,
        most: int,
        places: Places,
        host: Host,
        nursery: trio.Nursery,
        make: Callable[[UnixStream], Served | bytes],
    ) -> None:
        self.bound = bound
        self.scope = trio.CancelScope()
        self._busy = busy
        self._who = who
        self._most = most
        self._places = places
        self._host = host
        self._nursery = nursery
        self._make = make
        self._sessions: set[Served] = set()
        self._emptied: trio.Event | None = None
        self._accepting = True
        self._stopped = False

    @property
    def connections(self) -> int:
        """Connections that are being served."""
        return len(self._sessions)

    async def run(self) -> None:
        """Accept until `stop`. Closes the listening socket; the file in the file system stays."""
        try:
            with self.scope:
                await self._accept(self.bound.socket)
        finally:
            self.bound.socket.close()
            self._accepting = False
            self._look_whether_empty()

    def stop(self) -> None:
        """Accept no more, end the sessions that wait for their peers, and let the others finish their request."""
        self._stopped = True
        self.scope.cancel()
        for session in self._sessions:
            session.stop()

    def take_last(self) -> None:
        """Accept those that have connected, and nobody after them: for a socket to which no path leads any more."""
        with suppress(OSError):  # closed, or nobody waits any more
            self.bound.socket.settimeout(0)
            while True:
                connected, _ = self.bound.socket.accept()
                self._take(UnixStream(connected))
        self.scope.cancel()

    async def retire(self) -> None:
        """For after `take_last`: wait for the sessions to end, and stop those that have not within `RETIRE_SECONDS`."""
        with trio.move_on_after(RETIRE_SECONDS):
            await self.emptied()
        self.stop()
        await self.emptied()

    async def emptied(self) -> None:
        """Wait until no connection is left, and none can come. For after `stop` or `take_last`."""
        if self._accepting or self._sessions:
            if self._emptied is None:
                self._emptied = trio.Event()
            await self._emptied.wait()

    def _look_whether_empty(self) -> None:
        if self._emptied is not None and not self._accepting and not self._sessions:
            self._emptied.set()

    async def _accept(self, listener: socket.socket) -> None:
        listener.setblocking(False)  # noqa: FBT003  the standard library takes it by position only
        failures = 0
        while True:
            try:
                await trio.lowlevel.wait_readable(listener)
                connected, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                # Whatever it is that one socket meets: the others' must not end by it.
                failures += 1
                if failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th…: one that lasts must not fill the log
                    log.warning("%s cannot accept a connection (try %d): %s", self._who, failures, error.strerror)
                await trio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            failures = 0
            self._take(UnixStream(connected))

    def _take(self, stream: UnixStream) -> None:
        if len(self._sessions) >= self._most or self._places.left <= 0:
            self._host.stats.connections_refused += 1
            if self._host.stats.connections_refused.bit_count() == 1:  # the 1st, 2nd, 4th, 8th…: a flood must not fill the log
                log.warning(
                    "%s refused a connection: %d are open (%d refused so far)",
                    self._who,
                    len(self._sessions),
                    self._host.stats.connections_refused,
                )
            self._dismiss(stream, self._busy)
            return
        try:
            session = self._make(stream)
        except Exception:
            # It has read what a peer sent: that must not end the accepting of everybody else.
            log.exception("%s a connection ended in a bug", self._who)
            stream.close()
            return
        if isinstance(session, bytes):
            self._dismiss(stream, session)
            return
        self._sessions.add(session)
        self._places.left -= 1
        if self._stopped:
            # It had been accepted when the stop came.
            session.stop()
        self._nursery.start_soon(self._serve, session, name=f"connection of {self._who}")

    def _dismiss(self, stream: UnixStream, last: bytes) -> None:
        """Send and close, without waiting: a fresh socket has room for a few bytes, and if not, the close says enough."""
        try:
            os.write(stream.socket.fileno(), last)
        except OSError:
            log.debug("%s the peer went away", self._who)
        stream.close()

    async def _serve(self, session: Served) -> None:
        try:
            while (following := await session.run()) is not None:
                self._sessions.remove(session)
                self._sessions.add(following)
                session = following
        except Exception:
            # Whatever a peer found, it ends its own connection and no other VM's.
            log.exception("%s a connection ended in a bug", self._who)
        finally:
            self._sessions.discard(session)
            self._places.left += 1
            self._look_whether_empty()
