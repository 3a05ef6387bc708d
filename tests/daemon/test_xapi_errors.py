"""The endpoint's errors by xapi's names, seen by xapi's own client, and that an error changes nothing."""

from base64 import b64encode
from typing import Any

import pytest

from support.xapi_calls import MARK, UNKNOWN, base64, failure, uefi
from support.xapi_host import Api, Host, certcheck, host
from varstore_companion.daemon.xapi_values import NULL, reference
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.toolstack.operations import Operations

__all__ = ["certcheck", "host"]


async def test_what_is_not_there(host: Host) -> None:
    vm = reference(UNKNOWN)
    unknown: dict[str, list[Any]] = {
        "get_record": [],
        "get_uuid": [],
        "get_name_label": [],
        "get_NVRAM": [],
        "get_secureboot_certificates_state": [],
        "set_NVRAM": [{}],
        "add_to_NVRAM": ["a", "b"],
        "remove_from_NVRAM": ["a"],
        "set_NVRAM_EFI_variables": ["not base64!"],
        "set_NVRAM_EFI_variables_v2": ["not base64!", "yes"],
        "update_secureboot_certificates_on_boot": [True],
        "clone": ["a"],
        "copy": ["a", NULL],
        "snapshot": ["a"],
        "revert": [],
        "destroy": [],
    }

    def calls(api: Api) -> None:
        for method, arguments in unknown.items():
            assert failure(getattr(api.VM, method), vm, *arguments) == ["HANDLE_INVALID", "VM", vm]
        there = api.VM.create({})
        for given in (NULL, "DUMMYVM", "", there.removeprefix("OpaqueRef:"), there.upper(), f"{there} "):
            assert failure(api.VM.get_record, given) == ["HANDLE_INVALID", "VM", given]
        for text in (str(UNKNOWN), "", "DUMMYVM", f"{{{UNKNOWN}}}", vm):
            assert failure(api.VM.get_by_uuid, text) == ["UUID_INVALID", "VM", text]
            assert failure(api.message.create, "A", 1, "VM", text, "") == ["UUID_INVALID", "VM", text]
        assert api.message.get_all_records() == {}

    await host.ask(calls)


async def test_calls_that_are_not_calls(host: Host) -> None:
    def calls(api: Api) -> None:
        for method in ("start", "get_foo", "get_all_records_where"):
            assert failure(getattr(api.VM, method)) == ["MESSAGE_METHOD_UNKNOWN", f"VM.{method}"]
        assert failure(api.VM.get_record) == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "0"]
        assert failure(api.VM.get_all, 1) == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_all", "0", "1"]
        name = "VM.set_NVRAM_EFI_variables"
        for count in (0, 1, 4):
            found = failure(api.VM.set_NVRAM_EFI_variables, *["x"] * count)
            assert found == ["MESSAGE_PARAMETER_COUNT_MISMATCH", name, "2", str(count)]
        found = failure(api.VM.set_NVRAM_EFI_variables_v2, "x", "x")
        assert found == ["MESSAGE_PARAMETER_COUNT_MISMATCH", f"{name}_v2", "3", "2"]

    await host.ask(calls)


