"""The journal's format: what was written is read, and nothing else is, whatever became of the bytes."""

from hashlib import blake2b, sha256
from struct import pack
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varstore_companion.efi import outline
from varstore_companion.errors import OverLimitError, UnknownVersionError
from varstore_companion.journal import record
from varstore_companion.journal.entry import Damage
from varstore_companion.journal.record import BLOCK, PAGE, Head, Kind, aligned, decode, encode, scan, segment_header, store_head
from varstore_companion.wire import limits

ID = bytes(range(16))
VM = UUID("12345678-1234-5678-9abc-def012345678")


def batches(*contents: list[tuple[Head, bytes]], segment_id: bytes = ID) -> bytes:
    """A segment with these batches."""
    data = segment_header(segment_id)
    for content in contents:
        for head, store in content:
            data += encode(head, store, segment_id, len(data))
        data = data.ljust(aligned(len(data), PAGE), b"\0")
    return data


def stored(sequence: int, store: bytes, vm: UUID = VM, replaces: tuple[bytes, ...] = ()) -> tuple[Head, bytes]:
    return store_head(sequence, vm, 1.5, store, replaces), store


def done(sequence: int, vm: UUID = VM) -> tuple[Head, bytes]:
    return record.done_head(sequence, vm, 2.5), b""


EXAMPLE = batches(
    [stored(1, b"first" * 200), stored(2, bytes(3000), replaces=(b"r" * 32, b"s" * 32)), done(1)],
    [done(2)],
    [stored(3, b"\xff" * 5000), stored(4, b"")],
)
HEADS = [head for _, head in scan("example", EXAMPLE).records]

heads = st.builds(
    lambda sequence, vm, at, store, replaces: (store_head(sequence, vm, at, store, tuple(replaces)), store),
    st.integers(0, 2**64 - 1),
    st.uuids(),
    st.floats(allow_nan=False),
    st.binary(max_size=3000),
    st.lists(st.binary(min_size=32, max_size=32), max_size=3),
) | st.builds(done, st.integers(0, 2**64 - 1), st.uuids())


def test_the_bytes_are_those_of_the_description() -> None:
    head, store = stored(7, b"store", replaces=(b"r" * 32,))
    fixed = b"VSCR" + pack("<BBHIIQ", 1, 0, 1, 5, 0, 7) + VM.bytes + pack("<d", 1.5) + sha256(b"store").digest()
    seal = blake2b(pack("<Q", PAGE) + fixed + b"r" * 32, digest_size=16, key=ID).digest()
    assert encode(head, store, ID, PAGE) == (fixed + seal + b"r" * 32 + b"store").ljust(BLOCK, b"\0")
    first = b"VSCJOURN" + pack("<II", 1, 0) + ID
    copy = (first + blake2b(first, digest_size=16).digest()).ljust(2048, b"\0")
    assert segment_header(ID) == copy + copy
    assert len(fixed + seal) == record.HEADER_BYTES == 96


def test_the_largest_store_is_that_of_varstored_and_of_the_protocol() -> None:
    assert record.MAX_STORE == outline.FILE_LIMIT == limits.MAX_STORE


@given(st.lists(st.lists(heads, min_size=1, max_size=4), max_size=4))
def test_what_was_written_is_read(contents: list[list[tuple[Head, bytes]]]) -> None:
    data = batches(*contents)
    found = scan("file", data)
    assert found.damages == ()
    assert [head for _, head in found.records] == [head for content in contents for head, _ in content]
    for (offset, head), (_, store) in zip(found.records, [each for content in contents for each in content], strict=True):
        assert data[offset + head.store_offset : offset + head.size] == store
        assert head.kind is Kind.DONE or head.matches(store)


def test_batches_begin_on_their_own_page() -> None:
    assert [offset for offset, _ in scan("file", EXAMPLE).records] == [4096, 5632, 9216, 12288, 16384, 21504]
    assert len(EXAMPLE) % PAGE == 0


