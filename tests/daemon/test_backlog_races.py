"""Writes, deliveries, reads and starts of the daemon at once: the newest acknowledged store wins (invariants 6 and 9)."""

from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Place, certcheck, still_host, written
from support.memory_toolstack import MemoryToolstack
from support.outage import AWAY, LOST, Outage, delivered, known
from support.storemaker import scene
from varstore_companion.daemon.backlog import MAX_REPLACES
from varstore_companion.daemon.journals import opened_ledger
from varstore_companion.daemon.vm import Vm
from varstore_companion.errors import JournalError
from varstore_companion.journal.entry import Entry
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Durable, Reason

OK, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_ON_BOOT


class Gate:
    """Stands before a method, as long as it is closed: `reached` is set when a call waits there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.reached = trio.Event()
        self._open = trio.Event()
        method = getattr(owner, name)

        async def through(*given: object, **named: object) -> object:
            self.reached.set()
            await self._open.wait()
            return await method(*given, **named)

        monkeypatch.setattr(owner, name, through)

    def open(self) -> None:
        self._open.set()


async def test_a_write_that_comes_to_be_journaled_while_the_one_before_is_waited_for(still: Place) -> None:
    backlog = still.new_vm(scene("ms2011").blob, OK)._backlog
    first = backlog._append = still.host.errand(trio.sleep_forever, "first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backlog.settled)
        await wait_all_tasks_blocked()
        first.give_up()
        second = backlog._append = still.host.errand(trio.sleep_forever, "second")
        await wait_all_tasks_blocked()
        assert not backlog.is_settled
        second.give_up()


async def test_a_write_that_is_being_journaled_while_the_one_before_is_delivered(  # invariant 9
    place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    look = Gate(monkeypatch, place.toolstack, "read")
    outage.end()
    await look.reached.wait()
    append = Gate(monkeypatch, place.host.journal, "append")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.put, written("ms2011", 2))
        await append.reached.wait()
        # What is being journaled does not know that the one before comes to be with the toolstack.
        look.open()
        await wait_all_tasks_blocked()
        append.open()
    await delivered(place)
    assert place.record(machine).store == written("ms2011", 2)
    assert place.host.stats.set_aside == 0


@pytest.mark.parametrize("where", ["load", "write"])
async def test_a_write_that_is_journaled_while_the_one_before_is_being_delivered(  # invariant 9
    place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    gate = Gate(monkeypatch, place.host.journal if where == "load" else place.toolstack, where)
    outage.end()
    await gate.reached.wait()
    assert (await machine.put(written("ms2011", 2))).durable is Durable.JOURNAL
    assert (await machine.put(written("ms2011", 3))).durable is Durable.JOURNAL
    gate.open()
    await delivered(place)
    assert place.record(machine).store == written("ms2011", 3)
    assert place.host.stats.set_aside == 0


@pytest.mark.parametrize("reason", [Reason.RESUME, Reason.BOOT])
async def test_a_store_that_is_delivered_while_it_is_read_from_the_journal(
    place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    machine = await known(place, state=OK)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    turn = place.daemon.vm(machine.vm)._backlog.turn
    await turn.acquire()  # as a delivery does
    outage.end()

    async def removed(entry: Entry) -> bytes:
        # Behind this, what was read from the toolstack is the store before.
        place.write_elsewhere(machine, written("ms2011", 1))
        await place.host.journal.done(entry)
        assert not turn.value
        released.set()
        await wait_all_tasks_blocked()
        raise JournalError("a store cannot be read", where="segment", reason="it is not there any more")

    released = trio.Event()
    monkeypatch.setattr(place.host.journal, "load", removed)
    answers = []
    async with trio.open_nursery() as nursery:

        async def boot() -> None:
            answers.append(await machine.boot(reason))

        nursery.start_soon(boot)
        await released.wait()
        turn.release()
    assert [answer.store for answer in answers] == [written("ms2011", 1)]


@pytest.mark.parametrize("has_ledger", [True, False])
async def test_many_daemons_in_one_outage(tmp_path: Path, autojump_clock: MockClock, has_ledger: bool) -> None:
    toolstack = MemoryToolstack(certcheck)
    vm, lives = uuid4(), 2 * MAX_REPLACES if has_ledger else MAX_REPLACES // 2
    toolstack.create(vm, written("ms2011", 0), ON_BOOT)
    toolstack.late_seconds = 60.0 if has_ledger else 0.0
    for life in range(lives + 1):
        async with trio.open_nursery() as nursery:
            host = still_host(tmp_path, toolstack)
            host.nursery = nursery
            host.ledger = opened_ledger(tmp_path / "ledger") if has_ledger else None
            await nursery.start(host.journal.run)
            known = Vm(vm, host)
            if life == 0:
                await known.read()
                # Taken, which nobody knows.
                toolstack.fail_next("write", LOST, when="after")
                toolstack.fail_next("read", AWAY)
            if life < lives:
                assert (await known.put(written("ms2011", life + 1))).journaled
                assert toolstack.vms[vm].store == written("ms2011", 1)
            else:
                await known.settled()
                await known.deliver(trio.current_time() + 10)
                assert host.stats.set_aside == 0
            if host.ledger is not None:
                host.ledger.close()
            nursery.cancel_scope.cancel()
    assert toolstack.vms[vm] == VmRecord(written("ms2011", lives), ON_BOOT, 2)
