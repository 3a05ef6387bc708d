"""Any store, any write, any field, through the daemon's own socket: the design's tables hold, as an oracle tells them.

The oracle, the model of varstored and the rules of signature lists share no code with the product.
"""

import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from trio.testing import MockClock

from support import storebytes as sb
from support.daemon import Place
from support.memory_toolstack import When
from support.mutated import KEYS, WORLDS, World, examples, hostile, mutated
from support.oracle import certcheck, field_after, is_over_limit, report_of, update_of, variables, verdict_of, version
from support.peer import Refused
from support.siglist_rules import signature_list_violations
from support.varstored_model import VarstoredModel
from varstore_companion.daemon.rules import Rules
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.sources import Loaded
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.plan import plan
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Durable, Outcome, Reason

FIELDS = st.sampled_from((None, *CertificatesState))
ON_BOOT = CertificatesState.UPDATE_ON_BOOT
HEADROOMS = st.sampled_from((None, None, 0, 60_000, 131_072))
WHEN: tuple[When, ...] = ("before", "after")
FAILURES = (
    ToolstackUnavailableError("xapi restarts"),
    ToolstackUnclearError("the answer was lost"),
    ToolstackRefusedError("VM_BAD_POWER_STATE", "not now"),
)


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[str(request.param)]()


def in_place(world: World, story: Callable[[Place], Awaitable[None]]) -> None:
    """Run a story in a daemon with the world's rules, whose toolstack derives its field as the oracle says."""

    async def run() -> None:
        place = Place(Path(folder))
        place.host.rules = Rules(world.manifest, Loaded(world.bodies, {}, ()))
        place.toolstack.check = lambda store: CertificatesState(certcheck(store, world.rules))
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(place.daemon.run)
                await story(place)
                nursery.cancel_scope.cancel()
        except ExceptionGroup as group:
            # What failed, as Hypothesis tells one failure from another by it.
            raise group.exceptions[0] from None

    with tempfile.TemporaryDirectory() as folder:
        trio.run(run, clock=MockClock(autojump_threshold=0))


# Writes


def is_known(store: bytes | None) -> bool:
    """Whether the store that the toolstack holds can be compared with."""
    return store is None or (version(store) in (0, 1, 2) and variables(store)[1])


def refusal(store: bytes) -> ErrorCode | None:
    """How a write must be refused, None for one that varstored would load, or of a version that nobody here can judge."""
    if version(store) is None or (version(store) in (0, 1, 2) and not variables(store)[1]):
        return ErrorCode.NOT_A_STORE
    is_too_large = len(store) > sb.FILE_LIMIT if version(store) not in (0, 1, 2) else is_over_limit(store, variables(store)[0])
    return ErrorCode.STORE_OVER_LIMIT if is_too_large else None


@examples(40)
@given(data=st.data())
def test_every_write_gets_the_verdict_of_the_table(world: World, data: DataObject) -> None:
    """Invariants 7 and 11: whatever the toolstack held and said, and whoever else wrote or marked in between."""
    base = data.draw(st.sampled_from(world.stores), "base")
    good = mutated(world, base)
    stores = st.one_of(good, good, mutated(world), hostile(world, base))
    first = data.draw(st.one_of(st.none(), good, hostile(world, base)), "held")
    field = data.draw(FIELDS, "field")
    # What the operator or another client does, then the write; None: the store that is there, once more.
    steps = data.draw(
        st.lists(
            st.tuples(st.sampled_from(("mark", "unmark", None, None)), st.none() | stores, st.none() | stores),
            min_size=1,
            max_size=4,
        )
    )

    async def story(place: Place) -> None:
        machine = await place.machine(first, field)
        for mark, elsewhere, write in steps:
            if mark and place.record(machine).state in (CertificatesState.UPDATE_AVAILABLE, ON_BOOT):
                await place.toolstack.mark(machine.vm, mark=mark == "mark")
            if elsewhere is not None:
                place.write_elsewhere(machine, elsewhere)
            held = place.record(machine)
            after = write or held.store
            if after is None:
                continue
            expected = verdict_of(held.store, after, held.state, world.rules, is_known=is_known(held.store))
            if (code := refusal(after)) is not None:
                with pytest.raises(Refused) as refused:
                    await machine.put(after)
                assert refused.value.code == code
                assert place.record(machine) == held
                continue
            answer = await machine.put(after)
            assert answer.verdict.name.lower() == expected
            assert place.toolstack.writes[-1].update == expected
            record = place.record(machine)
            assert record.store == after
            assert record.generation == answer.generation == held.generation + 1
            assert record.state == field_after(held.state, expected, after, world.rules)

    in_place(world, story)


