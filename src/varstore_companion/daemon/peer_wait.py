"""Waiting for a peer, which ends at a deadline or when the daemon stops: the same for every kind of connection."""

import logging
from collections.abc import Awaitable, Callable

import trio

from varstore_companion.daemon.limits import Share
from varstore_companion.unix_stream import UnixStream

log = logging.getLogger(__name__)

DRAIN_SECONDS = 2.0
"""For what a peer is about to send when the daemon stops: it is on this machine, and has connected already."""
TAKE_SECONDS = 5.0
"""For a peer to take its answers when the daemon stops, or its socket is no more: half of what a stop has for all requests."""


class PeerWait:
    """What a connection waits with. `stopped`: the daemon stops, and nothing more is waited for than what is on its way.

    `share`: of the bytes that may be in flight; None where nobody is counted.
    """

    __slots__ = ("_held", "_reading", "_scope", "_share", "_stream", "_until", "stopped")

    def __init__(self, share: Share | None = None) -> None:
        self._share = share
        self._held = 0
        self._scope: trio.CancelScope | None = None
        self._reading: UnixStream | None = None
        self._stream: UnixStream | None = None
        self._until = float("inf")
        self.stopped = False

    def stop(self, patience: float = 0.0) -> None:
        """End the wait, and every later one, in `patience` seconds: at once, and before it begins, when there is none.

        From now on the peer that is served has `TAKE_SECONDS` to take all of its answers.
        """
        self.stopped = True
        if self._stream is not None:
            self._stream.hurry(TAKE_SECONDS)
        self._until = min(self._until, trio.current_time() + patience)
        if self._scope is not None:
            self._scope.deadline = min(self._scope.deadline, self._until)
        elif self._reading is not None:
            self._reading.wake()

    async def serve(self, stream: UnixStream, run: Callable[[], Awaitable[None]], who: str) -> None:
        """Serve a connection by `run` until either side ends it. Closes the stream."""
        self._stream = stream
        if self.stopped:
            stream.hurry(TAKE_SECONDS)
        async with stream:
            try:
                await run()
            except trio.BrokenResourceError:
                log.debug("%s the peer went away", who)
            finally:
                self.holds(0)

    async def receive(self, stream: UnixStream, most: int, deadline: float) -> bytes | None:
        """At most `most` bytes of what comes, None when none come until `deadline` (trio's clock) or the daemon stops."""
        data: bytes | None = None
        if deadline == float("inf") and not self.stopped and (self._share is None or self._share.has_room(self)):
            data = await self._read_until_stopped(stream, most)
        if data is None:
            data = await self._read_until(stream, most, deadline)
        if data:
            self.holds(self._held + len(data))
        return data

    async def _read_until_stopped(self, stream: UnixStream, most: int) -> bytes | None:
        """As `receive`, for a peer that may take its time; None when the daemon stops. Costs no scope: a tenth of a write."""
        self._reading = stream
        try:
            return await stream.receive_some(most)
        except trio.ClosedResourceError:
            return None
        finally:
            self._reading = None

    async def _read_until(self, stream: UnixStream, most: int, deadline: float) -> bytes | None:
        if self._until <= trio.current_time():
            return None
        data: bytes | None = None
        self._scope = trio.CancelScope(deadline=min(deadline, self._until))
        try:
            with self._scope:
                if self._share is not None:
                    await self._share.room(self)
                data = await stream.receive_some(most)
        finally:
            self._scope = None
        return data

    def receive_now(self, stream: UnixStream, most: int) -> bytes | None:
        """At most `most` bytes of what has come; None when there are none yet, or they must not be read yet."""
        if self.stopped or (self._share is not None and not self._share.has_room(self)):
            return None
        data = stream.receive_now(most)
        if data:
            self.holds(self._held + len(data))
        return data

    def holds(self, size: int) -> None:
        """So many bytes of what came are not carried out yet."""
        self._held = size
        if self._share is not None:
            self._share.holds(self, size)
