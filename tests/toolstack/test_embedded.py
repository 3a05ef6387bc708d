"""The embedded toolstack's own: certcheck's place in a write, cancellation, and other processes meanwhile."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio

from support.processes import python
from varstore_companion.errors import ToolstackConflictError, ToolstackRefusedError, ToolstackUnavailableError
from varstore_companion.toolstack.certcheck import Certcheck
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.embedded import EmbeddedToolstack
from varstore_companion.toolstack.interface import Alert, Toolstack, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT


class Place:
    """A database with one VM, and a checker that notes its runs and can be made to wait."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "toolstack.db"
        self.runs = folder / "runs"
        self.started = folder / "started"
        self.vm = uuid4()
        self._script = folder / "checker"
        with Database(self.path) as database:
            database.create(self.vm, "name", b"before", AVAILABLE)
            database.mark(self.vm)

    def toolstack(self, text: str = "echo update_required", busy_timeout: float = 3) -> EmbeddedToolstack:
        self._script.write_text(f"#!/bin/sh\necho run >>{self.runs}\n{text}\n")
        self._script.chmod(0o700)
        return EmbeddedToolstack(Database(self.path, busy_timeout=busy_timeout), Certcheck([str(self._script)]))

    def hanging_toolstack(self) -> EmbeddedToolstack:
        """Its checker says in a named pipe that it runs, and goes on when that pipe is written to."""
        os.mkfifo(self.started)
        return self.toolstack(f"echo started >{self.started}; read line <{self.started}; echo update_required")

    async def checker_started(self) -> None:
        assert await trio.to_thread.run_sync(self.started.read_text) == "started\n"

    async def checker_goes_on(self) -> None:
        await trio.to_thread.run_sync(self.started.write_text, "go\n")

    def run_count(self) -> int:
        return len(self.runs.read_text().splitlines()) if self.runs.exists() else 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_its_name_is_the_one_of_the_command_line(place: Place) -> None:
    toolstack: Toolstack = place.toolstack()
    assert toolstack.name == "embedded"
    await toolstack.aclose()
    await toolstack.aclose()


@pytest.mark.parametrize("update", [Update.YES, Update.NO])
async def test_a_verdict_runs_no_certcheck(place: Place, update: Update) -> None:
    toolstack = place.toolstack()
    await toolstack.write(place.vm, b"new", update)
    assert place.run_count() == 0
    await toolstack.aclose()


async def test_unspecified_runs_certcheck_once_and_erases_the_mark(place: Place) -> None:
    toolstack = place.toolstack()
    await toolstack.write(place.vm, b"new", Update.UNSPECIFIED)
    assert place.run_count() == 1
    assert await toolstack.read(place.vm) == VmRecord(b"new", AVAILABLE, 1)
    with Database(place.path) as database:
        assert database.counters()["certcheck_runs"] == 1
    await toolstack.aclose()


async def test_a_useless_answer_is_ok_and_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    toolstack = place.toolstack("echo unknown")
    with caplog.at_level(logging.WARNING):
        await toolstack.write(place.vm, b"new", Update.UNSPECIFIED)
    assert await toolstack.read(place.vm) == VmRecord(b"new", OK, 1)
    (line,) = caplog.messages
    assert f"vm={place.vm}" in line
    assert "answered b'unknown'" in line
    await toolstack.aclose()


async def test_what_is_certain_to_fail_runs_no_certcheck(place: Place) -> None:
    toolstack = place.toolstack()
    with pytest.raises(ToolstackConflictError):
        await toolstack.write(place.vm, b"new", Update.UNSPECIFIED, expected=1)
    with pytest.raises(ToolstackRefusedError):
        await toolstack.write(uuid4(), b"new", Update.UNSPECIFIED)
    assert place.run_count() == 0
    await toolstack.aclose()


async def test_a_store_written_while_certcheck_runs_is_a_conflict(place: Place) -> None:
    toolstack = place.hanging_toolstack()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(ToolstackConflictError):
                await toolstack.write(place.vm, b"decided on generation 0", Update.UNSPECIFIED, expected=0)

        nursery.start_soon(write)
        await place.checker_started()
        with Database(place.path) as another_process:
            another_process.write(place.vm, b"meanwhile", Update.NO, expected=0)
        await place.checker_goes_on()
    assert await toolstack.read(place.vm) == VmRecord(b"meanwhile", ON_BOOT, 1)
    await toolstack.aclose()


async def test_the_field_belongs_to_the_store_it_was_computed_from(place: Place) -> None:
    # Without `expected` the later transaction wins, with its own store and its own field.
    toolstack = place.hanging_toolstack()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(toolstack.write, place.vm, b"old", Update.UNSPECIFIED)
        await place.checker_started()
        await toolstack.write(place.vm, b"complete", Update.YES)
        assert await toolstack.read(place.vm) == VmRecord(b"complete", OK, 1)
        await place.checker_goes_on()
    assert await toolstack.read(place.vm) == VmRecord(b"old", AVAILABLE, 2)
    await toolstack.aclose()


