"""Rules about certificates that the tests make: an update that can be proven where Microsoft's certificates are absent."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from support import storebytes as sb
from support.certificates import identity
from support.storebytes import Variable, make_store, x509_list

OLD, NEW, PLATFORM = "An old db certificate", "Its successor", "A platform key"
OWNER = sb.OWNER_TENANT
BOOT_ORDER = Variable("BootOrder", sb.GLOBAL, bytes(6))


def certificate(name: str) -> bytes:
    """The DER of one of the rules' certificates."""
    return identity(name, key_of=PLATFORM).der


def added() -> bytes:
    """What an update adds at the end of db."""
    return x509_list(certificate(NEW), OWNER)


def store(*, updated: bool = False, version: int = 2, more: tuple[Variable, ...] = ()) -> bytes:
    """A store to which the rule applies."""
    data = x509_list(certificate(OLD), OWNER) + (added() if updated else b"")
    held = [BOOT_ORDER, sb.pk_variable(x509_list(certificate(PLATFORM), OWNER)), sb.db_variable(data), *more, BOOT_LAST]
    return make_store(held, version)


BOOT_LAST = Variable("Boot0000", sb.GLOBAL, bytes(range(90)))


@dataclass(frozen=True, slots=True)
class Rules:
    """The files, and the options that name them."""

    manifest: Path
    certificates: Path

    @property
    def options(self) -> tuple[object, ...]:
        return ("--manifest", self.manifest, "--certificates", self.certificates)


def write(folder: Path) -> Rules:
    """Write the manifest and the folder with the successor's certificate."""
    rules = Rules(folder / "rules.toml", folder / "certificates")
    rules.manifest.write_text(manifest())
    rules.certificates.mkdir()
    successor = identity(NEW, key_of=PLATFORM).certificate
    (rules.certificates / "successor.pem").write_bytes(successor.public_bytes(Encoding.PEM))
    return rules


def manifest() -> str:
    """One rule: where the old certificate is in db, its successor must be."""
    old, new = (hashlib.sha256(certificate(name)).hexdigest() for name in (OLD, NEW))
    return f"""\
format = 1
name = "own"
revision = 3
signature_owner = "{OWNER}"
wrong_owners = []
headroom = 1000

[certificate.old]
subject = "{OLD}"
sha256 = "{old}"

[certificate.new]
subject = "{NEW}"
sha256 = "{new}"

[[rule]]
variable = "db"
present = "old"
required = ["new"]
"""
