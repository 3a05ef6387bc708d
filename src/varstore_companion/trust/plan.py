"""The update: what would be added to a store or corrected in it, refused with numbers or carried out byte-exactly."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256

from varstore_companion.efi import guid, siglist
from varstore_companion.efi.names import KeyVariable
from varstore_companion.efi.outline import (
    DATA_LIMIT,
    FILE_LIMIT,
    HEADER_SIZE,
    OVERHEAD,
    TAIL_SIZE,
    TOTAL_LIMIT,
    VOLATILE_TOTAL,
    Outline,
    Place,
)
from varstore_companion.efi.siglist_outline import OWNER_SIZE
from varstore_companion.trust.certificates import Bodies
from varstore_companion.trust.check import Lists, Report, State, check
from varstore_companion.trust.manifest import Certificate, Manifest, Rule


class Action(StrEnum):
    """What one change does: add a certificate, or correct the owner of one that is there."""

    ADD = "add"
    REOWN = "reown"


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `size`: the bytes by which the store grows."""

    variable: KeyVariable
    action: Action
    certificate: Certificate
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What an update would do to a store.

    `refused`: why it must not be made, or None; then `after` is the report on the store as it is. `store`: the store to
    keep, which is the old one, byte for byte, when there is nothing to do or the update is refused. `headroom`: the bytes
    that the guest can still append to dbx with `store` in place, below 0 when a limit is already broken, None when it
    cannot be read.
    """

    before: Report
    after: Report
    changes: tuple[Change, ...]
    store: bytes
    bytes_before: int
    headroom: int | None
    refused: str | None

    @property
    def bytes_after(self) -> int:
        """Bytes of the store to keep."""
        return len(self.store)


def plan(blob: bytes, manifest: Manifest, bodies: Bodies, *, headroom: int | None = None, before: Report | None = None) -> Plan:
    """Plan the update of a store: each missing certificate, and each known wrong owner of one that the rules require.

    `headroom`: bytes that must stay free for the next append to dbx, the manifest's when None; `before`: the report on
    these very bytes by this manifest, where there is one. Raises nothing: a store that cannot be read, a body that no
    source has and a limit that would be broken are reasons in `refused`.
    """
    before = before or check(blob, manifest)
    kept = Plan(before, before, (), blob, len(blob), dbx_headroom(before), None)
    if before.outline is None or before.state in (State.DAMAGED, State.UNKNOWN):
        return replace(kept, refused=f"the store is {before.state}: {'; '.join(before.reasons)}")
    lacking = [certificate for _, certificate in before.missing if certificate.sha256 not in bodies]
    if lacking:
        named = ", ".join(f"{certificate.subject} ({certificate.sha256.hex()})" for certificate in lacking)
        return replace(kept, refused=f"no certificate source has the body of {named}")
    changes, data = _changes(before, before.outline, manifest, bodies)
    if not changes:
        return kept
    updated = before.outline.with_data(data)
    after = check(updated, manifest)
    planned = replace(kept, after=after, changes=tuple(changes), store=updated, headroom=dbx_headroom(after))
    refused = _refusal(after, before.outline, data, changes, manifest.headroom if headroom is None else headroom)
    return planned if refused is None else replace(kept, changes=tuple(changes), refused=refused)


def dbx_headroom(report: Report) -> int | None:
    """Bytes that the guest can still append to dbx before one of varstored's limits is broken."""
    if report.outline is None:
        return None
    dbx = max((end - start for _, _, start, end in report.outline.find(KeyVariable.DBX.key)), default=0)
    return min(DATA_LIMIT - dbx, _shared_room(report.outline))


def _shared_room(outline: Outline) -> int:
    """Bytes left in what all variables share while the VM runs, once dbx exists."""
    new_variable = 0 if outline.find(KeyVariable.DBX.key) else OVERHEAD + len(KeyVariable.DBX.key[0])
    return min(TOTAL_LIMIT - VOLATILE_TOTAL - outline.total, FILE_LIMIT - len(outline.blob)) - new_variable


