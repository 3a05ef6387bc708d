"""Guards' sockets given back: `detach`, and what must be with the guard, or at rest, before."""

from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import written
from support.fake_guard import SET_CALLS, http
from support.guards import Place, inode, place
from support.peer import Refused
from support.stock import Varstored
from support.storemaker import scene
from varstore_companion.daemon import attachments, backlog, interpose
from varstore_companion.daemon import vm as vm_module
from varstore_companion.daemon.attachments import interposed
from varstore_companion.daemon.interpose import beside
from varstore_companion.daemon.session import RequestRefusedError
from varstore_companion.toolstack.xmlrpc import Success, build_response
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Durable, Outcome, Reason

__all__ = ["place"]

OK, AVAILABLE, ON_BOOT = CertificatesState
OLD = scene("ms2011").blob
DONE = http(build_response(Success(None)))
AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


async def test_a_read_under_way_when_its_socket_is_given_back_is_finished(place: Place) -> None:
    machine, _, server = await place.interposed(OLD, AVAILABLE)
    await Varstored(machine.path, machine.vm).read()
    go_on = trio.Event()
    state = http(build_response(Success(AVAILABLE.value)))
    held = server.next(state, method="VM.get_secureboot_certificates_state", until=go_on)
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            assert await Varstored(machine.path, machine.vm).read() == OLD

        nursery.start_soon(read)
        await held.reached.wait()
        assert await place.daemon.detach(machine.path)
        assert place.toolstack._guards[machine.vm].path == machine.path
        go_on.set()


async def test_a_guard_that_is_away_when_its_socket_is_given_back(place: Place) -> None:
    machine, _, server = await place.interposed(OLD, AVAILABLE)
    theirs = inode(beside(machine.path))
    server.stop()
    await wait_all_tasks_blocked()
    assert await place.daemon.detach(machine.path)
    assert (inode(machine.path), place.names()) == (theirs, {machine.path.name})


async def test_a_vm_whose_folder_is_gone_is_detached(place: Place) -> None:
    folder = place.folder / "domain"
    folder.mkdir()
    guard, server = place.guard(OLD, AVAILABLE)
    path = server.path.rename(folder / "vm")
    assert not await place.daemon.attach(interposed(guard.model.uuid, path, resume=False))
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    assert await place.daemon.detach(path)
    assert not await place.daemon.detach(path)
    assert place.daemon.listed() == []


async def test_one_that_waits_for_its_guard_is_detached(tmp_path: Path, nursery: trio.Nursery) -> None:
    place = Place(tmp_path, nursery)
    path = tmp_path / "vm"
    attachments.save(place.saved, [interposed(uuid4(), path, resume=False)])
    await nursery.start(place.daemon.run)
    assert place.names() == set()
    assert await place.daemon.detach(path)
    assert place.names() == set()
    nursery.cancel_scope.cancel()


async def test_a_socket_is_not_given_back_before_what_is_journaled_is_with_the_guard(  # invariant 9
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_module, "FLUSH_SECONDS", 0.5)
    machine, guard, server = await place.interposed(OLD, ON_BOOT, resume=True)
    await machine.boot(Reason.RESUME)
    for _ in range(4):
        server.next(AWAY)
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    with pytest.raises(RequestRefusedError, match="not with its toolstack yet"):
        await place.daemon.detach(machine.path)
    # It is served as before.
    assert place.names() == {machine.path.name, beside(machine.path).name}
    monkeypatch.undo()
    server._prepared.clear()
    assert await place.daemon.detach(machine.path)
    assert guard.model.store == written("ms2011", 1)


async def test_a_socket_is_not_given_back_while_its_guard_is_restarted(  # invariant 6
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "DIRECT_SECONDS", 0.1)
    machine, guard, server = await place.interposed(OLD, ON_BOOT, resume=True)
    await machine.boot(Reason.RESUME)
    server.stop()
    await wait_all_tasks_blocked()
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    with pytest.raises(RequestRefusedError, match="not with its toolstack yet"):
        await place.daemon.detach(machine.path)
    assert place.names() == {machine.path.name, beside(machine.path).name}
    bound = place.daemon._sockets.served[machine.path].acceptor.bound
    await place.nursery.start(server.run)
    assert interpose.has_guard(machine.path, bound)
    with monkeypatch.context() as patched:
        # Whether it is there cannot be found out.
        patched.setattr(interpose, "is_living", _no_room)
        assert interpose.has_guard(machine.path, bound)
    await place.daemon._sockets.look_at_guards()
    assert await place.daemon.detach(machine.path)
    assert guard.model.store == written("ms2011", 1)


