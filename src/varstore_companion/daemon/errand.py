"""A call that goes on to its end though nobody waits for it any more.

A toolstack may be unable to leave a call that has begun, as SQLite is in an fsync on a disk that hangs, and a boot must not
wait for that.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Errand(Generic[T]):
    """One call, run as a task of `nursery`. What it raises is given to who asks for the result, and to nobody else."""

    def __init__(self, nursery: trio.Nursery, call: Callable[[], Awaitable[T]], name: str) -> None:
        self._call = call
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._values: list[T] = []
        self._error: Exception | None = None
        nursery.start_soon(self._run, name=name)

    async def ended(self) -> None:
        """Wait until the call is over, however it went."""
        await self._ended.wait()

    @property
    def is_over(self) -> bool:
        """Whether nothing of the call is still to come."""
        return self._ended.is_set()

    def give_up(self) -> None:
        """Cancel the call; it is over once `ended` says so."""
        self._scope.cancel()

    def result(self) -> T | None:
        """What the call returned, None when it was cancelled; raises what it raised. For when it is over."""
        if self._error is not None:
            raise self._error
        return self._values[0] if self._values else None

    async def _run(self) -> None:
        try:
            with self._scope:
                self._values.append(await self._call())
        except Exception as error:  # noqa: BLE001  kept for `result`
            self._error = error
        finally:
            self._ended.set()
