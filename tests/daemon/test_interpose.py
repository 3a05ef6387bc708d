"""Guards' sockets taken over in place and given back, over a daemon's life and guards that restart."""

import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support import stock
from support.daemon import NOW, Machine, updated, written
from support.fake_guard import Guard, Server, http
from support.guards import Place, inode, place
from support.peer import Refused, greeted
from support.processes import python
from support.serve import Home
from support.stock import Varstored
from support.storemaker import scene
from varstore_companion.cli.client import control
from varstore_companion.daemon import attachments, interpose, looks, sockets
from varstore_companion.daemon.attachments import Attachment, interposed
from varstore_companion.daemon.held import digest_of
from varstore_companion.daemon.interpose import beside
from varstore_companion.daemon.journals import opened_ledger
from varstore_companion.daemon.rename import Flag, rename
from varstore_companion.daemon.session import RequestRefusedError
from varstore_companion.errors import ConfigurationError, ToolstackUnavailableError
from varstore_companion.journal import files
from varstore_companion.toolstack.xmlrpc import Success, build_response
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Attach, AttachAnswer, Detach, Durable, Outcome, Reason

__all__ = ["place"]

OK, AVAILABLE, ON_BOOT = CertificatesState
OLD = scene("ms2011").blob
DONE = http(build_response(Success(None)))
AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


async def look(place: Place) -> None:
    await place.daemon._sockets.look_at_guards()


# Taking over


async def test_the_guards_socket_is_taken_over_with_its_owner_group_and_mode(place: Place) -> None:
    guard, server = place.guard(OLD, ON_BOOT)
    server.path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(server.path, 12, 34)
    before = server.path.lstat()
    assert not await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=False))
    after = server.path.lstat()
    assert stat.S_ISSOCK(after.st_mode)
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert inode(beside(server.path)) == before.st_ino
    assert place.names() == {server.path.name, beside(server.path).name}


async def test_a_boot_and_a_write_go_through_the_daemon_to_the_guard(place: Place) -> None:
    machine, guard, _ = await place.interposed(OLD, ON_BOOT)
    varstored = Varstored(machine.path, machine.vm)
    assert await varstored.read() == updated(OLD)
    await varstored.write(written("all2023", 1))
    assert guard.model.updates[0] == "yes"
    assert guard.model.store == written("all2023", 1)
    assert guard.model.state is OK


async def test_of_a_vm_that_runs_already_no_read_is_its_boot(place: Place) -> None:
    machine, guard, _ = await place.interposed(OLD, ON_BOOT, resume=True)
    assert await Varstored(machine.path, machine.vm).read() == OLD
    assert guard.model.updates == []


async def test_twice_is_harmless(place: Place) -> None:
    machine, guard, _ = await place.interposed(OLD, ON_BOOT)
    ours, theirs = inode(machine.path), inode(beside(machine.path))
    assert await place.daemon.attach(interposed(machine.vm, machine.path, resume=False))
    assert (inode(machine.path), inode(beside(machine.path))) == (ours, theirs)
    for other in (replace(interposed(machine.vm, machine.path, resume=True)), interposed(uuid4(), machine.path, resume=False)):
        with pytest.raises(Exception, match="attached otherwise"):
            await place.daemon.attach(other)
    assert guard.model.updates == []
    assert await place.daemon.detach(machine.path)
    assert not await place.daemon.detach(machine.path)
    assert (inode(machine.path), place.names()) == (theirs, {machine.path.name})


async def test_the_upstream_of_another_socket_is_not_taken_over(place: Place) -> None:
    """The daemon would wait for itself, and take its own answer for the guard's (invariant 6)."""
    guard, server = place.guard(OLD, ON_BOOT)
    vm, other = guard.model.uuid, place.folder / "other"
    spelled = place.folder / "link"
    spelled.symlink_to(server.path.name)
    await place.daemon.attach(Attachment(vm, other, None, 0o600, resume=True, upstream=spelled))
    before = inode(server.path)
    with pytest.raises(RequestRefusedError, match=f"{server.path}: it is the upstream of {other}") as refused:
        await place.daemon.attach(interposed(vm, server.path, resume=True))
    assert refused.value.code is ErrorCode.CONFLICT
    assert inode(server.path) == before
    assert await place.daemon.detach(other)
    assert not await place.daemon.attach(interposed(vm, server.path, resume=True))


