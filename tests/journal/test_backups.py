"""The exact old store before an update."""

import json
import stat
import threading
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from varstore_companion.journal import files
from varstore_companion.journal.backups import AT_ONCE, KEEP, Backups

VM = uuid4()
NOW = datetime(2026, 6, 24, 1, 2, 3, tzinfo=UTC).timestamp()


def stores(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / str(VM)).glob("*.vars"))]


async def test_a_backup_is_the_store_with_the_plan_beside_it(tmp_path: Path) -> None:
    store = bytes(range(256)) * 200
    name = await Backups(tmp_path / "backups").keep(VM, store, {"changes": ["one"]}, NOW)
    folder = tmp_path / "backups" / str(VM)
    assert name == f"20260624T010203Z-{sha256(store).hexdigest()[:12]}"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.json", f"{name}.vars"]
    assert (folder / f"{name}.vars").read_bytes() == store
    assert json.loads((folder / f"{name}.json").read_text()) == {
        "vm": str(VM),
        "at": NOW,
        "sha256": sha256(store).hexdigest(),
        "bytes": len(store),
        "plan": {"changes": ["one"]},
    }
    for path in (tmp_path / "backups", folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_the_oldest_go_with_their_plans(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    for number in range(KEEP + 5):
        await backups.keep(VM, b"%03d" % number, {}, NOW + number)
    other = uuid4()
    await backups.keep(other, b"another VM's", {}, NOW - 1000)
    assert stores(tmp_path) == [b"%03d" % number for number in range(5, KEEP + 5)]
    assert len(list((tmp_path / str(VM)).iterdir())) == 2 * KEEP
    assert len(list((tmp_path / str(other)).iterdir())) == 2


@pytest.mark.parametrize("keep", [1, 2, 10])
async def test_the_one_just_kept_stays_though_the_clock_went_back(tmp_path: Path, keep: int) -> None:
    backups = Backups(tmp_path, keep=keep)
    for number in range(keep + 2):
        await backups.keep(VM, b"%03d" % number, {}, NOW + number)
    await backups.keep(VM, b"in 1970", {}, 0)
    assert stores(tmp_path)[0] == b"in 1970"
    assert len(stores(tmp_path)) == keep


async def test_the_same_store_in_the_same_second_is_one_backup(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    assert await backups.keep(VM, b"store", {}, NOW) == await backups.keep(VM, b"store", {}, NOW)
    assert stores(tmp_path) == [b"store"]


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
                nursery.start_soon(backups.keep, VM, b"store", {}, NOW)
            for _ in range(AT_ONCE):
                await trio.to_thread.run_sync(reached.acquire)
            nursery.cancel_scope.cancel()
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    finally:
        released.set()


async def test_what_a_crash_cut_short_is_removed(tmp_path: Path) -> None:
    backups = Backups(tmp_path)
    await backups.keep(VM, b"first", {}, NOW)
    (tmp_path / str(VM) / f"20250101T000000Z-0123456789ab.vars{files.NEW}").write_bytes(b"half")
    await backups.keep(VM, b"second", {}, NOW + 1)
    assert stores(tmp_path) == [b"first", b"second"]
    assert not list((tmp_path / str(VM)).glob(f"*{files.NEW}"))
