"""Hypothesis strategies: well-made stores with variables added, removed and permuted and their signature lists rearranged."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from support import storebytes as sb
from support.certificates import identity
from support.oracle import Rules
from support.shipped import OWN_NAMES, Keys, microsoft_bodies, own, own_bodies, own_manifest, own_text, shipped
from support.siglist_rules import ListRefused, walk
from support.storebytes import Variable, make_store, signature_list
from support.storemaker import SCENES, firmware_variables, scene
from support.strategies import mutations, that_fit, variables
from varstore_companion.files import SHIPPED_MANIFEST
from varstore_companion.trust.manifest import Manifest

LEAST_ROOM = 4_096
"""Bytes of a store besides its variables, and for what a mutation puts in."""
NIGHTLY = "nightly"
OWNERS = (sb.OWNER_MICROSOFT, sb.OWNER_WRONG, sb.OWNER_VIRT_FIRMWARE, sb.OWNER_TENANT)
KEYS = {"PK": sb.GLOBAL, "KEK": sb.GLOBAL, "db": sb.IMAGE_SECURITY, "dbx": sb.IMAGE_SECURITY, "dbt": sb.IMAGE_SECURITY}

Entry = tuple[UUID, UUID, bytes]
"""A signature's type, owner and data."""


def examples(few: int) -> settings:
    """So many in every run of the tests, and as many as the profile says in the nightly one."""
    is_nightly = os.environ.get("HYPOTHESIS_PROFILE") == NIGHTLY
    return settings() if is_nightly else settings(max_examples=few)


@dataclass(frozen=True)
class World:
    """A manifest, as the product has it and as the oracle has read it, with its bodies and stores to begin with."""

    manifest: Manifest
    bodies: Mapping[bytes, bytes]
    rules: Rules
    stores: Sequence[Sequence[Variable]]
    certificates: Sequence[bytes]


@cache
def own_world() -> World:
    """Rules about certificates of our own making: there on every machine."""
    wrong = frozenset({"new-kek", "new-rom"})
    every_db = ("old-db", "old-other", "new-db", "new-rom", "new-other")
    keys = (
        Keys(),
        Keys(("old-kek", "new-kek"), every_db),
        Keys(("old-kek", "new-kek"), every_db, wrong=wrong),
        Keys(("old-kek",), ("old-db", "new-db", "old-other"), dbx=sb.sha256_list([bytes([each]) * 32 for each in range(9)])),
        Keys(("new-kek",), ("new-db",)),
        Keys((), ("old-other", "new-other")),
    )
    before, after = firmware_variables()
    held = [[*before, *each.variables(), *after[:2]] for each in keys]
    bodies = [*(own(name) for name in OWN_NAMES), identity("A tenant's own", key_of="An operator's key").der]
    return World(own_manifest(), own_bodies(), Rules.of(own_text()), [*held, [*before, *after]], bodies)


@cache
def microsofts_world() -> World:
    """The shipped rules and every scene that varstored loads; the calling test is skipped where virt-firmware is absent."""
    rules = Rules.of(Path(SHIPPED_MANIFEST).read_text(encoding="utf-8"))
    scenes = [scene(name) for name in SCENES]
    bodies = microsoft_bodies()
    held = [each.variables for each in scenes if each.loads and len(each.blob) < 60_000]
    return World(shipped(), bodies, rules, held, list(bodies.values()))


WORLDS: Mapping[str, Callable[[], World]] = {"own": own_world, "microsoft": microsofts_world}


def _entries(data: bytes) -> list[Entry]:
    try:
        return [(each.kind, UUID(bytes_le=one[:16]), one[16:]) for each in walk(data) for one in each.entries]
    except ListRefused:
        return []


SAME = ("permute", "repeat")
"""What leaves a variable the same set of signatures."""
OTHER = ("permute", "drop", "repeat", "add", "own", "share")


