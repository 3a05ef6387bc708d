"""Stores: byte for byte there and back, and every length checked."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support import storebytes as sb
from support.counting import calls, peak
from support.every import EVERY, known
from support.hostile import EVERYTHING, PLAIN
from support.storemaker import HOSTILE, cuts, firmware_variables, hostile, make_store, scene
from support.strategies import mutations, stores
from support.varstored_model import LoadRefused, VarstoredModel
from varstore_companion.efi import store
from varstore_companion.efi.names import readable_start
from varstore_companion.efi.outline import Limit, admit, outline
from varstore_companion.efi.variable import Variable
from varstore_companion.errors import MalformedError, OverLimitError, UnknownVersionError

PARSES_THOUGH_REFUSED = {"name_over_limit", "data_over_limit", "total_over_limit", "file_over_limit", "count_over_limit"}
"""Well formed, and over a limit."""


def as_made(variable: Variable) -> sb.Variable:
    """The product's variable as the independent store maker's."""
    return sb.Variable(
        variable.name, variable.guid, variable.data, variable.attributes, variable.timestamp.raw, variable.digest
    )


def check_error(error: MalformedError, blob: bytes) -> None:
    """An error says what, where inside the input, and what was expected."""
    assert error.what
    assert 0 <= error.offset <= len(blob)
    assert error.expected
    assert str(error.offset) in str(error)


@pytest.mark.parametrize("name", EVERY)
def test_every_store_round_trips_byte_for_byte(name: str) -> None:
    """Invariant 1."""
    made = known(name)
    if made.report == "unknown":
        with pytest.raises(UnknownVersionError):
            store.parse(made.blob)
        return
    assert store.parse(made.blob).build() == made.blob


@pytest.mark.parametrize("name", ["ms2011_dbx", "ms2011_v0", "ms2011_v1", "ms2011_ancillary", "wrong_data_length", "empty"])
def test_a_parsed_store_holds_what_was_put_in(name: str) -> None:
    made = scene(name)
    parsed = store.parse(made.blob)
    assert tuple(map(as_made, parsed.variables)) == tuple(
        sb.Variable(each.raw_name, each.guid, each.data, each.attributes, each.time, each.digest) for each in made.variables
    )
    assert (parsed.version, parsed.recorded_length) == struct.unpack_from("<4xI8xQ", made.blob)
    ancillary = b"" if parsed.ancillary is None else parsed.ancillary.build()
    assert ancillary == (made.blob[24:292] if parsed.version == 2 else b"")


@given(stores())
def test_any_accepted_store_round_trips(blob: bytes) -> None:
    """Invariant 1."""
    parsed = store.parse(blob)
    assert parsed.build() == blob
    assert [variable.data for variable in parsed.variables] == [each.data for each in VarstoredModel.load(blob).list()[::-1]]
    assert admit(blob) == outline(blob)


@given(stores().flatmap(mutations))
def test_a_damaged_store_is_read_exactly_when_varstored_reads_it(blob: bytes) -> None:
    """Invariants 1 and 2: what is admitted loads, what is refused does not, and what parses round trips."""
    try:
        VarstoredModel.load(blob)
        loads = True
    except LoadRefused:
        loads = False
    try:
        admit(blob)
    except MalformedError as error:
        check_error(error, blob)
        assert not loads
    except OverLimitError:
        assert store.parse(blob).build() == blob
        assert not loads
    else:
        assert store.parse(blob).build() == blob
        assert loads


@given(st.binary(max_size=400))
@example(b"")
@example(b"VARS")
def test_any_bytes_are_refused_with_our_own_error(blob: bytes) -> None:
    for data in (blob, b"VARS\1\0\0\0" + blob, b"VARS\2\0\0\0" + bytes([blob[0] if blob else 9, *bytes(15)]) + blob):
        try:
            assert store.parse(data).build() == data
        except MalformedError as error:
            check_error(error, data)


@pytest.mark.parametrize("name", ["custom_keys", "ms2011_v1", "setup_mode"])
def test_a_store_cut_at_every_byte_is_refused(name: str) -> None:
    for cut in cuts(scene(name).blob):
        with pytest.raises(MalformedError) as caught:
            store.parse(cut)
        check_error(caught.value, cut)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_stores_are_admitted_exactly_when_varstored_loads_them(name: str) -> None:
    made = hostile(name)
    if made.loads:
        assert admit(made.blob).damage is None
        assert store.parse(made.blob).build() == made.blob
        return
    with pytest.raises((MalformedError, OverLimitError)) as caught:
        admit(made.blob)
    if isinstance(caught.value, MalformedError):
        check_error(caught.value, made.blob)
    assert isinstance(caught.value, OverLimitError) == (name in PARSES_THOUGH_REFUSED)
    if name in PARSES_THOUGH_REFUSED:
        assert store.parse(made.blob).build() == made.blob


@pytest.mark.parametrize("version", [3, 4, (1 << 32) - 1])
def test_a_newer_version_is_told_from_damage(version: int) -> None:
    with pytest.raises(UnknownVersionError, match=f"version 0 to 2, found {version}") as caught:
        outline(make_store([PLAIN], version))
    assert caught.value.offset == 4


FIRST = 292
"""Where the first variable of a version 2 store starts."""
SIZE = len(PLAIN.encode())


@pytest.mark.parametrize(
    ("blob", "offset", "expected"),
    [
        (b"", 0, "24 bytes of header, found 0"),
        (b"VARS" + bytes(19), 23, "24 bytes of header, found 23"),
        (b"SRAV" + bytes(20), 0, "the magic VARS"),
        (make_store([PLAIN], 2, b"")[:200], 24, "268 bytes"),
        (make_store([PLAIN.encode(name_length=0)]), FIRST, "a name of 1 to"),
        (make_store([PLAIN.encode(name_length=EVERYTHING)]), FIRST, "found a length of 18,446,744,073,709,551,615"),
        (make_store([PLAIN, PLAIN.encode(data_length=0)]), FIRST + SIZE + 8 + 18, "data of 1 to 6 bytes"),
        (make_store([PLAIN, PLAIN.encode(data_length=7)]), FIRST + SIZE + 8 + 18, "found a length of 7"),
        (make_store([PLAIN], count=2), FIRST + SIZE, "84 bytes besides name and data, found 0"),
        (make_store([PLAIN, PLAIN], count=1), FIRST + SIZE, "nothing after the last of 1 variables"),
        (make_store([]) + b"\0", FIRST, "nothing after the last of 0 variables, found 1 bytes"),
    ],
)
def test_an_error_names_the_offset_in_the_store(blob: bytes, offset: int, expected: str) -> None:
    with pytest.raises(MalformedError) as caught:
        store.parse(blob)
    assert caught.value.offset == offset
    assert expected in caught.value.expected


def test_what_stands_before_the_damage_is_found() -> None:
    """Invariant 11: a store cut inside one variable is damaged, and is read up to there."""
    made = scene("custom_keys")
    before = made.blob.index(made.variables[8].encode())
    for cut in range(before, before + len(made.variables[8].encode())):
        found = outline(made.blob[:cut])
        assert found.damage is not None
        parsed = store.parse_outline(found)
        assert [each.data for each in parsed.variables] == [each.data for each in made.variables[:8]]


def _store_of_tiny_variables(count: int, *, says: int | None = None) -> bytes:
    return make_store([sb.Variable(struct.pack("<I", number), sb.GLOBAL, b"x") for number in range(count)], count=says)


@pytest.mark.parametrize("says", [None, EVERYTHING], ids=["the true count", "a count of 2**64 - 1"])
def test_work_and_memory_are_linear_in_the_input(says: int | None) -> None:
    """A lying count buys nothing, and twice the variables cost twice the work."""
    small, large = (_store_of_tiny_variables(count, says=says) for count in (1_000, 4_000))
    assert calls(lambda: outline(large).excesses()) < 5 * calls(lambda: outline(small).excesses())
    assert peak(lambda: outline(small).duplicated()) < 600 * 1_000
    assert peak(lambda: outline(large).duplicated()) < 600 * 4_000
    assert len(outline(large).places) == 4_000


def test_a_lying_length_allocates_nothing() -> None:
    blob = make_store([PLAIN.encode(name_length=1 << 40), PLAIN])
    assert peak(lambda: outline(blob)) < 20_000


@pytest.mark.parametrize(
    ("name", "limit", "text"),
    [
        ("name_over_limit", Limit.NAME, "4,098 bytes, at most 4,096"),
        ("data_over_limit", Limit.DATA, "data of variable Big: 57,345 bytes, at most 57,344"),
        ("total_over_limit", Limit.TOTAL, "131,073 bytes, at most 131,072"),
        ("file_over_limit", Limit.FILE, "store: 131,232 bytes, at most 131,072"),
        ("count_over_limit", Limit.VARIABLES, "store: 1,025 variables, at most 1,024"),
    ],
)
def test_a_broken_limit_is_named_with_its_numbers(name: str, limit: Limit, text: str) -> None:
    excesses = outline(hostile(name).blob).excesses()
    assert limit in [each.limit for each in excesses]
    assert any(text in str(each) for each in excesses)
    with pytest.raises(OverLimitError, match=text):
        admit(hostile(name).blob)


def test_the_limits_themselves_are_allowed() -> None:
    assert admit(make_store([sb.Variable("N" * 2048, sb.GLOBAL, bytes(sb.DATA_LIMIT))])).excesses() == ()
    first = [sb.Variable(f"V{number:03}", sb.GLOBAL, bytes(2)) for number in range(900)]
    last = sb.Variable("Last", sb.GLOBAL, bytes(sb.TOTAL_LIMIT - sum(each.counted for each in first) - 8 - 128))
    assert admit(make_store([*first, last])).total == sb.TOTAL_LIMIT


@pytest.mark.parametrize("name", ["ms2011_dbx", "ms2011_v1", "wrong_data_length"])
def test_replaced_data_changes_nothing_else(name: str) -> None:
    """Invariant 3: order, times, attributes, digests, ancillary block and version stay; the length is recorded anew."""
    made = scene(name)
    index = next(number for number, each in enumerate(made.variables) if each.name == "db")
    changed = store.parse(made.blob).with_data({index: b"something else"}).build()
    old = made.variables[index]
    new = sb.Variable(old.name, old.guid, b"something else", old.attributes, old.time, old.digest)
    version = struct.unpack_from("<I", made.blob, 4)[0]
    ancillary = made.blob[24:292] if version == 2 else b""
    assert changed == make_store([*made.variables[:index], new, *made.variables[index + 1 :]], version, ancillary)


def test_finding_a_variable_wants_name_and_vendor() -> None:
    before, after = firmware_variables()
    found = outline(make_store([*before, PLAIN, *after]))
    assert len(found.find((PLAIN.raw_name, sb.GLOBAL.bytes_le))) == 2
    assert found.find((PLAIN.raw_name, sb.IMAGE_SECURITY.bytes_le)) == ()
    assert found.duplicated() == ((PLAIN.raw_name, sb.GLOBAL.bytes_le),)


def test_a_message_shows_only_the_start_of_a_long_name() -> None:
    long = sb.Variable("N" * 40_000, sb.GLOBAL, b"x")
    found = outline(make_store([long, long]))
    assert [readable_start(name) for name, _ in found.duplicated()] == ["N" * 64]
    assert all(len(str(each)) < 200 for each in found.excesses())


@settings(max_examples=30)
@given(stores(), st.data())
def test_an_errors_offset_counts_from_the_outermost_input(blob: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, max(len(blob) - 1, 0)))
    with pytest.raises(MalformedError) as caught:
        store.parse(blob[:cut])
    inside = caught.value
    seen = inside.within("outer", 1000)
    assert seen.offset == inside.offset + 1000
    assert seen.expected == inside.expected
    assert str(seen).startswith("outer: ")
    assert type(seen) is type(inside)


@given(stores(), st.data())
def test_data_that_is_spliced_in_is_as_parsed_and_built(blob: bytes, data: st.DataObject) -> None:
    """Invariant 3: two ways to the same store, whatever was recorded as its length."""
    found = outline(blob)
    indices = data.draw(st.sets(st.integers(0, len(found.places) - 1))) if found.places else set()
    new = {index: data.draw(st.binary(min_size=1, max_size=40)) for index in indices}
    spliced = found.with_data({found.places[index]: content for index, content in new.items()})
    assert spliced == store.parse(blob).with_data(new).build()
