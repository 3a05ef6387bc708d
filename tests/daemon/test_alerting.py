"""Alerts on their way to the toolstack: none that can still be delivered is lost, and none is repeated that may have been."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support import guards
from support.daemon import Machine, Place, still_host
from support.memory_toolstack import MemoryToolstack
from support.storemaker import scene
from varstore_companion.daemon.alerting import (
    ALERT_SECONDS,
    ALERTS_OF_A_VM,
    ALERTS_WAITING,
    END_SECONDS,
    KEPT_SECONDS,
    LONGEST_PAUSE_SECONDS,
    OTHERS_TRIED,
    Alerting,
)
from varstore_companion.daemon.alerts import UPDATE_FAILED, UPDATES_PAUSED
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.limits import Limits
from varstore_companion.daemon.staging import Paused, Staging
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.toolstack.xmlrpc import Call, Failure, Response
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Outcome

AWAY = ToolstackUnavailableError("xapi restarts")
LOST = ToolstackUnclearError("the answer was lost")
GONE = ToolstackRefusedError("HANDLE_INVALID", "no guard's socket is known")
NO = ToolstackRefusedError("PERMISSION_DENIED", "no")
ON_BOOT = CertificatesState.UPDATE_ON_BOOT


class Guards(MemoryToolstack):
    """A toolstack with a way of its own to each VM. `trouble`: what every alert over a VM's way meets."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: dict[UUID, Exception] = {}
        self.hanging: set[UUID] = set()
        self.tries: list[UUID] = []

    def set_upstream(self, vm: UUID, path: Path | None) -> None:
        """See `Upstreams`."""

    async def alert(self, vm: UUID, alert: Alert) -> None:
        self.tries.append(vm)
        await trio.lowlevel.checkpoint()
        if vm in self.hanging:
            await trio.sleep_forever()
        if vm in self.trouble:
            raise self.trouble[vm]
        self.alerts.append((vm, alert))


class Scene:
    """What sends alerts, over guards, without the rest of the daemon."""

    def __init__(self, folder: Path) -> None:
        self.guards = Guards()
        self.host: Host = still_host(folder, self.guards, upstreams=self.guards)
        self.attached: list[UUID] = []
        self.alerting.attached = lambda: self.attached

    @property
    def alerting(self) -> Alerting:
        return self.host.alerting

    @property
    def dropped(self) -> int:
        return self.host.stats.alerts_dropped

    @property
    def told(self) -> list[str]:
        return [alert.name for _, alert in self.guards.alerts]

    def alert(self, number: int, *, vm: UUID | None = None, priority: int = 4) -> UUID:
        """Have an alert sent."""
        vm = vm or uuid4()
        self.host.alert(vm, Alert(f"ALERT_{number}", priority, f"body {number}"))
        return vm

    def pause(self) -> UUID:
        """Have updates paused by the last of the VMs in trouble."""
        for _ in range(5):
            vm = uuid4()
            self.attached.append(vm)
            if self.host.staging.failed(vm, "away"):
                self.host.updates_paused(vm)
                return vm
        raise AssertionError

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it sends."""
        async with trio.open_nursery() as nursery:
            self.host.nursery = nursery
            nursery.start_soon(self.alerting.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
def guarded(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual clock waits for no thread."""

    async def save(self: Staging) -> None:
        await trio.lowlevel.checkpoint()
        self._write(
            None if self.paused is None else json.dumps({"at": self.paused.at, "reason": "x", "told": self.paused.told})
        )

    monkeypatch.setattr(Staging, "save", save)


def alert(place: Place, number: int) -> None:
    vm = uuid4()
    place.toolstack.vms[vm] = VmRecord(None, CertificatesState.OK, 0)
    place.host.alert(vm, Alert(f"ALERT_{number}", 4, "body"))


# One way for all VMs