def _changes(report: Report, outline: Outline, manifest: Manifest, bodies: Bodies) -> tuple[list[Change], dict[Place, bytes]]:
    """What is to be done, in the store's order, and the new data of each variable that it changes."""
    changes: list[Change] = []
    data: dict[Place, bytes] = {}
    by_variable: dict[KeyVariable, list[Rule]] = {}
    for rule in manifest.rules:
        by_variable.setdefault(rule.variable, []).append(rule)
    for variable, lists in report.lists.items():
        if variable not in by_variable:
            continue
        required = {each.sha256: each for rule in by_variable[variable] for each in rule.required}
        content = bytearray(lists.data)
        corrected = _reown(content, lists, manifest, frozenset(required))
        changes += [Change(variable, Action.REOWN, required[digest], 0) for digest in corrected]
        for certificate in [certificate for missing_in, certificate in report.missing if missing_in is variable]:
            added = siglist.x509_list(manifest.signature_owner, bodies[certificate.sha256]).build()
            content += added
            changes.append(Change(variable, Action.ADD, certificate, len(added)))
        if content != lists.data:
            # A store in which it stands twice is damaged, and no update of it gets here.
            (place,) = outline.find(variable.key)
            data[place] = bytes(content)
    return changes, data


def _reown(content: bytearray, lists: Lists, manifest: Manifest, required: frozenset[bytes]) -> list[bytes]:
    """Correct in place the owner of each required certificate that stands only under known wrong ones; return their SHA-256.

    One that stands under the right owner as well is left alone: it would become the same entry twice. `lists`: of `content`.
    """
    found: dict[bytes, list[int]] = {}
    for place in lists.places:
        if place.type == guid.EFI_CERT_X509.bytes_le:
            for at in range(place.body, place.end, place.signature_size):
                digest = sha256(content[at + OWNER_SIZE : at + place.signature_size]).digest()
                if digest in required:
                    found.setdefault(digest, []).append(at)
    right = manifest.signature_owner.bytes_le
    wrong = {owner.bytes_le for owner in manifest.wrong_owners}
    corrected = []
    for digest, places in found.items():
        owners = {at: bytes(content[at : at + OWNER_SIZE]) for at in places}
        if right in owners.values():
            continue
        first = next((at for at in places if owners[at] in wrong), None)
        if first is not None:
            content[first : first + OWNER_SIZE] = right
            corrected.append(digest)
    return corrected


def _is_as_planned(after: Outline, before: Outline, data: Mapping[Place, bytes]) -> bool:
    """Whether a rebuilt store, as it reads back, is the old one but for `data` and the recorded length (invariant 3)."""
    if after.damage is not None or after.version != before.version:
        return False
    is_front_kept = after.blob[HEADER_SIZE : after.start] == before.blob[HEADER_SIZE : before.start]
    return is_front_kept and list(_variables(after, {})) == list(_variables(before, data))


def _variables(outline: Outline, data: Mapping[Place, bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Each variable's name, data and what follows that; `data`: what some are to hold instead of what they do."""
    blob = outline.blob
    for place in outline.places:
        name, name_end, start, end = place
        yield blob[name:name_end], data.get(place) or blob[start:end], blob[end : end + TAIL_SIZE]


def _refusal(after: Report, before: Outline, data: Mapping[Place, bytes], changes: list[Change], headroom: int) -> str | None:
    """Why the rebuilt store must not be kept; it has been parsed again from its bytes (invariant 2)."""
    if after.state is State.DAMAGED:
        return f"the updated store would break a limit: {'; '.join(after.reasons)}"
    if after.outline is None or after.missing or not _is_as_planned(after.outline, before, data):
        return "the updated store does not read back as it was planned"
    held = {variable: after.lists[variable].certificates() for variable in {change.variable for change in changes}}
    if not all(change.certificate.sha256 in held[change.variable] for change in changes):
        return "the updated store does not hold what was added"
    added = any(change.action is Action.ADD for change in changes)
    room = _shared_room(after.outline)
    if added and room < headroom:
        growth = sum(change.size for change in changes)
        return (
            f"the update needs {growth:,} bytes and would leave {room:,} of the {headroom:,} that the guest's next append to "
            f"dbx needs: {after.outline.total:,} of {TOTAL_LIMIT:,} bytes would be used"
        )
    return None
