"""A peer that misbehaves cannot choose how much is logged."""

import logging

import pytest
import trio
from trio.testing import MockClock

from varstore_companion.daemon.complaints import QUIET_SECONDS, Complaints


async def test_only_powers_of_two_are_said(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    complaints = Complaints("vm=7", logging.getLogger("test"))
    for _ in range(1_000):
        complaints.add("closed: too slow")
    assert len(caplog.messages) == 10
    assert caplog.messages[0] == "vm=7 closed: too slow"
    assert caplog.messages[-1] == "vm=7 closed: too slow (the 512th in a row)"
    await trio.sleep(QUIET_SECONDS + 1)
    complaints.add("closed: too slow")
    assert caplog.messages[-1] == "vm=7 closed: too slow"
    assert autojump_clock.current_time() > QUIET_SECONDS
