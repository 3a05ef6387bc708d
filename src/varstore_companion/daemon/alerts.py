"""What operators are told (xapi: `message.create`). Each text stands alone: a guard gives every alert the same name."""

from collections.abc import Sequence
from hashlib import sha256
from uuid import UUID

from varstore_companion.efi.names import printable
from varstore_companion.toolstack.interface import Alert
from varstore_companion.trust.plan import Plan
from varstore_companion.wire.fields import clip
from varstore_companion.wire.limits import MAX_TEXT

UPDATED = "VM_SECURE_BOOT_CERTIFICATES_UPDATED"
UPDATE_FAILED = "VM_SECURE_BOOT_CERTIFICATES_UPDATE_FAILED"
STORE_DAMAGED = "VM_SECURE_BOOT_STORE_DAMAGED"
UPDATES_PAUSED = "VM_SECURE_BOOT_CERTIFICATES_UPDATES_PAUSED"
SET_ASIDE = "VM_NVRAM_WRITE_SET_ASIDE"
SECURE_BOOT_FAILED = "VM_SECURE_BOOT_FAILED"
SECURE_BOOT_FAILED_TEXT = "The VM failed to pass Secure Boot verification."
"""varstored's own words, with which the alert begins."""

VMS_TOLD = 4_096
"""VMs of which it is remembered what was told: four times as many as a host has. The oldest goes."""
TEXTS_TOLD = 8
"""Different texts of one kind about one VM, which a guest could otherwise go on finding."""


def updated(vm: UUID, planned: Plan) -> Alert:
    """The update was made at boot."""
    changes = describe_changes(planned)
    what = f"VM {vm}: its Secure Boot certificates were updated at boot: {changes}."
    return Alert(UPDATED, 4, f"{what} PCR 7 changes with them: what is sealed to it on a vTPM asks for its recovery key once.")


def describe_changes(planned: Plan) -> str:
    """The changes of an update in one line."""
    return ", ".join(f"{change.action} {change.certificate.subject} in {change.variable}" for change in planned.changes)


def update_failed(vm: UUID, reason: str) -> Alert:
    """The update was not made, and the VM boots with its old store."""
    what = f"VM {vm}: its Secure Boot certificates were not updated at boot, which goes on with the old ones: {reason}."
    return Alert(UPDATE_FAILED, 3, f"{what} The VM stays marked for an update at its next boot.")


def secure_boot_failed(detail: str | None) -> Alert:
    """The guest failed Secure Boot verification."""
    return Alert(SECURE_BOOT_FAILED, 5, SECURE_BOOT_FAILED_TEXT + (f" {printable(detail)}" if detail else ""))


def store_damaged(vm: UUID, reasons: Sequence[str]) -> Alert:
    """The VM's store is `damaged`; `reasons`: those of its report, each with where and what was expected."""
    # A guest can have made the store, and with it the reasons long.
    found = clip(printable("; ".join(reasons)), MAX_TEXT)
    what = f"VM {vm}: its UEFI variable store is damaged: {found}."
    means = "varstored does not load such a store, or cannot rely on its keys: the VM may not start, and is not updated."
    todo = "Put an older store back, from a snapshot of the VM or from the backups in the state folder of varstore-companion."
    return Alert(STORE_DAMAGED, 2, f"{what} {means} {todo}")


def set_aside(vm: UUID, backup: str, reason: str) -> Alert:
    """A journaled store was not delivered, and is kept as `backup`."""
    what = f"VM {vm}: changes to its UEFI variables that were acknowledged while the toolstack was away were not brought to it:"
    todo = f"They are kept as backup {backup}; if they are what the VM should have, restore that while it is off."
    return Alert(SET_ASIDE, 2, f"{what} {clip(printable(reason), MAX_TEXT)}. {todo}")


def updates_paused(vm: UUID, reason: str) -> Alert:
    """Nothing is updated any more on this host. `vm`: the last one of those that had trouble."""
    what = f"Host of VM {vm}: updates of Secure Boot certificates at boot are paused: {clip(printable(reason), MAX_TEXT)}."
    todo = "Marked VMs boot with what they have and stay marked, until `varstore-companion updates resume` on that host."
    return Alert(UPDATES_PAUSED, 2, f"{what} {todo}")


class Told:
    """Which texts operators were told of which VM, in digests, as long as the daemon runs."""

    def __init__(self) -> None:
        self._texts: dict[UUID, set[bytes]] = {}

    def is_news(self, vm: UUID, text: str) -> bool:
        """Whether this text is the first of its kind, and there have not been too many others; remembers it."""
        texts = self._texts.setdefault(vm, set())
        digest = sha256(text.encode()).digest()[:8]
        if digest in texts or len(texts) >= TEXTS_TOLD:
            return False
        texts.add(digest)
        if len(self._texts) > VMS_TOLD:
            del self._texts[next(iter(self._texts))]
        return True
