"""A guard that is started anew has its socket to itself for a moment: what is written there is newer than what waits."""

from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Machine, written
from support.fake_guard import SET_CALLS, Guard, Server, http
from support.guards import Place
from support.peer import Refused
from support.stock import Varstored
from support.storemaker import scene
from varstore_companion.daemon.backlog import DIRECT_SECONDS
from varstore_companion.daemon.journals import opened_ledger
from varstore_companion.journal.ledger import Ledger
from varstore_companion.toolstack.xmlrpc import Success, build_response
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Durable, Reason

OLD = scene("ms2011").blob
AVAILABLE = CertificatesState.UPDATE_AVAILABLE
WAITS, DIRECT, NEXT = (written("ms2011", number) for number in (1, 2, 3))
AWAY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


def started(folder: Path, nursery: trio.Nursery) -> tuple[Place, Ledger]:
    place = Place(folder, nursery)
    place.host.ledger = ledger = opened_ledger(folder / "ledger")
    return place, ledger


async def queued(place: Place) -> tuple[Machine, Guard, Server]:
    """A VM with a store that waits, whose guard is away."""
    machine, guard, server = await place.interposed(OLD, AVAILABLE, resume=True)
    await machine.boot(Reason.RESUME)
    server.stop()
    await wait_all_tasks_blocked()
    assert (await machine.put(WAITS)).durable is Durable.JOURNAL
    return machine, guard, server


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not is_so():
            await wait_all_tasks_blocked(0.001)


async def take_over(place: Place, machine: Machine) -> None:
    """Have the socket of a guard that was started anew taken over, and looked at what it holds."""
    await place.daemon._sockets.look_at_guards()
    await until(lambda: place.daemon.vm(machine.vm).is_known)


@asynccontextmanager
async def at_its_guard(machine: Machine, server: Server) -> AsyncIterator[None]:
    """The guest is at a write of `DIRECT` with its guard, which answers when this is left and does not carry it out itself."""
    goes_on = trio.Event()
    held = server.next(http(build_response(Success(None))), method=SET_CALLS[0], until=goes_on)
    async with trio.open_nursery() as writing:
        writing.start_soon(Varstored(server.path, machine.vm).write, DIRECT)
        await held.reached.wait()
        yield
        goes_on.set()


async def confirm_nothing_is_journaled_onto_it(place: Place, machine: Machine, guard: Guard, server: Server) -> None:
    """As long as the guard does not say what it holds, neither a write nor a read is answered from what waits."""
    for _ in range(8):
        server.next(AWAY)
    with pytest.raises(Refused) as refused:
        await machine.put(NEXT)
    assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    with pytest.raises(Refused) as refused:
        await machine.boot(Reason.RESUME)
    assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    server._prepared.clear()
    assert (await machine.put(NEXT)).durable is Durable.TOOLSTACK
    assert guard.model.store == NEXT
    assert place.host.stats.set_aside == 1
    assert place.host.journal.pending_count == 0


@pytest.mark.parametrize("daemon", ["the same", "the next"])
async def test_no_write_is_journaled_onto_one_that_the_guest_has_written_past(  # invariants 6 and 9
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock, daemon: str
) -> None:
    """It would be set aside with that one, though it was acknowledged, and the VM's next boot would get an older store."""
    place, ledger = started(tmp_path, nursery)
    async with trio.open_nursery() as life:
        await life.start(place.daemon.run)
        machine, guard, server = await queued(place)
        await nursery.start(server.run)
        await Varstored(server.path, machine.vm).write(DIRECT)
        for _ in range(8):
            server.next(AWAY)
        await place.daemon._sockets.look_at_guards()
        if daemon == "the same":
            await confirm_nothing_is_journaled_onto_it(place, machine, guard, server)
        else:
            await place.daemon.stop()
        life.cancel_scope.cancel()
    if daemon == "the next":
        ledger.close()
        place, ledger = started(tmp_path, nursery)
        await nursery.start(place.daemon.run)
        await confirm_nothing_is_journaled_onto_it(place, machine, guard, server)
    nursery.cancel_scope.cancel()


