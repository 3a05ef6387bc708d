"""Ready-made stores with what is true of each, and the one place to import store making from; strategies: `support.strategies`.

    from support.storemaker import SCENES, scene
    @pytest.mark.parametrize("name", SCENES)
    def test_it(name): ... scene(name).blob ...

A scene is made when it is first asked for. Scenes with Microsoft's certificates skip the calling test where the package
virt-firmware is absent.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from uuid import UUID

from support import storebytes as sb
from support.certificates import identity, microsoft
from support.hostile import HOSTILE, Hostile, cuts, hostile
from support.storebytes import Variable, efi_time, make_store, sha256_list, signature_list, x509_list, x509_lists

__all__ = [
    "HOSTILE",
    "SCENES",
    "TENANT_KEK",
    "TENANT_PK",
    "Hostile",
    "Scene",
    "Variable",
    "cuts",
    "efi_time",
    "firmware_variables",
    "hostile",
    "make_store",
    "scene",
    "sha256_list",
    "signature_list",
    "x509_list",
    "x509_lists",
]

TENANT_PK = "A tenant's platform key"
TENANT_KEK = "A tenant's KEK"
TENANT_DB = "A tenant's db"

KEYS_TIME = efi_time(2026, 1, 20, hour=10, minute=35, second=8)
DBX_TIME = efi_time(2010, 3, 6, hour=19, minute=17, second=21)
DBX_HASHES = 443
"""As many as in Microsoft's dbx update today: 21,292 bytes."""

MTC_GUID = UUID("eb704011-1402-11d3-8e77-00a0c969723b")
VENDOR_GUID = UUID("9d0da369-540b-46f8-85a0-2b5f2c301e15")
UNLOCK_GUID = UUID("eaec226f-c9a3-477a-a826-ddc716cdc0e3")

ALL_MISSING: Mapping[str, tuple[str, ...]] = {
    "KEK": ("ms-kek-2023",),
    "db": ("windows-2023", "ms-uefi-2023", "ms-uefi-rom-2023"),
}
NAMES_2011 = ("windows-2011", "ms-uefi-2011")
NAMES_2023 = ("windows-2023", "ms-uefi-2023", "ms-uefi-rom-2023")


@dataclass(frozen=True, slots=True)
class Scene:
    """A store, and what is true of it.

    `missing`: names of certificates by variable, in the order of the rules. `report`: the report's overall word.
    `certcheck`: what varstore-nvram-certcheck prints. `loads`: whether varstored takes the store. `variables`: those in
    it, first to last.
    """

    name: str
    blob: bytes
    report: str
    certcheck: str
    variables: tuple[Variable, ...]
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    loads: bool = True


_CERTCHECK = {
    "ok": "update_ok",
    "custom": "update_ok",
    "setup_mode": "update_ok",
    "update_available": "update_required",
    "unknown": "unknown",
    "damaged": "unknown",
}
_recipes: dict[str, Callable[[str], Scene]] = {}


def _scene(recipe: Callable[[str], Scene]) -> Callable[[str], Scene]:
    _recipes[recipe.__name__.strip("_")] = recipe
    return recipe


@cache
def scene(name: str) -> Scene:
    """The scene of that name."""
    return _recipes[name](name)


def _made(
    name: str,
    held: list[Variable],
    report: str,
    missing: Mapping[str, tuple[str, ...]] | None = None,
    *,
    certcheck: str | None = None,
    version: int = 2,
    data_length: int | None = None,
    loads: bool = True,
) -> Scene:
    blob = make_store(held, version, data_length=data_length)
    return Scene(name, blob, report, certcheck or _CERTCHECK[report], tuple(held), missing or {}, loads)


def filler(label: str, size: int) -> bytes:
    """Bytes that look like nothing, the same for the same label and size."""
    return hashlib.shake_256(label.encode()).digest(size)


