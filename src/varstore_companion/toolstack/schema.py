"""The tables of the embedded toolstack, the way from older ones, and the refusal of a file that holds something else."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from varstore_companion.errors import ConfigurationError
from varstore_companion.toolstack.records import NOT_JUDGED, Firmware, VmKind
from varstore_companion.trust.state import CertificatesState, Update

VERSION = 2
"""The schema that the steps below lead to; kept as `PRAGMA user_version`, where 0 is a file that nothing was written to."""

CERTCHECK_RUNS = "certcheck_runs"

STRICT_SINCE = (3, 37, 0)


def writes_counter(update: Update) -> str:
    """The name of the counter of writes with this verdict."""
    return f"writes_{update}"


COUNTERS = (CERTCHECK_RUNS, *(writes_counter(update) for update in Update))


def first_version(*, strict: bool) -> tuple[str, ...]:
    """The step from nothing to version 1; `strict` makes SQLite (since 3.37) hold the columns to their types.

    In `nvram` the key `EFI-variables` holds the store's raw bytes, any other key the UTF-8 of its text.
    """
    option, also = (" STRICT", ", STRICT") if strict else ("", "")
    return (
        f"""CREATE TABLE vm (
            uuid TEXT NOT NULL PRIMARY KEY,
            name TEXT NOT NULL,
            secureboot_certificates_state TEXT NOT NULL
                CHECK (secureboot_certificates_state IN ({_quoted(CertificatesState)})),
            generation INTEGER NOT NULL DEFAULT 0
        ) WITHOUT ROWID{also}""",
        # With a rowid: a store fills many pages, and a B-tree keyed by more than a number wants small rows.
        f"""CREATE TABLE nvram (
            vm TEXT NOT NULL REFERENCES vm (uuid) ON DELETE CASCADE,
            key TEXT NOT NULL,
            value BLOB NOT NULL CHECK (typeof(value) = 'blob'),
            PRIMARY KEY (vm, key)
        ){option}""",
        f"""CREATE TABLE message (
            id INTEGER PRIMARY KEY,
            vm TEXT NOT NULL REFERENCES vm (uuid) ON DELETE CASCADE,
            name TEXT NOT NULL,
            priority INTEGER NOT NULL,
            body TEXT NOT NULL,
            created INTEGER NOT NULL
        ){option}""",
        "CREATE INDEX message_of_vm ON message (vm, id)",
        f"CREATE TABLE counter (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID{also}",
        *(f"INSERT INTO counter (name, value) VALUES ('{name}', 0)" for name in COUNTERS),  # noqa: S608  constants
        "PRAGMA user_version = 1",
    )


def second_version(*, strict: bool) -> tuple[str, ...]:
    """The step from version 1, whose VMs all become UEFI VMs with a field that is still to be computed.

    `state_of`: the SHA-256 of the store that the field was computed from or that a verdict vouched for; empty when there
    was none, NULL when nobody has computed it yet.
    """
    option = " STRICT" if strict else ""
    never_judged = _quoted(NOT_JUDGED)
    return (
        f"""ALTER TABLE vm ADD COLUMN kind TEXT NOT NULL DEFAULT '{VmKind.VM}' CHECK (kind IN ({_quoted(VmKind)})
            AND (kind NOT IN ({never_judged}) OR secureboot_certificates_state = '{CertificatesState.OK}'))""",
        f"""ALTER TABLE vm ADD COLUMN firmware TEXT NOT NULL DEFAULT '{Firmware.UEFI}' CHECK (firmware IN ({_quoted(Firmware)})
            AND (firmware = '{Firmware.UEFI}' OR secureboot_certificates_state = '{CertificatesState.OK}'))""",
        "ALTER TABLE vm ADD COLUMN snapshot_of TEXT REFERENCES vm (uuid) ON DELETE SET NULL",
        "ALTER TABLE vm ADD COLUMN state_of BLOB CHECK (typeof(state_of) IN ('null', 'blob'))",
        "CREATE INDEX snapshot_of_vm ON vm (snapshot_of)",
        f"""CREATE TABLE pool (
            id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
            auto_update_vm_secureboot_certificates INTEGER NOT NULL
                CHECK (auto_update_vm_secureboot_certificates IN (0, 1)),
            first_generation INTEGER NOT NULL
        ){option}""",
        "INSERT INTO pool (id, auto_update_vm_secureboot_certificates, first_generation) VALUES (1, 0, 0)",
        "PRAGMA user_version = 2",
    )


STEPS = (first_version, second_version)
"""Step n leads from version n to n + 1. A new file takes them all, so that there is one way to come to a schema."""


def ensure(connection: sqlite3.Connection, path: Path) -> None:
    """Make the schema in a new file or bring an older one to it, in one transaction; switch the file to WAL.

    Raises `ConfigurationError` for a schema of a later version, for another program's file, and where the file
    system cannot hold SQLite's write-ahead log; such a file is left as it is. Raises `sqlite3.Error`.
    """
    # Both from one state of the file: another process may be making the schema in between.
    connection.execute("BEGIN")
    version, has_tables = _version(connection), _tables(connection)
    connection.execute("COMMIT")
    if not 0 <= version <= VERSION or (version == 0 and has_tables):
        raise _unusable(path, version)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigurationError(f"{path}: the file system cannot hold SQLite's write-ahead log (journal mode {mode})")
    if version == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have made the schema while this one waited for the lock.
    version = _version(connection)
    if not 0 <= version <= VERSION:
        raise _unusable(path, version)
    for step in STEPS[version:]:
        for statement in step(strict=sqlite3.sqlite_version_info >= STRICT_SINCE):
            connection.execute(statement)
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None


def _unusable(path: Path, version: int) -> ConfigurationError:
    if version == 0:
        return ConfigurationError(f"{path}: a database of something else: it has tables and no schema version")
    return ConfigurationError(
        f"{path}: its schema has version {version}, this program knows versions up to {VERSION}: use the program that made it"
    )


def _quoted(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))
