"""Every call of the endpoint, made with xapi's own client over its socket."""

from uuid import uuid4

import pytest

from support.xapi_calls import MARK, ON, base64, failure, uefi
from support.xapi_host import Api, Host, certcheck, host
from varstore_companion.daemon import xapi_calls
from varstore_companion.daemon.xapi_calls import PAGE
from varstore_companion.daemon.xapi_values import NULL, POOL, reference
from varstore_companion.toolstack.xmlrpc import Value

__all__ = ["certcheck", "host"]


async def test_a_vms_record(host: Host) -> None:
    def calls(api: Api) -> None:
        assert api.VM.get_all() == []
        assert api.VM.get_all_records() == {}
        vm = api.VM.create(uefi(platform={"secureboot": "true"}))
        uuid = api.VM.get_uuid(vm)
        assert vm == f"OpaqueRef:{uuid}"
        assert api.VM.get_by_uuid(uuid) == vm
        assert api.VM.get_all() == [vm]
        assert api.VM.get_name_label(vm) == "web"
        assert api.VM.get_NVRAM(vm) == {"EFI-variables": base64("ms2011")}
        assert api.VM.get_secureboot_certificates_state(vm) == "update_available"
        record = api.VM.get_record(vm)
        assert record == {
            "uuid": uuid,
            "name_label": "web",
            "is_a_template": False,
            "is_default_template": False,
            "is_a_snapshot": False,
            "snapshot_of": NULL,
            "is_control_domain": False,
            "HVM_boot_params": {"firmware": "uefi"},
            "NVRAM": {"EFI-variables": base64("ms2011")},
            "secureboot_certificates_state": "update_available",
        }
        assert api.VM.get_all_records() == {vm: record}

    await host.ask(calls)


async def test_every_record_is_listed_however_many(host: Host) -> None:
    with host.operations() as operations:
        for number in range(2 * PAGE + 1):
            operations.create_vm(uuid4(), f"vm {number}")

    def calls(api: Api) -> None:
        records = api.VM.get_all_records()
        assert sorted(records) == sorted(api.VM.get_all())
        assert sorted(each["name_label"] for each in records.values()) == sorted(f"vm {n}" for n in range(2 * PAGE + 1))
        assert all(records[vm] == api.VM.get_record(vm) for vm in list(records)[:3])

    await host.ask(calls)


async def test_too_much_for_one_answer_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xapi_calls, "MAX_RECORDS", 1_000)

    def calls(api: Api) -> None:
        for _ in range(2):
            api.VM.create(uefi())
        assert failure(api.VM.get_all_records)[0] == "INTERNAL_ERROR"
        assert len(api.VM.get_all()) == 2

    await host.ask(calls)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"is_a_template": True}, {"is_a_template": True, "secureboot_certificates_state": "update_available"}),
        (
            {"is_a_template": True, "is_default_template": True},
            {"is_a_template": True, "is_default_template": True, "secureboot_certificates_state": "ok"},
        ),
        ({"HVM_boot_params": {}}, {"HVM_boot_params": {"firmware": "bios"}, "secureboot_certificates_state": "ok"}),
        ({"NVRAM": {}}, {"NVRAM": {}, "secureboot_certificates_state": "ok"}),
        ({"secureboot_certificates_state": "ok"}, {"secureboot_certificates_state": "update_available"}),
        ({"name_label": "wörds & <tags>\n"}, {"name_label": "wörds & <tags>\n"}),
    ],
)
async def test_what_create_takes(host: Host, fields: dict[str, Value], kept: dict[str, Value]) -> None:
    def calls(api: Api) -> None:
        record = api.VM.get_record(api.VM.create(uefi(**fields)))
        assert {key: record[key] for key in kept} == kept

    await host.ask(calls)


async def test_nvram_by_key(host: Host) -> None:
    def calls(api: Api) -> None:
        vm = api.VM.create(uefi("all2023"))
        assert api.VM.add_to_NVRAM(vm, "note", "a & b") is None
        assert api.VM.get_NVRAM(vm) == {"EFI-variables": base64("all2023"), "note": "a & b"}
        assert failure(api.VM.add_to_NVRAM, vm, "note", "c") == ["MAP_DUPLICATE_KEY", "VM", "NVRAM", vm, "note"]
        assert api.VM.remove_from_NVRAM(vm, "EFI-variables") is None
        assert api.VM.get_NVRAM(vm) == {"note": "a & b"}
        assert api.VM.add_to_NVRAM(vm, "EFI-variables", base64("ms2011")) is None
        assert api.VM.get_secureboot_certificates_state(vm) == "update_available"
        assert api.VM.set_NVRAM(vm, {"EFI-variables": base64("all2023")}) is None
        assert api.VM.get_NVRAM(vm) == {"EFI-variables": base64("all2023")}
        assert api.VM.get_secureboot_certificates_state(vm) == "ok"

    await host.ask(calls)


