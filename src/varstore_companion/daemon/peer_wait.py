"""Waiting for a peer, which ends at a deadline or when the daemon stops: the same for every kind of connection."""

from collections.abc import Awaitable, Callable

import trio


class PeerWait:
    """What a connection waits with. `stopped`: the daemon stops, and nothing is waited for any more."""

    __slots__ = ("_scope", "stopped")

    def __init__(self) -> None:
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
                data = bytes(await receive())
        finally:
            self._scope = None
        return data
