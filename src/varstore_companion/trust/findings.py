"""What else is to be said about a store, each with a stable code: nothing here changes the report's state."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from varstore_companion.efi import guid
from varstore_companion.efi.names import KeyVariable, readable_start
from varstore_companion.efi.outline import DATA_LIMIT, TOTAL_LIMIT, Outline
from varstore_companion.trust import certificates
from varstore_companion.trust.check import Lists, Report, State
from varstore_companion.trust.manifest import Certificate, Manifest
from varstore_companion.trust.plan import dbx_headroom

_X509 = guid.EFI_CERT_X509.bytes_le
_X509_SHA256 = guid.EFI_CERT_X509_SHA256.bytes_le


class Code(StrEnum):
    """The stable codes of findings."""

    DAMAGED = "damaged"
    UNKNOWN_VERSION = "unknown_version"
    OVER_LIMIT = "over_limit"
    SETUP_MODE = "setup_mode"
    SPACE = "space"
    DBX_HEADROOM = "dbx_headroom"
    DUPLICATE = "duplicate"
    WRONG_OWNER = "wrong_owner"
    CERTIFICATE = "certificate"
    REVOKED = "revoked_without_successor"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding; `detail` is a sentence for people."""

    code: Code
    detail: str


MOST_OF_A_CODE = 16
"""A hostile store can hold thousands of entries that do not parse; nobody reads that many lines."""


def findings(report: Report, manifest: Manifest) -> tuple[Finding, ...]:
    """Everything worth saying about a store beside the rules; of each code the first `MOST_OF_A_CODE` and how many more."""
    kept: list[Finding] = []
    counts = Counter[Code]()
    for finding in _findings(report, manifest):
        counts[finding.code] += 1
        if counts[finding.code] <= MOST_OF_A_CODE:
            kept.append(finding)
    more = [(code, count - MOST_OF_A_CODE) for code, count in counts.items() if count > MOST_OF_A_CODE]
    return (*kept, *(Finding(code, f"and {count:,} more") for code, count in more))


def _findings(report: Report, manifest: Manifest) -> Iterator[Finding]:
    damage = Code.UNKNOWN_VERSION if report.state is State.UNKNOWN else Code.DAMAGED
    for reason in (*map(str, report.damage), *report.violations):
        yield Finding(damage, reason)
    for excess in report.excesses:
        yield Finding(Code.OVER_LIMIT, f"{excess}: varstored refuses the whole store, and the VM does not start")
    outline = report.outline
    if outline is None:
        return
    if outline.damage is None and not outline.find(KeyVariable.PK.key):
        yield Finding(Code.SETUP_MODE, "no PK: the VM is in setup mode, and its guest may set any keys")
    for name, _ in outline.duplicated():
        yield Finding(Code.DUPLICATE, f"variable {readable_start(name)} stands in the store more than once")
    yield from _space(report, outline, manifest)
    for key, lists in report.lists.items():
        yield from _entries(key, lists, manifest)
    yield from _revocations(report, manifest)


def _space(report: Report, outline: Outline, manifest: Manifest) -> Iterator[Finding]:
    headroom = max(dbx_headroom(report) or 0, 0)
    used = f"{outline.total:,} of {TOTAL_LIMIT:,} bytes are used"
    yield Finding(Code.SPACE, f"{used}, and {headroom:,} can be appended to dbx")
    if headroom < manifest.headroom:
        dbx = max((end - start for _, _, start, end in outline.find(KeyVariable.DBX.key)), default=0)
        yield Finding(
            Code.DBX_HEADROOM,
            f"Microsoft's next dbx update of {manifest.headroom:,} bytes may not fit: {headroom:,} are left (dbx holds "
            f"{dbx:,} of {DATA_LIMIT:,}, and {used})",
        )


def _entries(key: KeyVariable, lists: Lists, manifest: Manifest) -> Iterator[Finding]:
    repeated = lists.repeated()
    if repeated:
        data, count = repeated[0]
        more = f", and {len(repeated) - 1:,} other entries stand there more than once" if len(repeated) > 1 else ""
        yield Finding(Code.DUPLICATE, f"{key}: {_name(data, manifest)} stands there {count:,} times{more}")
    wrong = {owner.bytes_le: owner for owner in manifest.wrong_owners}
    for owner, data in lists.of_type(_X509):
        if owner in wrong and _known(data, manifest) is not None:
            yield Finding(
                Code.WRONG_OWNER,
                f"{key}: {_name(data, manifest)} stands under the owner {wrong[owner]} instead of {manifest.signature_owner}: "
                "a signed update that carries it would add it again",
            )
        if (problem := certificates.problem(data)) is not None:
            yield Finding(Code.CERTIFICATE, f"{key}: {_name(data, manifest)} {problem}")


def _revocations(report: Report, manifest: Manifest) -> Iterator[Finding]:
    dbx, db = report.lists.get(KeyVariable.DBX), report.lists.get(KeyVariable.DB)
    if dbx is None:
        return
    revoked_bodies = dbx.certificates()
    # EFI_CERT_X509_SHA256: the hash of the TBSCertificate, then the time of revocation (UEFI 2.10, section 32.4.1).
    revoked_hashes = {data[:32] for _, data in dbx.of_type(_X509_SHA256)}
    present = frozenset[bytes]() if db is None else db.certificates()
    for revocation in manifest.revocations:
        revoked = revocation.revoked
        is_revoked = revoked.sha256 in revoked_bodies or revoked.tbs_sha256 in revoked_hashes
        if is_revoked and revocation.successor.sha256 not in present:
            yield Finding(
                Code.REVOKED,
                f"dbx revokes {revoked.subject}, and db lacks {revocation.successor.subject}: what they sign does not boot",
            )


def _known(data: bytes, manifest: Manifest) -> Certificate | None:
    digest = sha256(data).digest()
    return next((known for known in manifest.certificates.values() if known.sha256 == digest), None)


def _name(data: bytes, manifest: Manifest) -> str:
    known = _known(data, manifest)
    return f"the entry with SHA-256 {sha256(data).hexdigest()[:16]}…" if known is None else known.subject