async def test_cancelled_during_certcheck_nothing_is_changed(place: Place) -> None:
    toolstack = place.hanging_toolstack()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(toolstack.write, place.vm, b"new", Update.UNSPECIFIED)
        await place.checker_started()
        nursery.cancel_scope.cancel()
    assert await toolstack.read(place.vm) == VmRecord(b"before", ON_BOOT, 0)
    await toolstack.aclose()


@contextmanager
def _locked(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


async def _begun(toolstack: EmbeddedToolstack, waiting: int = 0) -> None:
    """Wait until one change is on its thread and `waiting` more are in the queue."""
    with trio.fail_after(10):
        while toolstack._write_turn.borrowed_tokens == 0 or toolstack._write_turn.statistics().tasks_waiting != waiting:
            await trio.lowlevel.checkpoint()


async def test_a_change_that_has_begun_is_finished_and_one_that_waits_is_given_up(place: Place) -> None:
    toolstack = place.toolstack(busy_timeout=60)
    done: list[int] = []

    async def write(store: bytes) -> None:
        done.append(await toolstack.write(place.vm, store, Update.NO))

    with _locked(place.path) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, b"begun")
            await _begun(toolstack)
            nursery.start_soon(write, b"waiting")
            await _begun(toolstack, waiting=1)
            # Reads do not wait for the writer.
            assert (await toolstack.read(place.vm)).store == b"before"
            nursery.cancel_scope.cancel()
            other.execute("ROLLBACK")
    # Here nothing is still to come.
    assert done == [1]
    assert await toolstack.read(place.vm) == VmRecord(b"begun", ON_BOOT, 1)
    assert await toolstack.write(place.vm, b"next", Update.NO, expected=1) == 2
    await toolstack.aclose()


async def test_a_cancelled_read_returns_at_once_and_the_next_waits_for_its_connection(place: Place) -> None:
    toolstack = place.toolstack()
    with toolstack._database._reader.reading():  # as a read on a disk that hangs
        with trio.move_on_after(0.05) as scope:
            await toolstack.read(place.vm)
        assert scope.cancelled_caught
        assert toolstack._read_turn.borrowed_tokens == 1
        with trio.move_on_after(0.05) as scope:
            await toolstack.read(place.vm)
        assert scope.cancelled_caught
    assert await toolstack.read(place.vm) == VmRecord(b"before", ON_BOOT, 0)
    await toolstack.aclose()


async def test_a_busy_file_is_unavailable_and_the_loop_goes_on(place: Place) -> None:
    toolstack = place.toolstack(busy_timeout=0.1)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with _locked(place.path):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            with pytest.raises(ToolstackUnavailableError):
                await toolstack.write(place.vm, b"new", Update.UNSPECIFIED)
            nursery.cancel_scope.cancel()
        with pytest.raises(ToolstackUnavailableError):
            await toolstack.alert(place.vm, Alert("NAME", 5, "body"))
    assert turns > 10
    assert await toolstack.read(place.vm) == VmRecord(b"before", ON_BOOT, 0)
    await toolstack.aclose()


async def test_closing_is_done_when_cancelled_too(place: Place) -> None:
    toolstack = place.toolstack()
    with trio.CancelScope() as scope:
        scope.cancel()
        await toolstack.aclose()
    with pytest.raises(ToolstackUnavailableError):
        await toolstack.read(place.vm)


OPERATOR = """
import sys
from pathlib import Path
from uuid import UUID
from varstore_companion.toolstack.database import Database
with Database(Path(sys.argv[1])) as database:
    print(database.unmark(UUID(sys.argv[2])), flush=True)
    print(database.mark(UUID(sys.argv[2])), flush=True)
"""


async def test_the_command_line_is_seen_at_once(place: Place) -> None:
    toolstack = place.toolstack()
    vm: UUID = place.vm
    await toolstack.write(vm, b"new", Update.UNSPECIFIED)
    assert (await toolstack.read(vm)).state is AVAILABLE
    with python(OPERATOR, place.path, vm) as (_, _, said):
        assert await trio.to_thread.run_sync(said.read) == "update_available\nupdate_on_boot\n"
    await toolstack.write(vm, b"newer", Update.NO)
    assert await toolstack.read(vm) == VmRecord(b"newer", ON_BOOT, 2)
    await toolstack.aclose()


async def test_a_system_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_given: object, **_named: object) -> None:
        raise RuntimeError("can't start new thread")

    place = Place(tmp_path)
    toolstack = place.toolstack()
    with monkeypatch.context() as patched:
        patched.setattr(trio.to_thread, "run_sync", no_thread)
        with pytest.raises(ToolstackUnavailableError, match="can't start new thread"):
            await toolstack.read(place.vm)
        with pytest.raises(ToolstackUnavailableError, match="can't start new thread"):
            await toolstack.write(place.vm, b"after", Update.NO)
    assert (await toolstack.read(place.vm)).store == b"before"
    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    await toolstack.aclose()