@examples(25)
@given(data=st.data())
def test_writes_while_the_toolstack_is_away_fold_into_one(world: World, data: DataObject) -> None:
    """Invariants 6, 7 and 9: each is acknowledged and read back, and one verdict on all of them reaches the toolstack."""
    base = data.draw(st.sampled_from(world.stores), "base")
    first = data.draw(st.one_of(st.none(), mutated(world, base)), "held")
    field = data.draw(FIELDS, "field")
    writes = data.draw(st.lists(mutated(world, base), min_size=1, max_size=4), "writes")

    async def story(place: Place) -> None:
        machine = await place.machine(first, field)
        assert (await machine.boot(Reason.RESUME)).store == first
        place.toolstack.closed = True
        last = first
        for each in writes:
            if (code := refusal(each)) is not None:
                with pytest.raises(Refused) as refused:
                    await machine.put(each)
                assert refused.value.code == code
                continue
            assert (await machine.put(each)).durable is Durable.JOURNAL
            last = each
            assert (await machine.boot(Reason.RESUME)).store == last
        assert place.record(machine) == VmRecord(first, field, 0)
        place.toolstack.closed = False
        while place.host.journal.pending_count:  # noqa: ASYNC110  nothing tells of the last delivery, and the clock is virtual
            await trio.sleep(1)
        record = place.record(machine)
        assert record.store == last
        if last is not None and last != first:
            expected = verdict_of(first, last, field, world.rules)
            assert [each.update for each in place.toolstack.writes if each.store == last][-1] == expected
            assert record.state == field_after(field, expected, last, world.rules)
        else:
            assert record.state == field

    in_place(world, story)


# The update


def accepted(before: bytes, after: bytes) -> None:
    """Invariant 2: varstored loads it, and no key variable breaks a rule of lists that it did not break before."""
    old, new = VarstoredModel.load(before).list(), VarstoredModel.load(after).list()
    for was, now in zip(old, new, strict=True):
        assert replace(was, data=b"") == replace(now, data=b"")
        if KEYS.get(str(now.name)) == now.guid:
            found = signature_list_violations(now.data, str(now.name))
            assert len(found) <= len(signature_list_violations(was.data, str(was.name))), found
        else:
            assert now == was


@examples(150)
@given(data=st.data())
def test_every_plan_changes_what_the_manifest_names_and_nothing_else(world: World, data: DataObject) -> None:
    """Invariants 2 and 3: told by a splice of plain bytes; and twice is once."""
    store = data.draw(st.one_of(mutated(world), mutated(world), hostile(world)), "store")
    headroom = data.draw(HEADROOMS, "headroom")
    made = plan(store, world.manifest, world.bodies, headroom=headroom)
    expected = update_of(store, world.rules, world.bodies, headroom)
    assert (made.refused is not None) == (expected is None)
    assert made.store == (store if expected is None else expected)
    assert made.before.state == report_of(store, world.rules)
    assert made.after.state == report_of(made.store, world.rules)
    if expected is None:
        return
    assert bool(made.changes) == (expected != store)
    accepted(store, made.store)
    again = plan(made.store, world.manifest, world.bodies, headroom=headroom)
    assert (again.refused, again.changes, again.store) == (None, (), made.store)


@examples(25)
@given(data=st.data())
def test_every_marked_boot_answers_with_the_updated_store_or_the_old_one(world: World, data: DataObject) -> None:
    """Invariants 3 and 5, and 10: the mark lives until the store is updated, and only a cold boot does it."""
    store = data.draw(st.one_of(mutated(world), mutated(world), hostile(world)), "store")
    expected = update_of(store, world.rules, world.bodies)

    async def story(place: Place) -> None:
        machine = await place.machine(store, ON_BOOT)
        for reason in (Reason.RESUME, Reason.TOOL):
            assert (await machine.boot(reason)).store == store
        assert not place.toolstack.writes
        answer = await machine.boot()
        record = place.record(machine)
        assert answer.store == record.store == (store if expected is None else expected)
        assert record.state == (ON_BOOT if expected is None else CertificatesState.OK)
        outcome = Outcome.FAILED if expected is None else Outcome.NOTHING_TO_DO if expected == store else Outcome.UPDATED
        assert answer.outcome is outcome
        again = await machine.boot()
        assert again.store == answer.store

    in_place(world, story)


@examples(25)
@given(data=st.data())
def test_a_marked_boot_whose_toolstack_fails_is_one_or_the_other(world: World, data: DataObject) -> None:
    """Invariant 5: and once the toolstack works again, the next boot ends it."""
    store = data.draw(mutated(world), "store")
    expected = update_of(store, world.rules, world.bodies)
    errors = data.draw(st.lists(st.sampled_from(FAILURES), min_size=1, max_size=3), "failures")
    when = data.draw(st.sampled_from(WHEN), "when")

    async def story(place: Place) -> None:
        machine = await place.machine(store, ON_BOOT)
        place.toolstack.fail_next("write", *errors, when=when)
        answer = await machine.boot()
        assert answer.store in (store, expected)
        assert place.record(machine).store in (store, expected)
        if answer.outcome is Outcome.UPDATED:
            assert answer.store == expected != store
        elif answer.outcome is Outcome.FAILED:
            assert answer.store == store
        for waiting in place.toolstack._prepared.values():
            waiting.clear()
        last = await machine.boot()
        assert last.store == place.record(machine).store
        assert last.store in ((store,) if expected is None else (expected,))

    in_place(world, story)
