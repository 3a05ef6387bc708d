"""An update that fails never stops a boot (invariant 5)."""

import errno
import gc
import json
from pathlib import Path
from types import ModuleType

import pytest
import trio
from trio.testing import MockClock

from support.daemon import MANIFEST, VENDOR, Machine, Place, updated, written
from support.storemaker import Variable, make_store, scene
from varstore_companion.daemon import keeping, rules, upstream
from varstore_companion.daemon.alerts import STORE_DAMAGED
from varstore_companion.daemon.cold_boot import FAILED_SECONDS
from varstore_companion.daemon.journals import opened_ledger
from varstore_companion.daemon.rules import Rules
from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.journal import files
from varstore_companion.sources import Loaded
from varstore_companion.toolstack.interface import LATE_SECONDS, VmRecord
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.limits import MAX_TEXT
from varstore_companion.wire.messages import Outcome, Presence, Reason

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT
UPDATED, FAILED = "VM_SECURE_BOOT_CERTIFICATES_UPDATED", "VM_SECURE_BOOT_CERTIFICATES_UPDATE_FAILED"

UNAVAILABLE = ToolstackUnavailableError("xapi restarts")
REFUSED = ToolstackRefusedError("VM_BAD_POWER_STATE", "not now")
UNCLEAR = ToolstackUnclearError("the answer was lost")


async def alerted(place: Place, *names: str) -> None:
    """Wait until the operator has got these alerts."""
    await trio.testing.wait_all_tasks_blocked()
    assert place.alerts() == list(names)


async def failed_and_kept(place: Place, machine: Machine, store: bytes, reason: str) -> None:
    """A boot whose update fails: the old store, the mark, the reason and the alert (invariant 5)."""
    answer = await machine.boot()
    assert (answer.outcome, answer.presence, answer.store) == (Outcome.FAILED, Presence.PRESENT, store)
    assert reason in (answer.detail or "")
    record = place.record(machine)
    assert (record.store, record.state) == (store, ON_BOOT)
    is_damaged = "the store is damaged" in reason
    await alerted(place, *([STORE_DAMAGED] if is_damaged else []), FAILED)
    *_, (vm, alert) = place.toolstack.alerts
    assert vm == machine.vm
    assert reason in alert.body
    assert place.host.stats.updates_failed == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("room_without_headroom", "append to dbx"),
        ("nearly_full", "would break a limit"),
        ("db_nearly_full", "would break a limit"),
        ("oversized_dbx", "the store is damaged"),
        ("version3", "the store is unknown"),
    ],
)
async def test_a_refused_plan(place: Place, name: str, reason: str) -> None:
    machine = await place.machine(scene(name).blob, ON_BOOT)
    await failed_and_kept(place, machine, scene(name).blob, reason)
    assert place.toolstack.writes == []
    assert not (place.folder / "backups").exists()


async def test_a_missing_body(place: Place) -> None:
    place.host.rules = Rules(MANIFEST, Loaded({}, {}, ()))
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    await failed_and_kept(place, machine, scene("ms2011").blob, "no certificate source has the body of")


async def test_a_boot_is_planned_by_the_rules_that_were_in_force_when_its_store_came(place: Place) -> None:
    """They may be read again while the toolstack takes its time; report and plan are of the same ones."""
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("read", when="after")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(failed_and_kept, place, machine, scene("ms2011").blob, "no certificate source has the body of")
        await hang.reached.wait()
        place.host.rules = Rules(MANIFEST, Loaded({}, {}, ()))
        hang.release.set()


@pytest.mark.parametrize("cut", [0, 3, 10, 300, -1])
async def test_a_cut_store(place: Place, cut: int) -> None:  # invariant 11
    store = scene("ms2011").blob[:cut]
    machine = await place.machine(store, ON_BOOT)
    await failed_and_kept(place, machine, store, "the store is damaged")