async def test_arguments_of_another_type(host: Host) -> None:
    def calls(api: Api) -> None:
        vm = api.VM.create(uefi())
        uuid, before = api.VM.get_uuid(vm), api.VM.get_record(vm)
        wrong: list[tuple[str, Any, list[object]]] = [
            ("uuid", api.VM.get_by_uuid, [1]),
            ("self", api.VM.get_record, [{}]),
            ("value", api.VM.set_NVRAM, [vm, "text"]),
            ("value", api.VM.set_NVRAM, [vm, {"a": 1}]),
            ("value", api.VM.set_NVRAM, [vm, []]),
            ("key", api.VM.add_to_NVRAM, [vm, None, "b"]),
            ("value", api.VM.set_NVRAM_EFI_variables, [vm, {}]),
            ("update", api.VM.set_NVRAM_EFI_variables, [vm, base64("all2023"), True]),
            ("update", api.VM.set_NVRAM_EFI_variables_v2, [vm, base64("all2023"), None]),
            ("mark", api.VM.update_secureboot_certificates_on_boot, [vm, "true"]),
            ("mark", api.VM.update_secureboot_certificates_on_boot, [vm, 1]),
            ("args", api.VM.create, ["text"]),
            ("name_label", api.VM.create, [{"name_label": 1}]),
            ("is_a_template", api.VM.create, [{"is_a_template": "true"}]),
            ("NVRAM", api.VM.create, [{"NVRAM": "text"}]),
            ("HVM_boot_params", api.VM.create, [{"HVM_boot_params": {"firmware": 1}}]),
            ("new_name", api.VM.clone, [vm, None]),
            ("priority", api.message.create, ["A", "high", "VM", uuid, ""]),
            ("priority", api.message.create, ["A", True, "VM", uuid, ""]),
            ("priority", api.message.create, ["A", "9" * 19, "VM", uuid, ""]),
        ]
        for name, method, arguments in wrong:
            assert failure(method, *arguments) == ["FIELD_TYPE_ERROR", name]
        assert api.VM.get_all_records() == {vm: before}
        assert api.message.get_all_records() == {}

    await host.ask(calls)


async def test_values_that_cannot_be_taken_change_nothing(host: Host) -> None:
    def calls(api: Api) -> None:
        vm = api.VM.create(uefi())
        api.VM.update_secureboot_certificates_on_boot(vm, MARK)
        before = api.VM.get_record(vm)
        good = base64("all2023")
        over = base64("oversized_dbx")
        bad: list[tuple[str, str, Any, list[object]]] = [
            ("INVALID_VALUE", "update", api.VM.set_NVRAM_EFI_variables, [vm, good, "maybe"]),
            ("INVALID_VALUE", "update", api.VM.set_NVRAM_EFI_variables, [vm, good, "YES"]),
            ("INVALID_VALUE", "update", api.VM.set_NVRAM_EFI_variables, [vm, good, ""]),
            ("INVALID_VALUE", "HVM_boot_params:firmware", api.VM.create, [uefi(HVM_boot_params={"firmware": "efi"})]),
            ("INVALID_VALUE", "cls", api.message.create, ["A", 1, "Host", before["uuid"], ""]),
        ]
        store = "NVRAM:EFI-variables"
        for name, text in [
            ("INVALID_VALUE", "not base64!"),
            ("INVALID_VALUE", good[:-1]),
            ("INVALID_VALUE", good + "===="),
            ("INVALID_VALUE", "é"),
            ("INVALID_VALUE", ""),
            ("INVALID_VALUE", b64encode(b"XXXX" + bytes(300)).decode()),
            ("VALUE_NOT_SUPPORTED", over),
            ("VALUE_NOT_SUPPORTED", "A" * 262_148),
        ]:
            bad += [
                (name, store, api.VM.set_NVRAM_EFI_variables, [vm, text]),
                (name, store, api.VM.set_NVRAM_EFI_variables, [vm, text, "yes"]),
                (name, store, api.VM.set_NVRAM_EFI_variables_v2, [vm, text, "no"]),
                (name, store, api.VM.set_NVRAM, [vm, {"EFI-variables": text}]),
                (name, store, api.VM.create, [uefi(NVRAM={"EFI-variables": text})]),
            ]
        for expected, field, method, arguments in bad:
            assert failure(method, *arguments)[:2] == [expected, field]
        assert api.VM.get_all_records() == {vm: before}
        assert api.message.get_all_records() == {}

    await host.ask(calls)


async def test_a_toolstack_that_fails_is_an_internal_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise ToolstackUnavailableError("the disk is full")

    def bug(*_: object, **__: object) -> None:
        raise LookupError("inner words")

    def calls(api: Api) -> None:
        vm = api.VM.create(uefi())
        monkeypatch.setattr(Operations, "set_nvram", unavailable)
        assert failure(api.VM.set_NVRAM, vm, {}) == ["INTERNAL_ERROR", "the disk is full"]
        monkeypatch.setattr(Operations, "set_nvram", bug)
        name, why = failure(api.VM.set_NVRAM, vm, {})
        assert name == "INTERNAL_ERROR"
        assert "inner" not in why
        assert api.VM.get_name_label(vm) == "web"

    await host.ask(calls)
