"""A journal on a disk that is full, read-only, gone, failing or damaged: on a real one where a test may mount it."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from shutil import move, rmtree

import pytest
import trio

from support.journals import files, running, segments, serving, size, until, vm
from varstore_companion.errors import JournalError
from varstore_companion.journal.disk import Disk
from varstore_companion.journal.entry import Damage
from varstore_companion.journal.journal import Journal
from varstore_companion.journal.record import PAGE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 2 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", path], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


# Full


def take_the_rest(path: Path) -> None:
    """Fill the disk with a file, to the last byte."""

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write()


async def fill(journal: Journal) -> list[int]:
    """Append stores until the disk takes no more; the numbers of the VMs whose were taken."""
    taken: list[int] = []
    for number in range(100):
        try:
            await journal.append(vm(number), bytes(60_000), (), 0.0)
        except JournalError:
            return taken
        taken.append(number)
    raise AssertionError("the disk was never full")


async def test_a_full_disk_refuses_stores_and_takes_their_ends(small: Path) -> None:
    folder = small / "journal"
    async with running(folder, segment=300_000) as journal:
        taken = await fill(journal)
        assert 20 < len(taken) < 32
        # Somebody else takes all that is left.
        take_the_rest(small / "other")
        with pytest.raises(JournalError, match=os.strerror(errno.ENOSPC)):
            await journal.append(vm(1), b"", (), 0.0)
        # The end of each is there at once, also while the segments of the first ones cannot go yet.
        for number in taken[:-10]:
            entry = journal.pending(vm(number))
            assert entry is not None
            await journal.done(entry)
            assert entry.vm not in {each.vm for each in Journal(folder).open().entries}
        assert journal.pending_count == 10
        await until(lambda: journal.bytes_on_disk < 1_200_000)
        await journal.append(vm(50), bytes(60_000), (), 0.0)
        assert "reserve" in [path.name for path in files(folder)]
    assert [entry.vm.int for entry in Journal(folder).open().entries] == [*taken[-10:], 50]


async def test_what_a_full_disk_refuses_leaves_nothing_behind(small: Path) -> None:
    folder = small / "journal"
    async with running(folder, segment=300_000) as journal:
        taken = await fill(journal)
        for _ in range(3):
            with pytest.raises(JournalError):
                await journal.append(vm(1), bytes(130_000), (), 0.0)
        assert size(folder) == journal.bytes_on_disk
        assert journal.pending_count == len(taken)
    found = Journal(folder).open()
    assert found.damages == ()
    assert [entry.vm.int for entry in found.entries] == taken
    assert {entry.size for entry in found.entries} == {60_000}


async def test_a_limit_of_the_length_of_files(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with running(folder) as journal:
        await journal.append(vm(1), bytes(60_000), (), 0.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(JournalError, match=os.strerror(errno.EFBIG)):
                await journal.append(vm(2), bytes(60_000), (), 0.0)
            await journal.append(vm(3), bytes(60_000), (), 0.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = Journal(folder).open()
    assert ([entry.vm for entry in found.entries], found.damages) == ([vm(1), vm(3)], ())


# Read-only, gone


async def test_a_disk_that_becomes_read_only(small: Path) -> None:
    folder = small / "journal"
    async with running(folder) as journal:
        entry = await journal.append(vm(1), b"store", (), 0.0)
    remount(small, "ro")
    journal = Journal(folder)
    (entry,) = journal.open().entries
    async with serving(journal):
        assert await journal.load(entry) == b"store"
        with pytest.raises(JournalError, match=rf"{folder}.*{os.strerror(errno.EROFS)}"):
            await journal.append(vm(2), b"store", (), 0.0)
        with pytest.raises(JournalError, match=os.strerror(errno.EROFS)):
            await journal.done(entry)
        assert journal.pending(vm(1)) == entry
        remount(small, "rw")
        await journal.append(vm(2), b"store", (), 0.0)
        await journal.done(entry)
    assert [each.vm for each in Journal(folder).open().entries] == [vm(2)]


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"")
    for folder in (tmp_path / "journal", tmp_path / "missing" / "journal"):
        with pytest.raises(JournalError, match=str(folder)):
            Journal(folder).open()


async def test_a_folder_that_goes_is_made_again(folder: Path) -> None:
    async with running(folder) as journal:
        lost = await journal.append(vm(1), b"lost", (), 0.0)
        rmtree(folder)
        with pytest.raises(JournalError, match=f"{folder}.*: it was removed while it was written"):
            await journal.append(vm(2), b"store", (), 0.0)
        await journal.append(vm(2), b"store", (), 0.0)
        with pytest.raises(JournalError, match=f"{folder}/00000001.segment: {os.strerror(errno.ENOENT)}"):
            await journal.load(lost)
        await journal.done(lost)
        assert [entry.vm for entry in Journal(folder).open().entries] == [vm(2)]


async def test_a_folder_that_comes_back(folder: Path, tmp_path: Path) -> None:
    async with running(folder) as journal:
        await journal.append(vm(1), b"store", (), 0.0)
        move(folder, tmp_path / "aside")
        with pytest.raises(JournalError, match="it was removed"):
            await journal.append(vm(2), b"store", (), 0.0)
        move(tmp_path / "aside", folder)
        await journal.append(vm(3), b"store", (), 0.0)
    found = Journal(folder).open()
    assert {vm(1), vm(3)} <= {entry.vm for entry in found.entries}


# Failing


class Failing(Disk):
    """Each method that is named in `failing` fails."""

    def __init__(self, number: int = errno.EIO) -> None:
        super().__init__()
        self.failing: set[str] = set()
        self.number = number

    def _step(self, name: str) -> None:
        if name in self.failing:
            raise OSError(self.number, os.strerror(self.number))

    def sync(self, descriptor: int) -> None:
        self._step("sync")
        super().sync(descriptor)

    def sync_folder(self, path: Path) -> None:
        self._step("sync_folder")
        super().sync_folder(path)

    def cut(self, path: Path, length: int) -> None:
        self._step("cut")
        super().cut(path, length)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes:
        self._step("read")
        return super().read(path, offset, length)


async def test_after_a_failed_sync_another_segment_is_begun(folder: Path) -> None:
    disk = Failing()
    async with running(folder, disk=disk) as journal:
        first = await journal.append(vm(1), b"first", (), 0.0)
        before = size(folder)
        disk.failing = {"sync"}
        with pytest.raises(JournalError, match=os.strerror(errno.EIO)):
            await journal.append(vm(1), b"second", (), 0.0)
        assert journal.pending(vm(1)) == first
        disk.failing = set()
        await journal.append(vm(2), b"third", (), 0.0)
        assert len(segments(folder)) == 2
        assert (folder / segments(folder)[0]).stat().st_size == before
    found = Journal(folder).open()
    assert [entry.digest for entry in found.entries] == [first.digest, found.entries[1].digest]
    assert found.damages == ()


async def test_nothing_is_removed_while_what_failed_cannot_be_taken_back(folder: Path) -> None:
    disk = Failing()
    async with running(folder, disk=disk) as journal:
        first = await journal.append(vm(1), b"first", (), 0.0)
        disk.failing = {"sync", "cut"}
        with pytest.raises(JournalError):
            await journal.append(vm(1), b"second", (), 0.0)
        disk.failing = {"cut"}
        await journal.done(first)
        await journal.append(vm(2), b"third", (), 0.0)
        assert len(segments(folder)) == 2
        disk.failing = set()
        await journal.append(vm(2), b"fourth", (), 0.0)
        await until(lambda: len(segments(folder)) == 1)
    assert [entry.vm for entry in Journal(folder).open().entries] == [vm(2)]


async def test_nothing_is_copied_while_what_failed_cannot_be_taken_back(folder: Path) -> None:
    """The end that failed may be on the disk. Before a copy of its store it would go first, and the store come back."""
    disk = Failing()
    async with running(folder, disk=disk, segment=20_000) as journal:
        kept = await journal.append(vm(1), b"kept" * 1_000, (), 0.0)
        first = segments(folder)[0]
        disk.failing = {"sync", "cut"}
        with pytest.raises(JournalError):
            await journal.done(kept)
        disk.failing = {"cut"}
        for number in range(10):
            await journal.append(vm(2), b"%d" % number * 10_000, (), 0.0)
        assert [name for name in segments(folder) if b"kept" in (folder / name).read_bytes()] == [first]
        disk.failing = set()
        await journal.append(vm(2), b"last", (), 0.0)
        await until(lambda: first not in segments(folder))
        assert await journal.load(kept) == b"kept" * 1_000
    assert [entry.vm for entry in Journal(folder).open().entries] == [vm(1), vm(2)]


async def test_an_end_is_tried_twice(folder: Path) -> None:
    """In another file: a file that fails keeps no VM's entry for ever."""
    disk = Failing()
    async with running(folder, disk=disk) as journal:
        entry = await journal.append(vm(1), b"store", (), 0.0)

        class Once(set[str]):
            def __contains__(self, name: object) -> bool:
                if name == "sync" and name in list(self):
                    self.discard("sync")
                    return True
                return False

        disk.failing = Once({"sync"})
        await journal.done(entry)
        assert journal.pending(vm(1)) is None
    assert Journal(folder).open().entries == ()


