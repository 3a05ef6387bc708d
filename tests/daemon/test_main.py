"""The daemon's sockets: attached, healed, detached, brought back, and stopped."""

import errno
import json
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Machine, Place, updated, written
from support.peer import Refused, connect, greeted
from support.storemaker import scene
from varstore_companion.daemon import attachments
from varstore_companion.daemon.attachments import Attachment, NewerListError
from varstore_companion.daemon.config import Settings
from varstore_companion.daemon.main import LAST_SECONDS, STOP_SECONDS, opened
from varstore_companion.errors import ConfigurationError, ToolstackUnavailableError
from varstore_companion.journal import files
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import GetStore, GetStoreAnswer, Outcome, Ping, PingAnswer, Reason

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT


def saved(place: Place) -> list[Attachment]:
    return list(attachments.load(place.saved))


async def serves(machine: Machine) -> None:
    async with machine.peer() as peer:
        await peer.call(Ping(), PingAnswer)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def restarted(place: Place) -> Place:
    """A second daemon on the folder of one that has ended."""
    again = Place(place.folder)
    again.toolstack = place.toolstack
    again.host.toolstack = place.toolstack
    return again


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
async def test_a_socket_has_its_mode_and_group(place: Place) -> None:
    path = place.folder / "vm.sock"
    assert not await place.daemon.attach(Attachment(uuid4(), path, 65_543, 0o620, resume=False))
    found = path.lstat()
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (65_543, 0o620)


