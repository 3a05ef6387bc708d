"""The exact old store before it is replaced."""

import errno
import json
import os
import stat
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from varstore_companion.efi.outline import FILE_LIMIT
from varstore_companion.errors import OverLimitError
from varstore_companion.journal import backups as backups_module
from varstore_companion.journal import files
from varstore_companion.journal.backups import (
    ABOUT_LIMIT,
    AT_ONCE,
    BATCH,
    CLOCK_SECONDS,
    KEEP,
    KEEP_DAYS,
    WRITING,
    Backup,
    BackupError,
    Backups,
    Why,
)

VM = uuid4()
NOW = datetime(2026, 6, 24, 1, 2, 3, tzinfo=UTC).timestamp()
DAY = 86_400


def long_up() -> float:
    return CLOCK_SECONDS


def nothing() -> Mapping[str, object]:
    return {}


async def kept(backups: Backups, store: bytes, now: float = NOW, *, vm: UUID = VM, spare: str | None = None) -> str:
    return await backups.keep(vm, store, Why.UPDATE, now, nothing, spare=spare)


def stores(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / str(VM)).glob("*.vars"))]


async def ids(backups: Backups, vm: UUID | None = VM) -> list[str]:
    return [each.id for each in await backups.page(vm, "", 1_000)]