# Damaged


async def three(folder: Path) -> Path:
    """A journal with the stores of three VMs in one segment, which is returned."""
    async with running(folder) as journal:
        for number in (1, 2, 3):
            await journal.append(vm(number), b"%d" % number * 5_000, (), 0.0)
    return folder / segments(folder)[0]


async def test_what_is_damaged_is_put_aside_and_the_rest_goes_on(folder: Path) -> None:
    path = await three(folder)
    data = bytearray(path.read_bytes())
    data[PAGE + 8192 + 300] ^= 0x10
    path.write_bytes(data)
    for _ in range(2):
        journal = Journal(folder)
        found = journal.open()
        assert [entry.vm for entry in found.entries] == [vm(1), vm(3)]
        assert found.damages == journal.damages == (Damage(path.name, PAGE + 8192, 5_096, found.damages[0].what, vm(2)),)
        (copy,) = files(folder / "damaged")
        assert copy.read_bytes() == data[PAGE + 8192 : PAGE + 8192 + 5_096]
    async with serving(journal):
        # The journal heals: what is sound comes into a new segment.
        await until(lambda: path.name not in segments(folder))
        for entry in found.entries:
            assert await journal.load(entry) == b"%d" % entry.vm.int * 5_000
    later = Journal(folder).open()
    assert [(each.vm, each.sequence) for each in later.entries] == [(each.vm, each.sequence) for each in found.entries]
    assert later.damages == ()
    assert [copy] == files(folder / "damaged")


