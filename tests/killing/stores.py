"""Stores that carry a number: which of two is the newer one can be read from their bytes."""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from support.daemon import updated, written
from varstore_companion.trust.state import CertificatesState

_COUNTER = slice(-76, -68)
"""The last variable's 8 bytes of data: the GUID, attributes, time and digest behind it take 68."""
FOREIGN = 1 << 40
"""Numbers from here on are another host's."""


class Version(NamedTuple):
    """A VM's store; the greater one is the newer one. `is_updated`: it has the certificates of 2023."""

    number: int
    is_updated: bool

    def __str__(self) -> str:
        return f"{self.number}{'+' if self.is_updated else ''}"


@cache
def _template(*, is_updated: bool) -> bytes:
    old = written("ms2011", 0)
    return updated(old) if is_updated else old


def set_aside(folder: Path) -> set[Version]:
    """The versions in a VM's folder of backups that were journaled and must not be delivered any more."""
    kept = [path for path in folder.glob("*.vars") if json.loads(path.with_suffix(".json").read_text())["why"] == "set_aside"]
    return {version_of(path.read_bytes()) for path in kept}


def store_of(version: Version) -> bytes:
    """The store of a version."""
    template = _template(is_updated=version.is_updated)
    return template[: _COUNTER.start] + version.number.to_bytes(8, "little") + template[_COUNTER.stop :]


def version_of(store: bytes) -> Version:
    """Which version a store is; it must be that, byte for byte."""
    version = Version(int.from_bytes(store[_COUNTER], "little"), len(store) == len(_template(is_updated=True)))
    assert store == store_of(version), "a store that nobody has written"
    return version


def certcheck(store: bytes) -> CertificatesState:
    """What xapi makes of a store."""
    return CertificatesState.OK if version_of(store).is_updated else CertificatesState.UPDATE_AVAILABLE
