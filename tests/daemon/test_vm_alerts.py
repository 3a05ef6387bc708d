"""Alerts about Secure Boot, and what one VM leaves in the log."""

import logging
import re

import pytest
import trio
from trio.testing import MockClock

from support.daemon import Machine, Place
from support.peer import Refused
from support.storemaker import scene
from varstore_companion.daemon import vm as vm_module
from varstore_companion.errors import (
    ToolstackUnavailableError,
)
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import (
    Reason,
    SbFailure,
    SbFailureAnswer,
)

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT

UNAVAILABLE = ToolstackUnavailableError("xapi restarts")


async def sb_failure(machine: Machine, detail: str | None) -> None:
    async with machine.peer() as peer:
        await peer.call(SbFailure(detail), SbFailureAnswer)


async def test_a_guest_cannot_fill_the_operators_list(place: Place, mock_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob)
    other = await place.machine(scene("ms2011").blob, name="other.sock")
    for _ in range(50):
        await sb_failure(machine, "dbx")
    assert place.alerts() == ["VM_SECURE_BOOT_FAILED"]
    assert place.toolstack.alerts[0][1].priority == 5
    assert place.host.stats.secure_boot_failures == 50
    await sb_failure(other, None)
    assert len(place.alerts()) == 2
    mock_clock.jump(vm_module.SB_FAILURE_SECONDS)
    await sb_failure(machine, None)
    assert len(place.alerts()) == 3
    assert place.toolstack.alerts[2][1].body == "The VM failed to pass Secure Boot verification."


async def test_an_alert_that_fails_is_said_and_may_be_tried_again_at_once(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob)
    place.toolstack.fail_next("alert", UNAVAILABLE, RuntimeError("a bug"))
    for code in (ErrorCode.TOOLSTACK_UNAVAILABLE, ErrorCode.UNCLEAR):
        with pytest.raises(Refused) as caught:
            await sb_failure(machine, "x")
        assert caught.value.code is code
    await sb_failure(machine, "x")
    assert len(place.alerts()) == 1


async def test_two_sockets_at_once_make_one_alert(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob)
    hang = place.toolstack.hang_next("alert")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sb_failure, machine, "x")
        await hang.reached.wait()
        await sb_failure(machine, "x")
        hang.release.set()
    assert len(place.alerts()) == 1


async def test_an_alert_that_hangs_is_answered(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob)
    place.toolstack.hang_next("alert")
    with pytest.raises(Refused) as caught:
        await sb_failure(machine, "x")
    assert caught.value.code is ErrorCode.UNCLEAR
    assert autojump_clock.current_time() <= 60
    await sb_failure(machine, "x")
    assert len(place.alerts()) == 1


async def test_what_the_guest_says_stays_on_its_line(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    machine = await place.machine(scene("ms2011").blob)
    with caplog.at_level(logging.DEBUG):
        await sb_failure(machine, "a\nERROR vm=0 b\r\x1b[2J\u2028c" + "x" * 1000)
    ((_, alert),) = place.toolstack.alerts
    assert re.search(r"[\n\r\x1b\u2028]", alert.body) is None
    assert all(re.search(r"[\n\r\x1b\u2028]", line) is None for line in caplog.messages)


async def test_every_line_of_a_vm_names_it_and_no_line_has_its_store(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        machine = await place.machine(scene("ms2011").blob, ON_BOOT)
        async with machine.peer() as peer:
            await peer.get()
            await peer.put(scene("custom_keys").blob)
            with pytest.raises(Refused):
                await peer.put(b"VARS\0\0\0\0 a marker of this store" * 10)
            await peer.get(Reason.TOOL)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("varstore_companion.daemon")]
    assert len(lines) == 4
    for line in lines:
        assert f"vm={machine.vm}" in line or "ready:" in line
        assert "VARS" not in line
        assert "a marker" not in line
        assert len(line) < 600
