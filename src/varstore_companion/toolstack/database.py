"""The embedded toolstack's file and what can be done with it, as plain calls that need no event loop.

For the command line and for tests as they are; `EmbeddedToolstack` puts them on threads. Every method is one short
transaction, so any number of processes may have the file open.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self
from uuid import UUID

from varstore_companion.errors import ConfigurationError, ToolstackConflictError, ToolstackRefusedError
from varstore_companion.toolstack.connection import BUSY_TIMEOUT, Connection, prepare
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.toolstack.schema import CERTCHECK_RUNS, EFI_VARIABLES, writes_counter
from varstore_companion.trust.state import CertificatesState, Update

if TYPE_CHECKING:
    import sqlite3

FILE_NAME = "toolstack.db"
"""The file's name in the state folder."""

MESSAGES = 10_000
"""Messages kept in all. Guests cause them, so they must not fill the disk; the oldest go."""

MESSAGES_PER_VM = 100
"""Messages kept for one VM, so that one guest cannot drive out what the others caused."""

TEXT_LIMIT = 4096
"""Characters kept of a name or a message's body."""


@dataclass(frozen=True, slots=True)
class VmDetails:
    """What the database holds on one VM."""

    uuid: UUID
    name: str
    record: VmRecord


@dataclass(frozen=True, slots=True)
class Message:
    """An alert as it was kept; `created` is in whole seconds of Unix time."""

    vm: UUID
    alert: Alert
    created: int


