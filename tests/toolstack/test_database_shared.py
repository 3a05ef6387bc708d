"""Several processes and threads on one database file, and one of them killed anywhere (invariants 6, 7 and 9)."""

import sqlite3
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support.processes import python
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.toolstack import schema
from varstore_companion.toolstack.connection import prepare
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE vm SET generation = 99")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toolstack.db"


@pytest.fixture
def vm(path: Path) -> UUID:
    vm = uuid4()
    with Database(path) as database:
        database.create(vm, "name", b"before", AVAILABLE)
    return vm


def test_a_writer_that_stays_locked_out_changes_nothing_and_readers_read(path: Path, vm: UUID) -> None:
    before = VmRecord(b"before", AVAILABLE, 0)
    with python(HOLDER, path) as (_, given, said), Database(path, busy_timeout=0.05) as database:
        assert said.readline() == "held\n"
        with pytest.raises(ToolstackUnavailableError, match=rf"{path}.*SQLITE_BUSY"):
            database.write(vm, b"new", Update.YES)
        with pytest.raises(ToolstackUnavailableError, match="SQLITE_BUSY"):
            database.mark(vm)
        assert database.read(vm) == before
        with Database(path, busy_timeout=0.05) as opened_meanwhile:
            assert opened_meanwhile.read(vm) == before
        given.write("\n")
        given.flush()
        assert said.readline() == "released\n"
        assert database.write(vm, b"new", Update.YES) == 1


def test_a_writer_waits_for_its_turn(path: Path, vm: UUID) -> None:
    with python(HOLDER, path) as (_, given, said), Database(path, busy_timeout=60) as database:
        assert said.readline() == "held\n"
        writer = threading.Thread(target=database.write, args=(vm, b"new", Update.NO))
        writer.start()
        # A reader of the same database is not behind the writer that waits.
        assert database.read(vm) == VmRecord(b"before", AVAILABLE, 0)
        given.write("\n")
        given.flush()
        writer.join()
        assert database.read(vm) == VmRecord(b"new", AVAILABLE, 1)


OPENER = """
import sys
from pathlib import Path
from uuid import UUID
from varstore_companion.toolstack.database import Database
from varstore_companion.trust.state import CertificatesState
print("ready", flush=True)
sys.stdin.readline()
with Database(Path(sys.argv[1])) as database:
    database.create(UUID(sys.argv[2]), "name", b"store", CertificatesState.OK)
print("made", flush=True)
"""


def test_a_new_file_may_be_opened_by_several_at_once(path: Path) -> None:
    vms = [uuid4() for _ in range(4)]
    with ExitStack() as stack:
        others = [stack.enter_context(python(OPENER, path, vm)) for vm in vms]
        for _, _, said in others:
            assert said.readline() == "ready\n"
        for _, given, _ in others:
            given.write("\n")
            given.flush()
        assert [said.readline() for _, _, said in others] == ["made\n"] * len(vms)
    with Database(path) as database:
        assert [database.read(vm).store for vm in vms] == [b"store"] * len(vms)


# Store number n is n and then n again as filler, of a size that goes with n; its field goes with n, too.
WRITER = """
import sys
from pathlib import Path
from uuid import UUID
from varstore_companion.toolstack.database import Database
from varstore_companion.trust.state import CertificatesState, Update
vm = UUID(sys.argv[2])
with Database(Path(sys.argv[1])) as database:
    number = database.read(vm).generation
    while True:
        number += 1
        store = number.to_bytes(8, "little") * (1000 + number % 5000)
        if number % 2:
            database.write(vm, store, Update.YES)
        else:
            database.write_checked(vm, store, CertificatesState.UPDATE_AVAILABLE)
        print(number, flush=True)
"""


def test_a_writer_killed_anywhere_leaves_one_whole_write(path: Path, vm: UUID) -> None:
    acknowledged = 0
    for more in (1, 3, 8, 21, 40):
        with python(WRITER, path, vm) as (process, _, said):
            for _ in range(more):
                acknowledged = int(said.readline())
            process.kill()
            acknowledged = max([acknowledged, *(int(line) for line in said.read().split())])
        with Database(path) as database:
            record = database.read(vm)
            counters = database.counters()
        number = record.generation
        # The one after the last acknowledged may have been committed without having been said.
        assert number in {acknowledged, acknowledged + 1}
        assert record.store == number.to_bytes(8, "little") * (1000 + number % 5000)
        assert record.state is (OK if number % 2 else AVAILABLE)
        assert counters["writes_yes"] == (number + 1) // 2
        assert counters["writes_unspecified"] == counters["certcheck_runs"] == number // 2


NO_WRITER = """
import select, sys
from pathlib import Path
from uuid import UUID
from varstore_companion.toolstack.database import Database
from varstore_companion.trust.state import Update
vm, written = UUID(sys.argv[2]), 0
with Database(Path(sys.argv[1]), busy_timeout=60) as database:
    while not select.select([sys.stdin], [], [], 0)[0]:
        written = database.write(vm, written.to_bytes(4, "little") * 1000, Update.NO)
        if written == 1:
            print("writing", flush=True)
print(written, flush=True)
"""


def test_no_writes_of_another_process_never_lose_a_mark(path: Path, vm: UUID) -> None:
    generations: set[int] = set()
    with python(NO_WRITER, path, vm) as (_, given, said), Database(path, busy_timeout=60) as operator:
        assert said.readline() == "writing\n"
        while len(generations) < 5:
            assert operator.mark(vm) is ON_BOOT
            record = operator.read(vm)
            generations.add(record.generation)
            assert record.state is ON_BOOT
            assert operator.unmark(vm) is AVAILABLE
            assert operator.read(vm).state is AVAILABLE
        given.write("\n")
        given.flush()
        written = int(said.readline())
        assert operator.read(vm) == VmRecord((written - 1).to_bytes(4, "little") * 1000, AVAILABLE, written)


def test_threads_share_one_database(path: Path, vm: UUID) -> None:
    with Database(path) as database:

        def write() -> None:
            for number in range(50):
                database.write(vm, bytes([number]) * 3000, Update.NO)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            database.mark(vm)
            assert database.read(vm).state is ON_BOOT
        for thread in threads:
            thread.join()
        assert database.read(vm) == VmRecord(bytes([49]) * 3000, ON_BOOT, 200)


def test_nobody_makes_the_schema_between_two_looks_at_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the version would be from before it and the tables from after it: a database of something else."""
    prepare(path)
    look, tried = schema._version, 0

    def version(connection: sqlite3.Connection) -> int:
        nonlocal tried
        found = look(connection)
        if not tried:
            tried += 1
            with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                other.execute("CREATE TABLE vm (uuid TEXT)")
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("COMMIT")
        return found

    monkeypatch.setattr(schema, "_version", version)
    with Database(path):
        assert tried
