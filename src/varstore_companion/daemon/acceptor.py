"""Accepting connections on one socket, within limits that no peer can push another VM's socket out with."""

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import trio

from varstore_companion.daemon.host import Host
from varstore_companion.daemon.listen import Bound
from varstore_companion.daemon.session import Session
from varstore_companion.wire.connection import Connection
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Socket
from varstore_companion.wire.states import Role

log = logging.getLogger(__name__)

ACCEPT_PAUSE_SECONDS = 0.1
"""When the system has no descriptor or memory for one more connection: long enough for one to be given back."""
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(slots=True)
class Places:
    """How many connections all sockets together may still take: a bound on descriptors and memory."""

    left: int


class Acceptor:
    """Accepts connections on one socket and runs a session for each, at most `most` at a time."""

    __slots__ = ("_emptied", "_host", "_make", "_most", "_nursery", "_places", "_sessions", "_socket", "_who", "bound", "scope")

    def __init__(
        self,
        bound: Bound,
        *,
        socket: Socket,
        who: str,
        most: int,
        places: Places,
        host: Host,
        nursery: trio.Nursery,
        make: Callable[[trio.SocketStream], Session],
    ) -> None:
        self.bound = bound
        self.scope = trio.CancelScope()
        self._socket = socket
        self._who = who
        self._most = most
        self._places = places
        self._host = host
        self._nursery = nursery
        self._make = make
        self._sessions: set[Session] = set()
        self._emptied: trio.Event | None = None

    @property
    def connections(self) -> int:
        """Connections that are being served."""
        return len(self._sessions)

    async def run(self) -> None:
        """Accept until `stop`. Closes the listening socket; the file in the file system stays."""
        with self.scope:
            async with trio.SocketListener(trio.socket.from_stdlib_socket(self.bound.socket)) as listener:
                while True:
                    try:
                        stream = await listener.accept()
                    except OSError as error:
                        if error.errno not in _NO_ROOM:
                            raise
                        log.warning("%s cannot accept a connection: %s", self._who, error.strerror)
                        await trio.sleep(ACCEPT_PAUSE_SECONDS)
                        continue
                    self._take(stream)

    def stop(self) -> None:
        """Accept no more, end the sessions that wait for their peers, and let the others finish their request."""
        self.scope.cancel()
        for session in self._sessions:
            session.stop()

    async def emptied(self) -> None:
        """Wait until no connection is left. For after `stop`."""
        if self._sessions:
            self._emptied = trio.Event()
            await self._emptied.wait()

    def _take(self, stream: trio.SocketStream) -> None:
        if len(self._sessions) >= self._most or self._places.left <= 0:
            self._host.stats.connections_refused += 1
            if self._host.stats.connections_refused.bit_count() == 1:  # the 1st, 2nd, 4th, 8th…: a flood must not fill the log
                log.warning(
                    "%s refused a connection: %d are open (%d refused so far)",
                    self._who,
                    len(self._sessions),
                    self._host.stats.connections_refused,
                )
            _turn_away(stream, self._socket)
            return
        session = self._make(stream)
        self._sessions.add(session)
        self._places.left -= 1
        self._nursery.start_soon(self._serve, session, name=f"connection of {self._who}")

    async def _serve(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:
            # Whatever a peer found, it ends its own connection and no other VM's.
            log.exception("%s a connection ended in a bug", self._who)
        finally:
            self._sessions.discard(session)
            self._places.left += 1
            if self._emptied is not None and not self._sessions:
                self._emptied.set()


def _turn_away(stream: trio.SocketStream, socket: Socket) -> None:
    """Say BUSY and close, without waiting: a fresh socket has room for one frame, and if not, the close says enough."""
    with suppress(OSError):
        os.write(stream.socket.fileno(), Connection(Role.SERVER, socket=socket).fail(ErrorCode.BUSY, "too many connections"))
    stream.socket.close()
