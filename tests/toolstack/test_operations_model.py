"""Any sequence of operations against a model: a field is its store's, unless a verdict or a mark says otherwise."""

import sqlite3
import tempfile
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from support.vms import AVAILABLE, OK, ON_BOOT, derive, new_store, old_store
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack.nvram import EFI_VARIABLES, Nvram
from varstore_companion.toolstack.operations import Operations
from varstore_companion.toolstack.records import NOT_JUDGED, Firmware, VmKind
from varstore_companion.trust.state import CertificatesState, Update


@dataclass(frozen=True)
class Modelled:
    """A VM in the model. `vouched`: a verdict said what the field is, whatever the store looks like; `stale`: nobody did."""

    kind: VmKind
    firmware: Firmware
    parent: UUID | None
    store: bytes | None
    state: CertificatesState
    vouched: bool = False
    stale: bool = False

    @property
    def judged(self) -> bool:
        return self.firmware is Firmware.UEFI and self.kind not in NOT_JUDGED

    def derived(self, store: bytes | None, *, marked: bool) -> "Modelled":
        """With another store and the field that belongs to it."""
        state = derive(store) if store is not None and self.judged else OK
        state = ON_BOOT if state is AVAILABLE and marked else state
        return replace(self, store=store, state=state, vouched=False, stale=False)

    @property
    def marked(self) -> bool:
        return self.state is ON_BOOT


STORES = st.one_of(st.builds(old_store, st.integers(0, 3)), st.builds(new_store, st.integers(0, 3)))
MAYBE_STORES = st.none() | STORES
FIRMWARE = st.sampled_from([Firmware.UEFI, Firmware.UEFI, Firmware.UEFI, Firmware.BIOS])
KINDS = st.sampled_from([VmKind.VM, VmKind.VM, VmKind.VM, VmKind.TEMPLATE, VmKind.DEFAULT_TEMPLATE, VmKind.CONTROL_DOMAIN])