class Database:
    """The open file; usable from any thread, closed by `close` or at the end of a `with` block.

    `path` is made when missing (mode 0600, its folder 0700); `busy_timeout` is in seconds and bounds the wait for
    another process's transaction. Reads have a connection of their own and never wait for a writer.

    The constructor raises `ConfigurationError` for a file that cannot be used (no access, another schema version,
    another program's), and `ToolstackUnavailableError` when it stays busy. Methods raise

    - `ToolstackUnavailableError`, with nothing changed: the file stayed busy, the disk is full, read-only or failing,
      or the database is closed;
    - `ToolstackRefusedError`, with nothing changed: `HANDLE_INVALID` for an unknown VM, `INTERNAL_ERROR` for a damaged
      file, and what each method names;
    - `ToolstackUnclearError`, from those that change something: the error came out of COMMIT itself.
    """

    def __init__(self, path: Path, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = path
        try:
            prepare(path)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be made: {error.strerror}") from error
        self._writer = Connection(path, busy_timeout=busy_timeout)
        self._reader = Connection(path, busy_timeout=busy_timeout, read_only=True)
        self._writer.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when repeated. Waits for a call that another thread is in."""
        self._reader.close()
        self._writer.close()

    def create(self, vm: UUID, name: str, store: bytes | None, state: CertificatesState) -> None:
        """Add a VM at generation 0; `store` None means that it was never started.

        The caller has decided `state`, as xapi does in VM.create. For a UUID that is there already raises
        `ToolstackRefusedError` with `DUPLICATE_VM`, with which xapi refuses to restore a VM a second time
        (`UUID_INVALID` is xapi's word for a UUID that nothing has).
        """
        with self._writer.writing() as connection:
            if connection.execute("SELECT 1 FROM vm WHERE uuid = ?", (str(vm),)).fetchone():
                raise ToolstackRefusedError("DUPLICATE_VM", f"there is already a VM {vm}")
            connection.execute(
                "INSERT INTO vm (uuid, name, secureboot_certificates_state) VALUES (?, ?, ?)",
                (str(vm), _text(name), state),
            )
            if store is not None:
                _put_store(connection, vm, store)

    def show(self, vm: UUID) -> VmDetails:
        """Everything on one VM, from one moment."""
        with self._reader.reading() as connection:
            row = connection.execute(
                "SELECT vm.name, vm.secureboot_certificates_state, vm.generation, nvram.value "
                "FROM vm LEFT JOIN nvram ON nvram.vm = vm.uuid AND nvram.key = ? WHERE vm.uuid = ?",
                (EFI_VARIABLES, str(vm)),
            ).fetchone()
        if row is None:
            raise _unknown(vm)
        name, state, generation, store = row
        return VmDetails(vm, name, VmRecord(store, CertificatesState(state), generation))

    def read(self, vm: UUID) -> VmRecord:
        """The VM's store, field and generation, from one moment."""
        return self.show(vm).record

    def confirm(self, vm: UUID, expected: int | None) -> None:
        """See that the VM is there and, if `expected` is given, that its store has this generation.

        Raises `ToolstackConflictError` when it has another.
        """
        with self._reader.reading() as connection:
            _confirm(connection, vm, expected)

    def write(self, vm: UUID, store: bytes, update: Literal[Update.YES, Update.NO], *, expected: int | None = None) -> int:
        """Store, with the field `ok` for `yes` and left alone for `no`; return the new generation.

        Raises `ToolstackConflictError`, with nothing changed, when `expected` is given and not the store's generation.
        """
        field = CertificatesState.OK if update is Update.YES else None
        return self._write(vm, store, field, (writes_counter(update),), expected)

    def write_checked(self, vm: UUID, store: bytes, checked: CertificatesState, *, expected: int | None = None) -> int:
        """Store, with the verdict `unspecified`: `checked` is what certcheck said of exactly these bytes.

        It becomes the field in the same transaction, which also counts the run. Returns and raises as `write`.
        """
        return self._write(vm, store, checked, (CERTCHECK_RUNS, writes_counter(Update.UNSPECIFIED)), expected)

    def mark(self, vm: UUID) -> CertificatesState:
        """Mark the VM for an update at its next boot; return the state after. Harmless when repeated.

        From `ok` raises `ToolstackRefusedError` with `OPERATION_NOT_ALLOWED`, as xapi does.
        """
        return self._mark(vm, CertificatesState.UPDATE_ON_BOOT)

    def unmark(self, vm: UUID) -> CertificatesState:
        """Take the mark back; returns and raises as `mark`."""
        return self._mark(vm, CertificatesState.UPDATE_AVAILABLE)

    def alert(self, vm: UUID, alert: Alert) -> None:
        """Keep a message, its texts cut to `TEXT_LIMIT` characters; the oldest go, see `MESSAGES_PER_VM`."""
        with self._writer.writing() as connection:
            _confirm(connection, vm, None)
            connection.execute(
                "INSERT INTO message (vm, name, priority, body, created) VALUES (?, ?, ?, ?, ?)",
                (str(vm), _text(alert.name), alert.priority, _text(alert.body), int(time.time())),
            )
            connection.execute(
                "DELETE FROM message WHERE vm = ? AND id <= "
                "(SELECT id FROM message WHERE vm = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (str(vm), str(vm), MESSAGES_PER_VM),
            )
            connection.execute(
                "DELETE FROM message WHERE id <= (SELECT id FROM message ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (MESSAGES,),
            )

    def alerts(self, vm: UUID | None = None) -> list[Message]:
        """The messages kept, of one VM or of all, oldest first."""
        of_vm = None if vm is None else str(vm)
        with self._reader.reading() as connection:
            rows = connection.execute(
                "SELECT vm, name, priority, body, created FROM message WHERE vm = coalesce(?, vm) ORDER BY id", (of_vm,)
            ).fetchall()
        return [Message(UUID(of), Alert(name, priority, body), created) for of, name, priority, body, created in rows]

    def counters(self) -> dict[str, int]:
        """`certcheck_runs` that became a field, and the writes by verdict: `writes_yes`, `_no`, `_unspecified`."""
        with self._reader.reading() as connection:
            return dict(connection.execute("SELECT name, value FROM counter").fetchall())

    def _write(
        self, vm: UUID, store: bytes, field: CertificatesState | None, counted: tuple[str, ...], expected: int | None
    ) -> int:
        with self._writer.writing() as connection:
            generation = _confirm(connection, vm, expected) + 1
            connection.execute(
                "UPDATE vm SET generation = ?, "
                "secureboot_certificates_state = coalesce(?, secureboot_certificates_state) WHERE uuid = ?",
                (generation, field, str(vm)),
            )
            _put_store(connection, vm, store)
            connection.executemany("UPDATE counter SET value = value + 1 WHERE name = ?", [(name,) for name in counted])
        return generation

    def _mark(self, vm: UUID, wanted: CertificatesState) -> CertificatesState:
        with self._writer.writing() as connection:
            row = connection.execute("SELECT secureboot_certificates_state FROM vm WHERE uuid = ?", (str(vm),)).fetchone()
            if row is None:
                raise _unknown(vm)
            if row[0] == CertificatesState.OK:
                raise ToolstackRefusedError("OPERATION_NOT_ALLOWED", f"VM {vm} has no update to mark: its state is ok")
            connection.execute("UPDATE vm SET secureboot_certificates_state = ? WHERE uuid = ?", (wanted, str(vm)))
        return wanted


def _confirm(connection: "sqlite3.Connection", vm: UUID, expected: int | None) -> int:
    row = connection.execute("SELECT generation FROM vm WHERE uuid = ?", (str(vm),)).fetchone()
    if row is None:
        raise _unknown(vm)
    generation = int(row[0])
    if expected is not None and generation != expected:
        raise ToolstackConflictError(f"the store of VM {vm} has generation {generation}, not {expected}")
    return generation


def _put_store(connection: "sqlite3.Connection", vm: UUID, store: bytes) -> None:
    connection.execute(
        "INSERT INTO nvram (vm, key, value) VALUES (?, ?, ?) ON CONFLICT (vm, key) DO UPDATE SET value = excluded.value",
        (str(vm), EFI_VARIABLES, store),
    )


def _unknown(vm: UUID) -> ToolstackRefusedError:
    return ToolstackRefusedError("HANDLE_INVALID", f"there is no VM {vm}")


def _text(value: str) -> str:
    # SQLite holds UTF-8; a text from the command line or from a guest may carry lone surrogates.
    return value[:TEXT_LIMIT].encode("utf-8", "backslashreplace").decode()
