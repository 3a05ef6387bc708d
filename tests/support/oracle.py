"""The design's tables told a second time: the report, the verdict on a write and what an update does, by plain bytes.

Written from the design and varstored's layout alone. It shares no code with the product, and is slow and short where
that one is quick and careful: where both agree on any store, neither says what the other was told to say.
"""

import hashlib
import struct
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from support import storebytes as sb
from support.siglist_rules import ListRefused
from support.siglist_rules import walk as walk_by_the_rules

State = Literal["damaged", "unknown", "update_available", "ok", "setup_mode", "custom"]
Verdict = Literal["yes", "no", "unspecified"]
Field = Literal["ok", "update_available", "update_on_boot"]

KEYS = {
    ("PK".encode("utf-16-le"), sb.GLOBAL.bytes_le): "PK",
    ("KEK".encode("utf-16-le"), sb.GLOBAL.bytes_le): "KEK",
    ("db".encode("utf-16-le"), sb.IMAGE_SECURITY.bytes_le): "db",
    ("dbx".encode("utf-16-le"), sb.IMAGE_SECURITY.bytes_le): "dbx",
    ("dbt".encode("utf-16-le"), sb.IMAGE_SECURITY.bytes_le): "dbt",
}
VOLATILE = 820
"""What varstored's own variables take of TOTAL_LIMIT while a VM runs."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A manifest, read without the product: (variable, hash of the one that is there, hashes of those that must be too)."""

    owner: bytes
    wrong: frozenset[bytes]
    headroom: int
    rules: tuple[tuple[str, bytes, tuple[bytes, ...]], ...]

    @classmethod
    def of(cls, text: str) -> "Rules":
        toml = tomllib.loads(text)
        digests = {name: bytes.fromhex(each["sha256"]) for name, each in toml["certificate"].items()}
        return cls(
            UUID(toml["signature_owner"]).bytes_le,
            frozenset(UUID(each).bytes_le for each in toml["wrong_owners"]),
            toml["headroom"],
            tuple(
                (each["variable"], digests[each["present"]], tuple(digests[name] for name in each["required"]))
                for each in toml["rule"]
            ),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """One variable: its data lies at `at` to `end` of the store."""

    name: bytes
    guid: bytes
    at: int
    end: int
    data: bytes

    @property
    def key(self) -> str:
        """Which of the key variables it is, or nothing."""
        return KEYS.get((self.name, self.guid), "")


def version(store: bytes) -> int | None:
    """The version, None for what is not a store."""
    return struct.unpack_from("<I", store, 4)[0] if len(store) >= sb.HEADER_SIZE and store[:4] == b"VARS" else None


def variables(store: bytes) -> tuple[list[Found], bool]:
    """The variables as far as they can be read, and whether that was the whole store."""
    found: list[Found] = []
    (count,) = struct.unpack_from("<Q", store, 8)
    at = sb.HEADER_SIZE + (sb.ANCILLARY_SIZE if version(store) == 2 else 0)
    while len(found) < count and at <= len(store):
        parts = []
        for _ in range(2):
            length = int.from_bytes(store[at : at + 8], "little")
            at += 8
            parts.append((at, store[at : at + length]))
            at += length
            if at > len(store) or not length:
                return found, False
        tail = store[at : at + 68]
        at += 68
        if len(tail) < 68:
            return found, False
        (_, name), (start, data) = parts
        found.append(Found(name, tail[:16], start, start + len(data), data))
    return found, at == len(store) and len(found) == count


def entries(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Each signature: its type, where it stands, and its owner and data. Raises `ValueError` where sizes make no sense."""
    at = 0
    while at < len(data):
        kind = data[at : at + 16]
        if len(data) - at < 28:
            raise ValueError
        size, header, each = struct.unpack_from("<III", data, at + 16)
        room = size - 28 - header
        if size > len(data) - at or room < 0 or each < 16 or room % each:
            raise ValueError
        for entry in range(at + 28 + header, at + size, each):
            yield kind, entry, data[entry : entry + each]
        at += size


def is_well_formed(variable: Found) -> bool:
    """Whether SetVariable would have taken the lists of a key variable, as far as their sizes tell."""
    try:
        count = sum(len(each.entries) for each in walk_by_the_rules(variable.data))
    except ListRefused:
        return False
    return variable.key != "PK" or count == 1


def is_over_limit(store: bytes, found: list[Found]) -> bool:
    """Whether varstored would not load the store because of its size."""
    return (
        len(store) > sb.FILE_LIMIT
        or len(found) > sb.COUNT_LIMIT
        or any(len(each.name) > sb.NAME_LIMIT or len(each.data) > sb.DATA_LIMIT for each in found)
        or sum(len(each.name) + len(each.data) + sb.OVERHEAD_COUNTED for each in found) > sb.TOTAL_LIMIT
    )


def certificates(found: list[Found], key: str) -> set[bytes]:
    """The hashes of the X.509 entries of a key variable, where it can be read."""
    hashes = set()
    for each in found:
        if each.key == key:
            hashes |= {
                hashlib.sha256(one[16:]).digest() for kind, _, one in entries(each.data) if kind == sb.CERT_X509.bytes_le
            }
    return hashes


def missing(found: list[Found], rules: Rules) -> list[tuple[str, bytes]]:
    """What the rules that apply still ask for, in their order, each once."""
    wanted = []
    for key, present, required in rules.rules:
        there = certificates(found, key)
        if present in there:
            wanted += [(key, each) for each in required if each not in there]
    return list(dict.fromkeys(wanted))


def report_of(store: bytes, rules: Rules) -> State:
    """The report's overall word: the first that holds."""
    if version(store) is None:
        return "damaged"
    if (version(store) or 0) > 2:
        return "unknown"
    found, is_whole = variables(store)
    keys = [each for each in found if each.key]
    twice = max(Counter(each.key for each in keys).values(), default=0) > 1
    if not is_whole or twice or not all(map(is_well_formed, keys)) or is_over_limit(store, found):
        return "damaged"
    if missing(found, rules):
        return "update_available"
    if any(present in certificates(found, key) for key, present, _ in rules.rules):
        return "ok"
    return "custom" if any(each.key == "PK" for each in keys) else "setup_mode"


def members(store: bytes | None) -> set[tuple[str, bytes, bytes]]:
    """PK, KEK and db as sets of (type, owner, data); one that cannot be read counts as its bytes."""
    held = set()
    for each in [] if store is None else variables(store)[0]:
        if each.key in ("PK", "KEK", "db"):
            try:
                held |= {(each.key, kind, one) for kind, _, one in entries(each.data)}
            except ValueError:
                held.add((each.key, b"", each.data))
    return held


def verdict_of(before: bytes | None, after: bytes, field: str | None, rules: Rules, *, is_known: bool = True) -> Verdict:
    """The table's row. `before`: None for the first write; `is_known`: whether the store before is known and can be read."""
    if version(after) not in (0, 1, 2):
        return "unspecified"
    if is_known and members(before) == members(after):
        return "no"
    report = report_of(after, rules)
    if report == "ok":
        return "yes"
    if is_known and report == "update_available" and field in ("update_available", "update_on_boot"):
        return "no"
    return "unspecified"


def field_after(field: str | None, verdict: Verdict, store: bytes, rules: Rules) -> str | None:
    """xapi's field once the store has been written."""
    if verdict == "yes":
        return "ok"
    return field if verdict == "no" else certcheck(store, rules)


def certcheck(store: bytes, rules: Rules) -> Field:
    """The field as the toolstack derives it from a store within the limits."""
    return "update_available" if report_of(store, rules) == "update_available" else "ok"


def update_of(store: bytes, rules: Rules, bodies: Mapping[bytes, bytes], headroom: int | None = None) -> bytes | None:
    """The store after its update, byte by byte; the same bytes where there is nothing to do, None where it is refused."""
    if report_of(store, rules) in ("damaged", "unknown"):
        return None
    found, _ = variables(store)
    wanted = missing(found, rules)
    if any(digest not in bodies for _, digest in wanted):
        return None
    spliced = store
    for each in reversed(found):
        data = _corrected(each, rules)
        for digest in [digest for key, digest in wanted if key == each.key]:
            data += sb.x509_list(bodies[digest], UUID(bytes_le=rules.owner))
        size = len(data).to_bytes(8, "little")
        spliced = spliced[: each.at - 8] + size + data + spliced[each.end :]
    if spliced == store:
        return store
    body = len(spliced) - sb.HEADER_SIZE - (sb.ANCILLARY_SIZE if version(store) == 2 else 0)
    spliced = spliced[:16] + body.to_bytes(8, "little") + spliced[24:]
    found, _ = variables(spliced)
    if is_over_limit(spliced, found):
        return None
    least = rules.headroom if headroom is None else headroom
    return None if wanted and _room(spliced, found) < least else spliced


def _corrected(variable: Found, rules: Rules) -> bytes:
    """The data with each required certificate that stands under wrong owners alone put under the right one, once."""
    data = bytearray(variable.data)
    required = {digest for key, _, digests in rules.rules if key == variable.key for digest in digests}
    if not required:
        return bytes(data)
    places: dict[bytes, list[int]] = {}
    for kind, at, one in entries(variable.data):
        if kind == sb.CERT_X509.bytes_le:
            places.setdefault(hashlib.sha256(one[16:]).digest(), []).append(at)
    for digest in required & places.keys():
        owners = {at: variable.data[at : at + 16] for at in places[digest]}
        wrong = [at for at, owner in owners.items() if owner in rules.wrong]
        if wrong and rules.owner not in owners.values():
            data[wrong[0] : wrong[0] + 16] = rules.owner
    return bytes(data)


def _room(store: bytes, found: list[Found]) -> int:
    """What the guest can append to dbx before what all variables share is full."""
    used = sum(len(each.name) + len(each.data) + sb.OVERHEAD_COUNTED for each in found)
    new = 0 if any(each.key == "dbx" for each in found) else sb.OVERHEAD_COUNTED + len("dbx") * 2
    return min(sb.TOTAL_LIMIT - VOLATILE - used, sb.FILE_LIMIT - len(store)) - new