class Machine(RuleBasedStateMachine):
    """The operations on a real file, and the model."""

    vms = Bundle("vms")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "toolstack.db")
        self.operations = Operations(self.path, derive)
        self.model: dict[UUID, Modelled] = {}
        self.flag = False

    def teardown(self) -> None:
        self.operations.close()
        self.folder.cleanup()

    @rule(value=st.booleans())
    def set_auto_update(self, value: bool) -> None:
        self.operations.set_auto_update(value=value)
        self.flag = value

    @rule(target=vms, kind=KINDS, firmware=FIRMWARE, store=MAYBE_STORES)
    def create(self, kind: VmKind, firmware: Firmware, store: bytes | None) -> UUID:
        vm = uuid4()
        self.operations.create_vm(vm, "", Nvram(store), kind=kind, firmware=firmware)
        self.model[vm] = Modelled(kind, firmware, None, None, OK).derived(store, marked=self.flag)
        return vm

    @rule(target=vms, vm=vms, field=st.none() | st.sampled_from(CertificatesState))
    def export_and_import(self, vm: UUID, field: CertificatesState | None) -> UUID:
        exported, made = self.operations.export_vm(vm), uuid4()
        assert exported.state is self.model[vm].state
        self.operations.import_vm(replace(exported, uuid=made, state=field))
        self.model[made] = self.model[vm].derived(exported.nvram.store, marked=self.flag or field is ON_BOOT)
        return made

    @rule(target=vms, vm=vms, name=st.sampled_from(["clone", "copy", "snapshot"]))
    def duplicate(self, vm: UUID, name: str) -> object:
        source = self.model[vm]
        refused = source.kind is VmKind.CONTROL_DOMAIN or (name == "snapshot" and source.kind is not VmKind.VM)
        if refused:
            with pytest.raises(ToolstackRefusedError):
                getattr(self.operations, name)(vm, "")
            return multiple()
        made: UUID = getattr(self.operations, name)(vm, "")
        kind = VmKind.SNAPSHOT if name == "snapshot" else VmKind.VM if source.kind is VmKind.VM else VmKind.TEMPLATE
        copied = replace(source, kind=kind, parent=vm if name == "snapshot" else None)
        self.model[made] = copied if source.judged else copied.derived(source.store, marked=False)
        return made

    @rule(vm=vms)
    def revert(self, vm: UUID) -> None:
        snapshot = self.model[vm]
        if snapshot.kind is not VmKind.SNAPSHOT or snapshot.parent is None:
            with pytest.raises(ToolstackRefusedError):
                self.operations.revert(vm)
            return
        assert self.operations.revert(vm) == snapshot.parent
        parent = replace(self.model[snapshot.parent], firmware=snapshot.firmware)
        self.model[snapshot.parent] = parent.derived(snapshot.store, marked=snapshot.marked)

    @rule(vm=consumes(vms))
    def destroy(self, vm: UUID) -> None:
        if self.model[vm].kind in NOT_JUDGED:
            # It stays, and no other rule gets to see it any more.
            with pytest.raises(ToolstackRefusedError):
                self.operations.destroy(vm)
            return
        self.operations.destroy(vm)
        del self.model[vm]
        for other, modelled in self.model.items():
            if modelled.parent == vm:
                self.model[other] = replace(modelled, parent=None)

    @rule(vm=vms, store=STORES, update=st.sampled_from(Update))
    def set_efi_variables(self, vm: UUID, store: bytes, update: Update) -> None:
        before = self.model[vm]
        if before.kind is VmKind.SNAPSHOT:
            with pytest.raises(ToolstackRefusedError, match="VM_IS_SNAPSHOT"):
                self.operations.confirm(vm, None)
            with pytest.raises(ToolstackRefusedError, match="VM_IS_SNAPSHOT"):
                self.operations.write(vm, store, Update.NO if update is Update.UNSPECIFIED else update)
            return
        if update is Update.UNSPECIFIED:
            self.operations.write_checked(vm, store, derive(store))
            after = before.derived(store, marked=False)
        else:
            self.operations.write(vm, store, update)
            if not before.judged:
                after = replace(before, store=store)
            elif update is Update.YES:
                after = replace(before, store=store, state=OK, vouched=True, stale=False)
            elif before.stale:
                after = before.derived(store, marked=before.marked)
            else:
                after = replace(before, store=store, vouched=True)
        self.model[vm] = after

    @rule(vm=vms, store=MAYBE_STORES)
    def set_nvram(self, vm: UUID, store: bytes | None) -> None:
        self._change_nvram(vm, store, lambda: self.operations.set_nvram(vm, Nvram(store)))

    @rule(vm=vms)
    def remove_from_nvram(self, vm: UUID) -> None:
        if self.model[vm].store is not None:
            self._change_nvram(vm, None, lambda: self.operations.remove_from_nvram(vm, EFI_VARIABLES))

    @rule(vm=vms, store=STORES)
    def add_to_nvram(self, vm: UUID, store: bytes) -> None:
        add = partial(self.operations.add_to_nvram, vm, EFI_VARIABLES, b64encode(store).decode())
        if self.model[vm].store is None:
            self._change_nvram(vm, store, add)
        else:
            with pytest.raises(ToolstackRefusedError):
                add()

    @rule(vm=vms, mark=st.booleans())
    def mark(self, vm: UUID, mark: bool) -> None:
        before = self.model[vm]
        if before.stale:
            before = before.derived(before.store, marked=before.marked)
        change = self.operations.mark if mark else self.operations.unmark
        if before.state is OK:
            with pytest.raises(ToolstackRefusedError, match="OPERATION_NOT_ALLOWED"):
                change(vm)
        else:
            before = replace(before, state=ON_BOOT if mark else AVAILABLE)
            assert change(vm) is before.state
        self.model[vm] = before

    @rule(vm=vms, store=STORES)
    def somebody_writes_the_file(self, vm: UUID, store: bytes) -> None:
        before = self.model[vm]
        if before.store in (None, store):
            return
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE nvram SET value = ? WHERE vm = ?", (store, str(vm)))
        with self.operations._reader.reading() as connection:
            (digest,) = connection.execute("SELECT state_of FROM vm WHERE uuid = ?", (str(vm),)).fetchone()
        self.model[vm] = replace(before, store=store, stale=before.judged and digest != sha256(store).digest())

    @rule()
    def open_again(self) -> None:
        self.operations.close()
        self.operations = Operations(self.path, derive)

    @invariant()
    def what_is_kept_is_the_model(self) -> None:
        found = {vm.uuid: vm for vm in self.operations.records()}
        assert found.keys() == self.model.keys()
        for uuid, vm in found.items():
            modelled = self.model[uuid]
            assert (vm.kind, vm.firmware, vm.snapshot_of) == (modelled.kind, modelled.firmware, modelled.parent)
            assert (vm.nvram.store, vm.state, vm.stale) == (modelled.store, modelled.state, modelled.stale)
            if not (modelled.vouched or modelled.stale or modelled.marked) and modelled.judged:
                assert vm.state is (OK if vm.nvram.store is None else derive(vm.nvram.store))

    def _change_nvram(self, vm: UUID, store: bytes | None, change: Callable[[], object]) -> None:
        before = self.model[vm]
        if before.kind is VmKind.SNAPSHOT:
            with pytest.raises(ToolstackRefusedError, match="VM_IS_SNAPSHOT"):
                change()
            return
        change()
        self.model[vm] = before.derived(store, marked=before.marked)


TestOperations = Machine.TestCase
TestOperations.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