async def test_it_is_asked_for_over_the_control_socket_and_listed(place: Place) -> None:
    guard, server = place.guard(OLD, AVAILABLE)
    vm, path = guard.model.uuid, bytes(server.path)
    async with greeted(place.control) as control:
        assert not (await control.call(Attach(vm, path, interpose=True), AttachAnswer)).already
        assert (await control.call(Attach(vm, path, interpose=True), AttachAnswer)).already
    (listed,) = place.daemon.listed()
    expected = {"interpose": True, "path": str(server.path), "upstream": str(beside(server.path)), "gid": None, "mode": None}
    assert {key: listed[key] for key in expected} == expected


async def test_at_every_moment_the_path_answers(place: Place) -> None:
    """A varstored that connects at any time, while sockets are taken over and given back, has its call answered."""
    guard, server = place.guard(OLD, AVAILABLE)
    attachment = interposed(guard.model.uuid, server.path, resume=True)
    done, calls = trio.Event(), 0

    def call() -> bytes:
        # Blocking, as varstored's own: where the guard's queue of two is full, it waits.
        with socket.socket(socket.AF_UNIX) as connection:
            for way in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, way, struct.pack("@ll", 30, 0))
            connection.connect(str(server.path))
            connection.sendall(stock.request(stock.GET, stock.S, stock.V))
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    async def calling() -> None:
        nonlocal calls
        while not done.is_set():
            answer = stock.understand(await trio.to_thread.run_sync(call))
            assert stock.text_of(answer, "./member/value/struct/member[name='EFI-variables']/value")
            calls += 1

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(calling)
        for _ in range(25):
            assert not await place.daemon.attach(attachment)
            assert await place.daemon.detach(server.path)
        done.set()
    assert calls > 4
    assert place.names() == {server.path.name}


@pytest.mark.parametrize("what", ["nothing", "file", "link", "dead", "ours", "control", "beside", "relative", "long", "folder"])
async def test_what_cannot_be_taken_over_is_named_and_nothing_changes(place: Place, what: str) -> None:
    machine, _, _ = await place.interposed(OLD, AVAILABLE)
    path = place.folder / what
    match what:
        case "file":
            path.write_text("somebody's")
        case "link":
            path.symlink_to(beside(machine.path))
        case "dead":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
        case "ours":
            os.link(machine.path, path)
        case "control":
            path = place.control
        case "beside":
            path = beside(machine.path)
        case "relative":
            path = Path("relative")
        case "long":
            path = place.folder / ("x" * (108 - len(".interposed") - len(str(place.folder)) - 1))
        case "folder":
            path = place.folder / "missing" / "vm"
    before = {each: each.lstat() for each in place.folder.iterdir()}
    listed, saved = place.daemon.listed(), place.saved.read_bytes()
    async with greeted(place.control) as control:
        with pytest.raises(Refused) as refused:
            await control.call(Attach(uuid4(), bytes(place.folder / path), interpose=True), AttachAnswer)
    assert refused.value.code is ErrorCode.INVALID_ARGUMENT
    assert str(path.parent if what == "folder" else path) in refused.value.text
    assert [each["vm"] for each in place.daemon.listed()] == [each["vm"] for each in listed]
    assert place.saved.read_bytes() == saved
    assert {each: each.lstat().st_ino for each in place.folder.iterdir()} == {each: was.st_ino for each, was in before.items()}


async def test_something_else_beside_the_path_is_left_alone(place: Place) -> None:
    guard, server = place.guard(OLD, AVAILABLE)
    beside(server.path).write_text("somebody's")
    with pytest.raises(ConfigurationError, match=r"\.interposed: exists and is not a socket"):
        await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=False))
    assert beside(server.path).read_text() == "somebody's"


async def test_a_list_that_cannot_be_saved_leaves_the_guard_its_socket(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, server = place.guard(OLD, AVAILABLE)
    before = inode(server.path)
    with disk_full(monkeypatch), pytest.raises(ConfigurationError, match=r"attached\.json: no room: .* is not attached"):
        await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=False))
    assert (inode(server.path), place.names(), place.daemon.listed()) == (before, {server.path.name}, [])
    machine = Machine(guard.model.uuid, server.path)
    assert not await place.daemon.attach(interposed(machine.vm, machine.path, resume=False))
    with disk_full(monkeypatch), pytest.raises(ConfigurationError, match="the next start takes it over: detach it again"):
        await place.daemon.detach(machine.path)
    assert (inode(server.path), place.names(), place.daemon.listed()) == (before, {server.path.name}, [])
    assert len(attachments.load(place.saved)) == 1
    assert not await place.daemon.detach(machine.path)
    assert attachments.load(place.saved) == ()


