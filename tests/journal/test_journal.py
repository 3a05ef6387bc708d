"""The journal in use: what is pending, what it costs, what it holds on the disk."""

import os
from hashlib import sha256
from pathlib import Path
from random import Random
from threading import Event
from tracemalloc import get_traced_memory, start, stop

import pytest
import trio
import trio.testing

from support.journals import files, mode, running, segments, size, until, vm
from support.processes import python
from varstore_companion.errors import JournalError, JournalFullError, OverLimitError
from varstore_companion.journal.disk import Disk
from varstore_companion.journal.journal import Journal
from varstore_companion.journal.record import PAGE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def test_a_store_waits_until_it_is_done(folder: Path) -> None:
    async with running(folder) as journal:
        assert journal.pending(vm(1)) is None
        entry = await journal.append(vm(1), b"store", (b"r" * 32,), 1234.5)
        assert journal.pending(vm(1)) == entry
        assert (entry.vm, entry.at, entry.replaces, entry.size, entry.recovered) == (vm(1), 1234.5, (b"r" * 32,), 5, False)
        assert entry.digest == sha256(b"store").digest()
        assert await journal.load(entry) == b"store"
        assert journal.pending_count == 1
        await journal.done(entry)
        assert journal.pending(vm(1)) is None
        assert (journal.pending_count, journal.bytes_live, list(journal.entries())) == (0, 0, [])


async def test_a_later_store_supersedes_an_earlier_one(folder: Path) -> None:
    async with running(folder) as journal:
        first = await journal.append(vm(1), b"first", (), 1.0)
        other = await journal.append(vm(2), b"other", (), 2.0)
        second = await journal.append(vm(1), b"second", (first.digest,), 0.5)
        assert list(journal.entries()) == [other, second]
        assert first.sequence < other.sequence < second.sequence
        syncs = journal.fsyncs
        await journal.done(first)
        assert journal.fsyncs == syncs
        assert journal.pending(vm(1)) == second
        with pytest.raises(JournalError, match="not pending any more"):
            await journal.load(first)
        assert await journal.load(second) == b"second"


async def test_a_done_leaves_what_comes_while_it_is_written(folder: Path) -> None:
    async with running(folder) as journal:
        first = await journal.append(vm(1), b"first", (), 1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.done, first)
            nursery.start_soon(journal.append, vm(1), b"second", (), 1.0)
        entry = journal.pending(vm(1))
        assert entry is not None
        assert await journal.load(entry) == b"second"
        again = Journal(folder)
        assert [each.digest for each in again.open().entries] == [entry.digest]


async def test_the_next_life_finds_what_waits(folder: Path) -> None:
    async with running(folder) as journal:
        for number in range(1, 6):
            await journal.append(vm(number), b"old", (), 0.0)
            await journal.append(vm(number), f"store {number}".encode(), (bytes([number]) * 32,) * number, number / 3)
        for number in (2, 5):
            entry = journal.pending(vm(number))
            assert entry is not None
            await journal.done(entry)
        before = {each.vm: each for each in journal.entries()}
    journal = Journal(folder)
    found = journal.open()
    assert found.damages == ()
    assert [entry.vm for entry in found.entries] == [vm(1), vm(3), vm(4)]
    for entry in found.entries:
        old = before[entry.vm]
        assert entry.recovered
        assert (entry.sequence, entry.at, entry.digest) == (old.sequence, old.at, old.digest)
        assert (entry.replaces, entry.size) == (old.replaces, old.size)
        assert await journal.load(entry) == f"store {entry.vm.int}".encode()


async def test_each_life_begins_a_segment_and_higher_sequences(folder: Path) -> None:
    newest = 0
    for life in range(1, 5):
        async with running(folder) as journal:
            entry = await journal.append(vm(life), b"store", (), 0.0)
            assert entry.sequence > newest
            newest = entry.sequence
            assert segments(folder)[-1] == f"{life:08x}.segment"


