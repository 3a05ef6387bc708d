"""xapi's operations on VMs, as plain calls on the embedded toolstack's file. Each is one transaction.

What every operation does to `secureboot_certificates_state` (`derive`: what the store's certificates say; a mark is kept
only together with something to update):

| operation | the field after it |
|---|---|
| `create_vm` | derived; marked when the pool flag is on |
| `import_vm` | derived, whatever the metadata says; marked when the pool flag is on, or when the metadata had the mark |
| `clone`, `copy`, `snapshot` | copied with the digest of the store that it belongs to, so a stale one stays stale |
| `revert` | derived from the snapshot's store; marked when the snapshot had the mark |
| `set_nvram`, `add_to_nvram`, `remove_from_nvram` | derived, when it is the store that they change; a mark is kept |
| `write` (`yes`, `no`), `write_checked` (`unspecified`) | `ok`, left alone, what certcheck said |
| `mark`, `unmark` | marked, not marked |

A mark in an import's metadata is the operator's wish and not a fact about the store, so it may travel; xapi's word for the
rest of the field is not taken. A revert takes the VM back to what the snapshot held, the mark included or not.

`VM.set_NVRAM_EFI_variables` in all its forms is `nvram.store_of` and then `EmbeddedToolstack.write`, which runs certcheck's
process for `unspecified`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack import nvram as nvrams
from varstore_companion.toolstack import rows, upgrade
from varstore_companion.toolstack.connection import BUSY_TIMEOUT
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.nvram import EFI_VARIABLES, Nvram
from varstore_companion.toolstack.records import Firmware, Vm, VmKind, VmMetadata, VmSummary, is_judged, with_mark
from varstore_companion.toolstack.rows import Derive, Row
from varstore_companion.trust.state import CertificatesState

if TYPE_CHECKING:
    import sqlite3

_PAGE = 64
"""Whole records read at once: 4 MiB of usual stores, 8 MiB of the largest."""


class Operations(Database):
    """The VMs of one pool. Errors are those of `Database`; `HANDLE_INVALID` stands for a VM that is not there.

    Opening computes the field of every VM, snapshot and template that has none yet, in process: see `upgrade.run`, which
    calls `progress` with how many are done and how many there are.
    """

    def __init__(
        self,
        path: Path,
        derive: Derive,
        *,
        busy_timeout: float = BUSY_TIMEOUT,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(path, derive=derive, busy_timeout=busy_timeout)
        self._rules = derive
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            upgrade.run(self._reader, self._writer, derive, progress)
            on_failure.pop_all()

    # Reading

    def uuid_of(self, vm: UUID) -> UUID:
        """The VM of this uuid (xapi: `VM.get_by_uuid`); raises `ToolstackRefusedError` with `UUID_INVALID`, as xapi does."""
        with self._reader.reading() as connection:
            if not rows.exists(connection, vm):
                raise ToolstackRefusedError("UUID_INVALID", f"there is no VM {vm}", ("VM", str(vm)))
        return vm

    def uuids(self) -> list[UUID]:
        """Every record's uuid, in order (xapi: `VM.get_all`)."""
        with self._reader.reading() as connection:
            return [UUID(text) for (text,) in connection.execute("SELECT uuid FROM vm ORDER BY uuid").fetchall()]

    def record(self, vm: UUID) -> Vm:
        """A VM's whole record, from one moment (xapi: `VM.get_record`)."""
        found = self._records("vm.uuid = ?", str(vm))
        if not found:
            raise rows.unknown(vm)
        return found[0]

    def records(self) -> Iterator[Vm]:
        """Every record, in order of uuid (xapi: `VM.get_all_records`); read a page at a time, each from one moment."""
        page = self._records("vm.uuid > ?", "")
        while page:
            yield from page
            page = self._records("vm.uuid > ?", str(page[-1].uuid))

    def summaries(self) -> list[VmSummary]:
        """Every record without its store, in order of uuid, from one moment."""
        with self._reader.reading() as connection:
            found = connection.execute(f"SELECT {rows.COLUMNS} FROM {rows.SOURCE} ORDER BY vm.uuid")  # noqa: S608  constants
            return [_summary(Row.of(columns)) for columns in found]

    def get_nvram(self, vm: UUID) -> Nvram:
        """xapi: `VM.get_NVRAM`; `Nvram.texts` gives it as xapi answers it."""
        return self.record(vm).nvram

    def state(self, vm: UUID) -> CertificatesState:
        """xapi: `VM.get_secureboot_certificates_state`."""
        with self._reader.reading() as connection:
            found = connection.execute("SELECT secureboot_certificates_state FROM vm WHERE uuid = ?", (str(vm),)).fetchone()
        if found is None:
            raise rows.unknown(vm)
        return CertificatesState(found[0])

    def auto_update(self) -> bool:
        """xapi: `pool.get_auto_update_vm_secureboot_certificates`."""
        with self._reader.reading() as connection:
            return _auto_update(connection)

    # A VM's life

    def create_vm(
        self,
        vm: UUID,
        name: str,
        nvram: Nvram | None = None,
        *,
        kind: VmKind = VmKind.VM,
        firmware: Firmware = Firmware.UEFI,
    ) -> None:
        """Add a VM, template, default template or control domain (xapi: `VM.create`).

        Raises `ToolstackRefusedError`: `DUPLICATE_VM`; `VALUE_NOT_SUPPORTED` for a snapshot, which only `snapshot` makes;
        for the NVRAM as `nvram.check_store` and `nvram.check_entry` do.
        """
        if kind is VmKind.SNAPSHOT:
            why = "a snapshot is taken, not created"
            raise ToolstackRefusedError("VALUE_NOT_SUPPORTED", f"kind: {why}", ("kind", kind, why))
        self.import_vm(VmMetadata(vm, name, kind, firmware, None, nvram or Nvram(), None))

    def import_vm(self, metadata: VmMetadata) -> None:
        """Add what an export holds, under its uuid (xapi: an import of metadata, with or without the field).

        `snapshot_of` is kept when that VM is here. Raises `ToolstackRefusedError`: `DUPLICATE_VM`; for the NVRAM as
        `create_vm`.
        """
        _check(metadata.nvram)
        store = metadata.nvram.store
        judged = is_judged(metadata.kind, metadata.firmware)
        derived = rows.derived_field(store, self._rules, judged=judged, marked=False)
        with self._writer.writing() as connection:
            marked = metadata.state is CertificatesState.UPDATE_ON_BOOT or _auto_update(connection)
            parent = metadata.snapshot_of if metadata.kind is VmKind.SNAPSHOT else None
            if parent is not None and not rows.exists(connection, parent):
                parent = None
            rows.add(
                connection,
                metadata.uuid,
                metadata.name,
                kind=metadata.kind,
                firmware=metadata.firmware,
                snapshot_of=parent,
                state=with_mark(derived, marked=marked),
                state_of=rows.digest_of(store),
            )
            rows.put_nvram(connection, metadata.uuid, metadata.nvram)

    def export_vm(self, vm: UUID) -> VmMetadata:
        """What an import needs to make the VM elsewhere (xapi: an export of metadata)."""
        found = self.record(vm)
        return VmMetadata(found.uuid, found.name, found.kind, found.firmware, found.snapshot_of, found.nvram, found.state)

    def clone(self, vm: UUID, name: str) -> UUID:
        """A new VM of a VM, or a new template of a template or a snapshot (xapi: `VM.clone`); returns its uuid.

        Raises `ToolstackRefusedError` with `OPERATION_NOT_ALLOWED` for a control domain.
        """
        return self._duplicate(vm, name, "clone")

    def copy(self, vm: UUID, name: str) -> UUID:
        """As `clone` (xapi: `VM.copy`, which differs in what it does to disks)."""
        return self._duplicate(vm, name, "copy")

    def snapshot(self, vm: UUID, name: str) -> UUID:
        """A snapshot of a VM (xapi: `VM.snapshot`); returns its uuid.

        Raises `ToolstackRefusedError`: `VM_IS_TEMPLATE`, `VM_IS_SNAPSHOT`, and `OPERATION_NOT_ALLOWED` for a control domain.
        """
        return self._duplicate(vm, name, "snapshot")

    def revert(self, snapshot: UUID) -> UUID:
        """Take a VM back to the NVRAM and firmware of a snapshot (xapi: `VM.revert`); returns the VM's uuid.

        Raises `ToolstackRefusedError`: `OPERATION_NOT_ALLOWED` for what is not a snapshot, `VM_REVERT_FAILED` for one whose
        VM has been destroyed.
        """
        with self._writer.writing() as connection:
            row = rows.find(connection, snapshot)
            if row.kind is not VmKind.SNAPSHOT:
                raise ToolstackRefusedError("OPERATION_NOT_ALLOWED", f"{snapshot} is not a snapshot")
            if row.snapshot_of is None:
                why = f"the VM of snapshot {snapshot} has been destroyed"
                raise ToolstackRefusedError("VM_REVERT_FAILED", why, (str(snapshot), why))
            vm = rows.find(connection, row.snapshot_of)
            judged = is_judged(vm.kind, row.firmware)
            state = rows.derived_field(row.store, self._rules, judged=judged, marked=row.is_marked)
            # The generation never goes back: a daemon that knows the store of before must see that it changed.
            rows.set_field(
                connection,
                vm.uuid,
                state=state,
                state_of=rows.digest_of(row.store),
                generation=vm.generation + 1,
                firmware=row.firmware,
            )
            rows.put_nvram(connection, vm.uuid, Nvram(row.store, rows.other_texts(connection, snapshot)))
        return vm.uuid

    def destroy(self, vm: UUID) -> None:
        """Remove a VM with its NVRAM and messages; its snapshots stay (xapi: `VM.destroy`).

        Raises `ToolstackRefusedError`: `VM_IS_TEMPLATE` for a default template, `OPERATION_NOT_ALLOWED` for a control domain.
        """
        with self._writer.writing() as connection:
            row = rows.find(connection, vm)
            if row.kind is VmKind.DEFAULT_TEMPLATE:
                raise _is_template(vm, "destroy")
            if row.kind is VmKind.CONTROL_DOMAIN:
                raise _not_for_control_domains(vm, "destroy")
            rows.remove(connection, row)

    # NVRAM

    def set_nvram(self, vm: UUID, nvram: Nvram) -> None:
        """Set the whole NVRAM (xapi: `VM.set_NVRAM`).

        Raises `ToolstackRefusedError`: for the NVRAM as `create_vm`; `VM_IS_SNAPSHOT`.
        """
        _check(nvram)
        with self._writer.writing() as connection:
            row = self._changeable(connection, vm)
            self._set_store(connection, row, nvram.store)
            rows.put_nvram(connection, vm, nvram)

    def add_to_nvram(self, vm: UUID, key: str, value: str) -> None:
        """Add a key (xapi: `VM.add_to_NVRAM`); `value` is base64 text for `EFI-variables`.

        Raises `ToolstackRefusedError`: `MAP_DUPLICATE_KEY` for one that is there; as `nvram.nvram_of` does;
        `VM_IS_SNAPSHOT`.
        """
        added = nvrams.nvram_of({key: value})
        with self._writer.writing() as connection:
            row = self._changeable(connection, vm)
            others = rows.other_texts(connection, vm)
            if key in others or (key == EFI_VARIABLES and row.store is not None):
                where = ("VM", nvrams.FIELD, str(vm), key)
                raise ToolstackRefusedError("MAP_DUPLICATE_KEY", f"VM {vm} has the key {key} in its NVRAM already", where)
            if added.store is not None:
                self._set_store(connection, row, added.store)
                rows.put_store(connection, vm, added.store)
                return
            nvrams.check_count(len(others) + 1)
            rows.put_text(connection, vm, key, value)

    def remove_from_nvram(self, vm: UUID, key: str) -> None:
        """Remove a key; harmless when it is not there (xapi: `VM.remove_from_NVRAM`).

        Without `EFI-variables` the VM's next boot is its first. Raises `ToolstackRefusedError` with `VM_IS_SNAPSHOT`.
        """
        with self._writer.writing() as connection:
            row = self._changeable(connection, vm)
            if key == EFI_VARIABLES and row.store is not None:
                self._set_store(connection, row, None)
            rows.remove_key(connection, vm, key)

    def set_auto_update(self, *, value: bool) -> None:
        """Whether VMs that need an update are marked as they come (xapi: the pool's field of `auto_update`); default False."""
        with self._writer.writing() as connection:
            connection.execute("UPDATE pool SET auto_update_vm_secureboot_certificates = ?", (int(value),))

    # Parts

    def _records(self, condition: str, uuid: str) -> list[Vm]:
        query = f"SELECT {rows.COLUMNS} FROM {rows.SOURCE} WHERE {condition} ORDER BY vm.uuid LIMIT {_PAGE}"  # noqa: S608  constants
        with self._reader.snapshot() as connection:
            found = [Row.of(columns) for columns in connection.execute(query, (uuid,)).fetchall()]
            return [_vm(row, rows.other_texts(connection, row.uuid)) for row in found]

    def _duplicate(self, vm: UUID, name: str, operation: str) -> UUID:
        made = uuid4()
        with self._writer.writing() as connection:
            row = rows.find(connection, vm)
            if row.kind is VmKind.CONTROL_DOMAIN:
                raise _not_for_control_domains(vm, operation)
            kind = VmKind.VM if row.kind is VmKind.VM else VmKind.TEMPLATE
            if operation == "snapshot":
                if row.kind is VmKind.SNAPSHOT:
                    raise ToolstackRefusedError("VM_IS_SNAPSHOT", f"{vm} is a snapshot itself", (str(vm), operation))
                if row.kind is not VmKind.VM:
                    raise _is_template(vm, operation)
                kind = VmKind.SNAPSHOT
            state, state_of = row.state, row.state_of
            if is_judged(kind, row.firmware) and (state_of is None or not row.is_judged):
                # Nothing to copy: the source's field was never computed, or says nothing about its store.
                state = rows.derived_field(row.store, self._rules, judged=True, marked=row.is_marked)
                state_of = rows.digest_of(row.store)
            rows.add(
                connection,
                made,
                name,
                kind=kind,
                firmware=row.firmware,
                snapshot_of=vm if kind is VmKind.SNAPSHOT else None,
                state=state,
                state_of=state_of,
            )
            rows.put_nvram(connection, made, Nvram(row.store, rows.other_texts(connection, vm)))
        return made

    def _set_store(self, connection: "sqlite3.Connection", row: Row, store: bytes | None) -> None:
        """The field and the generation of a VM whose store becomes `store`, which the caller puts there."""
        state = rows.derived_field(store, self._rules, judged=row.is_judged, marked=row.is_marked)
        rows.set_field(connection, row.uuid, state=state, state_of=rows.digest_of(store), generation=row.generation + 1)

    @staticmethod
    def _changeable(connection: "sqlite3.Connection", vm: UUID) -> Row:
        row = rows.find(connection, vm)
        rows.refuse_snapshot(vm, row.kind)
        return row


