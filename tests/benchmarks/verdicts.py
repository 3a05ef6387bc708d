"""What the verdict on a write costs, against the least that can be done with a store: hashing it once."""

from collections.abc import Callable, Iterator
from hashlib import sha256

from benchmarks import stores
from benchmarks.harness import Effort, Figure, interleaved, ratio, seconds
from varstore_companion.efi.outline import admit
from varstore_companion.files import load_manifest
from varstore_companion.trust.check import check
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.trust.verdict import decide, read_keys

YARDSTICK = "SHA-256 of the store"
UNCHANGED = 3.0
CHANGED = 15.0


def figures(effort: Effort) -> Iterator[Figure]:
    """The same store again, a store with another boot entry, and one whose db got a certificate."""
    yield _against_hash("verdict-same", "verdict, the same store again", _unchanged(stores.store()), UNCHANGED, effort)
    changed = _unchanged(stores.store_with_boot_entry())
    yield _against_hash("verdict-boot-entry", "verdict, a boot entry changed", changed, UNCHANGED, effort)
    yield _against_hash("verdict-db", "verdict, db got a certificate", _db_changed(), CHANGED, effort)


def _against_hash(name: str, what: str, call: Callable[[], object], target: float, effort: Effort) -> Figure:
    store = stores.store()
    rounds = interleaved(effort.calls, seconds(call, 10), seconds(lambda: sha256(store).digest(), 10))
    return ratio(name, what, rounds, YARDSTICK, target)


def _unchanged(after: bytes) -> Callable[[], object]:
    """The steps of `Vm.put` when the keys are as they are known."""
    manifest = load_manifest()
    known = read_keys(admit(stores.store()))

    def write() -> Update:
        outline = admit(after)
        keys = read_keys(outline, known)
        return decide(known, keys, outline, CertificatesState.UPDATE_AVAILABLE, manifest).update

    assert write() is Update.NO
    return write


def _db_changed() -> Callable[[], object]:
    """The steps of `Vm.put` when the keys changed: the store before is read and judged as well."""
    manifest = load_manifest()
    before, after = stores.store(), stores.store_with_certificate()
    known = read_keys(admit(before))

    def write() -> Update:
        outline = admit(after)
        keys = read_keys(outline, known)
        report = check(before, manifest)
        assert report.outline is not None
        seen = read_keys(report.outline, known)
        return decide(seen, keys, outline, CertificatesState.UPDATE_AVAILABLE, manifest).update

    assert write() is Update.NO
    return write
