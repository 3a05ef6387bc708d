"""What the journal tells the daemon about: stores that wait for the toolstack, and what was found damaged."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Entry:
    """One VM's newest store, durable here and not yet taken by the toolstack.

    `sequence` grows with every store put into the journal, over all VMs and all lives of the daemon. `at`: seconds since
    the epoch, as the caller said. `digest`: SHA-256 of the store; `replaces`: the digests of the stores that the toolstack
    may hold instead, as the caller said. `size`: bytes of the store. `recovered`: found by `Journal.open`.
    """

    vm: UUID
    sequence: int
    at: float
    digest: bytes
    replaces: tuple[bytes, ...]
    size: int
    recovered: bool


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are not what was written there, or that a crash kept from being written whole.

    `segment`: the file's name; `offset` and `length` in bytes, 0 when it concerns the whole file; `vm`: whose record it was,
    None when even that is not known. A write that a crash cut off had not been acknowledged; from outside it cannot be told
    from any other damage.
    """

    segment: str
    offset: int
    length: int
    what: str
    vm: UUID | None = None

    def __str__(self) -> str:
        where = f"{self.length} bytes at offset {self.offset}: " if self.length else ""
        return f"{self.segment}: {where}{self.what}"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What `Journal.open` found: the entries, oldest first, and the damages, in the order of the segments."""

    entries: tuple[Entry, ...]
    damages: tuple[Damage, ...]
