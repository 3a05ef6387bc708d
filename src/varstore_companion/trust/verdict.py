"""The verdict on a write: design's table, from the store before, the store after, the toolstack's field and the manifest."""

from dataclasses import dataclass
from hashlib import sha256

from varstore_companion.efi import siglist_outline
from varstore_companion.efi.names import KeyVariable
from varstore_companion.efi.outline import Outline
from varstore_companion.errors import MalformedError
from varstore_companion.trust.check import State, check_outline
from varstore_companion.trust.manifest import Manifest
from varstore_companion.trust.state import CertificatesState, Update

_KEYS = {key.key: key for key in (KeyVariable.PK, KeyVariable.KEK, KeyVariable.DB)}
_LONGEST_NAME = max(len(name) for name, _ in _KEYS)
_NOT_COMPLETE = frozenset({CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT})


@dataclass(frozen=True, slots=True)
class Keys:
    """What PK, KEK and db hold, by digest: 64 bytes for each VM rather than its store.

    `stored`: of their data as it stands; `members`: of each as a set of (type, owner, data), whatever the order. A
    variable that is not signature lists counts as one member, its bytes.
    """

    stored: bytes
    members: bytes


def read_keys(outline: Outline, before: Keys | None = None) -> Keys:
    """The keys of a store, damaged or not; `before` saves the work when they are as they were."""
    found: list[tuple[str, bytes]] = []
    blob = outline.blob
    for name, name_end, data, data_end in outline.places:
        # Most names are longer: nothing of those variables need be cut out. The vendor's GUID follows the data.
        if name_end - name <= _LONGEST_NAME:
            key = _KEYS.get((blob[name:name_end], blob[data_end : data_end + 16]))
            if key is not None:
                found.append((key.text, blob[data:data_end]))
    # varstored writes its variables in the reverse order after each load: never compare by position.
    found.sort()
    stored = sha256()
    for text, content in found:
        stored.update(b"%s %d " % (text.encode(), len(content)))
        stored.update(content)
    digest = stored.digest()
    if before is not None and before.stored == digest:
        return before
    members = sha256()
    for member in sorted({member for text, content in found for member in _members(text.encode(), content)}):
        members.update(member)
    return Keys(digest, members.digest())


def _members(variable: bytes, data: bytes) -> set[bytes]:
    try:
        places = siglist_outline.walk(data)
    except MalformedError:
        return {sha256(variable + b" bytes " + data).digest()}
    return {sha256(variable + b" member " + place.type + entry).digest() for place in places for entry in place.entries(data)}


NO_KEYS = read_keys(Outline(b"", 0, (), None))
"""The keys of a VM that has no store yet: the toolstack said that the NVRAM key is absent."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The `update` to write with, and why, in words for the log. `report`: on the new store, None when not needed."""

    update: Update
    reason: str
    report: State | None = None


_UNCHANGED = Verdict(Update.NO, "PK, KEK and db are unchanged")


def decide(
    before: Keys | None,
    after: Keys,
    outline: Outline,
    field: CertificatesState | None,
    manifest: Manifest,
) -> Verdict:
    """Decide on the write of the store that `outline` describes, whose keys are `after`.

    `before`: the keys of the store that the toolstack holds, None when that is not known. `field`: what the toolstack's
    field says, None when it has none; not looked at when the keys are unchanged, so a caller need not ask for it then.
    """
    if before is not None and before.members == after.members:
        return _UNCHANGED
    what = "PK, KEK or db changed" if before is not None else "the store before is not known"
    report = check_outline(outline, manifest)
    if report.complete:
        return Verdict(Update.YES, f"{what}, and the store is complete", report.state)
    if before is not None and report.state is State.UPDATE_AVAILABLE and field in _NOT_COMPLETE:
        return Verdict(Update.NO, f"{what}, the store still needs an update, and the toolstack says {field}", report.state)
    return Verdict(Update.UNSPECIFIED, f"{what}, and the store is {report.state}: the toolstack has to check it", report.state)
