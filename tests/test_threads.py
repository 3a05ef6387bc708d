"""Calls on threads: as trio makes them, and a system that gives no thread is an `OSError` like any other it gives."""

import errno

import pytest
import trio

from varstore_companion import threads


async def test_what_the_call_returns_and_raises() -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    limiter = trio.CapacityLimiter(1)
    assert await threads.run_sync(lambda: 7, limiter=limiter) == 7
    with pytest.raises(RuntimeError, match="a bug"):
        await threads.run_sync(fail, limiter=limiter)


async def test_a_system_that_gives_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    async def no_thread(*_given: object, **_named: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    with pytest.raises(OSError, match="no thread: can't start new thread") as raised:
        await threads.run_sync(lambda: calls.append(1))
    assert (raised.value.errno, calls) == (errno.EAGAIN, [])