def test_limits_of_a_store() -> None:
    store_head(1, VM, 0.0, bytes(record.MAX_STORE), (bytes(32),) * record.MAX_REPLACES)
    with pytest.raises(OverLimitError, match="131073"):
        store_head(1, VM, 0.0, bytes(record.MAX_STORE + 1), ())
    with pytest.raises(OverLimitError, match="65"):
        store_head(1, VM, 0.0, b"", (bytes(32),) * 65)
    with pytest.raises(OverLimitError, match="32 bytes"):
        store_head(1, VM, 0.0, b"", (bytes(31),))


def covers(data: bytes, damages: tuple[Damage, ...], offset: int) -> bool:
    """Whether a damage is reported that covers a byte."""
    assert all(0 <= each.offset <= each.offset + each.length <= len(data) for each in damages)
    return any(each.offset <= offset < each.offset + each.length for each in damages)


def touched(head: Head, start: int, offset: int) -> bool:
    return start <= offset < start + head.size


@given(st.integers(0, len(EXAMPLE) - 1), st.integers(1, 255))
def test_a_changed_byte_takes_one_record_at_most_and_is_reported(offset: int, change: int) -> None:
    data = bytearray(EXAMPLE)
    data[offset] ^= change
    found = scan("file", bytes(data))
    expected = [each for each in scan("file", EXAMPLE).records if not touched(each[1], each[0], offset)]
    assert list(found.records) == expected
    assert covers(EXAMPLE, found.damages, offset)


@pytest.mark.parametrize("offset", [0, 2048])
def test_a_header_that_is_wiped_out_takes_nothing(offset: int) -> None:
    found = scan("file", EXAMPLE[:offset] + bytes(512) + EXAMPLE[offset + 512 :])
    assert [head for _, head in found.records] == HEADS
    assert [(each.offset, each.length, each.vm) for each in found.damages] == [(0, PAGE, None)]


def test_without_both_headers_nothing_is_believed() -> None:
    found = scan("file", bytes(PAGE) + EXAMPLE[PAGE:])
    assert found.records == ()
    assert [(each.offset, each.length) for each in found.damages] == [(0, len(EXAMPLE))]


@given(st.integers(0, len(EXAMPLE)))
def test_a_cut_takes_only_what_is_cut(length: int) -> None:
    found = scan("file", EXAMPLE[:length])
    expected = [(offset, head) for offset, head in scan("file", EXAMPLE).records if offset + head.size <= length]
    if length >= PAGE // 2 + 48:
        assert list(found.records) == expected
    cut = [(offset, head) for offset, head in scan("file", EXAMPLE).records if offset < length < offset + head.size]
    for offset, _ in cut:
        assert covers(EXAMPLE, found.damages, offset)
    assert bool(found.damages) >= bool(cut)


@given(st.lists(st.tuples(st.integers(0, len(EXAMPLE)), st.binary(max_size=1000)), max_size=5))
def test_nothing_is_invented(patches: list[tuple[int, bytes]]) -> None:
    data = EXAMPLE
    for offset, patch in patches:
        data = data[:offset] + patch + data[offset + len(patch) :]
    found = scan("file", data)
    assert set(found.records) <= set(scan("file", EXAMPLE).records)
    assert found.damages or data[: len(EXAMPLE)].rstrip(b"\0") == EXAMPLE.rstrip(b"\0")


@given(st.binary(max_size=20_000))
def test_any_bytes_are_read(data: bytes) -> None:
    assert scan("file", data).records == ()
    assert scan("file", segment_header(ID) + data).records == ()


def hostile(offset: int, segment_id: bytes) -> bytes:
    """A store that holds a record at every place where one could begin, were the store at `offset`."""
    lead = -offset % BLOCK
    forged = b"".join(
        encode(store_head(99, VM, 0.0, b"evil", ()), b"evil", segment_id, aligned(offset, BLOCK) + number * BLOCK)
        for number in range(200)
    )
    return (bytes(lead) + forged)[: record.MAX_STORE]