async def test_the_next_daemon_does_not_go_by_what_was_held_before_either(  # invariants 6 and 9
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """Also while a call that was given up may still be carried out, which it has to know of."""
    place, ledger = started(tmp_path, nursery)
    async with trio.open_nursery() as life:
        await life.start(place.daemon.run)
        machine, guard, server = await place.interposed(OLD, CertificatesState.UPDATE_ON_BOOT)
        server.next(method="VM.set_NVRAM_EFI_variables_v2")
        assert (await machine.boot()).store == OLD
        assert not place.daemon.vm(machine.vm).is_direct
        server.stop()
        await wait_all_tasks_blocked()
        await nursery.start(server.run)
        await Varstored(server.path, machine.vm).write(DIRECT)
        for _ in range(8):
            server.next(AWAY)
        await place.daemon._sockets.look_at_guards()
        await place.daemon.stop()
        life.cancel_scope.cancel()
    ledger.close()
    place, ledger = started(tmp_path, nursery)
    await nursery.start(place.daemon.run)
    with pytest.raises(Refused) as refused:
        await machine.put(NEXT)
    assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    server._prepared.clear()
    await place.daemon.vm(machine.vm).look()
    assert (await machine.put(NEXT)).durable is Durable.JOURNAL
    mock_clock.jump(place.toolstack.late_seconds)
    await until(lambda: not place.host.journal.pending_count)
    assert guard.model.store == NEXT
    assert place.host.stats.set_aside == 0
    nursery.cancel_scope.cancel()


async def test_what_was_under_way_meanwhile_is_not_taken_for_the_newest(  # invariants 6 and 9
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """Its answer, of the guard before, says nothing about what the new one was given."""
    place, _ = started(tmp_path, nursery)
    await nursery.start(place.daemon.run)
    machine, guard, server = await place.interposed(OLD, AVAILABLE, resume=True)
    await machine.boot(Reason.RESUME)
    answered = trio.Event()
    prepared = server.next(http(build_response(Success(None))), method=SET_CALLS[1], carry_out=True, until=answered)
    async with machine.peer() as peer, trio.open_nursery() as putting:

        async def put() -> None:
            assert (await peer.put(WAITS)).durable is Durable.TOOLSTACK

        putting.start_soon(put)
        await prepared.reached.wait()
        anew = Server(server.path, guard.answer)
        await nursery.start(anew.run)
        await Varstored(server.path, machine.vm).write(DIRECT)
        for _ in range(3):
            anew.next(AWAY)
        await place.daemon._sockets.look_at_guards()
        answered.set()
    with pytest.raises(Refused) as refused:
        await machine.put(NEXT)
    assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert guard.model.store == DIRECT
    anew._prepared.clear()
    assert (await machine.put(NEXT)).durable is Durable.TOOLSTACK
    assert guard.model.store == NEXT
    assert place.host.stats.set_aside == 0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("waits", [False, True])
async def test_what_the_guest_was_still_at_when_its_socket_was_taken_over_escapes_no_write(  # invariants 6 and 9
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock, *, waits: bool
) -> None:
    """It is not there at the first look. A write that goes by that one alone would be set aside, though it was acknowledged."""
    place, _ = started(tmp_path, nursery)
    await nursery.start(place.daemon.run)
    if waits:
        machine, guard, server = await queued(place)
    else:
        machine, guard, server = await place.interposed(OLD, AVAILABLE, resume=True)
        server.stop()
        await wait_all_tasks_blocked()
    await nursery.start(server.run)
    async with at_its_guard(machine, server):
        for _ in range(8):
            server.next(AWAY, method=SET_CALLS[1])
        await take_over(place, machine)
        guard.model.write(b64encode(DIRECT).decode(), None)
    answer = await machine.put(NEXT)
    server._prepared.clear()
    if answer.durable is Durable.JOURNAL:
        await place.daemon.vm(machine.vm).flush()
    assert guard.model.store == NEXT
    assert place.host.stats.set_aside == waits
    assert place.host.journal.pending_count == 0
    nursery.cancel_scope.cancel()


async def test_the_next_daemon_knows_of_the_doubt_also_once_nothing_more_may_be_carried_out(  # invariants 6 and 9
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """What is noted of a call that was given up is forgotten then, and what was seen meanwhile must not go with it."""
    place, ledger = started(tmp_path, nursery)
    async with trio.open_nursery() as life:
        await life.start(place.daemon.run)
        machine, guard, server = await place.interposed(OLD, AVAILABLE, resume=True)
        await machine.boot(Reason.RESUME)
        server.next(method=SET_CALLS[1])
        assert (await machine.put(WAITS)).durable is Durable.JOURNAL
        server.stop()
        await wait_all_tasks_blocked()
        await nursery.start(server.run)
        await Varstored(server.path, machine.vm).write(DIRECT)
        server.next(AWAY)
        await place.daemon._sockets.look_at_guards()
        await until(lambda: not server._prepared)
        assert (await machine.boot(Reason.RESUME)).store == DIRECT
        for _ in range(100):
            server.next(AWAY)
        mock_clock.jump(place.toolstack.late_seconds)
        await place.daemon.vm(machine.vm).settled()
        await place.daemon.stop()
        life.cancel_scope.cancel()
    ledger.close()
    place, _ = started(tmp_path, nursery)
    await nursery.start(place.daemon.run)
    await confirm_nothing_is_journaled_onto_it(place, machine, guard, server)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("daemon", ["the same", "the next"])
async def test_nor_while_a_call_that_was_given_up_may_still_be_carried_out(  # invariants 6 and 9
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock, daemon: str
) -> None:
    """Nothing waits then, and a write is journaled without being offered to the guard, which is there."""
    place, ledger = started(tmp_path, nursery)
    async with trio.open_nursery() as life:
        await life.start(place.daemon.run)
        machine, guard, server = await place.interposed(OLD, CertificatesState.UPDATE_ON_BOOT)
        server.next(method=SET_CALLS[1])
        assert (await machine.boot()).store == OLD
        server.stop()
        await wait_all_tasks_blocked()
        await nursery.start(server.run)
        async with at_its_guard(machine, server):
            await take_over(place, machine)
            guard.model.write(b64encode(DIRECT).decode(), None)
        if daemon == "the next":
            await place.daemon.stop()
        else:
            assert (await machine.put(NEXT)).durable is Durable.JOURNAL
            await confirm_it_is_delivered(place, machine, guard, mock_clock)
        life.cancel_scope.cancel()
    if daemon == "the next":
        ledger.close()
        place, ledger = started(tmp_path, nursery)
        await nursery.start(place.daemon.run)
        assert (await machine.put(NEXT)).durable is Durable.JOURNAL
        await confirm_it_is_delivered(place, machine, guard, mock_clock)
    nursery.cancel_scope.cancel()


async def confirm_it_is_delivered(place: Place, machine: Machine, guard: Guard, mock_clock: MockClock) -> None:
    mock_clock.jump(place.toolstack.late_seconds)
    await until(lambda: not place.host.journal.pending_count)
    assert guard.model.store == NEXT
    assert place.host.stats.set_aside == 0


@pytest.mark.parametrize("ends", ["carried out", "never"])
async def test_what_waits_is_not_delivered_under_what_the_guest_is_still_at_with_its_guard(  # invariant 9
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock, ends: str
) -> None:
    """The older one would land on it, whatever the look before had shown."""
    place, _ = started(tmp_path, nursery)
    await nursery.start(place.daemon.run)
    machine, guard, server = await queued(place)
    await nursery.start(server.run)
    async with at_its_guard(machine, server):
        await take_over(place, machine)
        for _ in range(8):
            mock_clock.jump(DIRECT_SECONDS / 10)
            await wait_all_tasks_blocked(0.001)
        assert guard.model.store == OLD
        if ends == "carried out":
            guard.model.write(b64encode(DIRECT).decode(), None)
    mock_clock.jump(DIRECT_SECONDS)
    await until(lambda: not place.host.journal.pending_count)
    assert guard.model.store == (DIRECT if ends == "carried out" else WAITS)
    assert place.host.stats.set_aside == (ends == "carried out")
    nursery.cancel_scope.cancel()