@pytest.mark.parametrize("was_beside", [True, False])
@pytest.mark.parametrize("lives", [True, False])
async def test_nor_when_a_new_guard_has_just_made_its_socket(  # invariant 6
    place: Place, lives: bool, was_beside: bool
) -> None:
    """It is not taken over yet: the VM's next write goes there, also when it ends and comes back before."""
    machine, _, server = await place.interposed(OLD, ON_BOOT, resume=True)
    await machine.boot(Reason.RESUME)
    server.stop()
    await wait_all_tasks_blocked()
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    if not was_beside:
        beside(machine.path).unlink()
    server.listen()
    if not lives:
        assert server._listener is not None
        server._listener.close()
    with pytest.raises(RequestRefusedError, match="not with its toolstack yet"):
        await place.daemon.detach(machine.path)
    assert machine.path in place.daemon._sockets.served
    if lives:
        assert server._listener is not None
        server._listener.close()


async def test_a_vm_that_has_ended_is_detached_with_what_is_journaled(place: Place) -> None:  # invariant 6
    """Its guard has removed the path with the VM: nothing is written there any more, and the store waits for the next start."""
    machine, _, server = await place.interposed(OLD, ON_BOOT, resume=True)
    await machine.boot(Reason.RESUME)
    server.stop()
    await wait_all_tasks_blocked()
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    machine.path.unlink()
    assert await place.daemon.detach(machine.path)
    assert place.daemon.listed() == []
    journal = (await place.daemon.status(None))["journal"]
    assert isinstance(journal, dict)
    assert journal["unattached"] == [str(machine.vm)]
    status = await place.daemon.status(machine.vm)
    assert (status["delivery"], status["sockets"]) == ("queued", [])


@pytest.mark.parametrize("answer", [b"", AWAY], ids=["taken", "journaled"])
async def test_a_socket_is_not_given_back_under_a_write(place: Place, answer: bytes) -> None:  # invariant 9
    """If the daemon were killed then, the guard could carry it out over what the VM wrote to it next."""
    machine, guard, server = await place.interposed(OLD, ON_BOOT, resume=True)
    await machine.boot(Reason.RESUME)
    go_on = trio.Event()
    prepared = server.next(answer or DONE, method=SET_CALLS[1], carry_out=not answer, until=go_on)
    async with machine.peer() as peer, trio.open_nursery() as nursery:

        async def put() -> None:
            await peer.put(written("ms2011", 1))

        nursery.start_soon(put)
        await prepared.reached.wait()
        nursery.start_soon(place.daemon.detach, machine.path)
        await wait_all_tasks_blocked()
        assert place.names() == {machine.path.name, beside(machine.path).name}
        go_on.set()
    assert place.names() == {machine.path.name}
    assert guard.model.store == written("ms2011", 1)
    assert place.host.journal.pending_count == 0


async def test_a_socket_is_not_given_back_under_a_write_that_hangs(  # invariant 9
    place: Place, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_module, "FLUSH_SECONDS", 0.5)
    machine, guard, server = await place.interposed(OLD, ON_BOOT, resume=True)
    await machine.boot(Reason.RESUME)
    go_on = trio.Event()
    prepared = server.next(DONE, method=SET_CALLS[1], carry_out=True, until=go_on)
    async with machine.peer() as peer, trio.open_nursery() as nursery:

        async def detach() -> None:
            with pytest.raises(RequestRefusedError, match="not with its toolstack yet"):
                await place.daemon.detach(machine.path)
            go_on.set()

        async def put() -> None:
            assert (await peer.put(written("ms2011", 1))).durable is Durable.TOOLSTACK

        nursery.start_soon(put)
        await prepared.reached.wait()
        nursery.start_soon(detach)
        await wait_all_tasks_blocked()
        mock_clock.jump(1)
    assert place.names() == {machine.path.name, beside(machine.path).name}
    assert await place.daemon.detach(machine.path)
    assert guard.model.store == written("ms2011", 1)


async def test_what_came_before_its_socket_was_given_back_writes_nothing(place: Place) -> None:  # invariants 6 and 9
    """The guard could carry it out over what the VM writes to it next, and nobody would deliver it from the journal."""
    machine, guard, _ = await place.interposed(OLD, ON_BOOT)
    vm = place.daemon.vm(machine.vm)

    async def put() -> None:
        with pytest.raises(Refused) as refused:
            await machine.put(written("ms2011", 1))
        assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE

    async def boot() -> None:
        answer = await machine.boot()
        assert (answer.store, answer.outcome) == (OLD, Outcome.NOT_ASKED)

    async with trio.open_nursery() as nursery, vm._lock:
        nursery.start_soon(place.daemon.detach, machine.path)
        await wait_all_tasks_blocked()
        for each in (put, boot):
            nursery.start_soon(each)
        await wait_all_tasks_blocked()
    assert place.names() == {machine.path.name}
    assert place.host.journal.pending_count == 0
    assert (guard.model.store, guard.model.updates) == (OLD, [])
    assert not await place.daemon.attach(interposed(machine.vm, machine.path, resume=False))
    assert (await machine.boot()).outcome is Outcome.UPDATED


def _no_room(*_given: object, **_named: object) -> None:
    raise OSError(24, "Too many open files")
