"""One VM's rows in an open transaction: reading them, and changing NVRAM and field together, never one without the other."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack.nvram import EFI_VARIABLES, Nvram
from varstore_companion.toolstack.records import Firmware, VmKind, is_judged, with_mark
from varstore_companion.trust.state import CertificatesState

Derive = Callable[[bytes], CertificatesState]
"""What the field is for a store, without a mark; the rules are the caller's. Raises nothing."""

NO_STORE = b""
"""The digest that stands for a VM without a store."""

TEXT_LIMIT = 4096
"""Characters kept of a name or a message's body."""

_HEAD = "vm.uuid, vm.name, vm.kind, vm.firmware, vm.snapshot_of, vm.secureboot_certificates_state, vm.state_of, vm.generation"
COLUMNS = f"{_HEAD}, nvram.value"
SOURCE = f"vm LEFT JOIN nvram ON nvram.vm = vm.uuid AND nvram.key = '{EFI_VARIABLES}'"

_HeadColumns = tuple[str, str, str, str, str | None, str, bytes | None, int]


@dataclass(frozen=True, slots=True)
class Head:
    """A VM's row without its store. `state_of`: as in the schema."""

    uuid: UUID
    name: str
    kind: VmKind
    firmware: Firmware
    snapshot_of: UUID | None
    state: CertificatesState
    state_of: bytes | None
    generation: int

    @property
    def is_judged(self) -> bool:
        """Whether the field says something about the store."""
        return is_judged(self.kind, self.firmware)

    @property
    def is_marked(self) -> bool:
        """Whether the VM is marked for an update at its next boot."""
        return self.state is CertificatesState.UPDATE_ON_BOOT


@dataclass(frozen=True, slots=True)
class Row(Head):
    """A VM's row with its store."""

    store: bytes | None

    @classmethod
    def of(cls, columns: tuple[*_HeadColumns, bytes | None]) -> "Row":
        """From what a SELECT of `COLUMNS` gives."""
        return cls(*_head(columns[:8]), columns[8])

    @property
    def is_stale(self) -> bool:
        """The field was computed from another store than the one that is there, or not at all."""
        return self.is_judged and self.state_of != digest_of(self.store)


def digest_of(store: bytes | None) -> bytes:
    """What `state_of` is for a field that belongs to `store`."""
    return NO_STORE if store is None else sha256(store).digest()


def derived_field(store: bytes | None, derive: Derive, *, judged: bool, marked: bool) -> CertificatesState:
    """The field that belongs to a store; that of a VM before its first boot is `ok`, as in xapi."""
    if store is None or not judged:
        return CertificatesState.OK
    return with_mark(derive(store), marked=marked)


def exists(connection: sqlite3.Connection, vm: UUID) -> bool:
    """Whether there is such a VM."""
    return connection.execute("SELECT 1 FROM vm WHERE uuid = ?", (str(vm),)).fetchone() is not None


def find(connection: sqlite3.Connection, vm: UUID) -> Row:
    """Read a VM's row. Raises `ToolstackRefusedError` (`HANDLE_INVALID`)."""
    columns = connection.execute(f"SELECT {COLUMNS} FROM {SOURCE} WHERE vm.uuid = ?", (str(vm),)).fetchone()  # noqa: S608  constants
    if columns is None:
        raise unknown(vm)
    return Row.of(columns)


def find_head(connection: sqlite3.Connection, vm: UUID) -> Head:
    """Read a VM's row without its store. Raises `ToolstackRefusedError` (`HANDLE_INVALID`)."""
    columns = connection.execute(f"SELECT {_HEAD} FROM vm WHERE uuid = ?", (str(vm),)).fetchone()  # noqa: S608  constants
    if columns is None:
        raise unknown(vm)
    return Head(*_head(columns))


def refuse_snapshot(vm: UUID, kind: VmKind) -> None:
    """See that the VM's NVRAM may be changed. Raises `ToolstackRefusedError` (`VM_IS_SNAPSHOT`)."""
    if kind is VmKind.SNAPSHOT:
        raise ToolstackRefusedError("VM_IS_SNAPSHOT", f"{vm} is a snapshot", (str(vm), "changing_NVRAM"))


