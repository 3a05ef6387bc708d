"""The embedded toolstack's file and what can be done with it, as plain calls that need no event loop.

For the command line and for tests as they are; `EmbeddedToolstack` puts them on threads. Every method is one short
transaction, so any number of processes may have the file open.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self
from uuid import UUID

from varstore_companion.errors import ConfigurationError, ToolstackConflictError, ToolstackRefusedError
from varstore_companion.toolstack import rows
from varstore_companion.toolstack.connection import BUSY_TIMEOUT, Connection, prepare
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.toolstack.records import Firmware, VmKind
from varstore_companion.toolstack.rows import Derive, Head
from varstore_companion.toolstack.schema import CERTCHECK_RUNS, writes_counter
from varstore_companion.trust.state import CertificatesState, Update

if TYPE_CHECKING:
    import sqlite3

_log = logging.getLogger(__name__)

FILE_NAME = "toolstack.db"
"""The file's name in the state folder."""

MESSAGES = 10_000
"""Messages kept in all. Guests cause them, so they must not fill the disk; the oldest go."""

MESSAGES_PER_VM = 100
"""Messages kept for one VM, so that one guest cannot drive out what the others caused."""


@dataclass(frozen=True, slots=True)
class VmDetails:
    """What the database holds on one VM."""

    uuid: UUID
    name: str
    record: VmRecord


@dataclass(frozen=True, slots=True)
class Message:
    """An alert as it was kept; `created` is in whole seconds of Unix time.

    `number`: grows from one to the next; that of the newest comes again when its VM has been destroyed.
    """

    vm: UUID
    alert: Alert
    created: int
    number: int