async def test_sequences_grow_over_what_cannot_be_read_today(folder: Path) -> None:
    """Else it would win, were it readable the next time (invariant 9)."""
    async with running(folder) as journal:
        for number in range(9):
            hidden = await journal.append(vm(1), b"%d" % number, (), 0.0)
    (path,) = (folder / name for name in segments(folder))
    path.write_bytes(b"?" * size(folder))
    async with running(folder) as journal:
        assert (await journal.append(vm(1), b"newer", (), 0.0)).sequence > hidden.sequence


async def test_fifty_at_once_need_few_syncs(folder: Path) -> None:
    async with running(folder) as journal:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(journal.append, vm(number), os.urandom(50_000), (), 0.0)
        assert journal.pending_count == 50
        assert journal.fsyncs < 15


async def test_a_write_costs_one_sync(folder: Path) -> None:
    async with running(folder) as journal:
        await journal.append(vm(1), b"first", (), 0.0)
        for number in range(10):
            syncs = journal.fsyncs
            await journal.append(vm(2), b"%d" % number, (), 0.0)
            assert journal.fsyncs == syncs + 1


async def test_an_empty_journal_has_no_files(folder: Path) -> None:
    async with running(folder, segment=100_000) as journal:
        for number in range(20):
            await journal.append(vm(number), bytes(30_000), (), 0.0)
        assert len(segments(folder)) > 5
        for entry in journal.entries():
            await journal.done(entry)
        await until(lambda: journal.bytes_on_disk == 0)
        assert files(folder) == []
        await journal.append(vm(1), b"again", (), 0.0)
    assert len(Journal(folder).open().entries) == 1


async def test_what_is_on_the_disk_is_bounded_by_what_waits(folder: Path) -> None:
    """One VM that never stops, others that wait long: the space of what was superseded comes back."""
    chance = Random(1)
    segment = 200_000
    async with running(folder, segment=segment) as journal:
        kept = [await journal.append(vm(number), chance.randbytes(20_000), (), 0.0) for number in range(10)]
        for _ in range(150):
            last = await journal.append(vm(99), chance.randbytes(chance.randrange(60_000)), (), 0.0)
            most_live = 10 * 24_576 + 61_440
            assert journal.bytes_on_disk <= 2 * most_live + 2 * segment + 61_440 + PAGE
        await until(lambda: journal.bytes_on_disk <= 2 * journal.bytes_live + segment)
        assert list(journal.entries()) == [*kept, last]
        assert segments(folder)[0] != "00000001.segment"
        for entry in kept:
            assert sha256(await journal.load(entry)).digest() == entry.digest
    assert size(folder) == journal.bytes_on_disk
    found = Journal(folder).open()
    assert [(each.vm, each.sequence, each.digest) for each in found.entries] == [
        (each.vm, each.sequence, each.digest) for each in [*kept, last]
    ]