def firmware_variables() -> tuple[list[Variable], list[Variable]]:
    """What a guest's firmware leaves in a store, made up: those before and those after the keys."""
    before = [
        Variable("UnlockID", UNLOCK_GUID, filler("UnlockID", 32)),
        Variable("BootOrder", sb.GLOBAL, bytes.fromhex("010000000200")),
        Variable("MTC", MTC_GUID, filler("MTC", 4)),
        Variable("PlatformLang", sb.GLOBAL, b"en\0"),
        Variable("ConIn", sb.GLOBAL, filler("ConIn", 66)),
        Variable("Boot0001", sb.GLOBAL, filler("Boot0001", 304)),
    ]
    after = [
        Variable("Boot0000", sb.GLOBAL, filler("Boot0000", 118)),
        Variable("Boot0002", sb.GLOBAL, filler("Boot0002", 98)),
        Variable("ConOut", sb.GLOBAL, filler("ConOut", 90)),
        Variable("Lang", sb.GLOBAL, b"eng\0"),
        Variable("Timeout", sb.GLOBAL, bytes(2)),
        Variable("CurrentPolicy", sb.OWNER_MICROSOFT, filler("CurrentPolicy", 700)),
    ]
    return before, after


def _around(keys: list[Variable]) -> list[Variable]:
    before, after = firmware_variables()
    return before + keys + after


def tenant(common_name: str) -> bytes:
    """A tenant's certificate as a signature list under the tenant's own owner."""
    return x509_list(identity(common_name).der, sb.OWNER_TENANT)


def pk() -> Variable:
    return sb.pk_variable(tenant(TENANT_PK), KEYS_TIME)


def kek(*names: str, owner: UUID = sb.OWNER_MICROSOFT, more: bytes = b"") -> Variable:
    return sb.kek_variable(x509_lists(map(microsoft, names), owner) + more, KEYS_TIME)


def db(*names: str, owner: UUID = sb.OWNER_MICROSOFT, more: bytes = b"") -> Variable:
    return sb.db_variable(x509_lists(map(microsoft, names), owner) + more, KEYS_TIME)


def dbx_hashes(count: int = DBX_HASHES, owner: UUID = sb.OWNER_MICROSOFT) -> bytes:
    """A signature list of made-up image hashes; 443 of them are 21,292 bytes."""
    return sha256_list([hashlib.sha256(b"image %d" % number).digest() for number in range(count)], owner)


def dbx(data: bytes | None = None) -> Variable:
    return sb.dbx_variable(dbx_hashes() if data is None else data, DBX_TIME)


def keys_2011() -> list[Variable]:
    return [pk(), kek("ms-kek-2011"), db(*NAMES_2011)]


@_scene
def _setup_mode(name: str) -> Scene:
    return _made(name, _around([]), "setup_mode")


@_scene
def _ms2011(name: str) -> Scene:
    return _made(name, _around(keys_2011()), "update_available", ALL_MISSING)


@_scene
def _ms2011_dbx(name: str) -> Scene:
    return _made(name, _around([dbx(), *reversed(keys_2011())]), "update_available", ALL_MISSING)


@_scene
def _ms2011_v1(name: str) -> Scene:
    return _made(name, _around(keys_2011()), "update_available", ALL_MISSING, version=1)


@_scene
def _ms2011_v0(name: str) -> Scene:
    return _made(name, _around(keys_2011()), "update_available", ALL_MISSING, version=0)


@_scene
def _ms2011_reversed(name: str) -> Scene:
    return _made(name, _around(keys_2011())[::-1], "update_available", ALL_MISSING)


@_scene
def _ms2011_ancillary(name: str) -> Scene:
    held = _around(keys_2011())
    blob = make_store(held, ancillary=filler("ancillary", sb.ANCILLARY_SIZE))
    return Scene(name, blob, "update_available", "update_required", tuple(held), ALL_MISSING)


@_scene
def _windows_updated_db_windows(name: str) -> Scene:
    keys = [dbx(), db(*NAMES_2011, "windows-2023"), kek("ms-kek-2011"), pk()]
    missing = {"KEK": ("ms-kek-2023",), "db": ("ms-uefi-2023", "ms-uefi-rom-2023")}
    return _made(name, _around(keys)[::-1], "update_available", missing)


@_scene
def _all2023(name: str) -> Scene:
    keys = [pk(), kek("ms-kek-2011", "ms-kek-2023"), db(*NAMES_2011, *NAMES_2023)]
    return _made(name, _around(keys), "ok")


@_scene
def _windows_only2011(name: str) -> Scene:
    keys = [pk(), kek("ms-kek-2011"), db("windows-2011")]
    return _made(name, _around(keys), "update_available", {"KEK": ("ms-kek-2023",), "db": ("windows-2023",)})


