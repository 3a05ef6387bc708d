"""Digests of the stores that the toolstack holds, taken when somebody asks or memory runs short: not with every write."""

from collections import OrderedDict
from hashlib import sha256

ABSENT = bytes(32)
"""Stands for no store at all: the toolstack said that the NVRAM key is absent."""

UNKNOWN = b"\xff" * 32
"""Stands for whatever the VM may have written past this daemon while a store of it waits."""

ROOM = 1 << 20
"""Bytes of stores kept whole because nobody has asked for their digest yet, of all VMs together."""


def digest_of(store: bytes | None) -> bytes:
    """SHA-256 of a store, 32 bytes; `ABSENT` for none."""
    return ABSENT if store is None else sha256(store).digest()


class Recent:
    """The stores that are kept whole for now; the oldest give way to their digests."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._held: OrderedDict[Held, int] = OrderedDict()
        self._bytes = 0

    def add(self, held: "Held", size: int) -> None:
        """Count a store that has just come."""
        self._held[held] = size
        self._bytes += size
        while self._bytes > self._room:
            next(iter(self._held)).settle()

    def drop(self, held: "Held") -> None:
        """Count it no more."""
        self._bytes -= self._held.pop(held, 0)


class Held:
    """One store that the toolstack holds. Whoever replaces it calls `forget`, which spares it the digest."""

    __slots__ = ("_digest", "_recent", "_store")

    def __init__(self, store: bytes | None, recent: Recent) -> None:
        self._recent = recent
        self._store = store
        self._digest = ABSENT
        if store is not None:
            recent.add(self, len(store))

    @classmethod
    def of(cls, digest: bytes, recent: Recent) -> "Held":
        """One of which only the digest is known."""
        held = cls(None, recent)
        held._digest = digest
        return held

    @property
    def digest(self) -> bytes:
        """As `digest_of`."""
        self.settle()
        return self._digest

    def settle(self) -> None:
        """Keep the digest rather than the store."""
        if self._store is not None:
            self._digest = digest_of(self._store)
            self.forget()

    def forget(self) -> None:
        """Keep nothing more than there is."""
        self._store = None
        self._recent.drop(self)
