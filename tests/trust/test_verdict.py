"""The verdict on a write, row by row of the table, and that a mark is never lost."""

import hashlib
import struct
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import fixtures
from support import storebytes as sb
from support.certificates import identity
from support.hostile import PLAIN
from support.shipped import Keys, own, own_manifest, shipped
from support.siglist_rules import ListRefused, walk
from support.storemaker import SCENES, make_store, scene, sha256_list
from support.varstored_model import VarstoredModel
from varstore_companion.efi.outline import outline
from varstore_companion.errors import UnknownVersionError
from varstore_companion.trust.manifest import Manifest
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.trust.verdict import NO_KEYS, decide, read_keys

FIELDS = (None, *CertificatesState)
TO_DO = (CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT)
NOT_TO_DO = (None, CertificatesState.OK)
APPEND = sb.ATTRIBUTES_KEYS | sb.APPEND_WRITE


def verdict(
    before: bytes | None, after: bytes, field: CertificatesState | None, *, known: bool = True, manifest: Manifest | None = None
) -> Update:
    """The verdict on a write of `after` over `before`; None: the key is absent. `known`: whether `before` is known."""
    keys = None if not known else NO_KEYS if before is None else read_keys(outline(before))
    found = outline(after)
    made = decide(keys, read_keys(found, keys), found, field, manifest or own_manifest())
    assert made.reason
    return made.update


def verdicts(before: bytes | None, after: bytes, *, known: bool = True, manifest: Manifest | None = None) -> set[Update]:
    """The verdicts whatever the toolstack's field says."""
    return {verdict(before, after, field, known=known, manifest=manifest) for field in FIELDS}


def store(keys: Keys, *more: sb.Variable) -> bytes:
    return make_store([*keys.variables(), *more])


OLD = Keys()
HALF = Keys(db=("old-db", "old-other", "new-db"))
WHOLE = Keys(("old-kek", "new-kek"), ("old-db", "old-other", "new-db", "new-rom", "new-other"))
NEITHER = Keys(("new-kek",), ("new-db",))


@pytest.mark.parametrize("name", SCENES)
def test_a_write_that_changes_no_keys_is_no(name: str) -> None:
    """Invariant 7, row 1: boot entries come and go, and the mark stays."""
    made = scene(name)
    if made.report == "unknown":
        with pytest.raises(UnknownVersionError):
            outline(made.blob)
        return
    others = [each for each in made.variables if each.name not in ("PK", "KEK", "db")]
    changed = [each for each in made.variables if each not in others]
    after = [*changed, sb.Variable("BootNext", sb.GLOBAL, bytes(2)), *others[::2], sb.dbx_variable(sha256_list([bytes(32)]))]
    assert verdicts(made.blob, make_store(after), manifest=shipped()) == {Update.NO}
    assert verdicts(made.blob, made.blob, manifest=shipped()) == {Update.NO}


@pytest.mark.parametrize("name", ["ms2011", "all2023", "custom_and_microsoft", "windows_updated_db_windows"])
def test_the_reverse_order_of_variables_is_no_change(name: str) -> None:
    """Invariant 7: varstored writes its variables in the reverse order after each load."""
    blob = scene(name).blob
    turned = VarstoredModel.load(blob).save()
    assert turned != blob
    assert verdicts(blob, turned, manifest=shipped()) == {Update.NO}


def test_the_order_and_the_grouping_of_entries_are_no_change() -> None:
    """Invariant 7: keys are sets of (type, owner, data)."""
    one, two = own("new-kek"), own("new-rom")
    assert len(one) == len(two)
    apart = sb.x509_list(one) + sb.x509_list(two)
    turned = sb.x509_list(two) + sb.x509_list(one)
    together = sb.signature_list(sb.CERT_X509, [(sb.OWNER_MICROSOFT, two), (sb.OWNER_MICROSOFT, one)])
    for after in (turned, together):
        assert verdicts(make_store([sb.db_variable(apart)]), make_store([sb.db_variable(after)])) == {Update.NO}