@contextmanager
def disk_full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(_path: Path, _kept: object) -> None:
        raise OSError(28, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(attachments, "save", fail)
        yield


# What happens between two steps


def at(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something right before the names are exchanged."""
    done = False

    def step(folder: int, old: str, new: str, flag: Flag) -> None:
        nonlocal done
        if not done:
            done = True
            act()
        rename(folder, old, new, flag)

    monkeypatch.setattr(interpose, "rename", step)


async def test_a_guard_that_makes_its_socket_anew_right_before_the_exchange_is_not_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, server = place.guard(OLD, AVAILABLE)

    def restart() -> None:
        server.stop()
        server.listen()
        place.nursery.start_soon(server.run)
        server.path.chmod(0o640)

    await wait_all_tasks_blocked()
    at(monkeypatch, restart)
    assert not await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=False))
    assert stat.S_IMODE(server.path.lstat().st_mode) == 0o640
    assert (await Machine(guard.model.uuid, server.path).boot()).store == OLD


async def test_a_guard_that_makes_its_socket_anew_right_before_it_is_given_back_keeps_the_new_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, _, server = await place.interposed(OLD, AVAILABLE)
    at(monkeypatch, server.listen)
    assert await place.daemon.detach(machine.path)
    place.nursery.start_soon(server.run)
    assert place.names() == {server.path.name}
    assert await Varstored(machine.path, machine.vm).read() == OLD


async def test_a_path_that_vanishes_right_before_the_exchange_is_not_made(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard between its unlink and its bind would otherwise find its address in use."""
    guard, server = place.guard(OLD, AVAILABLE)
    at(monkeypatch, server.path.unlink)
    with pytest.raises(ConfigurationError, match="cannot be interposed: No such file"):
        await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=False))
    assert (place.names(), attachments.load(place.saved)) == (set(), ())


async def test_a_path_that_becomes_a_link_right_before_the_exchange_stays_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, server = place.guard(OLD, AVAILABLE)

    def swap() -> None:
        server.path.unlink()
        server.path.symlink_to(place.control)

    at(monkeypatch, swap)
    with pytest.raises(ConfigurationError, match="Socket operation on non-socket"):
        await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=False))
    assert server.path.is_symlink()
    assert not beside(server.path).exists()


async def test_what_fails_after_the_exchange_takes_it_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, server = place.guard(OLD, AVAILABLE)
    before = inode(server.path)
    with monkeypatch.context() as patched:
        at(patched, lambda: patched.setattr(os, "stat", _no_memory))
        with pytest.raises(ConfigurationError, match="cannot be interposed: Cannot allocate memory"):
            await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=False))
    assert inode(server.path) == before
    assert await Varstored(server.path, guard.model.uuid).read() == OLD


def _no_memory(*_given: object, **_named: object) -> None:
    raise OSError(12, "Cannot allocate memory")


# Guards that restart


async def test_a_guard_that_restarts_is_taken_over_again(
    place: Place, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine, guard, server = await place.interposed(OLD, ON_BOOT)
    for _ in range(3):
        server.stop()
        await wait_all_tasks_blocked()
        await place.nursery.start(server.run)
        theirs = inode(machine.path)
        mock_clock.jump(sockets.WATCH_SECONDS)
        await wait_all_tasks_blocked()
        assert inode(machine.path) != theirs
        assert inode(beside(machine.path)) == theirs
        # It may have booted straight from the guard meanwhile.
        assert await Varstored(machine.path, machine.vm).read() == OLD
        await machine.put(written("ms2011", 1))
        guard.model.put(OLD, ON_BOOT)
    assert guard.model.updates == ["no"] * 3
    assert sum("taken over again" in line for line in caplog.messages) == 3
    assert (await machine.boot()).outcome is Outcome.UPDATED
    assert await place.daemon.detach(machine.path)
    assert (inode(machine.path), place.names()) == (theirs, {machine.path.name})


async def test_a_stale_socket_is_never_preferred_to_a_living_one(place: Place) -> None:
    """The guard restarted while it was not looked at: what is beside the path is its former socket, alive or not."""
    for lives_on in (False, True):
        guard, server = place.guard(OLD, AVAILABLE)
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(beside(server.path)))
        if lives_on:
            stale.listen()
        theirs = inode(server.path)
        assert not await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=False))
        assert inode(beside(server.path)) == theirs
        assert (await Machine(guard.model.uuid, server.path).boot()).store == OLD
        stale.close()


