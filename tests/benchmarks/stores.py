"""The store that everything is measured on: 60 KiB and 50 variables, with Microsoft's keys of 2011 and a dbx of today."""

from dataclasses import replace
from functools import cache

from benchmarks.harness import UnavailableError
from support.certificates import microsoft_folder
from support.storemaker import (
    NAMES_2011,
    VENDOR_GUID,
    Variable,
    db,
    dbx,
    filler,
    firmware_variables,
    keys_2011,
    make_store,
)

SIZE = 60 * 1024
COUNT = 50


@cache
def _variables() -> tuple[Variable, ...]:
    if microsoft_folder() is None:
        raise UnavailableError("Microsoft's certificates come from the package virt-firmware, which is not installed")
    before, after = firmware_variables()
    held = [*before, dbx(), *keys_2011(), *after]
    for left in range(COUNT - len(held), 0, -1):
        label = f"Vendor{left:02}"
        room = SIZE - len(make_store([*held, Variable(label, VENDOR_GUID, b"")]))
        # The last one takes exactly what is left.
        held.append(Variable(label, VENDOR_GUID, filler(label, room // left)))
    return tuple(held)


def store() -> bytes:
    """As it stands."""
    return make_store(_variables())


def store_with_boot_entry() -> bytes:
    """After the guest changed a boot entry: as long as before."""
    return make_store(
        replace(each, data=filler("changed", len(each.data))) if each.name == "Boot0000" else each for each in _variables()
    )


def store_with_certificate() -> bytes:
    """After db got one of the certificates that are missing."""
    changed = db(*NAMES_2011, "windows-2023")
    return make_store(changed if each.name == "db" else each for each in _variables())
