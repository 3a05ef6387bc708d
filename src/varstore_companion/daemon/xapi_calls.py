"""xapi's calls that the endpoint takes: their parameters by xapi's names, and what each does on the embedded toolstack.

What a call without a value answers is nil, as a guard's is.
"""

from collections.abc import Awaitable, Callable, Iterator
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import TypeVar
from uuid import UUID, uuid4

import trio

from varstore_companion.daemon import xapi_values
from varstore_companion.daemon.xapi_method import Method, uuid_invalid
from varstore_companion.daemon.xapi_values import POOL, Arguments, reference
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack import nvram
from varstore_companion.toolstack.embedded import EmbeddedToolstack
from varstore_companion.toolstack.interface import Alert
from varstore_companion.toolstack.operations import Operations
from varstore_companion.toolstack.records import Vm, VmKind
from varstore_companion.toolstack.xmlrpc import StructAnswer, Value
from varstore_companion.trust.state import Update

T = TypeVar("T")

MAX_RECORDS = 128 * 1024 * 1024
"""Bytes of the one answer that grows with the number of VMs: 1,600 of them with stores of 60 KiB."""
PAGE = 16
"""Records read and written out in one turn on the database: boots want turns, too."""


class MessageClass(StrEnum):
    """The objects that a message can be about: of xapi's, those that are here."""

    VM = "VM"


