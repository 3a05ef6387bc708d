"""Hypothesis strategies: any store that varstored takes, and ways to damage one."""

import struct
from collections.abc import Sequence
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from support import storebytes as sb
from support.storebytes import Variable, make_store

_BOUNDARIES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 28, (1 << 64) - 1)
_KNOWN_NAMES = (
    ("PK", sb.GLOBAL),
    ("KEK", sb.GLOBAL),
    ("db", sb.IMAGE_SECURITY),
    ("dbx", sb.IMAGE_SECURITY),
    ("BootOrder", sb.GLOBAL),
)


def _bytes(limit: int) -> SearchStrategy[bytes]:
    """1 to `limit` bytes: short ones of any content, and long ones of one pattern, which are cheap to make."""
    patterned = st.builds(
        lambda pattern, size: (pattern * (size // len(pattern) + 1))[:size],
        st.binary(min_size=1, max_size=5),
        st.one_of(st.integers(1, limit), st.sampled_from((limit - 1, limit))),
    )
    return st.one_of(st.binary(min_size=1, max_size=64), patterned)


def _variable(identity: tuple[str | bytes, UUID], data: bytes, attributes: int, time: bytes, digest: bytes) -> Variable:
    name, guid = identity
    return Variable(name, guid, data, attributes, time, digest)


def variables() -> SearchStrategy[Variable]:
    """Any variable that varstored takes: names and data need not make sense."""
    any_guid = st.binary(min_size=16, max_size=16).map(lambda raw: UUID(bytes_le=raw))
    identities = st.one_of(
        st.tuples(_bytes(sb.NAME_LIMIT), any_guid),
        st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), any_guid),
        st.sampled_from(_KNOWN_NAMES),
    )
    return st.builds(
        _variable,
        identities,
        _bytes(sb.DATA_LIMIT),
        st.one_of(st.sampled_from((sb.ATTRIBUTES_PLAIN, sb.ATTRIBUTES_KEYS)), st.integers(0, 0xFFFFFFFF)),
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=32, max_size=32),
    )


def that_fit(candidates: Sequence[Variable]) -> list[Variable]:
    fitting = []
    file_left = sb.FILE_LIMIT - sb.HEADER_SIZE - sb.ANCILLARY_SIZE
    total_left = sb.TOTAL_LIMIT
    for each in candidates:
        size = each.counted - sb.OVERHEAD_COUNTED + sb.VARIABLE_FIXED_SIZE
        if size <= file_left and each.counted <= total_left:
            fitting.append(each)
            file_left -= size
            total_left -= each.counted
    return fitting


@st.composite
def stores(draw: DrawFn) -> bytes:
    """Any store that varstored takes, of version 0, 1 or 2, whatever length it records."""
    version = draw(st.sampled_from((0, 1, 2)))
    ancillary = draw(st.binary(min_size=sb.ANCILLARY_SIZE, max_size=sb.ANCILLARY_SIZE)) if version == 2 else b""
    return make_store(
        that_fit(draw(st.lists(variables(), max_size=8))),
        version,
        ancillary,
        draw(st.one_of(st.none(), st.integers(0, (1 << 64) - 1))),
    )


@st.composite
def mutations(draw: DrawFn, blob: bytes) -> bytes:
    """`blob` damaged in one to three places: bits flipped, numbers overwritten, pieces cut, moved or put in."""
    damaged = bytearray(blob)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(damaged) - 1, 0)))
        how = draw(st.sampled_from(("flip", "u32", "u64", "cut", "remove", "insert", "repeat")))
        size = draw(st.sampled_from((1, 4, 8, 28, 84)))
        if how == "flip" and damaged:
            damaged[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "u32":
            damaged[at : at + 4] = struct.pack("<I", draw(st.sampled_from(_BOUNDARIES)) & 0xFFFFFFFF)
        elif how == "u64":
            damaged[at : at + 8] = struct.pack("<Q", draw(st.sampled_from(_BOUNDARIES)))
        elif how == "cut":
            del damaged[at:]
        elif how == "remove":
            del damaged[at : at + size]
        elif how == "insert":
            damaged[at:at] = draw(st.binary(min_size=1, max_size=size))
        else:
            damaged[at:at] = damaged[at : at + size]
    return bytes(damaged)
