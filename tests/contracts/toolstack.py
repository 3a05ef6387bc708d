"""What every `Toolstack` does. An adapter's test file subclasses `ToolstackContract` and gives it a `subject`."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
import trio

from varstore_companion.errors import ToolstackConflictError, ToolstackRefusedError, ToolstackUnavailableError
from varstore_companion.toolstack.interface import Alert, Toolstack, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

OLD = b"VARS\2\0\0\0 needs the update " + bytes(range(256)) * 100
NEW = b"VARS\2\0\0\0 is complete " + bytes(reversed(range(256))) * 120

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT


def check(store: bytes) -> CertificatesState:
    """Certcheck for the suite's stores: what the toolstack under test must make of `unspecified`."""
    return AVAILABLE if b"needs the update" in store else OK


@dataclass(frozen=True)
class Subject:
    """A toolstack under test and the ways round it.

    `create` adds a VM as the operator would; `alerts` gives what the operator sees. `marks`: whether VMs can be
    marked through it.
    """

    toolstack: Toolstack
    create: Callable[[UUID, bytes | None, CertificatesState], None]
    alerts: Callable[[], list[tuple[UUID, Alert]]]
    marks: bool = True

    async def can_mark(self, vm: UUID) -> bool:
        """Whether VMs can be marked through the adapter; one through which they cannot says so, and changes nothing."""
        if not self.marks:
            before = await self.toolstack.read(vm)
            with pytest.raises(ToolstackRefusedError):
                await self.toolstack.mark(vm, mark=True)
            assert await self.toolstack.read(vm) == before
        return self.marks