async def test_what_another_daemon_has_taken_over_is_left_alone(place: Place) -> None:
    """Each would be the other's upstream, and the guard's socket be gone."""
    guard, server = place.guard(OLD, AVAILABLE)
    theirs = inode(server.path)
    home = Home(place.folder / "other")
    home.folder.mkdir()
    with home.serve("--toolstack", "guard"), control(home.control) as other:
        other.call(Attach(guard.model.uuid, bytes(server.path), resume=True, interpose=True))
        there = inode(server.path)
        with pytest.raises(ConfigurationError, match="another daemon has taken it over"):
            await place.daemon.attach(interposed(guard.model.uuid, server.path, resume=True))
        with pytest.raises(ConfigurationError, match="another daemon has taken it over"):
            interpose.prepare(server.path, (), returning=True)
        assert (inode(server.path), inode(beside(server.path))) == (there, theirs)
        await Varstored(server.path, guard.model.uuid).write(written("ms2011", 1))
        assert guard.model.store == written("ms2011", 1)
        other.call(Detach(bytes(server.path)))
    assert inode(server.path) == theirs


async def test_a_guard_that_has_not_begun_to_listen_is_waited_for(place: Place) -> None:
    machine, _, server = await place.interposed(OLD, AVAILABLE)
    server.stop()
    await wait_all_tasks_blocked()
    machine.path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(machine.path))
        theirs = inode(machine.path)
        await look(place)
        assert inode(machine.path) == theirs
        bound.listen()
        await look(place)
        assert inode(machine.path) != theirs
    assert inode(beside(machine.path)) == theirs


async def test_a_guard_that_ends_its_vm_leaves_nothing_behind(place: Place) -> None:
    machine, _, server = await place.interposed(OLD, AVAILABLE)
    server.stop()
    machine.path.unlink()
    await wait_all_tasks_blocked()
    assert await place.daemon.detach(machine.path)
    assert place.names() == set()


async def test_a_path_that_somebody_removed_is_made_again_before_its_guard(place: Place) -> None:
    machine, _, _ = await place.interposed(OLD, AVAILABLE)
    attachment = interposed(machine.vm, machine.path, resume=False)
    machine.path.unlink()
    assert not await place.daemon.attach(attachment)
    assert (await machine.boot()).store == OLD
    machine.path.unlink()
    assert await place.daemon.detach(machine.path)
    assert place.names() == {machine.path.name}
    assert await Varstored(machine.path, machine.vm).read() == OLD


