"""Small stores and rules, the same in every run: what the corpora are made from, and what they are read with.

The certificates are a few bytes that nothing parses: rules and lists know them by their hash alone, so that a store that
tells a whole story has some hundred bytes. Nothing of Microsoft's is in them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from uuid import UUID

from support import storebytes as sb
from support.hostile import HOSTILE, hostile
from support.shipped import RULES
from support.storebytes import Variable, make_store, signature_list, x509_list
from varstore_companion.trust.manifest import Manifest, parse

CERTIFICATES = ("old-kek", "new-kek", "old-db", "new-db", "new-rom", "old-other", "new-other", "tenant")
OWNERS = (sb.OWNER_MICROSOFT, sb.OWNER_WRONG, sb.OWNER_VIRT_FIRMWARE, sb.OWNER_TENANT)
KINDS = (sb.CERT_X509, sb.CERT_SHA256, sb.CERT_X509_SHA256, sb.CERT_SHA1)
NAMES: tuple[tuple[str, UUID], ...] = (
    ("PK", sb.GLOBAL),
    ("KEK", sb.GLOBAL),
    ("db", sb.IMAGE_SECURITY),
    ("dbx", sb.IMAGE_SECURITY),
    ("dbt", sb.IMAGE_SECURITY),
    ("db", sb.GLOBAL),
    ("BootOrder", sb.GLOBAL),
    ("Boot0000", sb.GLOBAL),
)
LARGEST_SEED = 2_048


def body(name: str) -> bytes:
    """What stands for a certificate."""
    return b"cert " + name.encode()


def manifest_text() -> str:
    """Two variables, a rule that requires two, wrong owners and a revocation: every kind of thing that a manifest has."""
    certificates = "".join(
        f'[certificate.{name}]\nsubject = "{name}"\nsha256 = "{hashlib.sha256(body(name)).hexdigest()}"\n'
        + (f'tbs_sha256 = "{hashlib.sha256(b"tbs").hexdigest()}"\n' if name == "old-db" else "")
        for name in CERTIFICATES[:-1]
    )
    return f"""format = 1
name = "fuzz"
revision = 1
signature_owner = "{OWNERS[0]}"
wrong_owners = ["{OWNERS[1]}", "{OWNERS[2]}"]
headroom = 500
{certificates}{RULES}"""


@cache
def manifest() -> Manifest:
    """The rules."""
    return parse(manifest_text(), "fuzz")


@cache
def bodies() -> Mapping[bytes, bytes]:
    """What an update adds, by hash."""
    return {hashlib.sha256(body(name)).digest(): body(name) for name in CERTIFICATES if name.startswith("new")}


def listed(*names: str, owner: UUID = sb.OWNER_MICROSOFT) -> bytes:
    """Each certificate as a list of its own."""
    return b"".join(x509_list(body(name), owner) for name in names)


def _keyed(kek: Sequence[str], db: Sequence[str], *more: Variable, wrong: bool = False) -> list[Variable]:
    owner = sb.OWNER_WRONG if wrong else sb.OWNER_MICROSOFT
    return [
        Variable("BootOrder", sb.GLOBAL, bytes(4)),
        sb.pk_variable(listed("tenant", owner=sb.OWNER_TENANT)),
        sb.kek_variable(listed(*kek, owner=owner)),
        sb.db_variable(listed(*db, owner=owner)),
        *more,
    ]


@cache
def whole_stores() -> tuple[bytes, ...]:
    """Stores that varstored loads: to be updated, complete, half done, under wrong owners, custom, without keys."""
    old, new = ("old-db", "old-other"), ("new-db", "new-rom", "new-other")
    revoking = sb.dbx_variable(
        sb.sha256_list([bytes(32)])
        + signature_list(sb.CERT_X509_SHA256, [(sb.OWNER_MICROSOFT, hashlib.sha256(b"tbs").digest() + bytes(16))])
    )
    held: tuple[list[Variable], ...] = (
        _keyed(["old-kek"], old),
        _keyed(["old-kek", "new-kek"], [*old, *new]),
        _keyed(["old-kek"], [*old, "new-db"], revoking),
        _keyed(["old-kek", "new-kek"], [*old, *new], wrong=True),
        _keyed(["tenant"], ["tenant"]),
        _keyed(["new-kek"], new),
        [Variable("Boot0000", sb.GLOBAL, b"\0\1")],
        [],
        [*_keyed(["old-kek"], old)[::-1], sb.dbx_variable(sb.sha256_list([bytes([each]) * 32 for each in range(4)]))],
    )
    made = [make_store(each, version) for each in held for version in (0, 1)]
    return (*made, make_store(held[0], 2), make_store(held[1], 2, ancillary=bytes(range(134)) * 2))


def stores() -> Iterator[bytes]:
    """Small stores, those that varstored refuses too."""
    yield from whole_stores()
    yield make_store(_keyed(["old-kek"], ["old-db"]), 1, data_length=(1 << 64) - 1)
    yield make_store([*_keyed([], ["old-db"])[3:]] * 2, 1)
    for name in HOSTILE:
        if len(blob := hostile(name).blob) <= LARGEST_SEED:
            yield blob


def signature_lists() -> Iterator[bytes]:
    """The data of key variables."""
    yield b""
    yield listed(*CERTIFICATES)
    yield sb.sha256_list([bytes([each]) * 32 for each in range(3)])
    yield signature_list(sb.CERT_X509, [(owner, body("tenant")) for owner in OWNERS])
    for kind, size in ((sb.CERT_SHA1, 20), (sb.CERT_RSA2048, 256), (sb.CERT_X509_SHA256, 48), (sb.CERT_SHA512, 64)):
        yield signature_list(kind, [(sb.OWNER_TENANT, bytes(size))])
    yield signature_list(sb.CERT_SHA256, [(sb.OWNER_TENANT, bytes(32))], header=b"head")
    yield signature_list(sb.CERT_SHA256, [], signature_size=48)
    yield signature_list(UUID(int=7), [(sb.OWNER_TENANT, b"unknown")])
    for wrong in (0, 15, 16, 0x7FFFFFFF, 0xFFFFFFF0):
        yield signature_list(sb.CERT_SHA256, [(sb.OWNER_TENANT, bytes(32))], signature_size=wrong)
        yield signature_list(sb.CERT_SHA256, [(sb.OWNER_TENANT, bytes(32))], list_size=wrong)
        yield signature_list(sb.CERT_SHA256, [(sb.OWNER_TENANT, bytes(32))], header_size=wrong)
