"""What was done to a VM's store, as it is told later."""

import json
import logging
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from varstore_companion.journal import history as history_module
from varstore_companion.journal.history import DETAIL, KEEP, READ_LIMIT, WAITING, Event, History, Line, What

VM = uuid4()
EVENT = Event(1_800_000_000.25, What.UPDATED, "rules 3", "a" * 64, "b" * 64, "20260624T010203Z-0123456789ab", "it went well")


@pytest.fixture
def history(tmp_path: Path, nursery: trio.Nursery) -> History:
    made = History(tmp_path / "history")
    nursery.start_soon(made.write_all)
    return made


def at(number: int, what: What = What.UPDATED) -> Event:
    return Event(float(number), what)


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "history" / f"{VM}.jsonl"


async def test_events_are_told_in_order_with_all_that_were_noted_before(history: History, tmp_path: Path) -> None:
    assert await history.read(VM) == ([], 0)
    history.note(VM, EVENT)
    history.note(uuid4(), at(7))
    history.note(VM, at(2, What.RESTORED))
    assert await history.read(VM) == ([Line(1, EVENT), Line(2, at(2, What.RESTORED))], 0)
    path = file_of(tmp_path)
    assert json.loads(path.read_text().splitlines()[0]) == {
        "number": 1,
        "at": 1_800_000_000.25,
        "what": "updated",
        "manifest": "rules 3",
        "before": "a" * 64,
        "after": "b" * 64,
        "backup": "20260624T010203Z-0123456789ab",
        "detail": "it went well",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize("detail", ["two\nlines\r\n", "\0\x1b[31m", "\ud800", "ü☃" * 10_000, '"}\n{"number": 99}'])
async def test_a_detail_of_a_guests_choice_is_one_line_and_bounded(detail: str, history: History, tmp_path: Path) -> None:
    history.note(VM, replace(EVENT, detail=detail))
    history.note(VM, at(2))
    lines, unreadable = await history.read(VM)
    assert ([line.number for line in lines], unreadable) == ([1, 2], 0)
    assert lines[0].event.detail == detail[:DETAIL]
    assert len(file_of(tmp_path).read_bytes().splitlines()) == 2


async def test_it_is_bounded_and_the_newest_stay(history: History, tmp_path: Path) -> None:
    total = 3 * KEEP
    for number in range(total):
        history.note(VM, at(number))
    lines, unreadable = await history.read(VM)
    assert unreadable == 0
    assert KEEP <= len(lines) <= KEEP + KEEP // 4
    assert [line.number for line in lines] == list(range(total - len(lines) + 1, total + 1))
    assert [line.event.at for line in lines] == [line.number - 1 for line in lines]
    assert len(file_of(tmp_path).read_bytes().splitlines()) == len(lines)


async def test_a_flood_of_one_kind_pushes_out_no_other(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A guest can make its own updates fail, and boot as often as it likes."""
    history = History(tmp_path / "history", keep=20)
    nursery.start_soon(history.write_all)
    history.note(VM, at(0, What.UPDATED))
    history.note(VM, at(1, What.RESTORED))
    for number in range(500):
        history.note(VM, at(number, What.UPDATE_FAILED))
    lines, _ = await history.read(VM)
    assert [(line.number, line.event.what) for line in lines[:2]] == [(1, "updated"), (2, "restored")]
    assert len(lines) <= 25
    assert lines[-1].number == 502


@pytest.mark.parametrize("cut", [1, 10, 80, 200])
async def test_a_torn_last_line_is_skipped_and_told(cut: int, history: History, tmp_path: Path) -> None:
    for number in range(3):
        history.note(VM, replace(EVENT, at=number))
    await history.read(VM)
    path = file_of(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    torn = 0 if cut == 1 else 1
    lines, unreadable = await history.read(VM)
    assert ([line.number for line in lines], unreadable) == ([1, 2, 3][: 3 - torn], torn)
    history.note(VM, at(9))
    lines, unreadable = await history.read(VM)
    assert ([line.number for line in lines], unreadable) == ([1, 2, 3, 4] if not torn else [1, 2, 3], torn)
    assert lines[-1].event.at == 9
    assert path.read_bytes().startswith(whole[:-cut])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0" * 4096,
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"number": "1", "at": 1, "what": "updated"}',
        b'{"number": true, "at": 1, "what": "updated"}',
        b'{"number": 1, "at": "yesterday", "what": "updated"}',
        b'{"number": 1, "at": NaN, "what": "updated"}',
        b'{"number": 1, "at": 1e999, "what": "updated"}',
        b'{"number": 1, "at": 1, "what": null}',
        b'{"number": 1, "at": 1, "what": "updated", "detail": 5}',
        b'{"number": 1, "at": 1, "what": "updated", "backup": ["x"]}',
    ],
)
async def test_a_line_that_cannot_be_read_is_counted_and_the_rest_is_told(
    line: bytes, history: History, tmp_path: Path
) -> None:
    history.note(VM, at(1))
    await history.read(VM)
    with file_of(tmp_path).open("ab") as file:
        file.write(line + b"\n")
    history.note(VM, at(2))
    lines, unreadable = await history.read(VM)
    assert ([each.number for each in lines], unreadable) == ([1, 2], 1)


async def test_what_a_later_version_wrote_is_told_as_far_as_it_is_known(history: History, tmp_path: Path) -> None:
    history.note(VM, at(1))
    await history.read(VM)
    with file_of(tmp_path).open("ab") as file:
        file.write(b'{"number": 5, "at": 2, "what": "quarantined", "entry": 12}\n')
    history.note(VM, at(3))
    lines, unreadable = await history.read(VM)
    assert ([(each.number, each.event.what) for each in lines], unreadable) == (
        [(1, "updated"), (5, "quarantined"), (6, "updated")],
        0,
    )


async def test_only_the_end_of_a_file_that_grew_otherwise_is_read(history: History, tmp_path: Path) -> None:
    history.note(VM, at(1))
    await history.read(VM)
    path = file_of(tmp_path)
    path.write_bytes(b"x" * READ_LIMIT + b"\n" + path.read_bytes())
    lines, unreadable = await history.read(VM)
    assert ([each.number for each in lines], unreadable) == ([1], 1)


async def test_a_rotation_that_fails_leaves_the_old_file(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    history = History(tmp_path / "history", keep=4)
    nursery.start_soon(history.write_all)
    for number in range(5):
        history.note(VM, at(number))
    await history.read(VM)
    before = file_of(tmp_path).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    history.note(VM, at(5))
    await history.read(VM)
    assert file_of(tmp_path).read_bytes() == before
    assert "updated is not in its history: [Errno 5] Input/output error" in caplog.text
    monkeypatch.undo()
    history.note(VM, at(6))
    lines, unreadable = await history.read(VM)
    assert ([line.event.at for line in lines], unreadable) == ([2, 3, 4, 6], 0)


async def test_noting_never_raises_or_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = History(tmp_path / "missing" / "history")
    for number in range(WAITING + 3):
        history.note(VM, at(number))
    assert caplog.text.count(f"updated is not in its history: {WAITING:,} events wait".replace(",", "")) == 3
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(history.write_all)
            await history.finish()
    # There is no folder for any of them.
    assert len(caplog.records) == WAITING
    history.note(VM, at(1))
    assert len(caplog.records) == WAITING + 1


async def test_a_bug_is_one_event_lost(
    history: History, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(History, "_append", fail)
    history.note(VM, at(1))
    await history.read(VM)
    monkeypatch.undo()
    history.note(VM, at(2))
    assert [line.event.at for line in (await history.read(VM))[0]] == [2]
    assert "a bug" in caplog.text


async def test_a_disk_that_hangs_holds_up_nobody_but_who_reads(
    history: History, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    released, reached = threading.Event(), threading.Event()

    def hang(*_: object) -> bytes:
        reached.set()
        released.wait()
        return b""

    monkeypatch.setattr(history_module, "_content", hang)
    try:
        history.note(VM, at(1))
        await trio.to_thread.run_sync(reached.wait)
        history.note(VM, at(2))
        read: list[object] = []

        async def reading() -> None:
            read.append(await history.read(VM))

        nursery.start_soon(reading)
        await wait_all_tasks_blocked()
        assert read == []
        nursery.cancel_scope.cancel()
    finally:
        released.set()


async def test_what_waits_is_written_before_the_end(tmp_path: Path, nursery: trio.Nursery) -> None:
    history = History(tmp_path / "history")
    for number in range(20):
        history.note(VM, at(number))
    nursery.start_soon(history.finish)
    await wait_all_tasks_blocked()
    nursery.start_soon(history.write_all)
    lines, _ = await history.read(VM)
    assert [line.event.at for line in lines] == list(range(20))
