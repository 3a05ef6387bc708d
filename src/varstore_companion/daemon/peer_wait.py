"""Waiting for a peer, which ends at a deadline or when the daemon stops: the same for every kind of connection."""

from collections.abc import Awaitable, Callable

import trio

from varstore_companion.daemon.limits import Share


class PeerWait:
    """What a connection waits with. `stopped`: the daemon stops, and nothing is waited for any more.

    `share`: of the bytes that may be in flight; None where nobody is counted.
    """

    __slots__ = ("_held", "_scope", "_share", "stopped")

    def __init__(self, share: Share | None = None) -> None:
        self._share = share
        self._held = 0
        self._scope: trio.CancelScope | None = None
        self.stopped = False

    def stop(self) -> None:
        """End the wait at once, and every later one before it begins."""
        self.stopped = True
        if self._scope is not None:
            self._scope.cancel()

    async def receive(self, receive: Callable[[], Awaitable[bytes | bytearray]], deadline: float) -> bytes | None:
        """What `receive` gives, None when it does not until `deadline` (trio's clock) or the daemon stops."""
        if self.stopped:
            return None
        data: bytes | None = None
        self._scope = trio.CancelScope(deadline=deadline)
        try:
            with self._scope:
                if self._share is not None:
                    await self._share.room(self)
                data = bytes(await receive())
        finally:
            self._scope = None
        if data:
            self.holds(self._held + len(data))
        return data

    def holds(self, size: int) -> None:
        """So many bytes of what came are not carried out yet; 0 at the connection's end, too."""
        self._held = size
        if self._share is not None:
            self._share.holds(self, size)