@pytest.mark.parametrize("error", [LOST, NO, GONE, ValueError("a bug")])
async def test_what_may_have_been_delivered_or_is_refused_is_not_repeated(
    place: Place, caplog: pytest.LogCaptureFixture, error: Exception, mock_clock: MockClock
) -> None:
    place.toolstack.fail_next("alert", error)
    for number in range(2):
        alert(place, number)
        await wait_all_tasks_blocked()
    assert place.alerts() == ["ALERT_1"]
    assert place.host.stats.alerts_dropped == 1
    assert any("ALERT_0 could not be delivered" in line for line in caplog.messages)
    mock_clock.jump(10 * LONGEST_PAUSE_SECONDS)
    await wait_all_tasks_blocked()
    assert place.toolstack.calls["alert"] == 2


async def test_one_that_hangs_is_given_up(place: Place, caplog: pytest.LogCaptureFixture, mock_clock: MockClock) -> None:
    place.toolstack.hang_next("alert")
    for number in range(2):
        alert(place, number)
        await wait_all_tasks_blocked()
    assert place.alerts() == []
    mock_clock.jump(ALERT_SECONDS)
    await wait_all_tasks_blocked()
    assert place.alerts() == ["ALERT_1"]
    assert place.host.stats.alerts_dropped == 1
    assert any("ALERT_0 could not be delivered: the toolstack did not take it within" in line for line in caplog.messages)


