"""One connection to a VM's socket, of which its first byte says what it speaks."""

import socket
from collections.abc import Callable
from contextlib import suppress

import trio

from varstore_companion.daemon.acceptor import Served
from varstore_companion.wire.limits import HELLO_SECONDS

POST = b"P"
"""The first byte of an unmodified varstored's `POST`; the framed protocol's is `V` (protocol/README.md, "Transport")."""


class FirstByte:
    """Waits for the first byte, leaves it in the socket, and has `post` or `framed` make the session that reads it.

    `framed` is also given the time (trio's clock) at which the connection was taken, since its HELLO has `HELLO_SECONDS`
    from then; it gets the peers that say nothing, too, so that they are told in its words why they are let go. Until the
    byte comes no session stands in memory.
    """

    __slots__ = ("_framed", "_post", "_session", "_stopping", "_stream", "_waiting")

    def __init__(
        self,
        stream: trio.SocketStream,
        *,
        framed: Callable[[trio.SocketStream, float], Served],
        post: Callable[[trio.SocketStream], Served],
    ) -> None:
        self._stream = stream
        self._framed = framed
        self._post = post
        self._waiting: trio.CancelScope | None = None
        self._session: Served | None = None
        self._stopping = False

    def stop(self) -> None:
        """End the connection at once when it waits for its peer, otherwise after the request that is being carried out."""
        self._stopping = True
        if self._waiting is not None:
            self._waiting.cancel()
        if self._session is not None:
            self._session.stop()

    async def run(self) -> None:
        """Serve the connection until either side ends it. Closes the stream."""
        with self._stream.socket:
            begun = trio.current_time()
            is_post = await self._look(begun + HELLO_SECONDS) == POST
            self._session = self._post(self._stream) if is_post else self._framed(self._stream, begun)
            if self._stopping:
                self._session.stop()
            await self._session.run()

    async def _look(self, deadline: float) -> bytes:
        """The first byte, which stays unread; empty when none comes."""
        first = b""
        self._waiting = trio.CancelScope(deadline=deadline)
        # What is wrong with the socket its session finds, too.
        with self._waiting, suppress(OSError):
            first = await self._stream.socket.recv(len(POST), socket.MSG_PEEK)
        self._waiting = None
        return first