async def test_a_file_that_cannot_be_read_is_put_aside_whole(folder: Path) -> None:
    path = await three(folder)
    data = path.read_bytes()
    path.unlink()
    path.mkdir()
    journal = Journal(folder)
    found = journal.open()
    assert found.entries == ()
    assert [str(each) for each in found.damages] == [f"{path.name}: the file cannot be read: {os.strerror(errno.EISDIR)}"]
    async with serving(journal):
        await until(lambda: not path.exists())
        entry = await journal.append(vm(1), b"new", (), 0.0)
    assert (folder / "damaged" / path.name).is_dir()
    # A person repairs it: it is older than what came since.
    path.write_bytes(data)
    found = Journal(folder).open()
    assert [each.vm for each in found.entries] == [vm(2), vm(3), vm(1)]
    assert found.entries[2].digest == entry.digest


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
async def test_a_system_without_room_to_read_is_no_damage(folder: Path, code: int) -> None:  # invariant 6
    path = await three(folder)

    class Full(Disk):
        def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes:
            raise OSError(code, os.strerror(code), str(path))

    with pytest.raises(JournalError, match=rf"cannot be read: {path}: {os.strerror(code)}"):
        Journal(folder, disk=Full()).open()
    assert (segments(folder), (folder / "damaged").exists()) == ([path.name], False)
    assert [each.vm for each in Journal(folder).open().entries] == [vm(1), vm(2), vm(3)]


