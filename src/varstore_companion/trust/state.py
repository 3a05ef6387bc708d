"""The two words that companion and toolstack exchange about a VM, spelled as xapi spells them."""

from enum import StrEnum


class CertificatesState(StrEnum):
    """xapi's field `VM.secureboot_certificates_state`."""

    OK = "ok"
    UPDATE_AVAILABLE = "update_available"
    UPDATE_ON_BOOT = "update_on_boot"


class Update(StrEnum):
    """The `update` argument of xapi's `VM.set_NVRAM_EFI_variables`: the verdict on a write.

    `YES`: the store is complete, the field becomes `ok`. `NO`: leave the field. `UNSPECIFIED`: let the toolstack
    run certcheck, which also erases `update_on_boot`.
    """

    YES = "yes"
    NO = "no"
    UNSPECIFIED = "unspecified"
