"""Writes while the toolstack is away: journaled, acknowledged, delivered, and never turned back (invariants 6, 7 and 9)."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Machine, Place, updated, written
from support.memory_toolstack import MemoryToolstack
from support.outage import AWAY, LOST, Outage, delivered, known
from support.peer import Refused
from support.storemaker import scene
from varstore_companion.daemon.alerts import SET_ASIDE
from varstore_companion.daemon.backlog import REFUSED_SECONDS, Mode
from varstore_companion.daemon.held import ABSENT, digest_of
from varstore_companion.errors import JournalError, JournalFullError, ToolstackRefusedError, ToolstackUnclearError
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Durable, Outcome, Reason, Verdict

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT


def mode(place: Place, machine: Machine) -> Mode:
    return place.daemon.vm(machine.vm).mode


async def test_a_write_while_the_toolstack_is_away(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    outage = Outage(place)
    answer = await machine.put(written("ms2011", 1))
    assert (answer.verdict, answer.durable) == (Verdict.UNSPECIFIED, Durable.JOURNAL)
    assert mode(place, machine) is not Mode.DIRECT
    status = await place.daemon.status(None)
    assert status["mode"] in ("queued", "draining")
    assert place.host.stats.journaled == 1

    # Its varstored reads its own write, and so does its next boot.
    for reason in Reason:
        assert (await machine.boot(reason)).store == written("ms2011", 1)
    assert place.record(machine).store == scene("ms2011").blob

    outage.end()
    await delivered(place)
    # The verdict was decided on what the toolstack holds: the mark lives (invariant 7).
    assert place.record(machine) == VmRecord(written("ms2011", 1), ON_BOOT, 1)
    assert [write.update for write in place.toolstack.writes] == [Update.NO]
    assert (await place.daemon.status(None))["mode"] == "direct"
    assert (await machine.put(written("ms2011", 2))).durable is Durable.TOOLSTACK


async def test_later_writes_take_its_place_and_fold_into_one_verdict(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place, "setup_mode", OK)
    outage = Outage(place)
    for name in ("ms2011", "custom_keys", "all2023", "ms2011"):
        assert (await machine.put(scene(name).blob)).durable is Durable.JOURNAL
    outage.end()
    await delivered(place)
    # From setup mode to the set of 2011: nobody but certcheck can say, whatever was written between.
    assert place.record(machine) == VmRecord(scene("ms2011").blob, AVAILABLE, 1)
    assert [(write.store, write.update) for write in place.toolstack.writes] == [(scene("ms2011").blob, Update.UNSPECIFIED)]


async def test_the_first_store_of_a_vm_may_be_journaled(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(None, OK)
    assert (await machine.boot()).store is None
    outage = Outage(place)
    await machine.put(scene("ms2011").blob)
    (entry,) = place.host.journal.entries()
    assert entry.replaces == (ABSENT,)
    outage.end()
    await delivered(place)
    assert place.record(machine).store == scene("ms2011").blob


async def test_many_writes_in_one_outage_keep_the_entry_small(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    outage = Outage(place)
    for number in range(200):
        await machine.put(written("ms2011", number))
    (entry,) = place.host.journal.entries()
    assert entry.replaces == (digest_of(scene("ms2011").blob),)
    outage.end()
    await delivered(place)
    assert place.record(machine).store == written("ms2011", 199)


async def test_a_vm_that_moved_on_elsewhere_keeps_the_newer_store(  # invariant 9
    place: Place, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    place.write_elsewhere(machine, written("ms2011", 100))
    outage.end()
    await delivered(place)
    assert place.record(machine).store == written("ms2011", 100)
    assert place.alerts() == [SET_ASIDE]
    (body,) = [alert.body for _, alert in place.toolstack.alerts]
    assert str(machine.vm) in body
    (kept,) = (place.folder / "backups" / str(machine.vm)).glob("*.vars")
    assert kept.read_bytes() == written("ms2011", 1)
    assert kept.stem in body
    assert kept.stem in caplog.text
    assert place.host.stats.set_aside == 1
    # From then on the VM is as any other.
    assert (await machine.put(written("ms2011", 2))).durable is Durable.TOOLSTACK


async def test_what_the_toolstack_has_taken_already_is_not_written_again(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    place.toolstack.fail_next("write", LOST, when="after")
    # The look back fails, and every try to deliver until the toolstack is there again.
    place.toolstack.fail_next("read", *[AWAY] * 5)
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    await delivered(place)
    assert place.record(machine) == VmRecord(written("ms2011", 1), ON_BOOT, 1)
    assert len(place.toolstack.writes) == 1


async def test_a_store_that_may_have_been_sent_may_be_replaced(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    place.toolstack.fail_next("write", LOST, when="after")
    place.toolstack.fail_next("read", AWAY)
    outage: Outage | None = None
    async with machine.peer() as peer:
        # Taken by the toolstack, which nobody here knows.
        assert (await peer.put(written("ms2011", 1))).durable is Durable.JOURNAL
        outage = Outage(place)
        assert (await peer.put(written("ms2011", 2))).durable is Durable.JOURNAL
    outage.end()
    await delivered(place)
    assert place.record(machine) == VmRecord(written("ms2011", 2), ON_BOOT, 2)
    assert place.host.stats.set_aside == 0


async def test_a_boot_brings_what_is_journaled_first_and_then_updates(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    outage.end()
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(written("ms2011", 1)))
    assert place.record(machine) == VmRecord(updated(written("ms2011", 1)), OK, 2)
    await delivered(place)


async def test_a_boot_while_only_reading_works_is_not_updated_and_says_why(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    outage.end()
    place.toolstack.fail_next("write", *[AWAY] * 100)
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.FAILED, written("ms2011", 1))  # invariant 5
    assert "journaled store goes first" in (answer.detail or "")
    assert place.record(machine) == VmRecord(scene("ms2011").blob, ON_BOOT, 0)


async def test_a_refused_entry_is_set_aside_in_the_end(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    place.toolstack.fail_next("write", *[ToolstackRefusedError("VM_BAD_POWER_STATE", "not now")] * 100)
    outage.end()
    await delivered(place)
    assert place.record(machine).store == scene("ms2011").blob
    assert place.alerts() == [SET_ASIDE]
    assert REFUSED_SECONDS < autojump_clock.current_time() < 2 * REFUSED_SECONDS


async def test_a_refusal_that_passes_costs_nothing(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    place.toolstack.fail_next("write", *[ToolstackRefusedError("VM_BAD_POWER_STATE", "not now")] * 6)
    outage.end()
    await delivered(place)
    assert place.record(machine).store == written("ms2011", 1)
    assert place.alerts() == []


async def test_refused_reads_say_nothing_about_the_entry(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    place.toolstack.fail_next("read", *[ToolstackRefusedError("RBAC_PERMISSION_DENIED", "not you")] * 8)
    outage.end()
    await delivered(place)
    assert place.record(machine).store == written("ms2011", 1)
    assert place.alerts() == []


async def test_a_vm_that_is_gone(place: Place, autojump_clock: MockClock) -> None:
    machine = await known(place)
    outage = Outage(place)
    await machine.put(written("ms2011", 1))
    del place.toolstack.vms[machine.vm]
    outage.end()
    await delivered(place)
    assert len(list((place.folder / "backups" / str(machine.vm)).glob("*.vars"))) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JournalFullError(more=1, live=2, total=2), ErrorCode.TOOLSTACK_UNAVAILABLE),
        (JournalError("not written", where="segment", reason="No space left on device"), ErrorCode.UNCLEAR),
    ],
)
async def test_a_journal_that_cannot_take_it_is_no_lie(
    place: Place, autojump_clock: MockClock, error: Exception, code: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def append(*_: object) -> object:
        await trio.lowlevel.checkpoint()
        raise error

    machine = await known(place)
    outage = Outage(place)
    monkeypatch.setattr(place.host.journal, "append", append)
    with pytest.raises(Refused) as caught:
        await machine.put(written("ms2011", 1))
    assert caught.value.code is code
    assert str(error) in caught.value.text
    assert place.host.journal.pending_count == 0
    outage.end()
    assert (await machine.put(written("ms2011", 2))).durable is Durable.TOOLSTACK


async def test_a_journal_that_hangs_is_waited_for_before_anything_else_is_written(
    place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await known(place)
    outage = Outage(place)
    journal, free = place.host.journal, trio.Event()
    append = journal.append

    async def hang(*given: object) -> object:
        await free.wait()
        return await append(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(journal, "append", hang)
    with pytest.raises(Refused) as caught:
        await machine.put(written("ms2011", 1))
    assert caught.value.code is ErrorCode.UNCLEAR
    assert autojump_clock.current_time() <= 31
    outage.end()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.put, written("ms2011", 2))
        await wait_all_tasks_blocked()
        assert place.toolstack.writes == []
        free.set()
    await delivered(place)
    assert place.record(machine).store == written("ms2011", 2)


async def test_a_store_that_nobody_has_seen_is_not_journaled_blindly(place: Place, autojump_clock: MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT, resume=True)
    outage = Outage(place)
    with pytest.raises(Refused) as caught:
        await machine.put(written("ms2011", 1))
    assert caught.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert caught.value.try_again
    outage.end()


# A toolstack that carries out late what was given up


class Late(MemoryToolstack):
    """Carries out each write it is told to hold only when it is released, also when its caller has gone."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.toolstack.check)
        self.vms = place.toolstack.vms
        self.alerts = place.toolstack.alerts
        self.late_seconds = 60.0
        self.hold = False
        self.held: list[tuple[object, bytes, Update]] = []
        place.host.toolstack = self

    async def write(
        self, vm: object, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        if self.hold:
            self.held.append((vm, store, update))
            await trio.sleep_until(deadline)
            raise ToolstackUnclearError("the toolstack did not answer in time")
        return await super().write(vm, store, update, expected=expected)  # type: ignore[arg-type]

    async def land(self) -> None:
        """What was held arrives."""
        for vm, store, update in self.held:
            await super().write(vm, store, update)  # type: ignore[arg-type]
        self.held.clear()


@pytest.mark.parametrize("lands", [True, False])
async def test_a_write_that_lands_late_is_not_on_top_of_a_newer_one(  # invariant 9
    place: Place, autojump_clock: MockClock, lands: bool
) -> None:
    machine = await known(place)
    late = Late(place)
    late.hold = True
    # Given up: it is journaled, and so is everything after it until nothing can land any more.
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    late.hold = False
    assert (await machine.put(written("ms2011", 2))).durable is Durable.JOURNAL
    await trio.sleep(30)
    assert place.record(machine).store == scene("ms2011").blob
    if lands:
        await late.land()
        assert place.record(machine).store == written("ms2011", 1)
    await delivered(place)
    assert place.record(machine).store == written("ms2011", 2)
    assert place.record(machine).state is ON_BOOT
    assert place.host.stats.set_aside == 0
    assert (await machine.put(written("ms2011", 3))).durable is Durable.TOOLSTACK


async def test_an_update_that_lands_late_is_not_on_top_of_the_guests_next_write(  # invariants 5 and 9
    place: Place,
    autojump_clock: MockClock,
) -> None:
    old = scene("ms2011").blob
    machine = await place.machine(old, ON_BOOT)
    late = Late(place)
    late.hold = True
    answer = await machine.boot()
    assert (answer.outcome, answer.store) == (Outcome.FAILED, old)
    late.hold = False
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    # Nor does a second boot begin another update meanwhile.
    again = await machine.boot()
    assert (again.outcome, again.store) == (Outcome.FAILED, written("ms2011", 1))
    await late.land()
    assert place.record(machine) == VmRecord(updated(old), OK, 1)
    await delivered(place)
    # The field was derived anew: it tells the truth about what the guest has.
    assert place.record(machine) == VmRecord(written("ms2011", 1), AVAILABLE, 2)