async def test_the_number_of_what_is_put_aside_is_not_used_again(folder: Path) -> None:
    """Or a person who puts the repaired file back would overwrite another."""
    aside = folder / "damaged"
    aside.mkdir(parents=True)
    (aside / "00000007.segment").write_bytes(b"?")
    (aside / "00000003-00001000-00000001-0123456789abcdef").write_bytes(b"?")
    async with running(folder) as journal:
        await journal.append(vm(1), b"store", (), 0.0)
        assert segments(folder) == ["00000008.segment"]


async def test_what_goes_bad_later_is_found_when_it_is_read(folder: Path) -> None:
    path = await three(folder)
    journal = Journal(folder)
    journal.open()
    data = bytearray(path.read_bytes())
    data[PAGE + 300] ^= 1
    path.write_bytes(data)
    async with serving(journal):
        entry = journal.pending(vm(1))
        assert entry is not None
        with pytest.raises(JournalError, match=f"{path}: not what was written at offset {PAGE}"):
            await journal.load(entry)


async def test_what_is_lost_by_the_time_it_is_moved_does_not_stop_the_rest(folder: Path) -> None:
    async with running(folder, segment=30_000) as journal:
        for number in (1, 2):
            await journal.append(vm(number), b"%d" % number * 5_000, (), 0.0)
        path = folder / segments(folder)[0]
        data = bytearray(path.read_bytes())
        data[PAGE + 300] ^= 1
        path.write_bytes(data)
        for number in range(20):
            await journal.append(vm(3), b"%d" % number * 5_000, (), 0.0)
        await until(lambda: path.name not in segments(folder))
        assert [each.vm for each in journal.damages] == [vm(1)]
        assert [entry.vm for entry in journal.entries()] == [vm(2), vm(3)]
        assert len(files(folder / "damaged")) == 1


async def test_copies_of_damage_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varstore_companion.journal.aside.KEPT", 6_000)
    path = await three(folder)
    data = bytearray(path.read_bytes())
    for number in range(3):
        data[PAGE + number * 8192 + 300] ^= 1
    path.write_bytes(data)
    assert len(Journal(folder).open().damages) == 3
    assert [copy.stat().st_size for copy in files(folder / "damaged")] == [5_096]


async def test_a_journal_of_a_later_version_is_not_touched(folder: Path) -> None:
    path = await three(folder)
    first = path.read_bytes()[:8] + (2).to_bytes(8, "little") + path.read_bytes()[16:32]
    copy = (first + blake2b(first, digest_size=16).digest()).ljust(2048, b"\0")
    path.write_bytes(copy * 2 + path.read_bytes()[PAGE:])
    with pytest.raises(JournalError, match=rf"{path}: .*version 2"):
        Journal(folder).open()


async def no_thread(*_given: object, **_named: object) -> None:
    raise RuntimeError("can't start new thread")


async def test_a_system_without_threads_ends_no_journal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(folder) as journal:
        entry = await journal.append(vm(1), b"one", (), 0.0)
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", no_thread)
            for _ in range(2):
                with pytest.raises(JournalError, match="can't start new thread"):
                    await journal.append(vm(1), b"two", (), 0.0)
            with pytest.raises(JournalError, match="can't start new thread"):
                await journal.done(entry)
            with pytest.raises(JournalError, match="can't start new thread"):
                await journal.load(entry)
            assert journal.pending(vm(1)) == entry
        later = await journal.append(vm(1), b"three", (), 0.0)
        assert await journal.load(later) == b"three"
        await journal.done(later)
        await until(lambda: not segments(folder))


async def test_other_files_are_left_alone(folder: Path) -> None:
    await three(folder)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "1.segment").write_bytes(b"?")
    async with running(folder) as journal:
        assert (journal.pending_count, journal.damages) == (3, ())
        for entry in journal.entries():
            await journal.done(entry)
        await until(lambda: segments(folder) == ["1.segment"])
    assert [path.name for path in files(folder)] == ["1.segment", "notes.txt"]