@pytest.mark.parametrize(
    ("method", "words", "field"),
    [
        ("set_NVRAM_EFI_variables", [], "update_available"),
        ("set_NVRAM_EFI_variables", ["unspecified"], "update_available"),
        ("set_NVRAM_EFI_variables", ["no"], "update_on_boot"),
        ("set_NVRAM_EFI_variables", ["yes"], "ok"),
        ("set_NVRAM_EFI_variables_v2", ["unspecified"], "update_available"),
        ("set_NVRAM_EFI_variables_v2", ["no"], "update_on_boot"),
        ("set_NVRAM_EFI_variables_v2", ["yes"], "ok"),
        ("set_NVRAM_EFI_variables_v2", ["YES"], "update_available"),
        ("set_NVRAM_EFI_variables_v2", [""], "update_available"),
    ],
)
async def test_the_verdict_of_a_write(host: Host, method: str, words: list[str], field: str) -> None:
    def calls(api: Api) -> None:
        vm = api.VM.create(uefi())
        api.VM.update_secureboot_certificates_on_boot(vm, MARK)
        assert getattr(api.VM, method)(vm, base64("ms2011_dbx"), *words) is None
        assert api.VM.get_NVRAM(vm) == {"EFI-variables": base64("ms2011_dbx")}
        assert api.VM.get_secureboot_certificates_state(vm) == field

    await host.ask(calls)


async def test_a_mark_goes_back_and_forth(host: Host) -> None:
    def calls(api: Api) -> None:
        vm, done = api.VM.create(uefi()), api.VM.create(uefi("all2023"))
        for mark, field in [(True, "update_on_boot")] * 2 + [(False, "update_available")] * 2:
            assert api.VM.update_secureboot_certificates_on_boot(vm, mark) is None
            assert api.VM.get_secureboot_certificates_state(vm) == field
        for mark in (True, False):
            name, why = failure(api.VM.update_secureboot_certificates_on_boot, done, mark)
            assert name == "OPERATION_NOT_ALLOWED"
            assert why

    await host.ask(calls)


async def test_a_vms_life(host: Host) -> None:
    def calls(api: Api) -> None:
        vm = api.VM.create(uefi())
        api.VM.update_secureboot_certificates_on_boot(vm, MARK)
        snapshot = api.VM.snapshot(vm, "before")
        other = api.VM.snapshot(vm, "before", [])
        record = api.VM.get_record(snapshot)
        assert (record["is_a_snapshot"], record["is_a_template"], record["snapshot_of"]) == (True, True, vm)
        assert record["secureboot_certificates_state"] == "update_on_boot"
        clone, copy = api.VM.clone(vm, "clone"), api.VM.copy(vm, "copy", NULL)
        assert [api.VM.get_name_label(each) for each in (snapshot, other, clone, copy)] == ["before", "before", "clone", "copy"]
        api.VM.set_NVRAM_EFI_variables(vm, base64("all2023"), "yes")
        assert api.VM.revert(snapshot) is None
        assert api.VM.get_NVRAM(vm) == {"EFI-variables": base64("ms2011")}
        assert api.VM.get_secureboot_certificates_state(vm) == "update_on_boot"
        assert api.VM.destroy(vm) is None
        assert failure(api.VM.get_record, vm) == ["HANDLE_INVALID", "VM", vm]
        assert sorted(api.VM.get_all()) == sorted([snapshot, other, clone, copy])
        assert failure(api.VM.revert, snapshot)[:2] == ["VM_REVERT_FAILED", snapshot]
        assert failure(api.VM.revert, clone)[0] == "OPERATION_NOT_ALLOWED"
        assert failure(api.VM.snapshot, snapshot, "again") == ["VM_IS_SNAPSHOT", snapshot, "snapshot"]
        for update in ((), ("yes",), ("no",), ("unspecified",)):
            refused = failure(api.VM.set_NVRAM_EFI_variables, snapshot, base64("all2023"), *update)
            assert refused[0] == failure(api.VM.set_NVRAM, snapshot, {})[0] == "VM_IS_SNAPSHOT"
        assert api.VM.get_NVRAM(snapshot) == {"EFI-variables": base64("ms2011")}

    await host.ask(calls)


async def test_messages(host: Host) -> None:
    def calls(api: Api) -> None:
        vm = api.VM.create(uefi())
        uuid = api.VM.get_uuid(vm)
        text = "The VM failed to pass Secure Boot verification."
        made = [api.message.create("VM_SECURE_BOOT_FAILED", priority, "VM", uuid, text) for priority in ("5", 3)]
        messages = api.message.get_all_records()
        assert list(messages) == made
        assert len(set(made)) == 2
        one = messages[made[0]]
        assert made[0] == f"OpaqueRef:{one.pop('uuid')}"
        assert str(one.pop("timestamp")).endswith("Z")
        assert one == {"name": "VM_SECURE_BOOT_FAILED", "priority": "5", "cls": "VM", "obj_uuid": uuid, "body": text}
        assert messages[made[1]]["priority"] == "3"
        assert api.message.get_all_records() == {made[0]: api.message.get_all_records()[made[0]], made[1]: messages[made[1]]}

    await host.ask(calls)


async def test_the_pool(host: Host) -> None:
    def calls(api: Api) -> None:
        (pool,) = api.pool.get_all()
        assert pool == reference(POOL)
        flag = "auto_update_vm_secureboot_certificates"
        assert api.pool.get_all_records() == {pool: {"uuid": str(POOL), "name_label": "", flag: False}}
        assert api.pool.set_auto_update_vm_secureboot_certificates(pool, ON) is None
        assert api.pool.get_all_records()[pool][flag] is True
        assert api.VM.get_secureboot_certificates_state(api.VM.create(uefi())) == "update_on_boot"
        handle = ["HANDLE_INVALID", "pool", NULL]
        assert failure(api.pool.set_auto_update_vm_secureboot_certificates, NULL, ON) == handle

    await host.ask(calls)