class ToolstackContract:
    async def test_first_boot_is_an_absent_key(self, subject: Subject) -> None:
        vm = uuid4()
        subject.create(vm, None, OK)
        record = await subject.toolstack.read(vm)
        assert record.store is None
        assert record.state is OK

    @pytest.mark.parametrize("state", CertificatesState)
    async def test_what_was_created_is_read(self, subject: Subject, state: CertificatesState) -> None:
        vm = uuid4()
        subject.create(vm, OLD, state)
        record = await subject.toolstack.read(vm)
        assert (record.store, record.state) == (OLD, state)

    @pytest.mark.parametrize("before", [None, b"", OLD])
    @pytest.mark.parametrize("store", [b"", b"\0", NEW, bytes(131_072)], ids=["empty", "nul", "usual", "largest"])
    async def test_a_store_comes_back_byte_for_byte(self, subject: Subject, before: bytes | None, store: bytes) -> None:
        vm = uuid4()
        subject.create(vm, before, OK)
        generation = await subject.toolstack.write(vm, store, Update.NO)
        assert await subject.toolstack.read(vm) == VmRecord(store, OK, generation)

    @pytest.mark.parametrize("state", CertificatesState)
    @pytest.mark.parametrize("store", [OLD, NEW], ids=["old", "new"])
    @pytest.mark.parametrize("update", Update)
    async def test_the_field_follows_the_verdict(
        self, subject: Subject, state: CertificatesState, store: bytes, update: Update
    ) -> None:
        vm, other = uuid4(), uuid4()
        subject.create(vm, b"before", state)
        subject.create(other, b"other", state)
        untouched = await subject.toolstack.read(other)
        await subject.toolstack.write(vm, store, update)
        record = await subject.toolstack.read(vm)
        assert record.store == store
        assert record.state is {Update.YES: OK, Update.NO: state, Update.UNSPECIFIED: check(store)}[update]
        assert await subject.toolstack.read(other) == untouched

    @pytest.mark.parametrize("update", Update)
    async def test_every_write_raises_the_generation(self, subject: Subject, update: Update) -> None:
        vm = uuid4()
        subject.create(vm, OLD, OK)
        seen = [(await subject.toolstack.read(vm)).generation]
        for _ in range(3):
            # The same bytes are a write, too.
            seen.append(await subject.toolstack.write(vm, OLD, update))
            assert (await subject.toolstack.read(vm)).generation == seen[-1]
        assert seen == sorted(set(seen))

    @pytest.mark.parametrize("update", Update)
    async def test_a_write_on_the_expected_generation_is_made(self, subject: Subject, update: Update) -> None:
        vm = uuid4()
        subject.create(vm, OLD, ON_BOOT)
        first = await subject.toolstack.write(vm, OLD, Update.NO)
        second = await subject.toolstack.write(vm, NEW, update, expected=first)
        record = await subject.toolstack.read(vm)
        assert (record.store, record.generation) == (NEW, second)

    @pytest.mark.parametrize("update", Update)
    @pytest.mark.parametrize("off_by", [-1, 1])
    async def test_a_conflict_changes_nothing(self, subject: Subject, update: Update, off_by: int) -> None:
        vm = uuid4()
        subject.create(vm, b"before", OK)
        await subject.toolstack.write(vm, OLD, Update.UNSPECIFIED)
        if subject.marks:
            await subject.toolstack.mark(vm, mark=True)
        before = await subject.toolstack.read(vm)
        with pytest.raises(ToolstackConflictError):
            await subject.toolstack.write(vm, NEW, update, expected=before.generation + off_by)
        assert await subject.toolstack.read(vm) == before

    async def test_of_two_writers_on_one_generation_one_wins(self, subject: Subject) -> None:
        vm = uuid4()
        subject.create(vm, OLD, ON_BOOT)
        base = (await subject.toolstack.read(vm)).generation
        won: list[bytes] = []
        lost: list[bytes] = []

        async def write(store: bytes) -> None:
            try:
                await subject.toolstack.write(vm, store, Update.NO, expected=base)
            except ToolstackConflictError:
                lost.append(store)
            else:
                won.append(store)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(write, NEW + bytes([number]))
        assert len(won) == 1
        assert len(lost) == 3
        record = await subject.toolstack.read(vm)
        assert (record.store, record.state) == (won[0], ON_BOOT)

    async def test_a_mark_goes_back_and_forth_and_may_be_repeated(self, subject: Subject) -> None:
        vm = uuid4()
        subject.create(vm, OLD, AVAILABLE)
        if not await subject.can_mark(vm):
            return
        for mark, state in [
            (False, AVAILABLE),
            (True, ON_BOOT),
            (True, ON_BOOT),
            (False, AVAILABLE),
            (False, AVAILABLE),
        ]:
            assert await subject.toolstack.mark(vm, mark=mark) is state
            record = await subject.toolstack.read(vm)
            assert (record.store, record.state) == (OLD, state)

    @pytest.mark.parametrize("mark", [True, False])
    async def test_a_mark_is_refused_where_there_is_nothing_to_do(self, subject: Subject, *, mark: bool) -> None:
        vm = uuid4()
        subject.create(vm, NEW, OK)
        if not await subject.can_mark(vm):
            return
        with pytest.raises(ToolstackRefusedError) as refused:
            await subject.toolstack.mark(vm, mark=mark)
        assert refused.value.code == "OPERATION_NOT_ALLOWED"
        assert (await subject.toolstack.read(vm)).state is OK

    async def test_a_mark_lives_through_every_no(self, subject: Subject) -> None:
        vm = uuid4()
        subject.create(vm, OLD, AVAILABLE)
        if await subject.can_mark(vm):
            await subject.toolstack.mark(vm, mark=True)
        marked = (await subject.toolstack.read(vm)).state
        for number in range(3):
            await subject.toolstack.write(vm, OLD + bytes([number]), Update.NO)
        assert (await subject.toolstack.read(vm)).state is marked
        assert marked is (ON_BOOT if subject.marks else AVAILABLE)

    async def test_an_unknown_vm_is_refused_everywhere(self, subject: Subject) -> None:
        vm, toolstack = uuid4(), subject.toolstack
        for call in (
            lambda: toolstack.read(vm),
            lambda: toolstack.write(vm, OLD, Update.NO),
            lambda: toolstack.write(vm, OLD, Update.UNSPECIFIED),
            lambda: toolstack.mark(vm, mark=True),
            lambda: toolstack.alert(vm, Alert("NAME", 5, "body")),
        ):
            with pytest.raises(ToolstackRefusedError) as refused:
                await call()
            assert refused.value.code == "HANDLE_INVALID"
        assert subject.alerts() == []

    async def test_alerts_reach_the_operator_in_order(self, subject: Subject) -> None:
        vm, other = uuid4(), uuid4()
        for one in (vm, other):
            subject.create(one, None, OK)
        alerts = [
            (vm, Alert("FIRST", 5, "wörds\nof it")),
            (other, Alert("SECOND", 3, "")),
            (vm, Alert("THIRD", 1, "x")),
        ]
        for one, alert in alerts:
            await subject.toolstack.alert(one, alert)
        assert subject.alerts() == alerts

    async def test_a_closed_adapter_changes_nothing_and_says_so(self, subject: Subject) -> None:
        vm = uuid4()
        subject.create(vm, OLD, OK)
        await subject.toolstack.aclose()
        with pytest.raises(ToolstackUnavailableError):
            await subject.toolstack.read(vm)
        with pytest.raises(ToolstackUnavailableError):
            await subject.toolstack.write(vm, NEW, Update.YES)
