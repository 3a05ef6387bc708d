"""xapi's operations on VMs: what each does to NVRAM, field and record, and what it refuses."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support import fixtures
from support.shipped import shipped
from support.storebytes import make_store
from support.vms import AVAILABLE, OK, ON_BOOT, derive, new_store, old_store
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack.nvram import EFI_VARIABLES, KEYS, Nvram
from varstore_companion.toolstack.operations import Operations
from varstore_companion.toolstack.records import Firmware, Vm, VmKind, VmMetadata
from varstore_companion.trust.check import derived_state
from varstore_companion.trust.state import CertificatesState, Update

OLD, OTHER_OLD, NEW, OTHER_NEW = old_store(), old_store(1), new_store(), new_store(1)


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    with Operations(tmp_path / "toolstack.db", derive) as opened:
        yield opened


def _vm(operations: Operations, state: CertificatesState, kind: VmKind = VmKind.VM) -> UUID:
    """A VM whose field is `state`, rightly."""
    vm = uuid4()
    operations.create_vm(vm, "name", Nvram(NEW if state is OK else OLD, {"other": "text"}), kind=kind)
    if state is ON_BOOT:
        operations.mark(vm)
    assert operations.state(vm) is state
    return vm


def _b64(store: bytes) -> str:
    return b64encode(store).decode()


Change = Callable[[Operations, UUID], object]


def _reverted(operations: Operations, vm: UUID, *, unmark_first: bool = False) -> None:
    """Revert to a snapshot of what is there now, after a time in which the VM got complete."""
    snapshot = operations.snapshot(vm, "snapshot")
    if unmark_first:
        operations.unmark(snapshot)
    operations.write(vm, NEW, Update.YES)
    assert operations.revert(snapshot) == vm


def _readded(operations: Operations, vm: UUID, store: bytes) -> None:
    operations.remove_from_nvram(vm, EFI_VARIABLES)
    assert operations.state(vm) is OK
    operations.add_to_nvram(vm, EFI_VARIABLES, _b64(store))


CHANGES: list[tuple[str, Change, dict[CertificatesState, CertificatesState]]] = [
    ("yes, complete", lambda o, vm: o.write(vm, OTHER_NEW, Update.YES), {OK: OK, AVAILABLE: OK, ON_BOOT: OK}),
    ("no", lambda o, vm: o.write(vm, OTHER_OLD, Update.NO), {OK: OK, AVAILABLE: AVAILABLE, ON_BOOT: ON_BOOT}),
    (
        "unspecified, needs it",
        lambda o, vm: o.write_checked(vm, OTHER_OLD, AVAILABLE),
        {OK: AVAILABLE, AVAILABLE: AVAILABLE, ON_BOOT: AVAILABLE},
    ),
    ("unspecified, complete", lambda o, vm: o.write_checked(vm, OTHER_NEW, OK), {OK: OK, AVAILABLE: OK, ON_BOOT: OK}),
    (
        "set_NVRAM, needs it",
        lambda o, vm: o.set_nvram(vm, Nvram(OTHER_OLD)),
        {OK: AVAILABLE, AVAILABLE: AVAILABLE, ON_BOOT: ON_BOOT},
    ),
    ("set_NVRAM, complete", lambda o, vm: o.set_nvram(vm, Nvram(OTHER_NEW)), {OK: OK, AVAILABLE: OK, ON_BOOT: OK}),
    ("set_NVRAM, no store", lambda o, vm: o.set_nvram(vm, Nvram()), {OK: OK, AVAILABLE: OK, ON_BOOT: OK}),
    ("add_to_NVRAM, another key", lambda o, vm: o.add_to_nvram(vm, "k", "v"), {state: state for state in CertificatesState}),
    (
        "remove_from_NVRAM, another key",
        lambda o, vm: o.remove_from_nvram(vm, "other"),
        {state: state for state in CertificatesState},
    ),
    (
        "remove_from_NVRAM, the store",
        lambda o, vm: o.remove_from_nvram(vm, EFI_VARIABLES),
        dict.fromkeys(CertificatesState, OK),
    ),
    (
        "add_to_NVRAM, needs it",
        lambda o, vm: _readded(o, vm, OTHER_OLD),
        {OK: AVAILABLE, AVAILABLE: AVAILABLE, ON_BOOT: AVAILABLE},
    ),
    ("add_to_NVRAM, complete", lambda o, vm: _readded(o, vm, OTHER_NEW), dict.fromkeys(CertificatesState, OK)),
    ("revert", _reverted, {state: state for state in CertificatesState}),
    (
        "revert to an unmarked snapshot",
        lambda o, vm: _reverted(o, vm, unmark_first=True),
        {AVAILABLE: AVAILABLE, ON_BOOT: AVAILABLE},
    ),
    ("mark", lambda o, vm: o.mark(vm), {AVAILABLE: ON_BOOT, ON_BOOT: ON_BOOT}),
    ("unmark", lambda o, vm: o.unmark(vm), {AVAILABLE: AVAILABLE, ON_BOOT: AVAILABLE}),
]


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        pytest.param(change, before, after, id=f"{name}: {before}")
        for name, change, fields in CHANGES
        for before, after in fields.items()
    ],
)
def test_the_field_after_a_change(
    operations: Operations, change: Change, before: CertificatesState, after: CertificatesState
) -> None:
    vm, bystander = _vm(operations, before), _vm(operations, ON_BOOT)
    untouched = operations.record(bystander)
    generation = operations.record(vm).generation
    change(operations, vm)
    found = operations.record(vm)
    assert (found.state, found.stale) == (after, False)
    assert found.generation >= generation
    assert operations.record(bystander) == untouched


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize(("store", "derived"), [(OLD, AVAILABLE), (NEW, OK), (None, OK)])
@pytest.mark.parametrize("field", [None, *CertificatesState])
def test_the_field_of_what_comes(
    operations: Operations, flag: bool, store: bytes | None, derived: CertificatesState, field: CertificatesState | None
) -> None:
    operations.set_auto_update(value=flag)
    created, imported = uuid4(), uuid4()
    operations.create_vm(created, "name", Nvram(store))
    marked = ON_BOOT if derived is AVAILABLE else derived
    assert operations.state(created) is (marked if flag else derived)
    operations.import_vm(VmMetadata(imported, "name", VmKind.VM, Firmware.UEFI, None, Nvram(store), field))
    assert operations.state(imported) is (marked if flag or field is ON_BOOT else derived)
    assert not operations.record(imported).stale


@pytest.mark.parametrize("state", CertificatesState)
@pytest.mark.parametrize("kind", [VmKind.VM, VmKind.TEMPLATE])
def test_copies_take_store_and_field_along(operations: Operations, state: CertificatesState, kind: VmKind) -> None:
    operations.set_auto_update(value=False)
    vm = _vm(operations, state, kind)
    source = operations.record(vm)
    # A copy is no new arrival: the pool's flag has no say.
    operations.set_auto_update(value=True)
    for copied in (operations.clone(vm, "copied"), operations.copy(vm, "copied")):
        assert operations.record(copied) == replace(source, uuid=copied, name="copied", generation=0)
    assert operations.record(vm) == source


@pytest.mark.parametrize("state", CertificatesState)
def test_a_snapshot_is_of_its_vm_and_a_clone_of_it_is_a_template(operations: Operations, state: CertificatesState) -> None:
    vm = _vm(operations, state)
    source = operations.record(vm)
    snapshot = operations.snapshot(vm, "before")
    taken = replace(source, uuid=snapshot, name="before", kind=VmKind.SNAPSHOT, snapshot_of=vm, generation=0)
    assert operations.record(snapshot) == taken
    clone = operations.clone(snapshot, "from it")
    cloned = replace(taken, uuid=clone, name="from it", kind=VmKind.TEMPLATE, snapshot_of=None)
    assert operations.record(clone) == cloned


def test_a_field_nobody_vouched_for_is_computed_for_a_copy(operations: Operations) -> None:
    default = uuid4()
    operations.create_vm(default, "default", Nvram(OLD), kind=VmKind.DEFAULT_TEMPLATE)
    clone = operations.record(operations.clone(default, "mine"))
    assert (clone.kind, clone.state, clone.stale) == (VmKind.TEMPLATE, AVAILABLE, False)


def test_revert_brings_back_all_keys_and_the_firmware_and_never_an_older_generation(operations: Operations) -> None:
    vm = uuid4()
    operations.create_vm(vm, "name", Nvram(OLD, {"a": "1"}), firmware=Firmware.BIOS)
    snapshot = operations.snapshot(vm, "snapshot")
    operations.set_nvram(vm, Nvram(NEW, {"b": "2"}))
    generation = operations.record(vm).generation
    operations.revert(snapshot)
    found = operations.record(vm)
    assert (found.nvram, found.firmware) == (Nvram(OLD, {"a": "1"}), Firmware.BIOS)
    assert found.generation > generation


@pytest.mark.parametrize("firmware", Firmware)
def test_revert_over_a_change_of_firmware(operations: Operations, firmware: Firmware) -> None:
    vm, donor = uuid4(), uuid4()
    other = Firmware.BIOS if firmware is Firmware.UEFI else Firmware.UEFI
    operations.create_vm(vm, "name", Nvram(OLD), firmware=firmware)
    operations.import_vm(VmMetadata(donor, "snapshot", VmKind.SNAPSHOT, other, vm, Nvram(OLD), None))
    operations.revert(donor)
    assert operations.record(vm).state is (AVAILABLE if other is Firmware.UEFI else OK)


@pytest.mark.parametrize(
    ("kind", "firmware"),
    [(VmKind.VM, Firmware.BIOS), (VmKind.CONTROL_DOMAIN, Firmware.UEFI), (VmKind.DEFAULT_TEMPLATE, Firmware.UEFI)],
)
def test_a_field_that_is_not_judged_is_ok_whatever_happens(operations: Operations, kind: VmKind, firmware: Firmware) -> None:
    operations.set_auto_update(value=True)
    vm = uuid4()
    operations.create_vm(vm, "name", Nvram(OLD), kind=kind, firmware=firmware)
    changes: list[Callable[[], object]] = [
        lambda: operations.write(vm, OTHER_OLD, Update.NO),
        lambda: operations.write(vm, OTHER_OLD, Update.YES),
        lambda: operations.write_checked(vm, OTHER_OLD, AVAILABLE),
        lambda: operations.set_nvram(vm, Nvram(OLD)),
        lambda: operations.remove_from_nvram(vm, EFI_VARIABLES),
        lambda: operations.add_to_nvram(vm, EFI_VARIABLES, _b64(OLD)),
    ]
    for change in changes:
        change()
        found = operations.record(vm)
        assert (found.state, found.stale) == (OK, False)
    for mark in (operations.mark, operations.unmark):
        with pytest.raises(ToolstackRefusedError, match="OPERATION_NOT_ALLOWED"):
            mark(vm)


def test_nvram_is_set_whole_and_key_by_key(operations: Operations) -> None:
    vm = uuid4()
    operations.create_vm(vm, "name", Nvram(OLD, {"a": "1"}))
    operations.set_nvram(vm, Nvram(NEW, {"b": "2", "ü": "ö"}))
    operations.add_to_nvram(vm, "c", "")
    operations.remove_from_nvram(vm, "b")
    operations.remove_from_nvram(vm, "never there")
    assert operations.get_nvram(vm) == Nvram(NEW, {"c": "", "ü": "ö"})
    assert operations.get_nvram(vm).texts() == {"c": "", "ü": "ö", EFI_VARIABLES: _b64(NEW)}
    operations.remove_from_nvram(vm, EFI_VARIABLES)
    assert operations.get_nvram(vm).texts() == {"c": "", "ü": "ö"}
    assert operations.read(vm).store is None


def test_only_a_change_of_the_store_raises_the_generation(operations: Operations) -> None:
    vm = uuid4()
    operations.create_vm(vm, "name", Nvram(OLD))
    for change in (
        lambda: operations.add_to_nvram(vm, "a", "1"),
        lambda: operations.remove_from_nvram(vm, "a"),
        lambda: operations.mark(vm),
        lambda: operations.snapshot(vm, "snapshot"),
    ):
        change()
        assert operations.record(vm).generation == 0
    operations.set_nvram(vm, Nvram(NEW))
    operations.remove_from_nvram(vm, EFI_VARIABLES)
    operations.remove_from_nvram(vm, EFI_VARIABLES)
    assert operations.record(vm).generation == 2


def test_destroy_takes_everything_but_the_snapshots(operations: Operations) -> None:
    vm = _vm(operations, AVAILABLE)
    snapshot = operations.snapshot(vm, "snapshot")
    operations.destroy(vm)
    assert operations.uuids() == [snapshot]
    assert operations.record(snapshot).snapshot_of is None
    with operations._reader.reading() as connection:
        assert connection.execute("SELECT DISTINCT vm FROM nvram").fetchall() == [(str(snapshot),)]
    with pytest.raises(ToolstackRefusedError, match="VM_REVERT_FAILED"):
        operations.revert(snapshot)
    operations.destroy(snapshot)
    assert operations.uuids() == []


def _kinds(operations: Operations) -> dict[VmKind, UUID]:
    made: dict[VmKind, UUID] = {kind: uuid4() for kind in VmKind if kind is not VmKind.SNAPSHOT}
    for kind, uuid in made.items():
        operations.create_vm(uuid, kind, Nvram(OLD), kind=kind)
    made[VmKind.SNAPSHOT] = operations.snapshot(made[VmKind.VM], "snapshot")
    return made


REFUSED: list[tuple[str, VmKind, Change, str]] = [
    ("snapshot", VmKind.SNAPSHOT, lambda o, vm: o.snapshot(vm, ""), "VM_IS_SNAPSHOT"),
    ("snapshot", VmKind.TEMPLATE, lambda o, vm: o.snapshot(vm, ""), "VM_IS_TEMPLATE"),
    ("snapshot", VmKind.DEFAULT_TEMPLATE, lambda o, vm: o.snapshot(vm, ""), "VM_IS_TEMPLATE"),
    ("snapshot", VmKind.CONTROL_DOMAIN, lambda o, vm: o.snapshot(vm, ""), "OPERATION_NOT_ALLOWED"),
    ("clone", VmKind.CONTROL_DOMAIN, lambda o, vm: o.clone(vm, ""), "OPERATION_NOT_ALLOWED"),
    ("copy", VmKind.CONTROL_DOMAIN, lambda o, vm: o.copy(vm, ""), "OPERATION_NOT_ALLOWED"),
    ("destroy", VmKind.CONTROL_DOMAIN, lambda o, vm: o.destroy(vm), "OPERATION_NOT_ALLOWED"),
    ("destroy", VmKind.DEFAULT_TEMPLATE, lambda o, vm: o.destroy(vm), "VM_IS_TEMPLATE"),
    ("revert", VmKind.VM, lambda o, vm: o.revert(vm), "OPERATION_NOT_ALLOWED"),
    ("revert", VmKind.TEMPLATE, lambda o, vm: o.revert(vm), "OPERATION_NOT_ALLOWED"),
    ("set_NVRAM", VmKind.SNAPSHOT, lambda o, vm: o.set_nvram(vm, Nvram(NEW)), "VM_IS_SNAPSHOT"),
    ("add_to_NVRAM", VmKind.SNAPSHOT, lambda o, vm: o.add_to_nvram(vm, "key", "value"), "VM_IS_SNAPSHOT"),
    ("remove_from_NVRAM", VmKind.SNAPSHOT, lambda o, vm: o.remove_from_nvram(vm, EFI_VARIABLES), "VM_IS_SNAPSHOT"),
    ("add_to_NVRAM, the store", VmKind.VM, lambda o, vm: o.add_to_nvram(vm, EFI_VARIABLES, _b64(NEW)), "MAP_DUPLICATE_KEY"),
    ("add_to_NVRAM, not base64", VmKind.VM, lambda o, vm: o.add_to_nvram(vm, EFI_VARIABLES, "=broken="), "INVALID_VALUE"),
    ("set_NVRAM, not a store", VmKind.VM, lambda o, vm: o.set_nvram(vm, Nvram(b"VARS")), "INVALID_VALUE"),
    ("set_NVRAM, over a limit", VmKind.VM, lambda o, vm: o.set_nvram(vm, Nvram(old_store(1, 60_000))), "VALUE_NOT_SUPPORTED"),
    ("set_NVRAM, a bad key", VmKind.VM, lambda o, vm: o.set_nvram(vm, Nvram(None, {"a\0": ""})), "INVALID_VALUE"),
    ("create, a second time", VmKind.VM, lambda o, vm: o.create_vm(vm, "second"), "DUPLICATE_VM"),
    ("import, a second time", VmKind.VM, lambda o, vm: o.import_vm(o.export_vm(vm)), "DUPLICATE_VM"),
    ("create, no store", VmKind.VM, lambda o, _: o.create_vm(uuid4(), "", Nvram(b"not a store")), "INVALID_VALUE"),
    ("create, a snapshot", VmKind.VM, lambda o, _: o.create_vm(uuid4(), "", kind=VmKind.SNAPSHOT), "VALUE_NOT_SUPPORTED"),
]


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [pytest.param(kind, change, code, id=f"{name}: {kind}") for name, kind, change, code in REFUSED],
)
def test_what_is_refused_changes_nothing(operations: Operations, kind: VmKind, change: Change, code: str) -> None:
    vm = _kinds(operations)[kind]
    before = list(operations.records())
    with pytest.raises(ToolstackRefusedError) as refused:
        change(operations, vm)
    assert refused.value.code == code
    assert refused.value.parameters
    assert list(operations.records()) == before


def test_a_key_that_is_there_is_named_as_xapi_names_it(operations: Operations) -> None:
    vm = uuid4()
    operations.create_vm(vm, "name", Nvram(None, {"key": "value"}))
    with pytest.raises(ToolstackRefusedError) as refused:
        operations.add_to_nvram(vm, "key", "another")
    assert refused.value.parameters == ("VM", "NVRAM", str(vm), "key")


def test_keys_are_counted_over_all_additions(operations: Operations) -> None:
    vm = uuid4()
    operations.create_vm(vm, "name", Nvram(None, {str(number): "" for number in range(KEYS - 1)}))
    operations.add_to_nvram(vm, "the last", "")
    with pytest.raises(ToolstackRefusedError, match="VALUE_NOT_SUPPORTED"):
        operations.add_to_nvram(vm, "one too many", "")
    operations.add_to_nvram(vm, EFI_VARIABLES, _b64(OLD))


def test_an_unknown_vm_is_refused_everywhere(operations: Operations) -> None:
    vm = uuid4()
    calls: list[Callable[[UUID], object]] = [
        operations.record,
        operations.export_vm,
        operations.get_nvram,
        operations.state,
        operations.destroy,
        operations.revert,
        operations.mark,
        operations.unmark,
        lambda vm: operations.clone(vm, ""),
        lambda vm: operations.copy(vm, ""),
        lambda vm: operations.snapshot(vm, ""),
        lambda vm: operations.set_nvram(vm, Nvram(NEW)),
        lambda vm: operations.add_to_nvram(vm, "key", "value"),
        lambda vm: operations.remove_from_nvram(vm, "key"),
    ]
    for call in calls:
        with pytest.raises(ToolstackRefusedError) as refused:
            call(vm)
        assert (refused.value.code, refused.value.parameters) == ("HANDLE_INVALID", ("VM", str(vm)))
    with pytest.raises(ToolstackRefusedError) as refused:
        operations.uuid_of(vm)
    assert (refused.value.code, refused.value.parameters) == ("UUID_INVALID", ("VM", str(vm)))
    assert operations.uuids() == []


def test_an_export_makes_the_same_vm_elsewhere(operations: Operations, tmp_path: Path) -> None:
    with Operations(tmp_path / "elsewhere.db", derive) as elsewhere:
        made = _kinds(operations)
        operations.mark(made[VmKind.TEMPLATE])
        for uuid in made.values():
            elsewhere.import_vm(operations.export_vm(uuid))
        assert list(elsewhere.records()) == list(operations.records())
        # From a toolstack without the field.
        bare, uuid = replace(operations.export_vm(made[VmKind.VM]), uuid=uuid4(), state=None), made[VmKind.SNAPSHOT]
        elsewhere.import_vm(bare)
        assert elsewhere.state(bare.uuid) is AVAILABLE
        elsewhere.destroy(uuid)
        elsewhere.destroy(made[VmKind.VM])
        elsewhere.import_vm(operations.export_vm(uuid))
        assert elsewhere.record(uuid).snapshot_of is None


def test_many_records_are_read_in_pages(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varstore_companion.toolstack.operations._PAGE", 3)
    for number in range(10):
        operations.create_vm(uuid4(), str(number), Nvram(old_store(number), {"key": str(number)}))
    found = list(operations.records())
    assert [vm.uuid for vm in found] == operations.uuids()
    assert found == [operations.record(vm.uuid) for vm in found]
    fields = [name for name in Vm.__dataclass_fields__ if name != "nvram"]
    for summary, vm in zip(operations.summaries(), found, strict=True):
        assert [getattr(summary, name) for name in fields] == [getattr(vm, name) for name in fields]


def test_the_pools_flag_is_off_at_first_and_stays_as_it_is_set(operations: Operations) -> None:
    assert operations.auto_update() is False
    operations.set_auto_update(value=True)
    with Operations(operations.path, derive) as again:
        assert again.auto_update() is True
    vm = _vm(operations, OK)
    operations.set_auto_update(value=False)
    assert operations.state(vm) is OK


@pytest.mark.parametrize("name", fixtures.STORES)
def test_real_stores_with_the_shipped_rules(tmp_path: Path, name: str) -> None:
    store = fixtures.store(name)
    expected = AVAILABLE if fixtures.index()[name]["certcheck"] == "update_required" else OK
    assert derived_state(store, shipped()) is expected
    with Operations(tmp_path / "toolstack.db", partial(derived_state, manifest=shipped())) as operations:
        vm = uuid4()
        if name == "oversized_dbx":
            with pytest.raises(ToolstackRefusedError, match="VALUE_NOT_SUPPORTED"):
                operations.create_vm(vm, name, Nvram(store))
            return
        operations.create_vm(vm, name, Nvram(store))
        assert operations.state(vm) is expected
        assert operations.get_nvram(vm).texts()[EFI_VARIABLES].encode() == fixtures.store_text(name).strip()


def test_a_store_of_a_newer_version_is_kept_unread(operations: Operations) -> None:
    vm, newer = uuid4(), make_store([], version=7)
    operations.create_vm(vm, "name", Nvram(newer))
    assert operations.read(vm).store == newer
    with pytest.raises(ToolstackRefusedError, match="VALUE_NOT_SUPPORTED"):
        operations.set_nvram(vm, Nvram(newer + bytes(131_072)))
