"""Calls that block, on threads beside trio's event loop, with an error that says so when the system gives no thread."""

import errno
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def run_sync(call: Callable[[], T], *, abandon_on_cancel: bool = False, limiter: trio.CapacityLimiter | None = None) -> T:
    """As `trio.to_thread.run_sync`. Raises what `call` raises, and `OSError` (EAGAIN), with nothing done, without a thread.

    The standard library has `RuntimeError` for that, which stands for a bug everywhere else.
    """
    has_begun = False

    def begin() -> T:
        nonlocal has_begun
        has_begun = True
        return call()

    try:
        return await trio.to_thread.run_sync(begin, abandon_on_cancel=abandon_on_cancel, limiter=limiter)
    except RuntimeError as error:
        if has_begun:
            raise
        raise OSError(errno.EAGAIN, f"the system gives no thread: {error}") from None
