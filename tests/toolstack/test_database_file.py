"""The database's file: modes, versions, damage, full disks, replacement."""

import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support.processes import python_command, python_environment
from varstore_companion.errors import (
    ConfigurationError,
    ToolstackError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
)
from varstore_companion.toolstack import schema
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update

OK, AVAILABLE = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toolstack.db"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_only_the_owner_can_open_what_is_made(tmp_path: Path) -> None:
    path = tmp_path / "above" / "state" / "toolstack.db"
    with Database(path) as database:
        database.create(uuid4(), "name", b"store", OK)
        assert _mode(path.parent) == 0o700
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["toolstack.db", "toolstack.db-reserve", "toolstack.db-shm", "toolstack.db-wal"]
        assert {_mode(file) for file in files} == {0o600}


def test_modes_that_the_operator_set_stay(path: Path) -> None:
    path.parent.chmod(0o750)
    Database(path).close()
    path.chmod(0o640)
    Database(path).close()
    assert (_mode(path.parent), _mode(path)) == (0o750, 0o640)


def test_every_connection_is_durable_and_checked(path: Path) -> None:
    with (
        Database(path, busy_timeout=1.5) as database,
        database._reader.reading() as reader,
        database._writer.writing() as writer,
    ):
        # The writer's wait is its own, see `Connection`.
        for connection, timeout in ((reader, 1500), (writer, 0)):
            values = {
                name: connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": timeout}
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM vm")


@pytest.mark.parametrize("strict", [True, False])
def test_the_schema_holds_its_columns_to_their_values(strict: bool) -> None:
    if strict and sqlite3.sqlite_version_info < schema.STRICT_SINCE:
        pytest.skip(f"SQLite {sqlite3.sqlite_version} has no STRICT tables")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for step in schema.STEPS:
            for statement in step(strict=strict):
                connection.execute(statement)
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        connection.execute("INSERT INTO vm VALUES ('vm', 'name', 'ok', 0, 'vm', 'uefi', NULL, NULL)")
        for statement in (
            "INSERT INTO vm VALUES ('other', 'name', 'OK', 0, 'vm', 'uefi', NULL, NULL)",
            "INSERT INTO vm VALUES ('vm', 'name', 'ok', 0, 'vm', 'uefi', NULL, NULL)",
            "INSERT INTO vm VALUES ('other', 'name', 'ok', 0, 'host', 'uefi', NULL, NULL)",
            "INSERT INTO vm VALUES ('other', 'name', 'ok', 0, 'vm', 'UEFI', NULL, NULL)",
            "INSERT INTO vm VALUES ('other', 'name', 'ok', 0, 'snapshot', 'uefi', 'nobody', NULL)",
            "INSERT INTO vm VALUES ('other', 'name', 'ok', 0, 'vm', 'uefi', NULL, 'text')",
            # What is not judged cannot need an update, let alone be marked.
            "INSERT INTO vm VALUES ('other', 'name', 'update_available', 0, 'vm', 'bios', NULL, NULL)",
            "INSERT INTO vm VALUES ('other', 'name', 'update_on_boot', 0, 'control_domain', 'uefi', NULL, NULL)",
            "INSERT INTO vm VALUES ('other', 'name', 'update_on_boot', 0, 'default_template', 'uefi', NULL, NULL)",
            "INSERT INTO nvram VALUES ('vm', 'EFI-variables', 'text')",
            "INSERT INTO nvram VALUES ('nobody', 'EFI-variables', x'00')",
            "INSERT INTO message (vm, name, priority, body, created) VALUES ('nobody', '', 5, '', 0)",
            "INSERT INTO pool VALUES (2, 0, 0)",
            "UPDATE pool SET auto_update_vm_secureboot_certificates = 2",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(statement)


def test_a_newer_schema_is_refused_and_left_as_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE vm (something_else)")
        connection.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="version 7, this program knows versions up to 2") as refused:
        Database(path)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_the_file_of_another_program_is_refused_and_left_as_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE holidays (day)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="something else"):
        Database(path)
    assert path.read_bytes() == before


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough for one header" * 100)
    with pytest.raises(ConfigurationError, match=r"toolstack\.db.*SQLITE_NOTADB"):
        Database(path)


def test_a_place_that_cannot_hold_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "toolstack.db", tmp_path):
        with pytest.raises(ConfigurationError, match=str(path)):
            Database(path)


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.write_bytes(b"")
    with Database(path) as database:
        assert set(database.counters().values()) == {0}


def _filled(path: Path) -> UUID:
    vm = uuid4()
    with Database(path) as database:
        database.create(vm, "name", b"s" * 60_000, AVAILABLE)
    return vm


def test_a_damaged_file_is_refused_with_its_name(path: Path) -> None:
    vm = _filled(path)
    with Database(path) as database:
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        path.write_bytes(content)
        for call in (lambda: database.read(vm), lambda: database.write(vm, b"new", Update.NO)):
            with pytest.raises(ToolstackRefusedError, match=str(path)) as refused:
                call()
            assert refused.value.code == "INTERNAL_ERROR"


def test_a_full_database_changes_nothing_and_works_again(path: Path) -> None:
    vm = _filled(path)
    with Database(path) as database:
        before = database.read(vm)
        with database._writer.writing() as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(ToolstackUnavailableError, match=rf"{path}.*SQLITE_FULL"):
            database.write(vm, b"n" * 120_000, Update.YES)
        assert database.read(vm) == before
        # The connection that failed is gone, and the limit with it.
        assert database.write(vm, b"n" * 120_000, Update.YES) == 1
        assert database.read(vm) == VmRecord(b"n" * 120_000, OK, 1)