class HeldBack(Disk):
    """The first read waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.may_go_on = Event()

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes:
        self.reads += 1
        if self.reads == 1:
            assert self.may_go_on.wait(20)
        return super().read(path, offset, length)


async def test_a_store_is_read_while_it_is_moved(folder: Path) -> None:
    disk = HeldBack()
    loaded: list[bytes] = []
    async with running(folder, segment=50_000, disk=disk) as journal:
        entry = await journal.append(vm(1), b"kept" * 5_000, (), 0.0)

        async def load() -> None:
            loaded.append(await journal.load(entry))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await until(lambda: disk.reads == 1)
            for number in range(20):
                await journal.append(vm(2), b"%d" % number * 10_000, (), 0.0)
            await until(lambda: "00000001.segment" not in segments(folder))
            disk.may_go_on.set()
    assert loaded == [b"kept" * 5_000]


async def test_the_bound(folder: Path) -> None:
    total = 10 * 32_768
    async with running(folder, total=total) as journal:
        for number in range(10):
            await journal.append(vm(number), bytes(32_000), (), 0.0)
        assert journal.bytes_live == total
        size = journal.bytes_on_disk
        with pytest.raises(JournalFullError, match="327680 bytes wait for the toolstack, 4096 more would pass 327680"):
            await journal.append(vm(10), b"", (), 0.0)
        with pytest.raises(JournalFullError):
            await journal.append(vm(9), bytes(33_000), (), 0.0)
        assert journal.bytes_on_disk == size
        # In the place of what waits there is room, however often.
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(journal.append, vm(number), bytes(32_000), (), 1.0)
        entry = journal.pending(vm(9))
        assert entry is not None
        await journal.done(entry)
        await journal.append(vm(10), b"", (), 0.0)


async def test_over_a_bound_that_was_lowered_what_waits_can_be_superseded(folder: Path) -> None:
    async with running(folder) as journal:
        for number in range(4):
            await journal.append(vm(number), bytes(32_000), (), 0.0)
    async with running(folder, total=2 * 32_768) as journal:
        assert journal.bytes_live == 4 * 32_768
        await journal.append(vm(1), bytes(32_000), (), 1.0)
        with pytest.raises(JournalFullError):
            await journal.append(vm(1), bytes(33_000), (), 1.0)


async def test_what_waits_to_be_written_counts(folder: Path) -> None:
    refused = 0

    async def append(journal: Journal, number: int) -> None:
        nonlocal refused
        try:
            await journal.append(vm(number), bytes(32_000), (), 0.0)
        except JournalFullError:
            refused += 1

    async with running(folder, total=4 * 32_768) as journal:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                for _ in range(3):
                    nursery.start_soon(append, journal, number % 5)
        assert journal.bytes_live == 4 * 32_768
        assert refused == 6


async def test_a_store_over_the_limits_is_refused(folder: Path) -> None:
    async with running(folder) as journal:
        with pytest.raises(OverLimitError):
            await journal.append(vm(1), bytes(131_073), (), 0.0)
        await journal.append(vm(1), bytes(131_072), (bytes(32),) * 64, 0.0)
    assert [entry.size for entry in Journal(folder).open().entries] == [131_072]


async def test_a_cancelled_append_is_pending_when_it_is_durable(folder: Path) -> None:
    async with running(folder) as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.append(vm(1), b"store", (), 0.0)
        assert scope.cancelled_caught
        await until(lambda: journal.pending(vm(1)) is not None)
        entry = journal.pending(vm(1))
        assert entry is not None
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.done(entry)
        assert scope.cancelled_caught
        await until(lambda: journal.pending(vm(1)) is None)


async def test_who_waits_when_it_ends_is_told(folder: Path) -> None:
    disk = HeldBack()
    errors: list[JournalError] = []

    async def append(journal: Journal, number: int) -> None:
        try:
            await journal.append(vm(number), bytes(131_000), (), 0.0)
        except JournalError as error:
            errors.append(error)

    journal = Journal(folder, disk=disk)
    journal.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, journal, 1)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as inner:
            inner.start_soon(journal.run)
            inner.cancel_scope.cancel()
    with pytest.raises(JournalError, match="it is closed"):
        await journal.append(vm(1), b"store", (), 0.0)
    with pytest.raises(JournalError, match=f"{folder}: it has not been opened"):
        await Journal(folder).append(vm(1), b"store", (), 0.0)
    assert len(errors) + journal.pending_count == 1


async def test_only_the_owner_may_read(folder: Path) -> None:
    async with running(folder) as journal:
        await journal.append(vm(1), b"store", (), 0.0)
        assert mode(folder) == 0o700
        assert {mode(path) for path in files(folder)} == {0o600}


async def test_the_index_is_small(folder: Path) -> None:
    """What is kept of an entry in memory, without its store."""
    async with running(folder) as journal:
        start()
        try:
            async with trio.open_nursery() as nursery:
                for number in range(3_000):
                    nursery.start_soon(journal.append, vm(number), b"%d" % number, (sha256(b"%d" % number).digest(),), 0.0)
            held, _ = get_traced_memory()
        finally:
            stop()
        assert journal.pending_count == 3_000
        assert held / 3_000 < 1_500
        assert journal.fsyncs < 60


def test_it_needs_nothing_that_is_slow_to_import() -> None:
    """A start pays for trio, and for the standard library."""
    with python("import varstore_companion.journal.journal, sys; print(*sys.modules)") as (process, _, said):
        names = said.read().split()
        assert process.wait() == 0
    assert "varstore_companion.journal.record" in names
    assert not {"construct", "cryptography", "h11", "sqlite3", "asyncio"} & set(names)