async def test_a_backup_is_the_store_with_report_and_plan_beside_it(tmp_path: Path) -> None:
    store = bytes(range(256)) * 200
    about = {"report": {"state": "update_available"}, "plan": {"changes": ["one"]}}
    backups = Backups(tmp_path / "backups")
    name = await backups.keep(VM, store, Why.UPDATE, NOW, lambda: about)
    folder = tmp_path / "backups" / str(VM)
    assert name == f"20260624T010203Z-{sha256(store).hexdigest()[:12]}"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.json", f"{name}.vars"]
    assert (folder / f"{name}.vars").read_bytes() == store
    assert json.loads((folder / f"{name}.json").read_text()) == {
        "vm": str(VM),
        "at": NOW,
        "why": "update",
        "sha256": sha256(store).hexdigest(),
        "bytes": len(store),
        **about,
    }
    for path in (tmp_path / "backups", folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listed = Backup(VM, name, NOW, "update", len(store), sha256(store).hexdigest(), "update_available")
    assert await backups.page(VM, "", 10) == [listed]
    assert await backups.load(VM, None) == await backups.load(VM, name) == (listed, store)


async def test_no_store_is_without_its_description_whenever_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = files.write, []

    def spied(path: Path, data: bytes) -> None:
        write(path, data)
        written.append(path.suffix)

    monkeypatch.setattr(files, "write", spied)
    await kept(Backups(tmp_path), b"store")
    assert written == [".json", ".vars"]


async def test_the_oldest_go_with_their_descriptions(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    for number in range(KEEP + 5):
        await kept(backups, b"%03d" % number, NOW + number)
    other = uuid4()
    await kept(backups, b"another VM's", NOW - 1000, vm=other)
    assert stores(tmp_path) == [b"%03d" % number for number in range(5, KEEP + 5)]
    assert len(list((tmp_path / str(VM)).iterdir())) == 2 * KEEP
    assert len(list((tmp_path / str(other)).iterdir())) == 2


async def test_one_that_is_spared_stays_though_it_is_the_oldest(tmp_path: Path) -> None:
    backups = Backups(tmp_path, keep=2, uptime=long_up)
    first = await kept(backups, b"first")
    await kept(backups, b"second", NOW + 1)
    third = await kept(backups, b"third", NOW + 2, spare=first)
    fourth = await kept(backups, b"fourth", NOW + 3 + KEEP_DAYS * DAY, spare=first)
    assert await ids(backups) == [first, fourth]
    assert third != fourth


async def test_what_is_too_old_goes_when_a_newer_one_is_kept(tmp_path: Path) -> None:
    backups = Backups(tmp_path, uptime=long_up)
    for days in (0, 1, KEEP_DAYS, KEEP_DAYS + 1):
        await kept(backups, b"%03d" % days, NOW + days * DAY)
    assert stores(tmp_path) == [b"%03d" % days for days in (1, KEEP_DAYS, KEEP_DAYS + 1)]


async def test_what_is_too_old_expires_but_never_the_last_of_a_vm(tmp_path: Path) -> None:
    backups, other = Backups(tmp_path, uptime=long_up), uuid4()
    await backups.expire(NOW)
    for number in range(3):
        await kept(backups, b"%03d" % number, NOW + number)
    alone = await kept(backups, b"alone", vm=other)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / str(uuid4())).write_text("no folder")
    await backups.expire(NOW + KEEP_DAYS * DAY)
    assert len(stores(tmp_path)) == 3
    await backups.expire(NOW + 2 * KEEP_DAYS * DAY)
    assert stores(tmp_path) == [b"002"]
    assert len(list((tmp_path / str(VM)).iterdir())) == 2
    assert await ids(backups, other) == [alone]


async def test_a_clock_that_is_years_ahead_when_the_host_starts_removes_nothing(tmp_path: Path) -> None:
    up = 60.0
    backups = Backups(tmp_path, keep=4, uptime=lambda: up)
    for number in range(3):
        await kept(backups, b"%03d" % number, NOW + number)
    ahead = NOW + 3 * KEEP_DAYS * DAY
    await backups.expire(ahead)
    await kept(backups, b"003", ahead)
    assert stores(tmp_path) == [b"000", b"001", b"002", b"003"]
    await kept(backups, b"004", ahead + 1)
    assert len(stores(tmp_path)) == 4
    up = CLOCK_SECONDS
    await backups.expire(ahead)
    assert stores(tmp_path) == [b"003", b"004"]


async def test_a_system_without_threads_keeps_what_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def no_thread(*_given: object, **_named: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    await Backups(tmp_path).expire(NOW)
    assert "can't start new thread" in caplog.text


@pytest.mark.parametrize("keep", [1, 2, 10])
async def test_the_order_does_not_depend_on_the_clock(tmp_path: Path, keep: int) -> None:
    backups = Backups(tmp_path, keep=keep)
    for number in range(keep + 2):
        await kept(backups, b"%03d" % number, NOW + number)
    name = await kept(backups, b"in 1970", 0)
    assert (await ids(backups))[-1] == name
    backup, store = await backups.load(VM, None)
    assert (backup.id, backup.at, store) == (name, 0, b"in 1970")
    assert len(stores(tmp_path)) == keep
    again = await kept(backups, b"in the same second", 0)
    assert again > name
    assert (await backups.load(VM, None))[1] == b"in the same second"


async def test_the_newest_is_not_kept_twice(tmp_path: Path) -> None:
    """A boot whose update fails over and over does not push out the backups before it."""
    backups = Backups(tmp_path)
    first = await kept(backups, b"first")
    second = await kept(backups, b"second", NOW + 1)
    for number in range(2 * KEEP):
        assert await kept(backups, b"second", NOW + 2 + number) == second
    assert await ids(backups) == [first, second]
    third = await kept(backups, b"first", NOW + 100)
    assert await ids(backups) == [first, second, third]
    # One that cannot be brought back is none.
    (tmp_path / str(VM) / f"{third}.json").write_text("{}")
    assert await kept(backups, b"first", NOW + 101) != third


async def test_backups_on_a_disk_that_hangs_are_given_up_and_take_no_other_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    reached = threading.Semaphore(0)

    def hang(_path: Path, _data: bytes) -> None:
        reached.release()
        released.wait()

    monkeypatch.setattr(files, "write", hang)
    backups = Backups(tmp_path)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(backups.keep, VM, b"store", Why.UPDATE, NOW, nothing)
            for _ in range(WRITING):
                await trio.to_thread.run_sync(reached.acquire)
            nursery.cancel_scope.cancel()
        # What is given up goes on in its thread, and only so many others follow.
        for _ in range(AT_ONCE - WRITING):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(backups.keep, VM, b"store", Why.UPDATE, NOW, nothing)
                    await trio.to_thread.run_sync(reached.acquire)
                    scope.cancel()
        with trio.move_on_after(0.1):
            await kept(backups, b"store")
        assert not reached.acquire(blocking=False)
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    finally:
        released.set()


class Held:
    """A disk that holds every write until it is released. `paths`: those that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []
        self._reached, self._released = threading.Semaphore(0), threading.Event()
        self._write = files.write
        monkeypatch.setattr(files, "write", self.write)

    def write(self, path: Path, data: bytes) -> None:
        self.paths.append(path)
        self._reached.release()
        self._released.wait()
        self._write(path, data)

    async def reached(self, count: int) -> None:
        for _ in range(count):
            await trio.to_thread.run_sync(self._reached.acquire)
        # Whatever else is to wait for it does by now.
        await trio.testing.wait_all_tasks_blocked()

    def release(self) -> None:
        self._released.set()


async def test_what_comes_at_once_is_written_together_and_each_gets_its_own_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = Backups(tmp_path / "backups")
    calls: list[int] = []
    write_waiting = backups._write_waiting

    def counted(token: trio.lowlevel.TrioToken) -> None:
        calls.append(len(backups._waiting))
        write_waiting(token)

    monkeypatch.setattr(backups, "_write_waiting", counted)
    sync_folder, synced = files.sync_folder, list[Path]()

    def sync(path: Path) -> None:
        synced.append(path)
        sync_folder(path)

    monkeypatch.setattr(files, "sync_folder", sync)
    vms = [UUID(int=number) for number in range(4 * BATCH)]
    told: dict[UUID, str] = {}

    def describe(vm: UUID) -> Mapping[str, object]:
        if vm.int % 5 == 3:
            raise RuntimeError(f"a bug with {vm.int}")
        return {"number": vm.int}

    async def keep(vm: UUID) -> None:
        try:
            told[vm] = await backups.keep(vm, b"%d" % vm.int, Why.UPDATE, NOW, lambda: describe(vm))
        except RuntimeError as error:
            told[vm] = str(error)

    disk = Held(monkeypatch)
    async with trio.open_nursery() as nursery:
        for vm in vms:
            nursery.start_soon(keep, vm)
        await disk.reached(1)
        disk.release()
    assert len(calls) <= len(vms) // BATCH + WRITING
    # The folder of all VMs once for a call, not once for each of its new folders.
    assert synced.count(tmp_path / "backups") <= len(calls)
    for vm in vms:
        if vm.int % 5 == 3:
            assert told[vm] == f"a bug with {vm.int}"
        else:
            assert (await backups.load(vm, told[vm]))[1] == b"%d" % vm.int


@pytest.mark.parametrize("batch", [1, BATCH])
async def test_one_that_is_given_up_keeps_none_of_the_others_from_being_kept(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups_module, "BATCH", batch)
    backups = Backups(tmp_path)
    disk = Held(monkeypatch)
    vms = [UUID(int=number) for number in range(BATCH)]
    told: dict[UUID, str] = {}
    scopes = {vm: trio.CancelScope() for vm in vms}

    async def keep(vm: UUID) -> None:
        with scopes[vm]:
            told[vm] = await kept(backups, b"%d" % vm.int, vm=vm)

    async with trio.open_nursery() as nursery:
        for vm in vms:
            nursery.start_soon(keep, vm)
        # Alone, each thread has one backup and the rest wait; together, all have been taken by one of them.
        await disk.reached(WRITING if batch == 1 else 1)
        given_up = {UUID(path.parent.name) for path in disk.paths}
        unwritten = {request.vm for request in list(backups._waiting)[:1]} if batch == 1 else set()
        for vm in given_up | unwritten:
            scopes[vm].cancel()
        await trio.testing.wait_all_tasks_blocked()
        disk.release()
    assert given_up
    assert bool(unwritten) is (batch == 1)
    assert set(told) == set(vms) - given_up - unwritten
    for vm, name in told.items():
        assert (await backups.load(vm, None))[0].id == name
    # What nobody has begun to write is not written for nobody.
    for vm in unwritten:
        assert not (tmp_path / str(vm)).exists()


async def test_a_new_folder_is_durable_before_its_backup_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync_folder, synced = files.sync_folder, list[list[str]]()

    def sync(path: Path) -> None:
        if path == tmp_path:
            synced.append(sorted(each.suffix for each in (tmp_path / str(VM)).iterdir()))
            if len(synced) == 1:
                raise OSError(5, "Input/output error")
        sync_folder(path)

    monkeypatch.setattr(files, "sync_folder", sync)
    backups = Backups(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        await kept(backups, b"store")
    # The next time it is there already, and yet not known to be durable; then it is.
    first = await kept(backups, b"store")
    await kept(backups, b"other", NOW + 1)
    assert synced == [[".json", ".vars"]] * 2
    assert (await ids(backups))[0] == first
    # Nor does another life know how the one before ended.
    await kept(Backups(tmp_path), b"another", NOW + 2)
    assert len(synced) == 3


async def test_one_that_is_there_already_is_durable_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk failed, or the process ended, between the last name and its sync."""
    synced: list[Path] = []

    def fails(path: Path) -> None:
        if any(path.glob("*.vars")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(files, "sync_folder", fails)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await kept(Backups(tmp_path / "backups"), b"store")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await kept(Backups(tmp_path / "backups"), b"store")
    monkeypatch.setattr(files, "sync_folder", synced.append)
    backups = Backups(tmp_path / "backups")
    assert await ids(backups) == [await kept(backups, b"store")]
    assert tmp_path / "backups" / str(VM) in synced


async def test_what_a_crash_cut_short_is_removed(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    await kept(backups, b"first")
    for name in (f"20250101T000000Z-0123456789ab.vars{files.NEW}", "20250101T000000Z-0123456789ab.json"):
        (tmp_path / str(VM) / name).write_bytes(b"half")
    assert len(await ids(backups)) == 1
    await kept(backups, b"second", NOW + 1)
    assert stores(tmp_path) == [b"first", b"second"]
    assert len(list((tmp_path / str(VM)).iterdir())) == 4


async def test_a_backup_that_a_call_which_was_given_up_completes_meanwhile_keeps_its_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = Backups(tmp_path)
    await kept(backups, b"first")
    late = f"20260624T010204Z-{sha256(b'late').hexdigest()[:12]}"
    description = (tmp_path / str(VM) / f"{late}.json", b"of the late one")
    files.write(*description)
    write = files.write

    def spied(path: Path, data: bytes) -> None:
        write(path, data)
        write(tmp_path / str(VM) / f"{late}.vars", b"late")

    monkeypatch.setattr(files, "write", spied)
    second = await kept(backups, b"second", NOW + 2)
    assert (await ids(backups))[1:] == [late, second]
    assert description[0].read_bytes() == description[1]


async def test_pages_have_every_backup_once_in_order(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    vms = sorted((uuid4() for _ in range(4)), key=str)
    expected = [(vm, await kept(backups, b"%d" % number, NOW + number, vm=vm)) for vm in vms for number in range(3)]
    for most in (1, 2, 3, 5, 12, 100):
        found: list[Backup] = []
        while page := await backups.page(None, found[-1].key if found else "", most):
            assert len(page) <= most
            found += page
        assert [(each.vm, each.id) for each in found] == expected
    assert [each.id for each in await backups.page(vms[1], "", 2)] == [name for vm, name in expected if vm == vms[1]][:2]
    assert await backups.page(uuid4(), "", 10) == []
    assert await Backups(tmp_path / "missing").page(None, "", 10) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../20260624T010203Z-0123456789ab",
        "/etc/passwd",
        "20260624T010203Z-0123456789ab.vars",
        "20260624T010203Z-0123456789AB",
        "20261399T010203Z-0123456789ab",
        "20260624T010203Z-0123456789ab\n",
        "20260624T010203Z-0123456789ab/../x",
        "\uff120260624T010203Z-0123456789ab",
        "x" * 5000,
        "\ud800\0",
    ],
)
async def test_a_name_that_is_not_in_the_list_is_not_looked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = Backups(tmp_path)
    (tmp_path / str(VM)).mkdir()
    (tmp_path / "20260624T010203Z-0123456789ab.vars").write_bytes(b"not this VM's")
    with pytest.raises(BackupError, match=r"has no backup$"):
        await backups.load(VM, None)
    with pytest.raises(BackupError, match=r"has no backup$"):
        await backups.load(VM, name)
    newest = await kept(backups, b"store")
    opened: list[object] = []
    monkeypatch.setattr(Path, "open", lambda path, *_: opened.append(path))
    with pytest.raises(BackupError, match=f"has no backup of that name: its newest is {newest}"):
        await backups.load(VM, name)
    assert opened == []


async def test_a_backup_of_another_vm_is_not_found(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    name = await kept(backups, b"store")
    await kept(backups, b"another", vm=(other := uuid4()))
    with pytest.raises(BackupError, match="of that name"):
        await backups.load(other, name)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.with_suffix(".vars").write_bytes(b"othe!"), "are not those that were kept"),
        (lambda path: path.with_suffix(".vars").write_bytes(b""), "its 0 bytes"),
        (lambda path: path.with_suffix(".vars").write_bytes(b"store and more"), "are not those that were kept"),
        (lambda path: path.unlink(), "its description is missing"),
        (lambda path: path.write_text(""), "is not what was written"),
        (lambda path: path.write_text("[]"), "is not what was written"),
        (lambda path: path.write_text("[" * 100_000), "is not what was written"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not what was written"),
        (lambda path: path.write_text("null" + " " * ABOUT_LIMIT), "is not what was written"),
        (lambda path: path.write_text(path.read_text().replace('"bytes": 5', '"bytes": "5"')), "is not what was written"),
        (lambda path: path.write_text(path.read_text().replace('"sha256": "', '"sha256": "f')), "is not what was written"),
        (lambda path: path.write_text(path.read_text().replace('"at": ', '"at": 1e999, "was": ')), "is not what was written"),
        (lambda path: path.write_text(path.read_text().replace('"at": ', '"at": NaN, "was": ')), "is not what was written"),
    ],
)
async def test_a_damaged_backup_is_listed_and_not_given_out(damage: object, reason: str, tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    name = await kept(backups, b"store")
    path = tmp_path / str(VM) / f"{name}.json"
    assert callable(damage)
    damage(path)
    with pytest.raises(BackupError, match=f"^backup {name} is damaged: .*{reason}"):
        await backups.load(VM, None)
    (listed,) = await backups.page(VM, "", 10)
    assert (listed.problem is None) is ("bytes" in reason or "those that" in reason)


async def test_a_description_that_is_a_folder_is_one_damaged_backup(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    name = await kept(backups, b"store")
    (tmp_path / str(VM) / f"{name}.json").unlink()
    (tmp_path / str(VM) / f"{name}.json").mkdir()
    (listed,) = await backups.page(VM, "", 10)
    assert listed.problem == "its description cannot be read: Is a directory"


async def test_one_that_is_larger_than_any_store(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    await kept(backups, bytes(FILE_LIMIT + 1))
    with pytest.raises(OverLimitError, match="varstored would not load it"):
        await backups.load(VM, None)
    await kept(backups, bytes(FILE_LIMIT), NOW + 1)
    assert len((await backups.load(VM, None))[1]) == FILE_LIMIT


async def test_a_backup_from_before_reports_were_kept(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    name = await kept(backups, b"store")
    path = tmp_path / str(VM) / f"{name}.json"
    about = json.loads(path.read_text())
    del about["why"]
    path.write_text(json.dumps(about))
    (listed,) = await backups.page(VM, "", 10)
    assert (listed.why, listed.state, listed.problem) == ("update", None, None)
    assert (await backups.load(VM, None))[1] == b"store"


async def test_what_cannot_be_removed_or_read_keeps_no_new_one_from_being_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backups = Backups(tmp_path, keep=1)
    first = await kept(backups, b"store")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    # As on a bad sector: the file is there, and cannot be read.
    monkeypatch.setattr(backups_module, "_content", fail)
    second = await kept(backups, b"store", NOW + 1)
    monkeypatch.undo()
    assert second != first
    monkeypatch.setattr(Path, "unlink", fail)
    third = await kept(backups, b"other", NOW + 2)
    await backups.expire(NOW + 2 * KEEP_DAYS * DAY)
    monkeypatch.undo()
    assert await ids(backups) == [second, third]
    assert caplog.text.count(f"vm={VM} its old backups cannot be removed: [Errno 5] Input/output error") == 2


async def test_a_file_in_place_of_the_folder_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "backups").write_text("in the way")
    await Backups(tmp_path / "backups").expire(NOW)
    assert "old backups cannot be removed: [Errno 20] Not a directory" in caplog.text


async def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backups = Backups(tmp_path)
    first = await kept(backups, b"first")

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        await kept(backups, b"second", NOW + 1)
    monkeypatch.undo()
    assert await ids(backups) == [first]
    assert (await backups.load(VM, None))[1] == b"first"
