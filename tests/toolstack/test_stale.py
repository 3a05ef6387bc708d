"""A field whose store somebody wrote with other means: seen, reported, mended, and never taken for a good one."""

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support.vms import AVAILABLE, OK, ON_BOOT, derive, new_store, old_store
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.nvram import Nvram
from varstore_companion.toolstack.operations import Operations
from varstore_companion.trust.state import CertificatesState, Update


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toolstack.db"


@pytest.fixture
def operations(path: Path) -> Operations:
    return Operations(path, derive)


def _foreign(path: Path, vm: UUID, store: bytes) -> None:
    """As with the sqlite3 program."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE nvram SET value = ? WHERE vm = ?", (store, str(vm)))


def _made(operations: Operations, store: bytes) -> UUID:
    vm = uuid4()
    operations.create_vm(vm, "name", Nvram(store))
    return vm


def _stale(operations: Operations, vm: UUID) -> bool:
    (listed,) = [each.stale for each in operations.summaries() if each.uuid == vm]
    assert operations.record(vm).stale is listed
    return listed


def test_it_is_seen_in_records_and_in_the_log(operations: Operations, caplog: pytest.LogCaptureFixture) -> None:
    vm, other = _made(operations, new_store()), _made(operations, new_store())
    with caplog.at_level(logging.WARNING):
        operations.read(vm)
        assert caplog.messages == []
        _foreign(operations.path, vm, old_store())
        assert (_stale(operations, vm), _stale(operations, other)) == (True, False)
        assert operations.read(vm).state is OK
        assert caplog.messages == [f"vm={vm} its field says ok and was not computed from its store"]
    # Opening again does not hide it.
    with Operations(operations.path, derive) as again:
        assert _stale(again, vm)
    # The same store again is no longer another one.
    _foreign(operations.path, vm, new_store())
    assert not _stale(operations, vm)


Mending = Callable[[Operations, UUID], object]

MENDINGS: list[tuple[str, Mending, CertificatesState]] = [
    ("no", lambda o, vm: o.write(vm, old_store(2), Update.NO), AVAILABLE),
    ("no, complete", lambda o, vm: o.write(vm, new_store(2), Update.NO), OK),
    ("yes", lambda o, vm: o.write(vm, new_store(2), Update.YES), OK),
    ("unspecified", lambda o, vm: o.write_checked(vm, old_store(2), AVAILABLE), AVAILABLE),
    ("mark", lambda o, vm: o.mark(vm), ON_BOOT),
    ("unmark", lambda o, vm: o.unmark(vm), AVAILABLE),
    ("set_NVRAM", lambda o, vm: o.set_nvram(vm, Nvram(old_store(2))), AVAILABLE),
]


@pytest.mark.parametrize(("mend", "state"), [pytest.param(*rest, id=name) for name, *rest in MENDINGS])
def test_it_is_mended_by_the_next_change(operations: Operations, mend: Mending, state: CertificatesState) -> None:
    vm = _made(operations, new_store())
    _foreign(operations.path, vm, old_store())
    mend(operations, vm)
    assert operations.state(vm) is state
    assert not _stale(operations, vm)


def test_a_mark_that_is_no_longer_right_is_refused_and_the_field_mended(operations: Operations) -> None:
    vm = _made(operations, old_store())
    operations.mark(vm)
    _foreign(operations.path, vm, new_store())
    with pytest.raises(ToolstackRefusedError, match="OPERATION_NOT_ALLOWED"):
        operations.mark(vm)
    assert operations.state(vm) is OK
    assert not _stale(operations, vm)


def test_a_mark_lives_on_where_there_is_still_something_to_update(operations: Operations) -> None:
    vm = _made(operations, old_store())
    operations.mark(vm)
    _foreign(operations.path, vm, old_store(1))
    operations.write(vm, old_store(2), Update.NO)
    assert operations.state(vm) is ON_BOOT


def test_without_rules_it_stays_stale_through_every_no(path: Path) -> None:
    vm = uuid4()
    with Database(path) as database:
        database.create(vm, "name", new_store(), OK)
        database.write(vm, new_store(1), Update.NO)
        _foreign(path, vm, old_store())
        for number in range(2, 5):
            database.write(vm, old_store(number), Update.NO)

    with Operations(path, derive) as operations:
        assert _stale(operations, vm)


@pytest.mark.parametrize(
    "between",
    [
        lambda _: None,
        # Each of these makes a transaction of the same writer, after the other one's and before the `no`.
        lambda o: o.set_auto_update(value=True),
        lambda o: _made(o, new_store()),
        lambda o: o.write(_made(o, new_store()), new_store(1), Update.YES),
    ],
)
def test_own_writes_in_between_do_not_hide_somebody_elses(
    operations: Operations, between: Callable[[Operations], object]
) -> None:
    vm = _made(operations, new_store())
    # From here on the writer knows what it put there itself.
    operations.write(vm, new_store(1), Update.NO)
    operations.write(vm, new_store(2), Update.NO)
    _foreign(operations.path, vm, old_store())
    between(operations)
    operations.write(vm, old_store(1), Update.NO)
    assert operations.state(vm) is AVAILABLE


def test_a_no_reads_the_old_store_only_when_it_has_to(operations: Operations) -> None:
    vm = _made(operations, new_store())
    statements: list[str] = []

    def reads() -> int:
        operations.write(vm, new_store(len(statements)), Update.NO)
        count = sum("nvram.value" in statement for statement in statements)
        statements.clear()
        return count

    with operations._writer.writing() as connection:
        connection.set_trace_callback(statements.append)
    assert [reads() for _ in range(4)] == [1, 0, 0, 0]
    with Operations(operations.path, derive) as other:
        other.write(_made(other, new_store()), new_store(1), Update.NO)
    assert [reads() for _ in range(2)] == [1, 0]
    operations.set_nvram(vm, Nvram(old_store()))
    statements.clear()
    assert [reads() for _ in range(2)] == [1, 0]
    assert operations.state(vm) is AVAILABLE


def test_a_stale_field_is_copied_as_stale(operations: Operations) -> None:
    vm = _made(operations, new_store())
    _foreign(operations.path, vm, old_store())
    clone = operations.clone(vm, "clone")
    assert operations.state(clone) is OK
    assert _stale(operations, clone)


def test_a_revert_looks_at_the_store_and_not_at_a_stale_field(operations: Operations) -> None:
    vm = _made(operations, new_store())
    snapshot = operations.snapshot(vm, "snapshot")
    _foreign(operations.path, snapshot, old_store())
    operations.revert(snapshot)
    assert operations.state(vm) is AVAILABLE
    assert not _stale(operations, vm)