def add(
    connection: sqlite3.Connection,
    vm: UUID,
    name: str,
    *,
    kind: VmKind,
    firmware: Firmware,
    snapshot_of: UUID | None,
    state: CertificatesState,
    state_of: bytes | None,
) -> None:
    """Add a VM without NVRAM, at a generation that no VM which has been destroyed had: a daemon may remember one of this UUID.

    For a UUID that is there already raises `ToolstackRefusedError` with `DUPLICATE_VM`, with which xapi refuses to restore
    a VM a second time (`UUID_INVALID` is xapi's word for a UUID that nothing has).
    """
    if exists(connection, vm):
        raise ToolstackRefusedError("DUPLICATE_VM", f"there is already a VM {vm}", (str(vm),))
    connection.execute(
        "INSERT INTO vm (uuid, name, kind, firmware, snapshot_of, secureboot_certificates_state, state_of, generation) "
        "SELECT ?, ?, ?, ?, ?, ?, ?, first_generation FROM pool",
        (str(vm), stored_text(name), kind, firmware, None if snapshot_of is None else str(snapshot_of), state, state_of),
    )


def remove(connection: sqlite3.Connection, row: Row) -> None:
    """Remove a VM with its NVRAM and messages."""
    connection.execute("UPDATE pool SET first_generation = max(first_generation, ?)", (row.generation + 1,))
    connection.execute("DELETE FROM vm WHERE uuid = ?", (str(row.uuid),))


def set_field(
    connection: sqlite3.Connection,
    vm: UUID,
    *,
    state: CertificatesState,
    state_of: bytes | None,
    generation: int,
    firmware: Firmware | None = None,
) -> None:
    """Set the field, the digest of the store that it belongs to, the generation and, unless it is None, the firmware."""
    connection.execute(
        "UPDATE vm SET secureboot_certificates_state = ?, state_of = ?, generation = ?, firmware = coalesce(?, firmware) "
        "WHERE uuid = ?",
        (state, state_of, generation, firmware, str(vm)),
    )


def put_store(connection: sqlite3.Connection, vm: UUID, store: bytes | None) -> None:
    """Set or, for None, remove the store; its field is the caller's to set in the same transaction."""
    if store is None:
        remove_key(connection, vm, EFI_VARIABLES)
    else:
        _put(connection, vm, EFI_VARIABLES, store)


def put_text(connection: sqlite3.Connection, vm: UUID, key: str, value: str) -> None:
    """Set another key of the NVRAM."""
    _put(connection, vm, key, value.encode())


def put_nvram(connection: sqlite3.Connection, vm: UUID, nvram: Nvram) -> None:
    """Set the whole NVRAM."""
    connection.execute("DELETE FROM nvram WHERE vm = ? AND key != ?", (str(vm), EFI_VARIABLES))
    for key, value in nvram.others.items():
        put_text(connection, vm, key, value)
    put_store(connection, vm, nvram.store)


def remove_key(connection: sqlite3.Connection, vm: UUID, key: str) -> None:
    """Remove a key of the NVRAM; harmless when it is not there."""
    connection.execute("DELETE FROM nvram WHERE vm = ? AND key = ?", (str(vm), key))


def other_texts(connection: sqlite3.Connection, vm: UUID) -> dict[str, str]:
    """The NVRAM without the store, by key."""
    rows = connection.execute(
        "SELECT key, value FROM nvram WHERE vm = ? AND key != ? ORDER BY key", (str(vm), EFI_VARIABLES)
    ).fetchall()
    return {key: value.decode(errors="replace") for key, value in rows}


def unknown(vm: UUID) -> ToolstackRefusedError:
    """The error about a VM that is not there."""
    return ToolstackRefusedError("HANDLE_INVALID", f"there is no VM {vm}", ("VM", str(vm)))


def stored_text(value: str) -> str:
    """A text as it is kept: cut, and without the lone surrogates that a command line or a guest may bring in."""
    return value[:TEXT_LIMIT].encode("utf-8", "backslashreplace").decode()


def _put(connection: sqlite3.Connection, vm: UUID, key: str, value: bytes) -> None:
    connection.execute(
        "INSERT INTO nvram (vm, key, value) VALUES (?, ?, ?) ON CONFLICT (vm, key) DO UPDATE SET value = excluded.value",
        (str(vm), key, value),
    )


def _head(
    columns: _HeadColumns,
) -> tuple[UUID, str, VmKind, Firmware, UUID | None, CertificatesState, bytes | None, int]:
    uuid, name, kind, firmware, snapshot_of, state, state_of, generation = columns
    parent = None if snapshot_of is None else UUID(snapshot_of)
    return UUID(uuid), name, VmKind(kind), Firmware(firmware), parent, CertificatesState(state), state_of, generation
