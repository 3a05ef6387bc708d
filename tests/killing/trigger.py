"""The moment at which the daemon is killed."""

from collections.abc import Callable

import trio

MOMENTS = ("write sent", "write arrived", "write carried out", "write acknowledged", "read answered")


class Trigger:
    """Set for the n-th time that something happens from now on; it kills in that very moment, before anything else does."""

    def __init__(self) -> None:
        self._moment = ""
        self._left = 0
        self._kill: Callable[[], None] | None = None
        self._pulled = trio.Event()

    def set(self, moment: str, count: int, kill: Callable[[], None]) -> trio.Event:
        """The event is set when it has been pulled."""
        assert moment in MOMENTS
        self._moment, self._left, self._kill, self._pulled = moment, count, kill, trio.Event()
        return self._pulled

    def clear(self) -> None:
        """Kill no more."""
        self._kill = None

    def hit(self, moment: str) -> None:
        """It has happened."""
        if self._kill is not None and moment == self._moment:
            self._left -= 1
            if self._left <= 0:
                kill, self._kill = self._kill, None
                kill()
                self._pulled.set()