def test_the_order_of_many_entries_is_no_change() -> None:
    """Invariant 7."""
    hashes = [hashlib.sha256(b"%d" % number).digest() for number in range(300)]
    before, after = (make_store([sb.db_variable(sha256_list(each))]) for each in (hashes, hashes[::-1]))
    assert verdicts(before, after) == {Update.NO}


def test_an_entry_that_is_added_again_is_no_change() -> None:
    """Invariant 7."""
    again = Keys(("old-kek", "old-kek"), ("old-db", "old-other", "old-db"))
    assert verdicts(store(OLD), store(again)) == {Update.NO}
    assert verdicts(store(again), store(OLD)) == {Update.NO}


def test_attributes_and_times_of_keys_are_no_change() -> None:
    later = [sb.Variable(each.name, each.guid, each.data, 7, bytes(range(16)), bytes(range(32))) for each in OLD.variables()]
    assert verdicts(store(OLD), make_store(later)) == {Update.NO}


@pytest.mark.parametrize("data", [b"no list at all", sha256_list([bytes(32)]) + b"cut", bytes(28)])
def test_a_malformed_db_that_stays_is_no_change(data: bytes) -> None:
    """Invariant 7: what cannot be read counts as one member, its bytes."""
    before = make_store([sb.db_variable(data), PLAIN])
    assert verdicts(before, make_store([sb.db_variable(data)])) == {Update.NO}
    assert verdicts(before, make_store([sb.db_variable(data + b"x")])) == {Update.UNSPECIFIED}
    assert verdicts(before, make_store([])) == {Update.UNSPECIFIED}


def test_a_change_of_any_of_the_three_is_a_change() -> None:
    tenants = sb.x509_list(identity("A tenant's next").der, sb.OWNER_TENANT)
    for name in ("PK", "KEK", "db"):
        others = [each for each in NEITHER.variables() if each.name != name]
        new = {"PK": sb.pk_variable, "KEK": sb.kek_variable, "db": sb.db_variable}[name](tenants)
        assert verdicts(store(NEITHER), make_store([*others, new])) == {Update.UNSPECIFIED}
        assert verdicts(store(NEITHER), make_store(others)) == {Update.UNSPECIFIED}


def test_owner_and_type_are_part_of_a_member() -> None:
    body = bytes(32)
    lists = [
        sb.sha256_list([body], sb.OWNER_TENANT),
        sb.sha256_list([body], sb.OWNER_MICROSOFT),
        sb.signature_list(sb.CERT_X509, [(sb.OWNER_TENANT, body)]),
    ]
    stores = [make_store([sb.db_variable(each)]) for each in lists]
    stores.append(make_store([sb.kek_variable(lists[0])]))
    stores.append(make_store([sb.db_variable(lists[0] + lists[1])]))
    assert len({read_keys(outline(each)).members for each in stores}) == len(stores)


def test_dbx_and_strange_variables_are_no_keys() -> None:
    more = [
        sb.dbx_variable(sha256_list([bytes(32)])),
        sb.Variable("dbt", sb.IMAGE_SECURITY, sha256_list([bytes(32)])),
        sb.Variable("db", sb.GLOBAL, b"x"),
        sb.Variable("PK", sb.IMAGE_SECURITY, b"x"),
        sb.Variable("KEKx", sb.GLOBAL, b"x"),
    ]
    assert verdicts(store(OLD), store(OLD, *more)) == {Update.NO}


@pytest.mark.parametrize("before", [OLD, HALF, NEITHER])
def test_a_change_to_a_complete_store_is_yes(before: Keys) -> None:
    """Row 2."""
    assert verdicts(store(before), store(WHOLE)) == {Update.YES}


def test_a_change_between_complete_stores_is_yes() -> None:
    """Row 2."""
    more = Keys(WHOLE.kek, (*WHOLE.db, "a tenant's"))
    assert verdicts(store(WHOLE), store(more)) == {Update.YES}


