"""A trio loop that stands still between two calls of who drives it, for state machines on a virtual clock."""

import queue
import threading
from collections.abc import Awaitable, Callable

import trio
from trio.testing import MockClock


class Running:
    """A trio loop in a thread, in which time goes on only while something is carried out."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Awaitable[object]] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[object, Exception | None]] = queue.SimpleQueue()
        self.nursery: trio.Nursery
        self._thread = threading.Thread(target=lambda: trio.run(self._run, clock=MockClock(autojump_threshold=0)))
        self._thread.start()

    def __call__(self, call: Callable[[], Awaitable[object]]) -> None:
        """Carry it out, and raise what it raises."""
        self._asked.put(call)
        _, error = self._answers.get(timeout=60)
        if error is not None:
            raise error

    def end(self) -> None:
        self._asked.put(None)
        self._thread.join(60)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            # Blocking, on purpose: the clock must not run on between two rules.
            while (call := self._asked.get()) is not None:
                error = None
                try:
                    await call()
                except Exception as raised:  # noqa: BLE001  it is raised where it was asked for
                    error = raised
                self._answers.put((None, error))
            nursery.cancel_scope.cancel()
