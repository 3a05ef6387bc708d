"""Waiting for a peer, which ends at a deadline or when the daemon stops: the same for every kind of connection."""

from collections.abc import Awaitable, Callable

import trio

DRAIN_SECONDS = 2.0
"""For what a peer is about to send when the daemon stops: it is on this machine, and has connected already."""


class PeerWait:
    """What a connection waits with. `stopped`: the daemon stops, and nothing more is waited for than what is on its way."""

    __slots__ = ("_scope", "_until", "stopped")

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = None
        self._until = float("inf")
        self.stopped = False

    def stop(self, patience: float = 0.0) -> None:
        """End the wait, and every later one, in `patience` seconds: at once, and before it begins, when there is none."""
        self.stopped = True
        self._until = min(self._until, trio.current_time() + patience)
        if self._scope is not None:
            self._scope.deadline = min(self._scope.deadline, self._until)

    async def receive(self, receive: Callable[[], Awaitable[bytes | bytearray]], deadline: float) -> bytes | None:
        """What `receive` gives, None when it does not until `deadline` (trio's clock) or the daemon stops."""
        if self._until <= trio.current_time():
            return None
        data: bytes | None = None
        self._scope = trio.CancelScope(deadline=min(deadline, self._until))
        try:
            with self._scope:
                data = bytes(await receive())
        finally:
            self._scope = None
        return data