@pytest.mark.parametrize("field", FIELDS)
def test_a_change_that_leaves_work_to_do_lets_the_mark_live(field: CertificatesState | None) -> None:
    """Invariant 7, row 3 where the field says so already, row 4 where it has to be corrected."""
    expected = Update.NO if field in TO_DO else Update.UNSPECIFIED
    assert verdict(store(OLD), store(HALF), field) is expected
    assert verdict(store(WHOLE), store(HALF), field) is expected
    assert verdict(store(NEITHER), store(OLD), field) is expected


def test_a_change_to_keys_of_which_no_rule_speaks_is_unspecified() -> None:
    """Row 4: certcheck has to say what becomes of the field."""
    assert verdicts(store(OLD), store(NEITHER)) == {Update.UNSPECIFIED}
    assert verdicts(store(OLD), make_store([PLAIN])) == {Update.UNSPECIFIED}
    assert verdicts(store(WHOLE), make_store([])) == {Update.UNSPECIFIED}


def test_a_change_to_a_damaged_store_is_unspecified() -> None:
    """Invariant 11, row 4: neither `yes`, nor a `no` that would leave the field to speak for what nobody can read."""
    kek = next(each for each in WHOLE.variables() if each.name == "KEK")
    assert verdicts(store(OLD), make_store([kek, sb.db_variable(b"no lists")])) == {Update.UNSPECIFIED}
    over = store(WHOLE, sb.Variable("Big", sb.GLOBAL, bytes(sb.DATA_LIMIT + 1)))
    assert verdicts(store(OLD), over) == {Update.UNSPECIFIED}
    assert verdicts(store(WHOLE), over) == {Update.NO}
    cut = store(WHOLE, PLAIN)[:-1]
    assert verdicts(store(OLD), cut) == {Update.UNSPECIFIED}


@pytest.mark.parametrize(
    ("after", "expected"),
    [(WHOLE, Update.YES), (OLD, Update.UNSPECIFIED), (HALF, Update.UNSPECIFIED), (NEITHER, Update.UNSPECIFIED)],
)
def test_where_the_store_before_is_not_known_only_a_complete_one_is_yes(after: Keys, expected: Update) -> None:
    """Row 4."""
    assert verdicts(None, store(after), known=False) == {expected}
    assert verdicts(None, make_store([]), known=False) == {Update.UNSPECIFIED}


def test_the_first_write_of_a_vm_is_judged_against_no_keys() -> None:
    """Invariant 4: the toolstack said that the key is absent, so there is a store before, without keys."""
    assert verdicts(None, make_store([PLAIN])) == {Update.NO}
    assert verdicts(None, store(WHOLE)) == {Update.YES}
    assert {verdict(None, store(OLD), field) for field in TO_DO} == {Update.NO}
    assert {verdict(None, store(OLD), field) for field in NOT_TO_DO} == {Update.UNSPECIFIED}
    assert verdicts(None, store(NEITHER)) == {Update.UNSPECIFIED}


def test_a_guest_that_updates_itself_ends_at_yes() -> None:
    """Microsoft's three updates by the guest: with KEK done by the host before, the last one completes the store."""
    model = VarstoredModel.load(scene("kek_done").blob)
    seen = []
    for file in fixtures.DB_UPDATES:
        before = model.save()
        model.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update(file))
        seen.append(verdict(before, model.save(), CertificatesState.UPDATE_ON_BOOT, manifest=shipped()))
    assert seen == [Update.NO, Update.NO, Update.YES]


def test_keys_that_did_not_change_are_not_read_again() -> None:
    before = read_keys(outline(store(OLD)))
    assert read_keys(outline(store(OLD, PLAIN)), before) is before
    assert read_keys(outline(VarstoredModel.load(store(OLD, PLAIN)).save()), before) is before
    assert read_keys(outline(store(HALF)), before).members != before.members