@st.composite
def _rearranged(draw: DrawFn, variable: Variable, world: World) -> Variable:
    """A key variable with its signatures in other lists, in another order, added, taken away, given to other owners."""
    entries = _entries(variable.data)
    is_same = draw(st.booleans())
    for how in draw(st.lists(st.sampled_from(SAME if is_same else OTHER), max_size=3)):
        at = draw(st.integers(0, max(len(entries) - 1, 0)))
        if how == "permute":
            entries = draw(st.permutations(entries)) if len(entries) < 12 else entries[::-1]
        elif how == "add":
            entries.insert(at, (sb.CERT_X509, draw(st.sampled_from(OWNERS)), draw(st.sampled_from(world.certificates))))
        elif entries and how == "drop":
            del entries[at]
        elif entries and how == "repeat":
            entries.append(entries[at])
        elif entries:
            kind, _, data = entries[at]
            # "share": it stands there under both owners then.
            entries[at : at + (how == "own")] = [(kind, draw(st.sampled_from(OWNERS)), data)]
    together = draw(st.booleans())
    lists: list[list[Entry]] = []
    for each in entries:
        if together and lists and (lists[-1][0][0], len(lists[-1][0][2])) == (each[0], len(each[2])):
            lists[-1].append(each)
        else:
            lists.append([each])
    data = b"".join(signature_list(each[0][0], [(owner, body) for _, owner, body in each]) for each in lists)
    if not is_same and draw(st.integers(0, 9)) == 0:
        # As a tool may have written it, or a guest before SetVariable looked.
        data = draw(mutations(data or b"\0"))
    return replace(variable, data=data) if data else variable


@st.composite
def mutated(draw: DrawFn, world: World, base: Sequence[Variable] | None = None) -> bytes:
    """A store of the world, mutated; most load, some are over a limit, and in some a key variable is malformed."""
    held = list(draw(st.sampled_from(world.stores)) if base is None else base)
    held = [draw(_rearranged(each, world)) if str(each.name) in KEYS and draw(st.booleans()) else each for each in held]
    for how in draw(st.lists(st.sampled_from(("add", "large", "remove", "permute", "key", "reverse")), max_size=3)):
        if how == "large":
            size = draw(st.sampled_from((57_344, 57_345, 50_000)))
            held.append(Variable("Large", draw(st.sampled_from(OWNERS)), bytes(size)))
        elif how == "add":
            held.insert(draw(st.integers(0, len(held))), draw(variables()))
        elif how == "key":
            name = draw(st.sampled_from(sorted(KEYS)))
            data = sb.x509_list(draw(st.sampled_from(world.certificates)), draw(st.sampled_from(OWNERS)))
            held.append(Variable(name, KEYS[name], data, sb.ATTRIBUTES_KEYS))
        elif how == "remove" and held:
            del held[draw(st.integers(0, len(held) - 1))]
        elif how == "permute":
            held = draw(st.permutations(held))
        else:
            held.reverse()
    version = draw(st.sampled_from((2, 2, 1, 0)))
    # A store that no frame can carry is not for a socket.
    is_small = draw(st.integers(0, 3)) or sum(len(each.encode()) for each in held) > sb.FILE_LIMIT - LEAST_ROOM
    return make_store(
        that_fit(held) if is_small else held,
        version,
        b"\1" * sb.ANCILLARY_SIZE if version == 2 else b"",
        draw(st.sampled_from((None, None, 0, (1 << 64) - 1))),
    )


@st.composite
def hostile(draw: DrawFn, world: World, base: Sequence[Variable] | None = None) -> bytes:
    """A store of the world, mutated, and then cut, flipped or lied about; or one of a version to come."""
    blob = draw(mutated(world, base))
    if draw(st.booleans()):
        return draw(mutations(blob)) or b"\0"
    return blob[:4] + draw(st.sampled_from((3, 7, 0xFFFFFFFF))).to_bytes(4, "little") + blob[8:]
