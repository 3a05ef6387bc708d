"""A VM as the embedded toolstack keeps it: xapi's fields, as values."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from varstore_companion.toolstack.nvram import Nvram
from varstore_companion.trust.state import CertificatesState


class VmKind(StrEnum):
    """What a record stands for; xapi spells it in `is_a_snapshot`, `is_a_template` and `is_control_domain`."""

    VM = "vm"
    SNAPSHOT = "snapshot"
    TEMPLATE = "template"
    DEFAULT_TEMPLATE = "default_template"
    CONTROL_DOMAIN = "control_domain"


class Firmware(StrEnum):
    """xapi's `HVM_boot_params:firmware`."""

    UEFI = "uefi"
    BIOS = "bios"


NOT_JUDGED = frozenset({VmKind.DEFAULT_TEMPLATE, VmKind.CONTROL_DOMAIN})
"""The kinds that xapi leaves out when it fills the field in: theirs is always `ok`."""


def is_judged(kind: VmKind, firmware: Firmware) -> bool:
    """Whether the field of such a record says something about its store; otherwise it is `ok`, and cannot be marked."""
    return firmware is Firmware.UEFI and kind not in NOT_JUDGED


def with_mark(derived: CertificatesState, *, marked: bool) -> CertificatesState:
    """The field of a store that derives to `derived`: a mark is kept as long as there is something to update."""
    if marked and derived is CertificatesState.UPDATE_AVAILABLE:
        return CertificatesState.UPDATE_ON_BOOT
    return derived


@dataclass(frozen=True, slots=True)
class VmSummary:
    """A record without its store.

    `snapshot_of`: of a snapshot, the VM that it was taken of, None once that is destroyed. `stale`: the field was not
    computed from the store that is there now. `generation`: as in `VmRecord`. `store_bytes`: None before the first boot.
    """

    uuid: UUID
    name: str
    kind: VmKind
    firmware: Firmware
    snapshot_of: UUID | None
    state: CertificatesState
    stale: bool
    generation: int
    store_bytes: int | None


@dataclass(frozen=True, slots=True)
class Vm(VmSummary):
    """A whole record (xapi: `VM.get_record`), from one moment."""

    nvram: Nvram


@dataclass(frozen=True, slots=True)
class VmMetadata:
    """What an export holds of a VM. `state`: None when the toolstack that made it has no such field."""

    uuid: UUID
    name: str
    kind: VmKind
    firmware: Firmware
    snapshot_of: UUID | None
    nvram: Nvram
    state: CertificatesState | None