@_scene
def _custom_keys(name: str) -> Scene:
    keys = [pk(), kek(more=tenant(TENANT_KEK)), db(more=tenant(TENANT_DB))]
    return _made(name, _around(keys), "custom")


@_scene
def _wrong_owner_2023(name: str) -> Scene:
    wrong = sb.OWNER_WRONG
    keys = [
        pk(),
        kek("ms-kek-2011", "ms-kek-2023", owner=wrong),
        db(*NAMES_2011, *NAMES_2023, owner=wrong),
    ]
    return _made(name, _around(keys), "ok")


@_scene
def _wrong_owner_virt_firmware(name: str) -> Scene:
    wrong = sb.OWNER_VIRT_FIRMWARE
    keys = [
        pk(),
        kek("ms-kek-2011", more=x509_list(microsoft("ms-kek-2023"), wrong)),
        db(*NAMES_2011, more=x509_lists(map(microsoft, NAMES_2023), wrong)),
    ]
    return _made(name, _around(keys), "ok")


@_scene
def _oversized_dbx(name: str) -> Scene:
    """The same hashes three times under three owners: as appends made of it before the owner was put right."""
    owners = (sb.OWNER_MICROSOFT, sb.OWNER_WRONG, sb.OWNER_VIRT_FIRMWARE)
    grown = dbx(b"".join(dbx_hashes(owner=owner) for owner in owners))
    held = _around([grown, *reversed(keys_2011())])
    return _made(name, held, "damaged", ALL_MISSING, certcheck="update_required", loads=False)


@_scene
def _large(name: str) -> Scene:
    sizes = (16, 64, 900, 2000)
    vendor = [Variable(f"Vendor{number:03}", VENDOR_GUID, filler(f"Vendor{number}", sizes[number % 4])) for number in range(40)]
    held = vendor[39::-2] + _around([dbx(), *reversed(keys_2011())]) + vendor[0::2]
    return _made(name, held, "update_available", ALL_MISSING)


@_scene
def _custom_and_microsoft(name: str) -> Scene:
    keys = [
        pk(),
        kek("ms-kek-2011", more=tenant(TENANT_KEK)),
        sb.db_variable(tenant(TENANT_DB) + x509_lists(map(microsoft, NAMES_2011)), KEYS_TIME),
    ]
    return _made(name, _around(keys), "update_available", ALL_MISSING)


@_scene
def _kek_done(name: str) -> Scene:
    keys = [pk(), kek("ms-kek-2011", "ms-kek-2023"), db(*NAMES_2011)]
    return _made(name, _around(keys), "update_available", {"db": ALL_MISSING["db"]})


@_scene
def _db_done(name: str) -> Scene:
    """As a guest leaves it that applied Microsoft's three db updates by itself: KEK it cannot."""
    keys = [pk(), kek("ms-kek-2011"), db(*NAMES_2011, *NAMES_2023)]
    return _made(name, _around(keys), "update_available", {"KEK": ALL_MISSING["KEK"]})


@_scene
def _only2023(name: str) -> Scene:
    """No rule applies where no 2011 certificate stands."""
    return _made(name, _around([pk(), kek("ms-kek-2023"), db(*NAMES_2023)]), "custom")


@_scene
def _no_pk_2011(name: str) -> Scene:
    return _made(name, _around(keys_2011()[1:]), "update_available", ALL_MISSING)


@_scene
def _no_pk_custom(name: str) -> Scene:
    keys = [kek(more=tenant(TENANT_KEK)), db(more=tenant(TENANT_DB))]
    return _made(name, _around(keys), "setup_mode")


def _filled(keys: list[Variable], room: int) -> list[Variable]:
    """The keys and made-up vendor variables, so that exactly `room` bytes are left below TOTAL_LIMIT."""
    held = _around(keys)
    left = sb.TOTAL_LIMIT - room - sum(each.counted for each in held)
    for number in range(3):
        label = f"Filler{number}"
        size = left // (3 - number) - 2 * len(label) - sb.OVERHEAD_COUNTED
        held.append(Variable(label, VENDOR_GUID, filler(label, size)))
        left -= held[-1].counted
    return held