class Database:
    """The open file; usable from any thread, closed by `close` or at the end of a `with` block.

    `path` is made when missing (mode 0600, its folder 0700); `busy_timeout` is in seconds and bounds the wait for
    another process's transaction. Reads have a connection of their own and never wait for a writer.

    The field of a VM belongs to one store, whose digest is kept beside it. When the file's store is another one, since
    somebody wrote it with other means, the field is stale: `read` warns of it in the log, and `derive`, if it is given,
    mends it at the next write or mark. Without it a stale field is never taken for a good one.

    The constructor raises `ConfigurationError` for a file that cannot be used (no access, another schema version,
    another program's), and `ToolstackUnavailableError` when it stays busy. Methods raise

    - `ToolstackUnavailableError`, with nothing changed: the file stayed busy, the disk is full, read-only or failing,
      or the database is closed;
    - `ToolstackRefusedError`, with nothing changed: `HANDLE_INVALID` for an unknown VM, `INTERNAL_ERROR` for a damaged
      file, and what each method names;
    - `ToolstackUnclearError`, from those that change something: the error came out of COMMIT itself.
    """

    def __init__(self, path: Path, *, derive: Derive | None = None, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = path
        self._derive = derive
        # By VM, the digest of the store that this object itself has put there last, and the writer's epoch then.
        self._put: dict[UUID, tuple[int, bytes]] = {}
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
        """Add a UEFI VM at generation 0; `store` None means that it was never started.

        The caller vouches that `state` is the store's; `Operations.create_vm` finds it out. For a UUID that is there
        already raises `ToolstackRefusedError` with `DUPLICATE_VM`.
        """
        with self._writer.writing() as connection:
            rows.add(
                connection,
                vm,
                name,
                kind=VmKind.VM,
                firmware=Firmware.UEFI,
                snapshot_of=None,
                state=state,
                state_of=rows.digest_of(store),
            )
            rows.put_store(connection, vm, store)

    def show(self, vm: UUID) -> VmDetails:
        """Everything on one VM, from one moment."""
        with self._reader.reading() as connection:
            row = rows.find(connection, vm)
        if row.is_stale:
            _log.warning("vm=%s its field says %s and was not computed from its store", vm, row.state)
        return VmDetails(vm, row.name, VmRecord(row.store, row.state, row.generation))

    def read(self, vm: UUID) -> VmRecord:
        """The VM's store, field and generation, from one moment."""
        return self.show(vm).record

    def confirm(self, vm: UUID, expected: int | None) -> None:
        """See that the VM's store may be written and, if `expected` is given, that it has this generation.

        Raises `ToolstackConflictError` when it has another; `ToolstackRefusedError` with `VM_IS_SNAPSHOT`.
        """
        with self._reader.reading() as connection:
            _confirm(connection, vm, expected)

    def write(self, vm: UUID, store: bytes, update: Literal[Update.YES, Update.NO], *, expected: int | None = None) -> int:
        """Store, with the field `ok` for `yes` and left alone for `no`; return the new generation.

        Raises `ToolstackConflictError`, with nothing changed, when `expected` is given and not the store's generation;
        `ToolstackRefusedError` with `VM_IS_SNAPSHOT`, as `VM.set_NVRAM` is refused.
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

        From `ok` raises `ToolstackRefusedError` with `OPERATION_NOT_ALLOWED`, as xapi does; a stale field is mended first,
        and stays mended.
        """
        return self._mark(vm, CertificatesState.UPDATE_ON_BOOT)

    def unmark(self, vm: UUID) -> CertificatesState:
        """Take the mark back; returns and raises as `mark`."""
        return self._mark(vm, CertificatesState.UPDATE_AVAILABLE)

    def alert(self, vm: UUID, alert: Alert) -> Message:
        """Keep a message, its texts cut to `rows.TEXT_LIMIT` characters; the oldest go, see `MESSAGES_PER_VM`."""
        kept = Alert(rows.stored_text(alert.name), alert.priority, rows.stored_text(alert.body))
        created = int(time.time())
        with self._writer.writing() as connection:
            _confirm(connection, vm, None)
            number = connection.execute(
                "INSERT INTO message (vm, name, priority, body, created) VALUES (?, ?, ?, ?, ?)",
                (str(vm), kept.name, kept.priority, kept.body, created),
            ).lastrowid
            connection.execute(
                "DELETE FROM message WHERE vm = ? AND id <= "
                "(SELECT id FROM message WHERE vm = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (str(vm), str(vm), MESSAGES_PER_VM),
            )
            connection.execute(
                "DELETE FROM message WHERE id <= (SELECT id FROM message ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (MESSAGES,),
            )
        return Message(vm, kept, created, number or 0)

    def alerts(self, vm: UUID | None = None) -> list[Message]:
        """The messages kept, of one VM or of all, oldest first."""
        of_vm = None if vm is None else str(vm)
        with self._reader.reading() as connection:
            found = connection.execute(
                "SELECT vm, name, priority, body, created, id FROM message WHERE vm = coalesce(?, vm) ORDER BY id", (of_vm,)
            ).fetchall()
        return [Message(UUID(of), Alert(name, priority, body), at, number) for of, name, priority, body, at, number in found]

    def counters(self) -> dict[str, int]:
        """`certcheck_runs` that became a field, and the writes by verdict: `writes_yes`, `_no`, `_unspecified`."""
        with self._reader.reading() as connection:
            return dict(connection.execute("SELECT name, value FROM counter").fetchall())

    def _write(
        self, vm: UUID, store: bytes, verdict: CertificatesState | None, counted: tuple[str, ...], expected: int | None
    ) -> int:
        digest = rows.digest_of(store)
        with self._writer.writing() as connection:
            head = rows.find_head(connection, vm)
            rows.refuse_snapshot(vm, head.kind)
            if expected is not None and head.generation != expected:
                raise _conflict(vm, head.generation, expected)
            state, state_of = head.state, head.state_of
            if head.is_judged and verdict is not None:
                state, state_of = verdict, digest
            elif head.is_judged and not self._is_stale(connection, head):
                # The verdict `no` says that what held for the store before holds for the new one.
                state_of = digest
            elif head.is_judged and self._derive is not None:
                state, state_of = self._derived(head, store, self._derive), digest
            rows.set_field(connection, vm, state=state, state_of=state_of, generation=head.generation + 1)
            rows.put_store(connection, vm, store)
            connection.executemany("UPDATE counter SET value = value + 1 WHERE name = ?", [(name,) for name in counted])
            self._put[vm] = self._writer.epoch, digest
        return head.generation + 1

    def _is_stale(self, connection: "sqlite3.Connection", head: Head) -> bool:
        """As `Row.is_stale`, without reading and hashing a store that nobody else can have changed: most writes are such."""
        if self._put.get(head.uuid) == (self._writer.epoch, head.state_of):
            return False
        return rows.find(connection, head.uuid).is_stale

    def _mark(self, vm: UUID, wanted: CertificatesState) -> CertificatesState:
        with self._writer.writing() as connection:
            row = rows.find(connection, vm)
            state, state_of = row.state, row.state_of
            if self._derive is not None and row.is_stale:
                state, state_of = self._derived(row, row.store, self._derive), rows.digest_of(row.store)
            refused = state is CertificatesState.OK
            state = state if refused else wanted
            if (state, state_of) != (row.state, row.state_of):
                rows.set_field(connection, vm, state=state, state_of=state_of, generation=row.generation)
        if refused:
            why = f"VM {vm} has no update to mark: its state is {CertificatesState.OK}"
            raise ToolstackRefusedError("OPERATION_NOT_ALLOWED", why)
        return wanted

    @staticmethod
    def _derived(head: Head, store: bytes | None, derive: Derive) -> CertificatesState:
        state = rows.derived_field(store, derive, judged=head.is_judged, marked=head.is_marked)
        _log.warning("vm=%s its field said %s and was not computed from its store: it is now %s", head.uuid, head.state, state)
        return state


def _confirm(connection: "sqlite3.Connection", vm: UUID, expected: int | None) -> None:
    head = rows.find_head(connection, vm)
    rows.refuse_snapshot(vm, head.kind)
    if expected is not None and head.generation != expected:
        raise _conflict(vm, head.generation, expected)


def _conflict(vm: UUID, generation: int, expected: int) -> ToolstackConflictError:
    return ToolstackConflictError(f"the store of VM {vm} has generation {generation}, not {expected}")