async def test_attaching_again_is_harmless(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    attachment = Attachment(machine.vm, machine.path, None, 0o660, resume=False)
    async with machine.peer() as peer:
        inode = machine.path.lstat().st_ino
        assert await place.daemon.attach(attachment)
        assert machine.path.lstat().st_ino == inode
        await peer.call(Ping(), PingAnswer)
    assert saved(place) == [attachment]


async def test_a_removed_socket_is_made_again(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as before:
        machine.path.unlink()
        assert (await place.attach(machine.vm, "vm.sock")).path == machine.path
        await serves(machine)
        # The old socket's peer is told to connect again.
        (last,) = await before.rest()
        assert last.error.code == ErrorCode.SHUTTING_DOWN
    await wait_all_tasks_blocked()
    assert place.daemon.connections == 0
    assert saved(place) == [Attachment(machine.vm, machine.path, None, 0o660, resume=False)]


async def test_a_removed_socket_with_something_else_in_its_place_stays_attached(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with machine.peer() as peer:
        machine.path.unlink()
        machine.path.write_text("in the way")
        with pytest.raises(ConfigurationError, match="not a socket"):
            await place.attach(machine.vm, "vm.sock")
        assert machine.path.read_text() == "in the way"
        await peer.call(Ping(), PingAnswer)
    assert len(place.daemon.listed()) == 1
    # Nor does a detach remove it.
    assert await place.daemon.detach(machine.path)
    assert machine.path.read_text() == "in the way"


async def test_another_process_that_listens_there_is_left_alone(place: Place) -> None:
    path = place.folder / "vm.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ConfigurationError, match="another process listens there"):
            await place.attach(uuid4(), "vm.sock")
    # It has died.
    machine = await place.machine(None)
    await serves(machine)
    assert len(saved(place)) == 1


async def test_what_cannot_be_saved_is_not_attached(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path, _kept: object) -> None:
        raise OSError(28, "No space left on device")

    kept = await place.machine(None, name="kept.sock")
    with monkeypatch.context() as patch:
        patch.setattr(attachments, "save", fail)
        with pytest.raises(ConfigurationError, match="No space left on device"):
            await place.machine(None)
        assert not (place.folder / "vm.sock").exists()
        assert [entry["path"] for entry in place.daemon.listed()] == [str(kept.path)]
        # And what cannot be forgotten is not detached, so that it can be tried again.
        with pytest.raises(ConfigurationError, match="No space left on device"):
            await place.daemon.detach(kept.path)
        await serves(kept)
    assert await place.daemon.detach(kept.path)
    assert saved(place) == []


async def test_a_system_without_threads_attaches_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_given: object, **_named: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", no_thread)
        with pytest.raises(ConfigurationError, match=r"no thread.*is not attached"):
            await place.machine(None)
    assert (place.daemon.listed(), (place.folder / "vm.sock").exists()) == ([], False)
    machine = await place.machine(None)
    assert [each.path for each in saved(place)] == [machine.path]


async def test_a_list_that_is_in_place_and_not_durable_says_what_is_served(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next daemon goes by it, whether the folder could be synced or not."""
    kept = await place.machine(None, name="kept.sock")
    sync, failures = files.sync_folder, [0, 1]

    def sometimes(path: Path) -> None:
        if failures.pop():
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(files, "sync_folder", sometimes)
    with pytest.raises(ConfigurationError, match="stays attached"):
        await place.daemon.detach(kept.path)
    assert [each.path for each in saved(place)] == [kept.path]
    failures[:] = [0, 1]
    with pytest.raises(ConfigurationError, match="is not attached"):
        await place.machine(None)
    assert [each.path for each in saved(place)] == [kept.path]
    # And where that fails, too, it is seen to when somebody asks again.
    failures[:] = [0, 1, 1, 1]
    with pytest.raises(ConfigurationError, match="stays attached"):
        await place.daemon.detach(kept.path)
    with pytest.raises(ConfigurationError, match=r"kept\.sock is attached, but the next start does not know of it"):
        await place.daemon.attach(Attachment(kept.vm, kept.path, None, 0o660, resume=False))
    assert await place.daemon.attach(Attachment(kept.vm, kept.path, None, 0o660, resume=False))
    assert [each.path for each in saved(place)] == [kept.path]


async def test_detaching_removes_the_socket_and_tells_its_peers(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    other = await place.attach(machine.vm, "migration.sock")
    async with machine.peer() as peer:
        assert await place.daemon.detach(machine.path)
        (last,) = await peer.rest()
        assert (last.error.code, last.error.try_again) == (ErrorCode.SHUTTING_DOWN, True)
    assert not machine.path.exists()
    assert not await place.daemon.detach(machine.path)
    await serves(other)
    assert [each.path for each in saved(place)] == [other.path]


async def test_what_was_attached_comes_back(tmp_path: Path) -> None:
    first = Place(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.daemon.run)
        machine = await first.machine(scene("ms2011").blob, ON_BOOT)
        resuming = await first.machine(scene("ms2011").blob, ON_BOOT, name="resuming.sock", resume=True)
        gone = await first.machine(None, name="gone.sock")
        await first.daemon.detach(gone.path)
        nursery.cancel_scope.cancel()
    # The sockets are there still, so that a varstored sees a daemon that is away, not a socket that is missing.
    assert machine.path.is_socket()
    second = restarted(first)
    async with trio.open_nursery() as nursery:
        await nursery.start(second.daemon.run)
        assert (await resuming.boot()).outcome is Outcome.NOT_ASKED  # invariant 10
        answer = await machine.boot()
        assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(scene("ms2011").blob))
        assert not gone.path.exists()
        nursery.cancel_scope.cancel()


async def test_one_that_cannot_come_back_keeps_no_other_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vm = uuid4()
    good = Attachment(vm, tmp_path / "good.sock", None, 0o660, resume=False)
    bad = [
        Attachment(vm, tmp_path / "missing" / "vm.sock", None, 0o660, resume=False),
        Attachment(vm, Path("relative.sock"), None, 0o660, resume=False),
        Attachment(vm, tmp_path / ("x" * 120), None, 0o660, resume=False),
        good,
    ]
    attachments.save(tmp_path / "attached.json", [bad[0], good, *bad[1:]])
    place = Place(tmp_path)
    place.toolstack.vms[vm] = VmRecord(None, OK, 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(place.daemon.run)
        await serves(Machine(vm, good.path))
        nursery.cancel_scope.cancel()
    assert sum("does not come back" in line and f"vm={vm}" in line for line in caplog.messages) == 4


async def test_a_list_of_a_later_version_keeps_the_daemon_from_starting_and_stays(tmp_path: Path) -> None:
    saved = tmp_path / "attached.json"
    saved.write_text(text := '{"format": 2, "sockets": {}}')
    place = Place(tmp_path)
    with pytest.RaisesGroup(pytest.RaisesExc(NewerListError, match="reads up to format 1")):
        await place.daemon.run()
    assert saved.read_text() == text
    assert "attached.json.unreadable" not in names(tmp_path)
    place.bound.socket.close()


@pytest.mark.parametrize("what", ["cut", "folder"])
async def test_a_list_that_cannot_be_read_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    saved = tmp_path / "attached.json"
    if what == "cut":
        saved.write_text('{"format": 1, "attachments": [')
    else:
        saved.mkdir()
    inode = saved.stat().st_ino
    place = Place(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(place.daemon.run)
        assert (tmp_path / "attached.json.unreadable").stat().st_ino == inode
        await serves(await place.machine(None))
        nursery.cancel_scope.cancel()
    assert len(json.loads(saved.read_text())["attachments"]) == 1
    assert any("attached.json.unreadable" in line for line in caplog.messages)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
async def test_a_list_that_cannot_be_read_now_keeps_the_daemon_from_starting_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Each VM's socket would be lost with it, and systemd starts the daemon again."""

    def full(*_given: object, **_named: object) -> str:
        raise OSError(code, os.strerror(code))

    place = Place(tmp_path)
    monkeypatch.setattr(attachments, "load", full)
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError, match=os.strerror(code))):
        await place.daemon.run()
    assert "attached.json.unreadable" not in names(tmp_path)
    place.bound.socket.close()


# Stopping


async def test_a_stop_waits_until_the_alerts_are_sent(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("alert")
    assert (await machine.boot()).outcome is Outcome.UPDATED
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.daemon.stop)
        await hang.reached.wait()
        assert place.alerts() == []
        hang.release.set()
    assert place.alerts() == ["VM_SECURE_BOOT_CERTIFICATES_UPDATED"]
    place.host.alert(machine.vm, Alert("LATE", 5, "after the stop"))
    assert place.host.stats.alerts_dropped == 1


async def test_a_stop_waits_for_the_boots_under_way(place: Place) -> None:
    machines = [await place.machine(scene("ms2011").blob, ON_BOOT, name=f"{number}.sock") for number in range(5)]
    hangs = [place.toolstack.hang_next("write") for _ in machines]
    stopped = trio.Event()

    async def stop() -> None:
        await place.daemon.stop()
        stopped.set()

    async def boot(machine: Machine) -> None:
        answer = await machine.boot()
        assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(scene("ms2011").blob))

    async with trio.open_nursery() as nursery:
        for machine in machines:
            nursery.start_soon(boot, machine)
        for hang in hangs:
            await hang.reached.wait()
        nursery.start_soon(stop)
        await wait_all_tasks_blocked()
        for hang in hangs:
            assert not stopped.is_set()
            hang.release.set()
    assert stopped.is_set()


async def test_a_request_that_does_not_end_costs_no_other_vm_its_last_alert(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    slow = await place.machine(scene("ms2011").blob, OK, name="slow.sock")
    hang = place.toolstack.hang_next("read")

    async def read() -> None:
        with suppress(Refused):
            await slow.boot(Reason.TOOL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await hang.reached.wait()
        alert = place.toolstack.hang_next("alert")
        assert (await machine.boot()).outcome is Outcome.UPDATED
        begun = trio.current_time()

        async def release() -> None:
            await trio.sleep(STOP_SECONDS + LAST_SECONDS / 2)
            alert.release.set()

        nursery.start_soon(release)
        await place.daemon.stop()
        assert STOP_SECONDS <= trio.current_time() - begun < STOP_SECONDS + LAST_SECONDS
        assert place.alerts() == ["VM_SECURE_BOOT_CERTIFICATES_UPDATED"]
        nursery.cancel_scope.cancel()


async def test_a_stop_while_sockets_come_and_go(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("read")
    async with machine.peer() as peer, trio.open_nursery() as nursery:
        request = await peer.send(GetStore(Reason.TOOL))
        await hang.reached.wait()
        nursery.start_soon(place.daemon.stop)
        await wait_all_tasks_blocked()
        other = await place.attach(machine.vm, "other.sock")
        assert await place.daemon.detach(other.path)
        hang.release.set()
        assert isinstance(await peer.answer(request), GetStoreAnswer)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["read", "write"])
async def test_cancelled_in_the_middle_the_store_is_the_old_or_the_new_one(tmp_path: Path, call: str, when: str) -> None:
    place = Place(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(place.daemon.run)
        machine = await place.machine(scene("ms2011").blob, ON_BOOT)
        hang = place.toolstack.hang_next("read" if call == "read" else "write", when="before" if when == "before" else "after")
        async with machine.peer() as peer:
            await peer.send(GetStore(Reason.BOOT))
            await hang.reached.wait()
            nursery.cancel_scope.cancel()
    new = VmRecord(updated(scene("ms2011").blob), OK, 1)
    old = VmRecord(scene("ms2011").blob, ON_BOOT, 0)
    assert place.record(machine) == (new if (call, when) == ("write", "after") else old)


async def test_the_line_for_systemd_has_the_counts(place: Place) -> None:
    await place.machine(None)
    assert place.daemon.status_line == (
        "toolstack memory, direct, attached 1, connections 0; boots 0, updates 0 (failed 0), writes 0"
    )


# One daemon


def settings(folder: Path) -> Settings:
    return Settings(control=folder / "control.sock", state_dir=folder / "state")


async def test_it_is_composed_from_its_settings_and_leaves_only_what_it_keeps(tmp_path: Path) -> None:
    async with opened(settings(tmp_path)) as daemon, trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with greeted(tmp_path / "control.sock") as control:
            await control.call(Ping(), PingAnswer)
        nursery.cancel_scope.cancel()
    assert names(tmp_path) == ["state"]
    assert names(tmp_path / "state") == ["journal", "lock", "toolstack.db", "toolstack.db-reserve"]
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_a_second_daemon_on_the_state_folder_is_refused(tmp_path: Path) -> None:
    async with opened(settings(tmp_path)):
        other = Settings(control=tmp_path / "other.sock", state_dir=tmp_path / "state")
        with pytest.raises(ConfigurationError, match="another daemon runs on this state folder"):
            async with opened(other):
                pytest.fail("both run")
        assert not (tmp_path / "other.sock").exists()
    async with opened(settings(tmp_path)):
        pass


async def test_a_control_socket_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("in the way")
    with pytest.raises(ConfigurationError, match="not a socket"):
        async with opened(settings(tmp_path)):
            pytest.fail("it runs")
    assert (tmp_path / "control.sock").read_text() == "in the way"
    (tmp_path / "control.sock").unlink()
    # The state folder is free again.
    async with opened(settings(tmp_path)):
        pass


async def test_a_state_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigurationError, match="state"):
        async with opened(settings(tmp_path)):
            pytest.fail("it runs")


async def test_an_unavailable_toolstack_keeps_no_daemon_from_serving(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    place.toolstack.fail_next("read", *[ToolstackUnavailableError("xapi restarts")] * 2)
    async with await connect(machine.path, machine.vm) as peer:
        await peer.hello()
        assert (await peer.get()).outcome is Outcome.UPDATED
        await peer.put(written("all2023", 1))