def members(blob: bytes) -> frozenset[tuple[str, bytes, bytes]]:
    """PK, KEK and db as the set of (type, owner and data), told without the product."""
    found: set[tuple[str, bytes, bytes]] = set()
    for each in VarstoredModel.load(blob).list():
        if (each.name, each.guid) not in {("PK", sb.GLOBAL), ("KEK", sb.GLOBAL), ("db", sb.IMAGE_SECURITY)}:
            continue
        try:
            found |= {(str(each.name), part.kind.bytes, entry) for part in walk(each.data) for entry in part.entries}
        except ListRefused:
            found.add((str(each.name), b"bytes", each.data))
    return frozenset(found)


NAMES = st.lists(st.sampled_from(("old-db", "old-other", "new-db", "new-rom", "new-other")), max_size=6).map(tuple)
KEK_NAMES = st.lists(st.sampled_from(("old-kek", "new-kek")), max_size=3).map(tuple)
WRONG = st.frozensets(st.sampled_from(("old-db", "new-db", "old-kek")))


@st.composite
def key_stores(draw: st.DrawFn) -> bytes:
    """A store with keys, or with a db that is no list, in any order of its variables."""
    keys = Keys(draw(KEK_NAMES), draw(NAMES), b"", draw(WRONG)).variables()
    if draw(st.integers(0, 5)) == 0:
        keys = [each for each in keys if each.name != "db"] + [sb.db_variable(draw(st.sampled_from((b"one", b"two"))))]
    extra = [sb.Variable(struct.pack("<H", number), sb.GLOBAL, b"x") for number in range(draw(st.integers(0, 3)))]
    return make_store(draw(st.permutations([*keys, *extra])))


def expected(before: bytes, after: bytes, field: CertificatesState | None) -> Update:
    """The table, told without the product."""
    if members(before) == members(after):
        return Update.NO
    held = {(name, hashlib.sha256(entry[16:]).digest()) for name, kind, entry in members(after) if kind != b"bytes"}
    if any(kind == b"bytes" for _, kind, _ in members(after)):
        return Update.UNSPECIFIED
    rules = [
        [(str(rule.variable), each.sha256) in held for each in rule.required]
        for rule in own_manifest().rules
        if (str(rule.variable), rule.present.sha256) in held
    ]
    if rules and all(map(all, rules)):
        return Update.YES
    return Update.NO if rules and field in TO_DO else Update.UNSPECIFIED


@settings(max_examples=150)
@given(key_stores(), key_stores(), st.sampled_from(FIELDS))
def test_any_write_has_the_verdict_of_the_table(before: bytes, after: bytes, field: CertificatesState | None) -> None:
    assert verdict(before, after, field) is expected(before, after, field)


def _regrouped(data: bytes, order: Sequence[int]) -> bytes:
    """The same entries, each in a list of its own, in another order; what is no list stays."""
    try:
        entries = [(part.kind, entry) for part in walk(data) for entry in part.entries]
    except ListRefused:
        return data
    turned = [entries[number % len(entries)] for number in order] if entries else []
    kept = [*turned, *entries]
    return b"".join(sb.signature_list(kind, [(UUID(bytes_le=each[:16]), each[16:])]) for kind, each in kept)


@given(blob=key_stores(), order=st.lists(st.integers(0, 20), max_size=8), field=st.sampled_from(FIELDS), turned=st.booleans())
def test_an_unchanged_membership_is_never_anything_but_no(
    blob: bytes, order: list[int], field: CertificatesState | None, *, turned: bool
) -> None:
    """Invariant 7: whatever the order, the grouping and the repetition of entries, and whatever the field."""
    held = []
    for each in VarstoredModel.load(blob).list():
        data = _regrouped(each.data, order) if each.name in ("KEK", "db") else each.data
        held.append(sb.Variable(each.name, each.guid, data, each.attributes, each.time))
    after = make_store(held[::-1] if turned else held)
    assert members(after) == members(blob)
    assert verdict(blob, after, field) is Update.NO
    assert verdict(after, blob, field) is Update.NO