def _check(nvram: Nvram) -> None:
    nvrams.check_count(len(nvram.others))
    for key, value in nvram.others.items():
        nvrams.check_entry(key, value)
    if nvram.store is not None:
        nvrams.check_store(nvram.store)


def _auto_update(connection: "sqlite3.Connection") -> bool:
    (value,) = connection.execute("SELECT auto_update_vm_secureboot_certificates FROM pool").fetchone()
    return bool(value)


def _summary(row: Row) -> VmSummary:
    return VmSummary(*_shown(row))


def _vm(row: Row, others: dict[str, str]) -> Vm:
    return Vm(*_shown(row), Nvram(row.store, others))


_Shown = tuple[UUID, str, VmKind, Firmware, UUID | None, CertificatesState, bool, int, int | None]


def _shown(row: Row) -> _Shown:
    """The fields of a `VmSummary`, which a `Vm` begins with."""
    size = None if row.store is None else len(row.store)
    return row.uuid, row.name, row.kind, row.firmware, row.snapshot_of, row.state, row.is_stale, row.generation, size


def _is_template(vm: UUID, operation: str) -> ToolstackRefusedError:
    return ToolstackRefusedError("VM_IS_TEMPLATE", f"{vm} is a template: {operation} is not for it", (str(vm), operation))


def _not_for_control_domains(vm: UUID, operation: str) -> ToolstackRefusedError:
    return ToolstackRefusedError("OPERATION_NOT_ALLOWED", f"{vm} is a control domain: {operation} is not for it")
