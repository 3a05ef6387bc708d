"""The embedded toolstack's file as version 1 of its schema had it: from before the field remembers its store."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from uuid import UUID

from varstore_companion.trust.state import CertificatesState

# As it was: a file in the field does not change with the program.
VERSION_1 = """
CREATE TABLE vm (
    uuid TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    secureboot_certificates_state TEXT NOT NULL
        CHECK (secureboot_certificates_state IN ('ok', 'update_available', 'update_on_boot')),
    generation INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE nvram (
    vm TEXT NOT NULL REFERENCES vm (uuid) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value BLOB NOT NULL CHECK (typeof(value) = 'blob'),
    PRIMARY KEY (vm, key)
);
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    vm TEXT NOT NULL REFERENCES vm (uuid) ON DELETE CASCADE,
    name TEXT NOT NULL,
    priority INTEGER NOT NULL,
    body TEXT NOT NULL,
    created INTEGER NOT NULL
);
CREATE INDEX message_of_vm ON message (vm, id);
CREATE TABLE counter (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter VALUES ('certcheck_runs', 3), ('writes_yes', 1), ('writes_no', 2), ('writes_unspecified', 3);
PRAGMA user_version = 1;
"""


def make_version_1(path: Path, vms: Iterable[tuple[UUID, bytes | None, CertificatesState]]) -> None:
    """Make such a file. Every VM has generation 5 and one message."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(VERSION_1)
        connection.execute("BEGIN")
        for vm, store, state in vms:
            connection.execute("INSERT INTO vm VALUES (?, 'name', ?, 5)", (str(vm), state))
            if store is not None:
                connection.execute("INSERT INTO nvram VALUES (?, 'EFI-variables', ?)", (str(vm), store))
            connection.execute(
                "INSERT INTO message (vm, name, priority, body, created) VALUES (?, 'NAME', 5, '', 1)", (str(vm),)
            )
        connection.execute("COMMIT")