async def test_one_that_waits_for_its_guard_is_not_taken_for_it(  # invariant 6
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """A store that the daemon read from itself would count as delivered."""
    place = Place(tmp_path, nursery)
    vm, path = uuid4(), tmp_path / "vm"
    attachments.save(place.saved, [interposed(vm, path, resume=False)])
    async with trio.open_nursery() as life:
        await life.start(place.host.journal.run)
        await place.host.journal.append(vm, written("ms2011", 1), (digest_of(OLD),), NOW)
        life.cancel_scope.cancel()
    place.host.journal.open()
    await nursery.start(place.daemon.run)
    for _ in range(60):
        await wait_all_tasks_blocked()
        mock_clock.jump(1)
    assert place.host.journal.pending_count == 1
    assert place.host.stats.delivered == 0
    with pytest.raises(ToolstackUnavailableError, match="No such file"):
        await place.toolstack.read(vm)
    assert await place.daemon.detach(path)
    nursery.cancel_scope.cancel()


async def test_one_that_waits_takes_over_a_guard_of_another_process(tmp_path: Path, nursery: trio.Nursery) -> None:
    """As every guard is: by what the system says of a socket it is known from one of the daemon's own."""
    place = Place(tmp_path, nursery)
    path = tmp_path / "vm"
    attachments.save(place.saved, [interposed(uuid4(), path, resume=False)])
    await nursery.start(place.daemon.run)
    listening = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(2); print(); input()"
    with python(listening, path) as (_, _, output):
        assert await trio.to_thread.run_sync(output.readline)
        theirs = inode(path)
        await look(place)
        assert (inode(beside(path)), place.names()) == (theirs, {path.name, beside(path).name})
        assert inode(path) != theirs
        assert await place.daemon.detach(path)
        assert (inode(path), place.names()) == (theirs, {path.name})
    nursery.cancel_scope.cancel()


async def test_without_descriptors_a_guard_that_restarts_is_taken_over_later(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine, _, server = await place.interposed(OLD, AVAILABLE)
    server.stop()
    await wait_all_tasks_blocked()
    await place.nursery.start(server.run)
    theirs = inode(machine.path)
    for call in ("open", "chmod", "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(os if call != "chmod" else Path, call, _no_room)
            await look(place)
        assert inode(machine.path) == theirs
    assert any("Too many open files" in line for line in caplog.messages)
    await look(place)
    assert inode(beside(machine.path)) == theirs
    assert (await machine.boot()).store == OLD


def _no_room(*_given: object, **_named: object) -> None:
    raise OSError(24, "Too many open files")


async def test_what_one_vms_former_socket_still_does_holds_up_no_other_vms_attach(place: Place, mock_clock: MockClock) -> None:
    machine, _, server = await place.interposed(OLD, AVAILABLE, resume=True)
    await Varstored(machine.path, machine.vm).write(OLD)
    again = interposed(machine.vm, machine.path, resume=True)
    held = server.next(method="VM.get_NVRAM", until=trio.Event())
    refusals: list[ErrorCode] = []

    async def read() -> None:
        with pytest.raises(stock.Failed):
            await Varstored(machine.path, machine.vm).read()

    async def attach_again() -> None:
        with pytest.raises(RequestRefusedError) as refused:
            await place.daemon.attach(again)
        refusals.append(refused.value.code)

    async with trio.open_nursery() as reading:
        reading.start_soon(read)
        await held.reached.wait()
        await place.daemon.detach(machine.path)
        async with trio.open_nursery() as attaching:
            attaching.start_soon(attach_again)
            await wait_all_tasks_blocked()
            # It is held up by nothing, and comes while the first one waits.
            other, *_ = await place.interposed(OLD, AVAILABLE)
            assert (await other.boot()).store == OLD
            assert not refusals
            # Less than the guard has for its answer.
            for _ in range(3):
                mock_clock.jump(2)
                await wait_all_tasks_blocked()
            assert refusals == [ErrorCode.BUSY]
        assert held.until is not None
        held.until.set()
    assert not await place.daemon.attach(again)
    assert await Varstored(machine.path, machine.vm).read() == OLD


# Daemons that restart


async def test_it_comes_back_after_a_restart(tmp_path: Path, nursery: trio.Nursery) -> None:
    first = Place(tmp_path, nursery)
    async with trio.open_nursery() as life:
        await life.start(first.daemon.run)
        machine, guard, _ = await first.interposed(OLD, ON_BOOT)
        theirs = inode(beside(machine.path))
        await first.daemon.stop()
        life.cancel_scope.cancel()
    second = Place(tmp_path, nursery)
    await nursery.start(second.daemon.run)
    assert inode(beside(machine.path)) == theirs
    assert await Varstored(machine.path, machine.vm).read() == OLD
    assert (await machine.boot()).outcome is Outcome.UPDATED
    assert guard.model.updates == ["yes"]
    assert await second.daemon.attach(interposed(machine.vm, machine.path, resume=False))
    assert await second.daemon.detach(machine.path)
    assert (inode(machine.path), second.names()) == (theirs, {machine.path.name})
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("there", [True, False], ids=["dead", "gone"])
async def test_daemon_and_guard_start_in_either_order(tmp_path: Path, nursery: trio.Nursery, *, there: bool) -> None:
    place = Place(tmp_path, nursery)
    guard, server = place.guard(OLD, AVAILABLE)
    await wait_all_tasks_blocked()
    server.stop()
    await wait_all_tasks_blocked()
    if not there:
        server.path.unlink()
    machine = Machine(guard.model.uuid, server.path)
    attachments.save(place.saved, [interposed(machine.vm, machine.path, resume=False)])
    await nursery.start(place.daemon.run)
    assert server.path.exists() is there
    await nursery.start(server.run)
    theirs = inode(server.path)
    await look(place)
    assert inode(server.path) != theirs
    assert (await machine.boot()).store == OLD
    nursery.cancel_scope.cancel()


async def test_after_the_host_was_started_anew_a_path_may_be_another_vms(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, nursery)
    guard, server = place.guard(OLD, AVAILABLE)
    kept = Attachment(guard.model.uuid, tmp_path / "vm", None, 0o660, resume=False, upstream=server.path)
    attachments.save(place.saved, [kept, interposed(uuid4(), server.path, resume=False)])
    monkeypatch.setattr(files, "_HOST_START", tmp_path / "start")
    (tmp_path / "start").write_text("another\n")
    before = inode(server.path)
    await nursery.start(place.daemon.run)
    assert place.daemon.listed() == []
    assert not kept.path.exists()
    assert inode(server.path) == before
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("daemon", ["the same", "the next"])
async def test_what_a_guest_wrote_past_the_daemon_is_not_taken_for_old(  # invariants 6 and 9
    tmp_path: Path, nursery: trio.Nursery, daemon: str
) -> None:
    """What the toolstack held at the detach says nothing about a later write: not even that its keys are unchanged."""
    place = Place(tmp_path, nursery)
    place.host.ledger = opened_ledger(tmp_path / "ledger")
    async with trio.open_nursery() as life:
        await life.start(place.daemon.run)
        machine, guard, server = await place.interposed(OLD, AVAILABLE, resume=True)
        await machine.boot(Reason.RESUME)
        await machine.put(written("ms2011", 1))
        vm = place.daemon.vm(machine.vm) if daemon == "the same" else None
        assert await place.daemon.detach(machine.path)
        if vm is None:
            await place.daemon.stop()
            life.cancel_scope.cancel()
        else:
            await confirm_nothing_is_built_on_it(place, machine, guard, server)
            life.cancel_scope.cancel()
    if daemon == "the next":
        place.host.ledger.close()
        place = Place(tmp_path, nursery)
        place.host.ledger = opened_ledger(tmp_path / "ledger")
        await nursery.start(place.daemon.run)
        await confirm_nothing_is_built_on_it(place, machine, guard, server)
    nursery.cancel_scope.cancel()


async def confirm_nothing_is_built_on_it(place: Place, machine: Machine, guard: Guard, server: Server) -> None:
    """After a detach: the guest writes to its guard, and then through the daemon while the guard is away."""
    await Varstored(server.path, machine.vm).write(written("all2023", 2))
    for _ in range(3):
        server.next(AWAY)
    assert not await place.daemon.attach(interposed(machine.vm, server.path, resume=True))
    with pytest.raises(Refused) as refused:
        await machine.put(written("all2023", 3))
    assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert place.host.journal.pending_count == 0
    assert guard.model.store == written("all2023", 2)
    server._prepared.clear()
    assert (await machine.put(written("all2023", 3))).durable is Durable.TOOLSTACK
    assert guard.model.updates[-1] == "no"
    assert guard.model.store == written("all2023", 3)


async def wait_until_known(place: Place, machine: Machine) -> None:
    with trio.fail_after(10):
        while not place.daemon.vm(machine.vm).is_known:
            await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize("is_away", [False, True])
async def test_a_write_is_journaled_also_before_anybody_has_read(place: Place, mock_clock: MockClock, is_away: bool) -> None:
    """After an attach, and after a guard's restart, what the toolstack holds is looked at unasked, as soon as may be."""
    guard, server = place.guard(OLD, AVAILABLE)
    machine = Machine(guard.model.uuid, server.path)
    calls = server.next(AWAY) if is_away else None
    await place.daemon.attach(interposed(machine.vm, machine.path, resume=True))
    for number in range(1, 3):
        if calls is not None:
            await calls.reached.wait()
            await wait_all_tasks_blocked()
            assert not place.daemon.vm(machine.vm).is_known
            mock_clock.jump(looks.LOOK_SECONDS[0])
        await wait_until_known(place, machine)
        for _ in range(3):
            server.next(AWAY)
        assert (await machine.put(written("ms2011", number))).durable is Durable.JOURNAL
        server._prepared.clear()
        await place.daemon.vm(machine.vm).deliver(trio.current_time() + 8)
        assert guard.model.store == written("ms2011", number)
        calls = server.next(AWAY) if is_away else None
        server.stop()
        await wait_all_tasks_blocked()
        await place.nursery.start(server.run)
        await look(place)