async def test_a_reason_that_a_guest_made_long_is_cut(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    # Names over the limit, of which each message shows 64 characters of three bytes.
    store = make_store([Variable(chr(0x4E00 + number) * 2_100, VENDOR, b"x") for number in range(20)])
    machine = await place.machine(store, ON_BOOT)
    await failed_and_kept(place, machine, store, "the store is damaged")
    (line,) = [line for line in caplog.messages if "stays marked" in line]
    assert len(line) < 2 * MAX_TEXT
    (entry,) = place.daemon.listed()
    assert len(json.dumps(entry)) < 8 * MAX_TEXT


async def test_a_backup_folder_that_is_a_file(place: Place) -> None:
    (place.folder / "backups").write_text("in the way")
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    await failed_and_kept(place, machine, scene("ms2011").blob, "Not a directory")
    assert place.toolstack.writes == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
async def test_a_backup_that_the_disk_does_not_take(place: Place, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, _data: bytes) -> None:
        raise OSError(code, "the disk says no", str(path))

    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    monkeypatch.setattr(files, "write", write)
    await failed_and_kept(place, machine, scene("ms2011").blob, "the disk says no")
    assert place.toolstack.writes == []


async def test_a_backup_that_hangs(place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def keep(*_: object, **__: object) -> str:
        await trio.sleep_forever()
        raise AssertionError

    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    monkeypatch.setattr(place.backups, "keep", keep)
    await failed_and_kept(place, machine, scene("ms2011").blob, "did not reach the disk in time")
    assert autojump_clock.current_time() > 10
    assert place.toolstack.writes == []


@pytest.mark.parametrize("error", [UNAVAILABLE, REFUSED, UNCLEAR])
async def test_a_write_that_the_toolstack_does_not_take(place: Place, error: Exception) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.fail_next("write", error)
    await failed_and_kept(place, machine, scene("ms2011").blob, str(error))
    # The mark stayed, and the next boot makes the update.
    assert (await machine.boot()).outcome is Outcome.UPDATED


async def test_a_write_that_hangs(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.hang_next("write")
    await failed_and_kept(place, machine, scene("ms2011").blob, "did not answer in time")
    assert autojump_clock.current_time() > 10
    assert (await machine.boot()).outcome is Outcome.UPDATED


async def test_a_lost_answer_is_read_back_and_the_update_was_made(place: Place) -> None:
    old = scene("ms2011").blob
    machine = await place.machine(old, ON_BOOT)
    place.toolstack.fail_next("write", UNCLEAR, when="after")
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(old))
    assert place.record(machine) == VmRecord(updated(old), OK, 1)
    await alerted(place, UPDATED)


async def test_a_late_answer_is_read_back_and_the_update_was_made(place: Place, autojump_clock: MockClock) -> None:
    old = scene("ms2011").blob
    machine = await place.machine(old, ON_BOOT)
    place.toolstack.hang_next("write", when="after")
    answer = await machine.boot()
    assert autojump_clock.current_time() > 10
    assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(old))


@pytest.mark.parametrize("error", [UNAVAILABLE, REFUSED])
async def test_a_read_back_that_fails(place: Place, error: Exception) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.hang_next("read").release.set()
    place.toolstack.fail_next("read", error)
    place.toolstack.fail_next("write", UNCLEAR)
    await failed_and_kept(place, machine, scene("ms2011").blob, "cannot be read back")


async def test_a_read_back_that_hangs(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.hang_next("read").release.set()
    place.toolstack.hang_next("read")
    place.toolstack.hang_next("write")
    await failed_and_kept(place, machine, scene("ms2011").blob, "nor when it was read back")
    assert autojump_clock.current_time() > 15


async def test_what_a_boot_left_unclear_is_over_by_the_next_attach(place: Place, autojump_clock: MockClock) -> None:
    place.toolstack.late_seconds = LATE_SECONDS
    place.host.ledger = opened_ledger(place.folder / "ledger")
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.fail_next("write", UNCLEAR)
    await failed_and_kept(place, machine, scene("ms2011").blob, "may still take this one")
    assert await place.daemon.detach(machine.path)
    await trio.sleep(LATE_SECONDS + 1)
    gc.collect()
    assert machine.vm not in place.daemon._vms
    again = await place.attach(machine.vm, "again.sock")
    assert (await again.boot()).outcome is Outcome.UPDATED
    place.host.ledger.close()


async def test_what_somebody_else_wrote_meanwhile_is_updated_instead(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("write")
    newer = written("ms2011", 7)
    async with trio.open_nursery() as nursery:

        async def meanwhile() -> None:
            await hang.reached.wait()
            place.write_elsewhere(machine, newer)
            hang.release.set()

        nursery.start_soon(meanwhile)
        answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(newer))  # invariant 9
    assert place.record(machine) == VmRecord(updated(newer), OK, 2)


CONFLICT = ToolstackConflictError("somebody else was faster")


async def test_conflicts_without_end_stop_no_marked_boot(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.fail_next("write", *[CONFLICT] * 100)
    await failed_and_kept(place, machine, scene("ms2011").blob, "kept changing")


async def test_conflicts_without_end_stop_no_other_boot(place: Place) -> None:
    store = scene("all2023").blob
    machine = await place.machine(store, AVAILABLE)
    place.toolstack.fail_next("write", *[CONFLICT] * 100)
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.NOT_ASKED, store)


@pytest.mark.parametrize("error", [UNAVAILABLE, REFUSED, UNCLEAR, RuntimeError("a bug")])
async def test_an_alert_that_fails_delays_no_boot_and_no_later_alert(place: Place, error: Exception) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.fail_next("alert", error)
    assert (await machine.boot()).outcome is Outcome.UPDATED
    await alerted(place)
    other = await place.machine(scene("ms2011").blob, ON_BOOT, name="other.sock")
    assert (await other.boot()).outcome is Outcome.UPDATED
    await alerted(place, UPDATED)


async def test_who_asks_for_its_boot_over_and_over_fills_neither_alerts_nor_history_nor_log(
    place: Place, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> tuple[int, int]:
        return len(place.alerts()), sum("update at boot failed" in line for line in caplog.messages)

    machine = await place.machine(scene("nearly_full").blob, ON_BOOT)
    for _ in range(50):
        assert (await machine.boot()).outcome is Outcome.FAILED
    assert told() == (1, 1)
    # Another reason is worth a line, and waits for its alert.
    place.write_elsewhere(machine, scene("room_without_headroom").blob)
    for _ in range(50):
        assert (await machine.boot()).outcome is Outcome.FAILED
    assert told() == (1, 2)
    mock_clock.jump(FAILED_SECONDS)
    assert (await machine.boot()).outcome is Outcome.FAILED
    await trio.testing.wait_all_tasks_blocked()
    assert told() == (2, 3)
    assert place.host.stats.updates_failed == 101
    lines, _ = await place.history.read(machine.vm)
    assert len(lines) == 3


@pytest.mark.parametrize("case", ["paused", "first"])
async def test_boots_that_say_the_same_over_and_over_do_not_fill_the_log(
    place: Place, case: str, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    machine = await place.machine(*((scene("ms2011").blob, ON_BOOT) if case == "paused" else (None, OK)))
    if case == "paused":
        place.host.staging.pause("an operator paused them")
    caplog.clear()
    for expected in (1, 2):
        for _ in range(20):
            await machine.boot()
        assert sum(str(machine.vm) in line for line in caplog.messages) == expected
        mock_clock.jump(FAILED_SECONDS)


async def test_an_alert_that_hangs_delays_nothing(place: Place, mock_clock: MockClock) -> None:
    hang = place.toolstack.hang_next("alert")
    for number in range(3):
        machine = await place.machine(scene("ms2011").blob, ON_BOOT, name=f"{number}.sock")
        assert (await machine.boot()).outcome is Outcome.UPDATED
    assert mock_clock.current_time() == 0
    await hang.reached.wait()
    mock_clock.jump(30)
    await alerted(place, UPDATED, UPDATED)


def _bug(*_: object, **__: object) -> object:
    raise IndexError("a store nobody thought of")


@pytest.mark.parametrize(("module", "name"), [(rules, "plan"), (keeping, "describe_plan"), (keeping, "describe_report")])
async def test_a_bug_in_planning_stops_no_boot(
    place: Place, module: ModuleType, name: str, *, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = scene("ms2011").blob
    machine = await place.machine(store, ON_BOOT)
    monkeypatch.setattr(module, name, _bug)
    await failed_and_kept(place, machine, store, "an error inside the daemon")
    assert place.toolstack.writes == []
    assert "a store nobody thought of" in caplog.text


@pytest.mark.parametrize("where", ["check", "read_keys"])
@pytest.mark.parametrize("reason", Reason)
async def test_a_bug_in_the_report_stops_no_start(
    place: Place, where: str, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = scene("ms2011").blob
    machine = await place.machine(store, AVAILABLE)
    monkeypatch.setattr(upstream, where, _bug)
    answer = await machine.boot(reason)
    assert (answer.outcome, answer.store) == (Outcome.NOT_ASKED, store)
    assert place.toolstack.writes == []


async def test_a_bug_in_the_adapter_stops_no_boot_and_what_it_left_is_read(place: Place) -> None:
    old = scene("ms2011").blob
    machine = await place.machine(old, ON_BOOT)
    place.toolstack.fail_next("write", RuntimeError("a bug"), when="after")
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.FAILED, old)
    # The toolstack has taken the update: the guest's next write is decided against that, not against what it was told.
    async with machine.peer() as peer:
        await peer.put(written("ms2011", 1))
    assert place.record(machine) == VmRecord(written("ms2011", 1), AVAILABLE, 2)