def test_a_store_that_holds_records_is_a_store() -> None:
    """Even with the segment's id, which no guest knows."""
    store = hostile(PAGE + record.HEADER_BYTES, ID)
    found = scan("file", batches([stored(1, store), stored(2, b"next")]))
    assert [head.sequence for _, head in found.records] == [1, 2]
    assert found.damages == ()


@pytest.mark.parametrize("offset", [PAGE, PAGE + 6, PAGE + 50, PAGE + 90])
def test_behind_a_damaged_header_a_store_that_holds_records_is_not_believed(offset: int) -> None:
    other = bytes(16)
    for forged in (hostile(PAGE + record.HEADER_BYTES, other), EXAMPLE, segment_header(other) + EXAMPLE):
        data = bytearray(batches([stored(1, forged), stored(2, b"next")]))
        data[offset] ^= 1
        found = scan("file", bytes(data))
        assert [head.sequence for _, head in found.records] == [2]
        assert [(each.offset, each.length, each.vm) for each in found.damages] == [(PAGE, found.records[0][0] - PAGE, None)]


def test_a_record_at_another_place_or_in_another_file_is_none() -> None:
    head, store = stored(1, b"store")
    data = encode(head, store, ID, PAGE)
    assert decode(data, PAGE, ID) == head
    assert decode(data, PAGE + BLOCK, ID) is None
    assert decode(data, PAGE, bytes(16)) is None
    assert scan("file", segment_header(ID) + bytes(PAGE) + data).records == ()


def test_a_damaged_store_is_told_with_its_vm() -> None:
    data = bytearray(EXAMPLE)
    data[PAGE + 96] ^= 1
    assert [str(each) for each in scan("file", bytes(data)).damages] == [
        "file: 1096 bytes at offset 4096: the store of STORE 1 is not what was written"
    ]
    assert scan("file", bytes(data)).damages[0].vm == VM


def test_a_record_that_is_cut_off_is_told_with_its_vm() -> None:
    (damage,) = scan("file", EXAMPLE[: PAGE + 700]).damages
    assert (damage.offset, damage.length, damage.vm) == (PAGE, 700, VM)


def test_zeros_at_the_end_are_a_write_that_was_cut_off() -> None:
    (damage,) = scan("file", EXAMPLE + bytes(PAGE)).damages
    assert (damage.offset, damage.length) == (len(EXAMPLE), PAGE)


def test_a_later_version_is_not_touched() -> None:
    first = b"VSCJOURN" + pack("<II", 2, 0) + ID
    copy = (first + blake2b(first, digest_size=16).digest()).ljust(2048, b"\0")
    with pytest.raises(UnknownVersionError, match="version 2 at offset 8: expected version 1"):
        scan("file", copy * 2 + EXAMPLE[PAGE:])


def test_an_empty_file_is_nothing() -> None:
    assert scan("file", b"") == record.Scan((), ())


def test_the_search_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place where a record could begin costs one seal at most, of at most 64 digests."""
    sealed: list[int] = []
    genuine = record._seal

    def seal(segment_id: bytes, offset: int, fixed: bytes, digests: bytes) -> bytes:
        sealed.append(len(fixed + digests))
        return genuine(segment_id, offset, fixed, digests)

    monkeypatch.setattr(record, "_seal", seal)
    fake = (b"VSCR" + pack("<BBHIIQ", 1, 0, record.MAX_REPLACES, 100_000, 0, 7)).ljust(BLOCK, b"\0")
    data = segment_header(ID) + fake * 4_000
    found = scan("file", data)
    assert [(each.offset, each.length) for each in found.damages] == [(PAGE, len(data) - PAGE)]
    assert len(sealed) <= 4_001
    assert max(sealed) <= 80 + 64 * 32
