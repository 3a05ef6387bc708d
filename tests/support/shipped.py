"""The shipped manifest with Microsoft's bodies, and one of our own making: the same rules about throw-away certificates."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from uuid import UUID

from support import storebytes as sb
from support.certificates import FINGERPRINTS, identity, microsoft
from support.storebytes import Variable, x509_list
from varstore_companion.files import load_manifest
from varstore_companion.trust.manifest import Manifest, parse

NAMES_2023 = ("ms-kek-2023", "windows-2023", "ms-uefi-2023", "ms-uefi-rom-2023")


@cache
def shipped() -> Manifest:
    """The manifest that comes with the program."""
    return load_manifest()


@cache
def microsoft_bodies() -> Mapping[bytes, bytes]:
    """The bodies that the shipped manifest requires; the calling test is skipped where virt-firmware is absent."""
    return {bytes.fromhex(FINGERPRINTS[name]): microsoft(name) for name in NAMES_2023}


def own(name: str) -> bytes:
    """The DER of a throw-away certificate that the manifest of our own making names."""
    return identity(f"An operator's {name}", key_of="An operator's key").der


OWN_NAMES = ("old-kek", "new-kek", "old-db", "new-db", "new-rom", "old-other", "new-other")


RULES = """\
[[rule]]
variable = "KEK"
present = "old-kek"
required = ["new-kek"]
[[rule]]
variable = "db"
present = "old-db"
required = ["new-db", "new-rom"]
[[rule]]
variable = "db"
present = "old-other"
required = ["new-other"]
[[revocation]]
revoked = "old-db"
successor = "new-db"
"""
"""Of certificates by these names: who has an old one requires the new ones."""


@cache
def own_text() -> str:
    """A manifest as an operator may write it; db has a rule with two required certificates and a rule with one."""
    certificates = "".join(
        f'[certificate.{name}]\nsubject = "An operator\'s {name}"\nsha256 = "{hashlib.sha256(own(name)).hexdigest()}"\n'
        for name in OWN_NAMES
    )
    return f"""
format = 1
name = "our-own"
revision = 7
signature_owner = "{sb.OWNER_MICROSOFT}"
wrong_owners = ["{sb.OWNER_WRONG}", "{sb.OWNER_VIRT_FIRMWARE}"]
headroom = 5000
{certificates}
{RULES}"""


@cache
def own_manifest() -> Manifest:
    """The manifest of our own making."""
    return parse(own_text(), "own.toml")


@cache
def own_bodies() -> Mapping[bytes, bytes]:
    """The bodies that it requires."""
    return {hashlib.sha256(own(name)).digest(): own(name) for name in OWN_NAMES if name.startswith("new")}


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a store by the names of our own manifest; `wrong`: those of them that stand under a wrong owner."""

    kek: tuple[str, ...] = ("old-kek",)
    db: tuple[str, ...] = ("old-db", "old-other")
    dbx: bytes = b""
    wrong: frozenset[str] = field(default_factory=frozenset)

    def variables(self) -> list[Variable]:
        time = sb.efi_time(2024, 5, 6)
        made = [
            sb.pk_variable(x509_list(identity("A tenant's platform key").der, sb.OWNER_TENANT), time),
            sb.kek_variable(self._lists(self.kek), time),
            sb.db_variable(self._lists(self.db), time),
            sb.dbx_variable(self.dbx, time),
        ]
        return [each for each in made if each.data]

    def _lists(self, names: tuple[str, ...]) -> bytes:
        return b"".join(x509_list(own(name), self._owner(name)) for name in names)

    def _owner(self, name: str) -> UUID:
        return sb.OWNER_WRONG if name in self.wrong else sb.OWNER_MICROSOFT