FAILING_COMMIT = """
import resource, sys
from pathlib import Path
from uuid import UUID
from varstore_companion.errors import ToolstackUnclearError
from varstore_companion.toolstack.database import Database
from varstore_companion.trust.state import Update

path, vm = Path(sys.argv[1]), UUID(sys.argv[2])
with Database(path) as database:
    before = database.read(vm)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        database.write(vm, b"n" * 120_000, Update.YES)
    except ToolstackUnclearError as error:
        assert str(path) in str(error), error
        print("unclear")
    assert database.read(vm) == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(database.write(vm, b"after", Update.YES, expected=before.generation))
"""


def test_an_error_out_of_commit_is_unclear(path: Path) -> None:
    # The write-ahead log is written at COMMIT, and here it may not grow: a real I/O error, which a limit on this
    # process would bring on the whole test run.
    vm = _filled(path)
    done = subprocess.run(
        python_command(FAILING_COMMIT, path, vm), env=python_environment(), capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["unclear", "1"], "")


def test_a_file_exchanged_under_an_open_database_is_the_one_in_use(path: Path, tmp_path: Path) -> None:
    vm = _filled(path)
    other = tmp_path / "other.db"
    with Database(other) as database:
        database.create(vm, "the other", b"other", OK)
    with Database(path) as database:
        assert database.read(vm).store == b"s" * 60_000
        other.replace(path)
        assert database.read(vm).store == b"other"
        database.write(vm, b"new", Update.YES)
    with Database(path) as database:
        assert database.read(vm) == VmRecord(b"new", OK, 1)


def test_a_file_removed_under_an_open_database_is_not_written_to_in_secret(path: Path) -> None:
    vm = _filled(path)
    with Database(path) as database:
        database.read(vm)
        path.unlink()
        for call in (lambda: database.read(vm), lambda: database.write(vm, b"new", Update.NO)):
            with pytest.raises(ToolstackUnavailableError, match=str(path)):
                call()
        assert not path.exists()


def test_an_unusable_file_put_there_meanwhile_is_unavailable(path: Path, tmp_path: Path) -> None:
    vm = _filled(path)
    newer = tmp_path / "newer.db"
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 3")
    with Database(path) as database:
        newer.replace(path)
        with pytest.raises(ToolstackUnavailableError, match="version 3"):
            database.write(vm, b"new", Update.NO)


def test_a_closed_database_is_unavailable(path: Path) -> None:
    database = Database(path)
    database.close()
    database.close()
    with pytest.raises(ToolstackUnavailableError, match="closed"):
        database.counters()
    with pytest.raises(ToolstackUnavailableError, match="closed"):
        database.mark(uuid4())


def _interrupted(database: Database) -> None:
    with database._writer.writing() as connection:
        connection.execute("UPDATE vm SET generation = 99")
        raise KeyboardInterrupt


def test_an_interrupted_transaction_is_rolled_back(path: Path) -> None:
    vm = _filled(path)
    with Database(path) as database:
        before = database.read(vm)
        with pytest.raises(KeyboardInterrupt):
            _interrupted(database)
        assert database.read(vm) == before
        assert database.write(vm, b"new", Update.NO) == 1


def test_the_plain_calls_need_no_event_loop() -> None:
    code = "import sys, varstore_companion.toolstack.database; print(*{'trio', 'cryptography'} & set(sys.modules))"
    done = subprocess.run(python_command(code), env=python_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("version", [schema.VERSION, schema.VERSION + 1])
def test_another_process_may_make_the_schema_first(path: Path, version: int) -> None:
    def meanwhile(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE":
            Database(path).close()
            with closing(sqlite3.connect(path)) as other:
                other.execute(f"PRAGMA user_version = {version}")

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.set_trace_callback(meanwhile)
        if version == schema.VERSION:
            schema.ensure(connection, path)
            assert not connection.in_transaction
        else:
            with pytest.raises(ConfigurationError, match=f"version {version}"):
                schema.ensure(connection, path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def _take_the_rest(folder: Path) -> None:
    def write() -> None:
        with (folder / "rest").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with pytest.raises(OSError, match="No space left"):
        write()


def test_a_full_disk_keeps_nobody_from_reading(small: Path) -> None:
    path, vm = small / "toolstack.db", uuid4()
    with Database(path) as database:
        database.create(vm, "name", b"store", OK)
    for _ in range(3):
        _take_the_rest(small)
        with Database(path) as database:
            assert database.read(vm).store == b"store"
            _take_the_rest(small)
            with pytest.raises(ToolstackError, match="SQLITE_FULL"):
                database.write(vm, bytes(60_000), Update.NO)
    (small / "rest").unlink()
    with Database(path) as database:
        database.write(vm, b"other", Update.NO)
    assert path.with_name("toolstack.db-reserve").stat().st_blocks * 512 == 32_768


def test_a_full_disk_without_the_reserve_is_said(small: Path) -> None:
    path = small / "toolstack.db"
    Database(path).close()
    path.with_name("toolstack.db-reserve").unlink()
    _take_the_rest(small)
    with pytest.raises(ConfigurationError, match="the disk is full: free 32,768 bytes on it"):
        Database(path)


def test_what_cannot_be_opened_gets_no_reserve(path: Path) -> None:
    path.write_bytes(b"something else" * 1_000)
    with pytest.raises(ConfigurationError):
        Database(path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
