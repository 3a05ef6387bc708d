"""A connection to a VM's socket until its first byte, which says what it speaks."""

from collections.abc import Callable
from contextlib import suppress

import trio

from varstore_companion.daemon.acceptor import Served
from varstore_companion.daemon.limits import FREE_BYTES
from varstore_companion.daemon.peer_wait import DRAIN_SECONDS, PeerWait
from varstore_companion.unix_stream import UnixStream
from varstore_companion.wire.limits import HELLO_SECONDS

POST = b"P"
"""The first byte of an unmodified varstored's `POST`; the framed protocol's is `V` (protocol/README.md, "Transport")."""


class FirstByte:
    """Waits for the first byte, gives it back to the stream, and gives the session that reads it: `post`'s or `framed`'s.

    `framed` is told the time (trio's clock) at which the connection was taken, since its HELLO has `HELLO_SECONDS` from then.
    It gets the peers that say nothing, too, so that they are told in its words why they are let go. Until the byte comes no
    session stands in memory, and afterwards this does not.
    """

    __slots__ = ("_framed", "_post", "_stream", "_wait")

    def __init__(
        self,
        stream: UnixStream,
        *,
        framed: Callable[[UnixStream, float], Served],
        post: Callable[[UnixStream], Served],
    ) -> None:
        self._stream = stream
        self._framed = framed
        self._post = post
        self._wait = PeerWait()

    def stop(self) -> None:
        """Wait as long as a call may be on its way; the session that comes is stopped, too."""
        self._wait.stop(DRAIN_SECONDS)

    async def run(self) -> Served:
        """Wait for the first byte. Closes the stream only when it is cancelled."""
        begun = trio.current_time()
        session: Served | None = None
        try:
            is_post = await self._look(begun + HELLO_SECONDS) == POST
            session = self._post(self._stream) if is_post else self._framed(self._stream, begun)
        finally:
            if session is None:
                self._stream.close()
        if self._wait.stopped:
            session.stop()
        return session

    async def _look(self, deadline: float) -> bytes:
        """The first byte, which stays unread; empty when none comes."""
        # What is wrong with the socket its session finds, too.
        with suppress(trio.BrokenResourceError):
            # Who connects speaks at once, and has spoken by the time that somebody listens.
            data = self._wait.receive_now(self._stream, FREE_BYTES)
            if data is None:
                data = await self._wait.receive(self._stream, FREE_BYTES, deadline) or b""
            self._stream.unread(data)
            return data[: len(POST)]
        return b""