async def test_alerts_before_the_daemon_runs_are_delivered_once_it_does(still: Place) -> None:
    alert(still, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(still.host.send_alerts)
        await wait_all_tasks_blocked()
        assert still.alerts() == ["ALERT_0"]
        nursery.cancel_scope.cancel()


async def test_when_the_toolstack_is_back_for_one_all_are_tried_at_once(place: Place, mock_clock: MockClock) -> None:
    place.toolstack.fail_next("alert", *[AWAY] * 40)
    for number in range(4):
        alert(place, number)
    await wait_all_tasks_blocked()
    while not place.alerts():
        mock_clock.jump(1)
        await wait_all_tasks_blocked()
    assert place.toolstack.calls["alert"] == 44
    assert sorted(place.alerts()) == [f"ALERT_{number}" for number in range(4)]
    assert place.host.stats.alerts_dropped == 0
    assert place.host.alerting.waiting == 0


# A way for each VM


async def test_an_alert_that_meets_a_guard_that_is_away_is_delivered_when_it_is_back(
    guarded: Scene, autojump_clock: MockClock
) -> None:
    vm = guarded.alert(0)
    guarded.guards.trouble[vm] = AWAY
    guarded.alert(1, vm=vm)
    async with guarded.running():
        await trio.sleep(3_000)
        assert guarded.told == []
        assert guarded.alerting.waiting == 2
        # Backoff: seconds first, then a minute.
        assert 3_000 / LONGEST_PAUSE_SECONDS <= len(guarded.guards.tries) <= 2 * 3_000 / LONGEST_PAUSE_SECONDS + 10
        guarded.guards.trouble.clear()
        await trio.sleep(LONGEST_PAUSE_SECONDS)
        assert guarded.told == ["ALERT_0", "ALERT_1"]
    assert guarded.dropped == 0


async def test_guards_that_are_away_or_hang_hold_up_no_other(guarded: Scene, mock_clock: MockClock) -> None:
    async with guarded.running():
        for number in range(100):
            vm = guarded.alert(number)
            if number % 2:
                guarded.guards.trouble[vm] = AWAY
            else:
                guarded.guards.hanging.add(vm)
        await wait_all_tasks_blocked()
        guarded.alert(1_000)
        await wait_all_tasks_blocked()
        assert guarded.told == ["ALERT_1000"]
        assert mock_clock.current_time() == 0


async def test_a_vm_that_is_detached_is_told_of_when_it_is_attached_again(guarded: Scene, mock_clock: MockClock) -> None:
    vm = guarded.alert(0)
    guarded.guards.trouble[vm] = GONE
    async with guarded.running():
        await wait_all_tasks_blocked()
        assert guarded.alerting.waiting == 1
        guarded.guards.trouble.clear()
        guarded.host.wake(vm)
        await wait_all_tasks_blocked()
        assert guarded.told == ["ALERT_0"]
        assert mock_clock.current_time() == 0


@pytest.mark.parametrize("error", [AWAY, GONE])
async def test_it_is_given_up_after_hours(
    guarded: Scene, error: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    vm = guarded.alert(0)
    guarded.guards.trouble[vm] = error
    async with guarded.running():
        await trio.sleep(KEPT_SECONDS - 1)
        assert guarded.alerting.waiting == 1
        await trio.sleep(LONGEST_PAUSE_SECONDS + 1)
        assert guarded.alerting.waiting == 0
    assert guarded.dropped == 1
    (line,) = [line for line in caplog.messages if "could not be delivered" in line]
    assert f"vm={vm} alert ALERT_0" in line
    assert line.endswith("body 0")
    assert len(caplog.messages) < 20


# What may wait


async def test_what_waits_is_bounded_and_the_oldest_of_least_worth_goes(
    guarded: Scene, caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    async with guarded.running():
        for number in range(ALERTS_WAITING):
            vm = guarded.alert(number, priority=4 if number < 3 else 3)
            guarded.guards.trouble[vm] = AWAY
        await wait_all_tasks_blocked()
        for number in range(5):
            guarded.guards.trouble[guarded.alert(1_000 + number, priority=2)] = AWAY
            await wait_all_tasks_blocked()
        assert guarded.dropped == 5
        gone = [line.split()[2] for line in caplog.messages if "could not be delivered" in line]
        assert gone == [f"ALERT_{number}" for number in range(5)]
        # One that is worth less than all that wait does not take their place.
        guarded.alert(2_000, priority=5)
        assert guarded.dropped == 6
        assert guarded.alerting.waiting == ALERTS_WAITING
        guarded.guards.trouble.clear()
        mock_clock.jump(LONGEST_PAUSE_SECONDS)
        await wait_all_tasks_blocked()
        assert sorted(guarded.told) == sorted(f"ALERT_{number}" for number in [*range(5, ALERTS_WAITING), *range(1_000, 1_005)])


async def test_one_vm_pushes_out_no_alerts_but_its_own(guarded: Scene, mock_clock: MockClock) -> None:
    other = guarded.alert(0)
    noisy = guarded.alert(1)
    guarded.guards.trouble.update({other: AWAY, noisy: AWAY})
    async with guarded.running():
        for number in range(2, 1_000):
            guarded.alert(number, vm=noisy)
            guarded.alert(number, vm=noisy)  # the same again waits already
            await wait_all_tasks_blocked()
        assert guarded.alerting.waiting == 1 + ALERTS_OF_A_VM
        assert guarded.dropped == 999 - ALERTS_OF_A_VM
        guarded.guards.trouble.clear()
        mock_clock.jump(LONGEST_PAUSE_SECONDS)
        await wait_all_tasks_blocked()
    names = [f"ALERT_{number}" for number in range(1_000 - ALERTS_OF_A_VM, 1_000)]
    assert [alert.name for vm, alert in guarded.guards.alerts if vm == noisy] == names
    assert [alert.name for vm, alert in guarded.guards.alerts if vm == other] == ["ALERT_0"]


async def test_one_that_is_being_sent_is_not_dropped(guarded: Scene) -> None:
    vm = guarded.alert(0, priority=5)
    guarded.guards.hanging.add(vm)
    async with guarded.running():
        await wait_all_tasks_blocked()
        for number in range(1, ALERTS_OF_A_VM + 2):
            guarded.alert(number, vm=vm)
        assert guarded.dropped == 2
        queue = guarded.alerting._queues[vm]
        assert [each.alert.name for each in queue.waiting] == ["ALERT_0", *(f"ALERT_{n}" for n in range(3, ALERTS_OF_A_VM + 2))]


async def test_nothing_is_kept_of_a_vm_that_was_told_of(guarded: Scene) -> None:
    async with guarded.running():
        for number in range(50):
            guarded.alert(number)
            await wait_all_tasks_blocked()
        assert guarded.alerting._queues == {}
        assert guarded.alerting._nursery is not None
        assert len(guarded.alerting._nursery.child_tasks) == 1


# The daemon's end


async def test_at_the_end_what_waits_is_tried_once_more_and_the_rest_is_in_the_log(
    guarded: Scene, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    back, away = guarded.alert(0), guarded.alert(1)
    guarded.guards.trouble.update({back: AWAY, away: AWAY})
    guarded.alert(2, vm=away)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guarded.alerting.run)
        await wait_all_tasks_blocked()
        del guarded.guards.trouble[back]
        tries = len(guarded.guards.tries)
        guarded.host.end_alerts()
    assert len(guarded.guards.tries) - tries == 3
    assert guarded.told == ["ALERT_0"]
    assert guarded.dropped == 2
    assert sum(f"vm={away} alert ALERT_{n} could not be delivered" in line for line in caplog.messages for n in (1, 2)) == 2
    guarded.alert(3)
    assert guarded.dropped == 3
    assert mock_clock.current_time() == 0


async def test_the_end_does_not_wait_for_guards_that_hang(guarded: Scene, autojump_clock: MockClock) -> None:
    for number in range(20):
        guarded.guards.hanging.add(guarded.alert(number))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guarded.alerting.run)
        await trio.sleep(1)
        guarded.host.end_alerts()
    assert trio.current_time() == pytest.approx(1 + END_SECONDS)
    assert guarded.dropped == 20


async def test_a_daemon_that_is_cancelled_says_what_it_did_not_deliver(
    guarded: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async with guarded.running():
        guarded.guards.hanging.add(guarded.alert(0))
        guarded.guards.trouble[guarded.alert(1)] = AWAY
        await wait_all_tasks_blocked()
    assert guarded.dropped == 2
    assert sum("the daemon ended before" in line for line in caplog.messages) == 2


# The pause of updates


async def test_the_pause_is_told_over_another_vm_when_the_guards_of_those_in_trouble_are_away(
    guarded: Scene, mock_clock: MockClock
) -> None:
    async with guarded.running():
        last = guarded.pause()
        guarded.guards.trouble.update(dict.fromkeys(guarded.attached, AWAY))
        await wait_all_tasks_blocked()
        assert guarded.told == []
        assert guarded.alerting.waiting == 1
        other = uuid4()
        guarded.attached.append(other)
        guarded.host.wake(other)
        await wait_all_tasks_blocked()
        ((vm, told),) = guarded.guards.alerts
        assert (vm, told.name) == (other, UPDATES_PAUSED)
        assert str(last) in told.body
        assert mock_clock.current_time() == 0
        assert guarded.host.staging.paused is not None
        assert guarded.host.staging.paused.told
        assert guarded.alerting.waiting == 0
        # And not again.
        guarded.host.wake(other)
        mock_clock.jump(10 * LONGEST_PAUSE_SECONDS)
        await wait_all_tasks_blocked()
        assert len(guarded.told) == 1


async def test_the_pause_waits_as_long_as_it_takes_and_finds_the_one_way_there_is(
    guarded: Scene, autojump_clock: MockClock
) -> None:
    async with guarded.running():
        guarded.pause()
        guarded.attached += [uuid4() for _ in range(5 * OTHERS_TRIED)]
        guarded.guards.trouble.update(dict.fromkeys(guarded.attached, GONE))
        await trio.sleep(2 * KEPT_SECONDS)
        assert guarded.told == []
        del guarded.guards.trouble[guarded.attached[17]]
        await trio.sleep(10 * LONGEST_PAUSE_SECONDS)
        assert guarded.told == [UPDATES_PAUSED]
    assert guarded.dropped == 0


async def test_no_other_alert_takes_the_pauses_place(guarded: Scene, mock_clock: MockClock) -> None:
    async with guarded.running():
        guarded.pause()
        guarded.guards.trouble.update(dict.fromkeys(guarded.attached, AWAY))
        for number in range(ALERTS_WAITING + 10):
            guarded.guards.trouble[guarded.alert(number, priority=1)] = AWAY
        await wait_all_tasks_blocked()
        guarded.guards.trouble.clear()
        mock_clock.jump(LONGEST_PAUSE_SECONDS)
        await wait_all_tasks_blocked()
        assert UPDATES_PAUSED in guarded.told


@pytest.mark.parametrize("error", [LOST, ValueError("a bug")])
async def test_a_pause_of_which_operators_may_know_is_told_again_by_the_next_daemon_only(
    guarded: Scene, tmp_path: Path, mock_clock: MockClock, error: Exception
) -> None:
    async with guarded.running():
        guarded.guards.trouble[guarded.pause()] = error
        await wait_all_tasks_blocked()
        mock_clock.jump(10 * LONGEST_PAUSE_SECONDS)
        await wait_all_tasks_blocked()
        assert len(guarded.guards.tries) == 1
        assert guarded.dropped == 1
        assert (Staging(tmp_path / "updates-paused.json", Limits, lambda: 0.0).paused or Paused(0, "", told=True)).told is False
        # Another pause is news.
        guarded.host.staging.resume()
        guarded.pause()
        await wait_all_tasks_blocked()
        assert guarded.told == [UPDATES_PAUSED]


async def test_that_a_pause_was_told_cannot_be_kept(
    guarded: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = OSError(28, "No space left on device")

    async def fails() -> None:
        raise error

    monkeypatch.setattr(guarded.host.staging, "save", fails)
    async with guarded.running():
        vm = guarded.pause()
        await wait_all_tasks_blocked()
        assert guarded.told == [UPDATES_PAUSED]
        assert f"alerts of the pause of updates again: {error}" in caplog.text
        # And goes on.
        guarded.host.alert(vm, Alert("LATER", 5, "text"))
        await wait_all_tasks_blocked()
        assert guarded.told == [UPDATES_PAUSED, "LATER"]


async def test_a_pause_that_one_guard_refuses_is_told_over_another(guarded: Scene, mock_clock: MockClock) -> None:
    async with guarded.running():
        guarded.guards.trouble[guarded.pause()] = NO
        await wait_all_tasks_blocked()
        assert guarded.told == [UPDATES_PAUSED]
        assert mock_clock.current_time() == 0


async def test_a_pause_that_all_guards_refuse_is_given_up_once_none_is_away(guarded: Scene, mock_clock: MockClock) -> None:
    async with guarded.running():
        guarded.guards.trouble[guarded.pause()] = NO
        guarded.guards.trouble.update(dict.fromkeys(guarded.attached[:4], NO))
        guarded.guards.trouble[guarded.attached[0]] = AWAY
        await wait_all_tasks_blocked()
        assert (guarded.alerting.waiting, guarded.dropped) == (1, 0)
        guarded.guards.trouble[guarded.attached[0]] = NO
        mock_clock.jump(LONGEST_PAUSE_SECONDS)
        await wait_all_tasks_blocked()
        assert (guarded.alerting.waiting, guarded.dropped) == (0, 1)


async def test_the_pause_does_not_wait_behind_alerts_that_hang(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("alert")
    alert(place, 0)
    alert(place, 1)
    await hang.reached.wait()
    place.host.staging.pause("5 VMs", told=False)
    place.host.updates_paused(machine.vm)
    await wait_all_tasks_blocked()
    assert place.alerts() == [UPDATES_PAUSED]
    hang.release.set()


async def test_a_pause_that_is_over_is_told_to_nobody(guarded: Scene, mock_clock: MockClock) -> None:
    async with guarded.running():
        guarded.pause()
        guarded.guards.trouble.update(dict.fromkeys(guarded.attached, AWAY))
        await wait_all_tasks_blocked()
        guarded.host.staging.resume()
        guarded.guards.trouble.clear()
        mock_clock.jump(10 * LONGEST_PAUSE_SECONDS)
        await wait_all_tasks_blocked()
        # Nor is that of an operator, who knows.
        guarded.host.staging.pause("an operator paused them")
        guarded.alerting.wake(uuid4())
        await wait_all_tasks_blocked()
        assert guarded.told == []
        assert guarded.dropped == 0


async def test_a_pause_nobody_was_told_of_is_told_by_the_next_daemon(tmp_path: Path, mock_clock: MockClock) -> None:
    first = Scene(tmp_path)
    async with trio.open_nursery() as nursery:
        first.host.nursery = nursery
        nursery.start_soon(first.alerting.run)
        first.pause()
        first.guards.trouble.update(dict.fromkeys(first.attached, AWAY))
        await wait_all_tasks_blocked()
        first.host.end_alerts()
    assert first.told == []

    second = Scene(tmp_path)
    async with second.running():
        await wait_all_tasks_blocked()
        # No VM is attached yet.
        assert second.told == []
        second.attached.append(uuid4())
        mock_clock.jump(1)
        await wait_all_tasks_blocked()
        assert second.told == [UPDATES_PAUSED]

    third = Scene(tmp_path)
    third.attached.append(uuid4())
    async with third.running():
        await wait_all_tasks_blocked()
        assert third.told == []
    assert third.host.staging.paused is not None


def test_a_pause_from_before_it_was_kept_whether_anybody_knows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text('{"at": 5.0, "reason": "5 VMs"}\n')
    assert Staging(path, Limits, lambda: 0.0).paused == Paused(5.0, "5 VMs", told=False)


# Whole


async def test_a_daemon_that_finds_a_pause_nobody_knows_of_tells_it_over_a_vm_that_is_attached(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    (tmp_path / "updates-paused.json").write_text('{"at": 5.0, "reason": "5 VMs", "told": false}')
    place = Place(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(place.daemon.run)
        await wait_all_tasks_blocked()
        assert (place.alerts(), place.host.alerting.waiting) == ([], 1)
        machine = await place.machine(scene("ms2011").blob, ON_BOOT)
        await wait_all_tasks_blocked()
        ((vm, told),) = place.toolstack.alerts
        assert (vm, told.name) == (machine.vm, UPDATES_PAUSED)
        assert "5 VMs" in told.body
        assert mock_clock.current_time() == 0
        nursery.cancel_scope.cancel()
    assert json.loads((tmp_path / "updates-paused.json").read_text())["told"] is True


async def test_marked_vms_whose_toolstack_is_away_for_writes_and_alerts(place: Place, mock_clock: MockClock) -> None:
    """Reads are answered all the while: the updates fail, and the trouble is known only here."""
    machines: list[Machine] = [await place.machine(scene("ms2011").blob, ON_BOOT, name=f"{number}.sock") for number in range(5)]
    place.toolstack.fail_next("alert", *[AWAY] * 60)
    for machine in machines:
        place.toolstack.fail_next("write", AWAY)
        assert (await machine.boot()).outcome is Outcome.FAILED
    await wait_all_tasks_blocked()
    assert place.alerts() == []
    assert place.host.alerting.waiting == 6
    for _ in range(40):
        mock_clock.jump(LONGEST_PAUSE_SECONDS)
        await wait_all_tasks_blocked()
    assert sorted(place.alerts()) == sorted([UPDATES_PAUSED, *[UPDATE_FAILED] * 5])
    assert {vm for vm, each in place.toolstack.alerts if each.name == UPDATE_FAILED} == {machine.vm for machine in machines}
    assert place.host.stats.alerts_dropped == 0


async def test_guards_that_are_away_for_writes_and_alerts(tmp_path: Path) -> None:
    """The same, as it is found on a host whose xapi is restarted behind its guards."""
    away = True
    async with trio.open_nursery() as nursery:
        place = guards.Place(tmp_path, nursery)
        await nursery.start(place.daemon.run)
        models = []
        for _ in range(5):
            machine, guard, server = await place.machine(scene("ms2011").blob, ON_BOOT)

            def answer(call: Call, there: Callable[[Call], Response] = guard.answer) -> Response:
                if away and call.method not in ("VM.get_NVRAM", "VM.get_secureboot_certificates_state"):
                    return Failure(("Internal_error", 'Unix.Unix_error(Unix.ECONNREFUSED, "connect", "")'))
                return there(call)

            server.answer = answer
            models.append(guard.model)
            assert (await machine.boot()).outcome is Outcome.FAILED
        await wait_all_tasks_blocked(0.05)
        assert place.host.alerting.waiting == 6
        away = False
        await place.daemon.stop()
        bodies = [alert.body for model in models for _, alert in model.alerts]
        nursery.cancel_scope.cancel()
    assert sorted(body.partition(":")[0] for body in bodies) == sorted([UPDATES_PAUSED, *[UPDATE_FAILED] * 5])
    assert place.host.staging.paused is not None
    assert place.host.staging.paused.told
    assert place.host.stats.alerts_dropped == 0