@_scene
def _nearly_full(name: str) -> Scene:
    return _made(name, _filled(keys_2011(), 64), "update_available", ALL_MISSING)


@_scene
def _room_without_headroom(name: str) -> Scene:
    """The update's 5,999 bytes fit, but Microsoft's next dbx update would not fit after them."""
    return _made(name, _filled(keys_2011(), 12_000), "update_available", ALL_MISSING)


@_scene
def _db_nearly_full(name: str) -> Scene:
    """The store has room, but db itself would outgrow DATA_LIMIT."""
    used = len(db(*NAMES_2011).data)
    hashes = dbx_hashes((sb.DATA_LIMIT - used - sb.SIGNATURE_LIST_HEADER_SIZE) // 48, sb.OWNER_TENANT)
    keys = [pk(), kek("ms-kek-2011"), db(*NAMES_2011, more=hashes)]
    return _made(name, _around(keys), "update_available", ALL_MISSING)


@_scene
def _shared_list(name: str) -> Scene:
    """Several certificates of one size in one signature list, before Microsoft's own lists."""
    names = ("A tenant's db 1", "A tenant's db 2", "A tenant's db 3")
    bodies = [identity(each, key_of=TENANT_DB).der for each in names]
    shared = signature_list(sb.CERT_X509, [(sb.OWNER_TENANT, body) for body in bodies])
    keys = [pk(), kek("ms-kek-2011"), sb.db_variable(shared + db(*NAMES_2011).data, KEYS_TIME)]
    return _made(name, _around(keys), "update_available", ALL_MISSING)


@_scene
def _duplicates(name: str) -> Scene:
    """The same certificate twice under one owner in KEK, and under two owners in db."""
    keys = [
        pk(),
        kek("ms-kek-2011", "ms-kek-2011"),
        db(*NAMES_2011, more=x509_list(microsoft("windows-2011"), sb.OWNER_TENANT)),
    ]
    return _made(name, _around(keys), "update_available", ALL_MISSING)


@_scene
def _duplicates_2023(name: str) -> Scene:
    """Complete, with a 2023 certificate under the right and under a wrong owner."""
    twice = x509_list(microsoft("windows-2023"), sb.OWNER_WRONG)
    keys = [pk(), kek("ms-kek-2011", "ms-kek-2023"), db(*NAMES_2011, *NAMES_2023, more=twice)]
    return _made(name, _around(keys), "ok")


@_scene
def _wrong_variable(name: str) -> Scene:
    """2023 certificates in dbx or under another vendor's `db` do not count."""
    elsewhere = Variable("db", VENDOR_GUID, x509_lists(map(microsoft, NAMES_2023)))
    keys = [*keys_2011(), dbx(x509_list(microsoft("ms-uefi-rom-2023"))), elsewhere]
    return _made(name, _around(keys), "update_available", ALL_MISSING)


@_scene
def _dbx_revokes_pca2011(name: str) -> Scene:
    """The boot manager's certificate is revoked while db lacks its successor: such a VM cannot boot Windows."""
    keys = [*keys_2011(), dbx(dbx_hashes(12) + x509_list(microsoft("windows-2011")))]
    return _made(name, _around(keys), "update_available", ALL_MISSING)


@_scene
def _dbx_svn(name: str) -> Scene:
    """A secure version number in dbx: a structured value under its own owner, in the shape of a hash."""
    svn = sha256_list([bytes.fromhex("01612b139dd5598843ab1c185cfcb2eb92000007") + bytes(12)], sb.OWNER_SVN)
    keys = [pk(), kek("ms-kek-2011", "ms-kek-2023"), db(*NAMES_2011, *NAMES_2023), dbx(dbx_hashes(12) + svn)]
    return _made(name, _around(keys), "ok")


@_scene
def _wrong_data_length(name: str) -> Scene:
    return _made(name, _around(keys_2011()), "update_available", ALL_MISSING, data_length=(1 << 64) - 3)


@_scene
def _empty(name: str) -> Scene:
    return _made(name, [], "setup_mode")


@_scene
def _version3(name: str) -> Scene:
    return _made(name, _around(keys_2011()), "unknown", version=3, loads=False)


SCENES = tuple(_recipes)
"""The names of all scenes."""
