"""Pure: xapi's objects as XML-RPC values: references, arguments read by kind, records.

An argument that is not of its kind is refused by xapi's names: `FIELD_TYPE_ERROR` for another type, `INVALID_VALUE` for a text
that is none of an enumeration's.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar
from uuid import UUID, uuid5

from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack.database import Message
from varstore_companion.toolstack.plain_xmlrpc import Base64
from varstore_companion.toolstack.records import Firmware, Vm, VmKind
from varstore_companion.toolstack.xmlrpc import Value

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")

NULL = "OpaqueRef:NULL"
"""xapi's reference to nothing."""
POOL = UUID("b3a1f4de-6a0c-4c0e-9b52-3f8d7f6c1e01")
"""The one pool that the embedded toolstack stands for."""

_REF = "OpaqueRef:"
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def reference(uuid: UUID) -> str:
    """An object's reference: xapi makes up another uuid for it, here it is the object's own."""
    return f"{_REF}{uuid}"


def read_uuid(text: str) -> UUID | None:
    """The uuid that is spelled as xapi spells it, else None."""
    try:
        uuid = UUID(text)
    except ValueError:
        return None
    return uuid if str(uuid) == text else None


def handle_invalid(kind: str, given: str) -> ToolstackRefusedError:
    """The error for a reference to nothing that is there, as xapi spells it."""
    return ToolstackRefusedError("HANDLE_INVALID", f"there is no {kind} {given}", (kind, given))


class Arguments:
    """A call's arguments after its session, read in their order; `names` are xapi's, for errors.

    All readers raise `ToolstackRefusedError`.
    """

    def __init__(self, names: Sequence[str], values: Sequence[Value | Base64]) -> None:
        self._left = list(zip(names, values, strict=False))
        self.vms: dict[str, str] = {}
        """The references to VMs that were read, by uuid."""

    def __bool__(self) -> bool:
        """Whether there are more; those that may be left out come last."""
        return bool(self._left)

    def text(self) -> str:
        """A text."""
        return self._take(str)[1]

    def encoded(self) -> str | Base64:
        """A text, which may have been decoded already."""
        value = self._left[0][1]
        if not isinstance(value, Base64):
            return self.text()
        del self._left[0]
        return value

    def flag(self) -> bool:
        """A boolean."""
        return self._take(bool)[1]

    def integer(self) -> int:
        """A whole number of 64 bits, which xapi's clients send as text, and others as XML-RPC's own."""
        name, value = self._left.pop(0)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            return int(value)
        raise _wrong_type(name)

    def texts(self) -> dict[str, str]:
        """A map of texts."""
        name, values = self._take(dict)
        return _texts(name, values)

    def vm(self) -> UUID:
        """A reference to a VM."""
        given = self.text()
        uuid = read_uuid(given.removeprefix(_REF)) if given.startswith(_REF) else None
        if uuid is None:
            raise handle_invalid("VM", given)
        self.vms[str(uuid)] = given
        return uuid

    def pool(self) -> None:
        """A reference to the pool."""
        given = self.text()
        if given != reference(POOL):
            raise handle_invalid("pool", given)

    def choice(self, kind: type[E]) -> E:
        """One of the words of an enumeration."""
        name, value = self._take(str)
        if value not in list(kind):
            raise ToolstackRefusedError("INVALID_VALUE", f"{name}: expected one of {', '.join(kind)}", (name, value[:64]))
        return kind(value)

    def fields(self) -> "Fields":
        """A record."""
        return Fields(self._take(dict)[1])

    def by_reference(self, error: ToolstackRefusedError) -> ToolstackRefusedError:
        """The error as xapi gives it, which names a VM by the reference that the call had for it."""
        parameters = tuple(self.vms.get(each, each) for each in error.parameters)
        return ToolstackRefusedError(error.code, error.text, parameters)

    def _take(self, kind: type[T]) -> tuple[str, T]:
        name, value = self._left.pop(0)
        if isinstance(value, Base64):
            value = value.text.decode("ascii")
        if not isinstance(value, kind):
            raise _wrong_type(name)
        return name, value


class Fields:
    """A record's fields by name, as `VM.create` takes them: what is not asked for is of no meaning here."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """A text; empty when it is absent."""
        value = self._values.get(name, "")
        if not isinstance(value, str):
            raise _wrong_type(name)
        return value

    def flag(self, name: str) -> bool:
        """A boolean; false when it is absent."""
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise _wrong_type(name)
        return value

    def texts(self, name: str) -> dict[str, str]:
        """A map of texts; empty when it is absent."""
        value = self._values.get(name, {})
        if not isinstance(value, dict):
            raise _wrong_type(name)
        return _texts(name, value)


def firmware_of(boot_params: Mapping[str, str]) -> Firmware:
    """The firmware in xapi's `HVM_boot_params`, which is BIOS when it is absent."""
    given = boot_params.get("firmware", Firmware.BIOS)
    if given not in list(Firmware):
        where = "HVM_boot_params:firmware"
        raise ToolstackRefusedError("INVALID_VALUE", f"{where}: expected one of {', '.join(Firmware)}", (where, given[:64]))
    return Firmware(given)


def vm_record(vm: Vm) -> dict[str, Value]:
    """The fields of xapi's VM record that the embedded toolstack keeps."""
    return {
        "uuid": str(vm.uuid),
        "name_label": vm.name,
        "is_a_template": vm.kind in (VmKind.TEMPLATE, VmKind.DEFAULT_TEMPLATE, VmKind.SNAPSHOT),
        "is_default_template": vm.kind is VmKind.DEFAULT_TEMPLATE,
        "is_a_snapshot": vm.kind is VmKind.SNAPSHOT,
        "snapshot_of": NULL if vm.snapshot_of is None else reference(vm.snapshot_of),
        "is_control_domain": vm.kind is VmKind.CONTROL_DOMAIN,
        "HVM_boot_params": {"firmware": vm.firmware.value},
        "NVRAM": dict(vm.nvram.texts()),
        "secureboot_certificates_state": vm.state.value,
    }


def message_uuid(message: Message) -> UUID:
    """A uuid that is the same each time a message is asked for."""
    return uuid5(message.vm, f"message {message.number} {message.created}")


def message_record(message: Message) -> dict[str, Value]:
    """A message as in xapi; its numbers are texts, as all of xapi's."""
    return {
        "uuid": str(message_uuid(message)),
        "name": message.alert.name,
        "priority": str(message.alert.priority),
        "cls": "VM",
        "obj_uuid": str(message.vm),
        "timestamp": datetime.fromtimestamp(message.created, UTC),
        "body": message.alert.body,
    }


def pool_record(*, auto_update: bool) -> dict[str, Value]:
    """The fields of xapi's pool record that the embedded toolstack keeps."""
    return {"uuid": str(POOL), "name_label": "", "auto_update_vm_secureboot_certificates": auto_update}


def _texts(name: str, values: Mapping[str, Value]) -> dict[str, str]:
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    if len(texts) != len(values):
        raise _wrong_type(name)
    return texts


def _wrong_type(name: str) -> ToolstackRefusedError:
    return ToolstackRefusedError("FIELD_TYPE_ERROR", f"{name} is of another type", (name,))
