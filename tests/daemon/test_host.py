"""Alerts on their way to the toolstack."""

from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Place
from varstore_companion.daemon.host import ALERT_SECONDS, ALERTS_WAITING
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.trust.state import CertificatesState


def alert(place: Place, number: int) -> None:
    vm = uuid4()
    place.toolstack.vms[vm] = VmRecord(None, CertificatesState.OK, 0)
    place.host.alert(vm, Alert(f"ALERT_{number}", 4, "body"))


async def test_what_waits_is_bounded_and_the_rest_is_counted(
    place: Place, caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    hang = place.toolstack.hang_next("alert")
    alert(place, 0)
    await hang.reached.wait()
    for number in range(ALERTS_WAITING + 7):
        alert(place, number + 1)
    assert place.host.stats.alerts_dropped == 7
    assert sum("dropped" in line for line in caplog.messages) == 7
    assert mock_clock.current_time() == 0
    hang.release.set()
    await wait_all_tasks_blocked()
    assert place.alerts() == [f"ALERT_{number}" for number in range(ALERTS_WAITING + 1)]


@pytest.mark.parametrize(
    "error", [ToolstackUnavailableError("away"), ToolstackRefusedError("HANDLE_INVALID", "gone"), ValueError("a bug")]
)
async def test_one_that_fails_is_in_the_log_and_the_next_one_goes(
    place: Place, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    place.toolstack.fail_next("alert", error)
    alert(place, 0)
    alert(place, 1)
    await wait_all_tasks_blocked()
    assert place.alerts() == ["ALERT_1"]
    assert any("ALERT_0 could not be delivered" in line for line in caplog.messages)


async def test_one_that_hangs_is_given_up(place: Place, caplog: pytest.LogCaptureFixture, mock_clock: MockClock) -> None:
    place.toolstack.hang_next("alert")
    alert(place, 0)
    alert(place, 1)
    await wait_all_tasks_blocked()
    assert place.alerts() == []
    mock_clock.jump(ALERT_SECONDS)
    await wait_all_tasks_blocked()
    assert place.alerts() == ["ALERT_1"]
    assert any("could not be delivered within" in line for line in caplog.messages)


async def test_alerts_before_the_daemon_runs_are_delivered_once_it_does(still: Place) -> None:
    alert(still, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(still.host.send_alerts)
        await wait_all_tasks_blocked()
        assert still.alerts() == ["ALERT_0"]
        nursery.cancel_scope.cancel()
