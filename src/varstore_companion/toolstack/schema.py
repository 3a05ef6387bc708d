"""The tables of the embedded toolstack, and the refusal of a file that holds something else."""

import sqlite3
from pathlib import Path

from varstore_companion.errors import ConfigurationError
from varstore_companion.trust.state import CertificatesState, Update

VERSION = 1
"""The schema below; kept in the file as `PRAGMA user_version`, where 0 means a file that nothing was written to."""

EFI_VARIABLES = "EFI-variables"
"""The NVRAM key of the store, as in xapi; here it holds the raw bytes, not base64."""

CERTCHECK_RUNS = "certcheck_runs"

STRICT_SINCE = (3, 37, 0)


def writes_counter(update: Update) -> str:
    """The name of the counter of writes with this verdict."""
    return f"writes_{update}"


COUNTERS = (CERTCHECK_RUNS, *(writes_counter(update) for update in Update))


def statements(*, strict: bool) -> tuple[str, ...]:
    """The statements that make the schema; `strict` makes SQLite (since 3.37) hold the columns to their types."""
    option, also = (" STRICT", ", STRICT") if strict else ("", "")
    states = ", ".join(f"'{state}'" for state in CertificatesState)
    return (
        f"""CREATE TABLE vm (
            uuid TEXT NOT NULL PRIMARY KEY,
            name TEXT NOT NULL,
            secureboot_certificates_state TEXT NOT NULL CHECK (secureboot_certificates_state IN ({states})),
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
        f"PRAGMA user_version = {VERSION}",
    )


def ensure(connection: sqlite3.Connection, path: Path) -> None:
    """Make the schema in a new file, in one transaction, or see that the file has it; switch the file to WAL.

    Raises `ConfigurationError` for a schema of another version, for another program's file, and where the file
    system cannot hold SQLite's write-ahead log; such a file is left as it is. Raises `sqlite3.Error`.
    """
    version = _version(connection)
    if version not in (0, VERSION) or (version == 0 and _tables(connection)):
        raise _unusable(path, version)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigurationError(f"{path}: the file system cannot hold SQLite's write-ahead log (journal mode {mode})")
    if version == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have made the schema while this one waited for the lock.
    if (version := _version(connection)) == 0:
        for statement in statements(strict=sqlite3.sqlite_version_info >= STRICT_SINCE):
            connection.execute(statement)
        connection.executemany("INSERT INTO counter (name, value) VALUES (?, 0)", [(name,) for name in COUNTERS])
    elif version != VERSION:
        raise _unusable(path, version)
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
        f"{path}: its schema has version {version}, this program knows version {VERSION}: use the program that made it"
    )