class Calls:
    """The calls on one embedded toolstack. `toolstack` is the one that works on `operations`."""

    def __init__(self, operations: Operations, toolstack: EmbeddedToolstack) -> None:
        self._operations = operations
        self._toolstack = toolstack
        self._whole = trio.CapacityLimiter(1)
        self.methods: dict[str, Method[Callable[[Arguments], Awaitable[Value | bytes]]]] = {
            "VM.get_by_uuid": Method(("uuid",), self._get_by_uuid),
            "VM.get_all": Method((), self._get_all),
            "VM.get_all_records": Method((), self._get_all_records),
            "VM.get_record": Method(("self",), self._get_record),
            "VM.get_uuid": Method(("self",), partial(self._get, _uuid_of)),
            "VM.get_name_label": Method(("self",), partial(self._get, _name_of)),
            "VM.get_NVRAM": Method(("self",), partial(self._get, _nvram_of)),
            "VM.get_secureboot_certificates_state": Method(("self",), self._get_state),
            "VM.set_NVRAM": Method(("self", "value"), self._set_nvram),
            "VM.add_to_NVRAM": Method(("self", "key", "value"), self._add_to_nvram),
            "VM.remove_from_NVRAM": Method(("self", "key"), self._remove_from_nvram),
            "VM.set_NVRAM_EFI_variables": Method(("self", "value", "update"), self._set_efi_variables, optional=1),
            "VM.set_NVRAM_EFI_variables_v2": Method(("self", "value", "update"), self._set_efi_variables_v2),
            "VM.update_secureboot_certificates_on_boot": Method(("self", "mark"), self._mark),
            "VM.create": Method(("args",), self._create),
            "VM.clone": Method(("vm", "new_name"), partial(self._duplicate, Operations.clone)),
            "VM.copy": Method(("vm", "new_name", "sr"), partial(self._duplicate, Operations.copy)),
            "VM.snapshot": Method(("vm", "new_name", "ignore_vdis"), partial(self._duplicate, Operations.snapshot), optional=1),
            "VM.revert": Method(("snapshot",), partial(self._on_vm, Operations.revert)),
            "VM.destroy": Method(("self",), partial(self._on_vm, Operations.destroy)),
            "message.create": Method(("name", "priority", "cls", "obj_uuid", "body"), self._create_message),
            "message.get_all_records": Method((), self._get_messages),
            "pool.get_all": Method((), self._get_pools),
            "pool.get_all_records": Method((), self._get_pool_records),
            "pool.set_auto_update_vm_secureboot_certificates": Method(("self", "value"), self._set_auto_update),
        }

    # Reading

    async def _get_by_uuid(self, given: Arguments) -> Value:
        text = given.text()
        uuid = xapi_values.read_uuid(text)
        if uuid is None:
            raise uuid_invalid("VM", text)
        return reference(await self._reading(partial(self._operations.uuid_of, uuid)))

    async def _get_all(self, _given: Arguments) -> Value:
        return [reference(uuid) for uuid in await self._reading(self._operations.uuids)]

    async def _get_record(self, given: Arguments) -> Value:
        return xapi_values.vm_record(await self._reading(partial(self._operations.record, given.vm())))

    async def _get_all_records(self, _given: Arguments) -> bytes:
        async with self._whole:
            answer = StructAnswer()
            records = self._operations.records()
            while await self._reading(partial(_write_page, records, answer)):
                if len(answer) > MAX_RECORDS:
                    why = f"the records of all VMs are over {MAX_RECORDS:,} bytes: ask for VM.get_all, and each one's record"
                    raise ToolstackRefusedError("INTERNAL_ERROR", why)
            return answer.finish()

    async def _get(self, read: Callable[[Vm], Value], given: Arguments) -> Value:
        return read(await self._reading(partial(self._operations.record, given.vm())))

    async def _get_state(self, given: Arguments) -> Value:
        return (await self._reading(partial(self._operations.state, given.vm()))).value

    # NVRAM and the field

    async def _set_nvram(self, given: Arguments) -> None:
        vm, texts = given.vm(), given.texts()
        await self._changing(lambda: self._operations.set_nvram(vm, nvram.nvram_of(texts)))

    async def _add_to_nvram(self, given: Arguments) -> None:
        await self._changing(partial(self._operations.add_to_nvram, given.vm(), given.text(), given.text()))

    async def _remove_from_nvram(self, given: Arguments) -> None:
        await self._changing(partial(self._operations.remove_from_nvram, given.vm(), given.text()))

    async def _set_efi_variables(self, given: Arguments) -> None:
        vm, text = given.vm(), given.text()
        await self._write(vm, text, given.choice(Update) if given else Update.UNSPECIFIED)

    async def _set_efi_variables_v2(self, given: Arguments) -> None:
        # The call of old guards' clients, where any other word means that nobody knows.
        vm, text, word = given.vm(), given.text(), given.text()
        await self._write(vm, text, Update(word) if word in list(Update) else Update.UNSPECIFIED)

    async def _write(self, vm: UUID, text: str, update: Update) -> None:
        # A VM that is not there is the first thing to say, whatever the text.
        await self._reading(partial(self._operations.confirm, vm, None))
        await self._toolstack.write(vm, nvram.store_of(text), update)

    async def _mark(self, given: Arguments) -> None:
        await self._toolstack.mark(given.vm(), mark=given.flag())

    # A VM's life

    async def _create(self, given: Arguments) -> Value:
        fields = given.fields()
        kind = VmKind.TEMPLATE if fields.flag("is_a_template") else VmKind.VM
        if fields.flag("is_default_template"):
            kind = VmKind.DEFAULT_TEMPLATE
        name, texts = fields.text("name_label"), fields.texts("NVRAM")
        firmware = xapi_values.firmware_of(fields.texts("HVM_boot_params"))
        made = uuid4()
        await self._changing(
            lambda: self._operations.create_vm(made, name, nvram.nvram_of(texts), kind=kind, firmware=firmware)
        )
        return reference(made)

    async def _duplicate(self, make: Callable[[Operations, UUID, str], UUID], given: Arguments) -> Value:
        return reference(await self._changing(partial(make, self._operations, given.vm(), given.text())))

    async def _on_vm(self, act: Callable[[Operations, UUID], object], given: Arguments) -> None:
        await self._changing(partial(act, self._operations, given.vm()))

    # Messages and the pool

    async def _create_message(self, given: Arguments) -> Value:
        name, priority, cls, text, body = given.text(), given.integer(), given.choice(MessageClass), given.text(), given.text()
        vm = xapi_values.read_uuid(text)
        if vm is None:
            raise uuid_invalid(cls, text)
        try:
            message = await self._changing(partial(self._operations.alert, vm, Alert(name, priority, body)))
        except ToolstackRefusedError as error:
            # xapi is given the object's uuid here, so that is what it calls invalid.
            raise uuid_invalid(cls, text) if error.code == "HANDLE_INVALID" else error from None
        return reference(xapi_values.message_uuid(message))

    async def _get_messages(self, _given: Arguments) -> Value:
        messages = await self._reading(self._operations.alerts)
        return {reference(xapi_values.message_uuid(each)): xapi_values.message_record(each) for each in messages}

    async def _get_pools(self, _given: Arguments) -> Value:
        return [reference(POOL)]

    async def _get_pool_records(self, _given: Arguments) -> Value:
        auto_update = await self._reading(self._operations.auto_update)
        return {reference(POOL): xapi_values.pool_record(auto_update=auto_update)}

    async def _set_auto_update(self, given: Arguments) -> None:
        given.pool()
        await self._changing(partial(self._operations.set_auto_update, value=given.flag()))

    async def _reading(self, call: Callable[[], T]) -> T:
        return await self._toolstack.reading(call)

    async def _changing(self, call: Callable[[], T]) -> T:
        return await self._toolstack.changing(call)


def _write_page(records: Iterator[Vm], answer: StructAnswer) -> bool:
    """Write the next records; False when there was none."""
    page = list(islice(records, PAGE))
    for record in page:
        answer.add(reference(record.uuid), xapi_values.vm_record(record))
    return bool(page)


def _uuid_of(vm: Vm) -> Value:
    return str(vm.uuid)


def _name_of(vm: Vm) -> Value:
    return vm.name


def _nvram_of(vm: Vm) -> Value:
    return dict(vm.nvram.texts())
