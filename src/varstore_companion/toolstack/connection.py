"""One cached connection to the embedded toolstack's file: opening, short transactions, and what an error means.

Several connections, in this process and in others, are open on the file at once. So nothing read is kept between
transactions, and each one first looks whether the file at the path is still the one that was opened.
"""

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from varstore_companion.errors import (
    ConfigurationError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack import room, schema

T = TypeVar("T")

BUSY_TIMEOUT = 3.0
"""Seconds to wait for another process's transaction. Each takes milliseconds, and a boot has 20 s in all."""

# SQLite's own wait tries ever less often, down to ten times a second, and so can be kept out for seconds by one busy
# writer that only pauses between transactions.
_RETRY_DELAY = 0.002

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
# What passes by itself or when the operator repairs it, with the database as it was.
_PASSING = _BUSY | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_INTERRUPT,
}
# The disk has no room for the index of the write-ahead log.
_NO_INDEX = sqlite3.SQLITE_IOERR_SHMSIZE


def prepare(path: Path) -> None:
    """Make the file, empty and of mode 0600, and its folder, of mode 0700, where they are missing; both durably.

    What is there already keeps its mode, which is the operator's. Raises `OSError`.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not open() and close(): closing any descriptor of the file drops the locks that SQLite holds on it elsewhere in
    # this process (POSIX, fcntl).
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFREG | 0o600)
        for folder in (path.parent, *(made.parent for made in missing)):
            _sync_folder(folder)


class Connection:
    """One SQLite connection, used by one thread at a time, opened when it is first needed.

    `epoch`: in a writer's transaction, another number than in its last one when anybody else has written to the file since.

    `busy_timeout` is in seconds. When something is raised in a transaction the connection is closed, which rolls back,
    and the next use opens a new one. The owner calls `close`, last.
    """

    def __init__(self, path: Path, *, busy_timeout: float = BUSY_TIMEOUT, read_only: bool = False) -> None:
        self._path = path
        self._uri = path.absolute().as_uri() + "?mode=rw"
        self._busy_timeout = busy_timeout
        self._read_only = read_only
        self._lock = threading.Lock()
        self._closed = False
        self._keeps_room = False
        self._raw: sqlite3.Connection | None = None
        self._data_version: int | None = None
        self.epoch = 0
        self._file: tuple[int, int] | None = None

    def open(self) -> None:
        """Open the file now.

        Raises `ToolstackUnavailableError` when another process keeps it busy, `ConfigurationError` when it cannot be
        used.
        """
        with self._lock:
            try:
                self._current()
            except sqlite3.Error as error:
                text = _text(self._path, error)
                raise (ToolstackUnavailableError(text) if _is(error, _BUSY) else ConfigurationError(text)) from error
            self._keeps_room = True
            room.keep(self._path)

    def close(self) -> None:
        """Close the file; harmless when repeated. Waits for a transaction that is under way."""
        with self._lock:
            self._closed = True
            self._drop()
            if self._keeps_room:
                # What the index took is free again, if this was the last connection.
                room.keep(self._path)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For one SELECT, which SQLite answers from one state of the file; it never waits for a writer.

        Raises `ToolstackUnavailableError`, or `ToolstackRefusedError` (`INTERNAL_ERROR`) for a damaged file.
        """
        with self._exclusive() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """For several SELECTs, which are answered from one state of the file. Raises as `reading`."""
        with self._exclusive() as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction of a writer: committed when the block ends, rolled back when it raises.

        Errors before COMMIT: as `reading`, and nothing was changed. An error out of COMMIT itself raises
        `ToolstackUnclearError`, since the commit record may have reached the disk when only the sync failed, and
        SQLite's recovery then finds it after a crash. A later transaction overwrites it, so it never comes back over
        something newer. Only a busy file makes COMMIT fail with certainty: `ToolstackUnavailableError`.
        """
        with self._exclusive() as connection:
            self._patiently(partial(connection.execute, "BEGIN IMMEDIATE"))
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version != self._data_version:
                self.epoch += 1
                self._data_version = version
            yield connection
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._drop()
                if _is(error, _BUSY):
                    raise
                raise ToolstackUnclearError(f"{_text(self._path, error)}, out of COMMIT") from error

    @contextmanager
    def _exclusive(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._current()
                try:
                    yield connection
                finally:
                    # The block raised: closing rolls back.
                    if connection is self._raw and connection.in_transaction:
                        self._drop()
            except ConfigurationError as error:
                # The file was exchanged while the program ran; at the start, `open` says it as it is.
                raise ToolstackUnavailableError(str(error)) from error
            except sqlite3.Error as error:
                if not _is(error, _BUSY):
                    self._drop()
                text = _text(self._path, error)
                if _is(error, _PASSING):
                    raise ToolstackUnavailableError(text) from error
                raise ToolstackRefusedError("INTERNAL_ERROR", text) from error

    def _current(self) -> sqlite3.Connection:
        if self._closed:
            raise ToolstackUnavailableError(f"{self._path}: closed")
        if self._raw is not None and self._file == _identity(self._path):
            return self._raw
        self._drop()
        # Two processes that open a new file switch it to WAL at once; SQLite then refuses one of them without waiting.
        try:
            self._raw = self._patiently(self._opened)
        except sqlite3.Error as error:
            if _code(error) != _NO_INDEX:
                raise
            room.free(self._path)
            self._raw = self._patiently(self._opened)
        self._file = _identity(self._path)
        return self._raw

    def _patiently(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                return call()
            except sqlite3.Error as error:
                if not _is(error, _BUSY) or time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_DELAY)

    def _opened(self) -> sqlite3.Connection:
        # A reader meets a busy file only while another process opens or closes it.
        timeout = self._busy_timeout if self._read_only else 0
        raw = sqlite3.connect(self._uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
        with ExitStack() as on_failure:
            on_failure.callback(raw.close)
            raw.execute("PRAGMA synchronous = FULL")
            raw.execute("PRAGMA foreign_keys = ON")
            schema.ensure(raw, self._path)
            if self._read_only:
                raw.execute("PRAGMA query_only = ON")
            on_failure.pop_all()
        return raw

    def _drop(self) -> None:
        if self._raw is not None:
            self._raw.close()
        self._raw = self._file = self._data_version = None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is(error: sqlite3.Error, codes: frozenset[int]) -> bool:
    # The low byte of an extended code is its family.
    return _code(error) & 0xFF in codes


def _code(error: sqlite3.Error) -> int:
    # Errors of the module itself carry none.
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code


def _text(path: Path, error: sqlite3.Error) -> str:
    name: str = getattr(error, "sqlite_errorname", "no code")
    why = f": the disk is full: free {room.BYTES:,} bytes on it" if _code(error) == _NO_INDEX else ""
    return f"{path}: {error} ({name}){why}"
