"""Updates pause on the whole host when too many VMs have had trouble with theirs, and no guest can make them."""

import json
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from trio.testing import wait_all_tasks_blocked

from support.daemon import Machine, Place
from support.peer import greeted
from support.storemaker import scene
from varstore_companion.daemon.alerts import UPDATE_FAILED, UPDATED, UPDATES_PAUSED
from varstore_companion.daemon.limits import Limits
from varstore_companion.daemon.staging import NAMED, Staging
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.limits import MAX_JSON, MAX_TEXT
from varstore_companion.wire.messages import Outcome, SbFailure, SbFailureAnswer
from varstore_companion.wire.observing import Updates, UpdatesAction, UpdatesAnswer

OK, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_ON_BOOT
AWAY = ToolstackUnavailableError("xapi restarts")


async def marked(place: Place, count: int, name: str = "ms2011") -> list[Machine]:
    return [await place.machine(scene(name).blob, ON_BOOT, name=f"{name}-{number}.sock") for number in range(count)]


def paused(place: Place) -> str | None:
    """Why updates are paused."""
    return None if place.host.staging.paused is None else place.host.staging.paused.reason


async def asked(place: Place, action: UpdatesAction | None = None, reason: str | None = None) -> dict[str, object]:
    async with greeted(place.control) as control:
        answer = await control.call(Updates(action, reason), UpdatesAnswer)
    found = json.loads(answer.json)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("error", [AWAY, ToolstackRefusedError("VM_BAD_POWER_STATE", "no"), RuntimeError("a bug")])
async def test_so_many_failures_in_a_row_pause_the_host(place: Place, error: Exception) -> None:
    machines = await marked(place, 8)
    for machine in machines[:5]:
        place.toolstack.fail_next("write", error)
        assert (await machine.boot()).outcome is Outcome.FAILED
    await wait_all_tasks_blocked()
    assert place.alerts().count(UPDATES_PAUSED) == 1
    (body,) = [alert.body for _, alert in place.toolstack.alerts if alert.name == UPDATES_PAUSED]
    assert str(machines[4].vm) in body
    assert "updates resume" in body

    # The next VM boots with its store and stays marked; nothing is tried, and nobody is told again.
    told, writes = len(place.toolstack.alerts), len(place.toolstack.writes)
    answer = await machines[5].boot()
    assert (answer.outcome, answer.store) == (Outcome.FAILED, scene("ms2011").blob)
    assert "paused" in (answer.detail or "")
    assert place.record(machines[5]).state is ON_BOOT
    await wait_all_tasks_blocked()
    assert (len(place.toolstack.alerts), len(place.toolstack.writes)) == (told, writes)
    status = await place.daemon.status(None)
    assert isinstance(status["updates_at_boot"], dict)
    assert status["updates_at_boot"]["paused"]["reason"].startswith("5 VMs could not be updated")

    assert (await asked(place, UpdatesAction.RESUME))["paused"] is None
    assert (await machines[6].boot()).outcome is Outcome.UPDATED


async def test_one_that_succeeds_begins_the_count_anew(place: Place) -> None:
    machines = await marked(place, 9)
    for number, machine in enumerate(machines):
        if number != 4:
            place.toolstack.fail_next("write", AWAY)
        await machine.boot()
    assert paused(place) is None


async def test_a_vm_that_fails_over_and_over_is_one(place: Place) -> None:
    (machine,) = await marked(place, 1)
    for _ in range(10):
        place.toolstack.fail_next("write", AWAY)
        await machine.boot()
    assert paused(place) is None


async def test_what_guests_made_of_their_stores_pauses_nothing(place: Place) -> None:
    for machine in await marked(place, 8, "nearly_full"):
        assert (await machine.boot()).outcome is Outcome.FAILED
    assert paused(place) is None


async def test_guests_that_fail_secure_boot_after_their_update_pause_the_host(place: Place) -> None:
    machines = await marked(place, 6)
    others = [await place.machine(scene("all2023").blob, OK, name=f"o{number}.sock") for number in range(6)]

    async def fails(machine: Machine) -> None:
        async with machine.peer() as peer:
            await peer.call(SbFailure(None), SbFailureAnswer)

    for machine in others:  # they were not updated, so it is none of the update's making
        await machine.boot()
        await fails(machine)
    assert paused(place) is None
    for machine in machines[:5]:
        assert (await machine.boot()).outcome is Outcome.UPDATED
        assert paused(place) is None
        await fails(machine)
        await fails(machine)
    assert "did not boot" in (paused(place) or "")
    await wait_all_tasks_blocked()
    assert place.alerts().count(UPDATED) == 5
    assert place.alerts().count(UPDATES_PAUSED) == 1
    assert UPDATE_FAILED not in place.alerts()
    assert (await machines[5].boot()).outcome is Outcome.FAILED


async def test_never_when_told_so(place: Place) -> None:
    place.host.rules = replace(place.host.rules, limits=Limits(failures_to_pause=0))
    for machine in await marked(place, 8):
        place.toolstack.fail_next("write", AWAY)
        await machine.boot()
    assert paused(place) is None


async def test_an_operator_pauses_and_resumes(place: Place) -> None:
    (machine,) = await marked(place, 1)
    assert (await asked(place))["paused"] is None
    found = await asked(place, UpdatesAction.PAUSE, "waiting for\nthe firmware")
    assert isinstance(found["paused"], dict)
    assert "\n" not in found["paused"]["reason"]
    assert (await machine.boot()).outcome is Outcome.FAILED
    # It outlives the daemon.
    again = Staging(place.folder / "updates-paused.json", Limits, lambda: 0.0)
    assert again.paused == place.host.staging.paused
    assert (await asked(place, UpdatesAction.RESUME))["paused"] is None
    assert (await machine.boot()).outcome is Outcome.UPDATED
    assert Staging(place.folder / "updates-paused.json", Limits, lambda: 0.0).paused is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"at": "x", "reason": 1}', "[" * 10_000, '{"at": 1}', '{"at": 1' + 400 * "0" + ', "reason": "x"}']
)
def test_a_pause_that_cannot_be_read_is_a_pause(text: str, tmp_path: Path) -> None:
    path = tmp_path / "paused.json"
    path.write_text(text)
    staging = Staging(path, Limits, lambda: 7.0)
    assert staging.paused is not None
    assert staging.paused.at == 7.0


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "p", lambda: Limits(failures_to_pause=0), lambda: 0.0)
    for _ in range(1_000):
        staging.failed(uuid4(), "x")
        staging.broken(uuid4())
    assert len(staging._failed) + len(staging._broken) <= 130


def test_however_many_are_in_trouble_an_answer_has_room_for_them(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "p", lambda: Limits(failures_to_pause=1_000), lambda: 0.0)
    for _ in range(999):
        staging.failed(uuid4(), "\u4e2d" * (MAX_TEXT // 3))
    last = uuid4()
    staging.broken(last)
    found = staging.describe()["in_trouble"]
    assert isinstance(found, list)
    assert (len(found), found[-1]["vm"]) == (NAMED, str(last))
    assert len(json.dumps(staging.describe())) < MAX_JSON
