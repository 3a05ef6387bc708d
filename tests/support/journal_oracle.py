"""What a journal may hold after a crash, kept by those who use it: what was begun, what was acknowledged, what was seen."""

from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from uuid import UUID

from varstore_companion.journal.entry import Entry, Recovered


@dataclass(frozen=True, slots=True)
class Append:
    """A store on its way to the journal. `order`: of its beginning, over all VMs and lives, from 1."""

    order: int
    vm: UUID
    store: bytes
    replaces: tuple[bytes, ...]
    at: float


@dataclass(slots=True)
class Bounds:
    """What is known of one VM: the newest store that must not be missed, and up to which one all may be, or are, ended."""

    least: int = 0
    may_be_ended: int = 0
    is_ended: int = 0


@dataclass(slots=True)
class Oracle:
    """The log of a run. A moment in it is the log's length then."""

    appends: dict[bytes, Append] = field(default_factory=dict)
    log: list[tuple[str, UUID, int]] = field(default_factory=list)

    # What the run tells

    def begin(self, vm: UUID, chance: Random, most: int) -> Append:
        """A store that no other append has, about to be appended."""
        order = len(self.appends) + 1
        store = order.to_bytes(4, "little") + chance.randbytes(chance.randrange(most))
        replaces = tuple(chance.randbytes(32) for _ in range(chance.randrange(3)))
        append = Append(order, vm, store, replaces, chance.uniform(0, 2e9))
        self.appends[sha256(store).digest()] = append
        self.log.append(("begun", vm, order))
        return append

    def acknowledged(self, append: Append, entry: Entry) -> None:
        assert self.find(entry) == append
        self.log.append(("acknowledged", append.vm, append.order))

    def done_begun(self, entry: Entry) -> None:
        self.log.append(("done begun", entry.vm, self.find(entry).order))

    def done_acknowledged(self, entry: Entry) -> None:
        self.log.append(("done acknowledged", entry.vm, self.find(entry).order))

    def recovered(self, recovered: Recovered) -> None:
        """A life has begun with these: nobody may see anything older from now on."""
        there = {entry.vm: self.find(entry).order for entry in recovered.entries}
        for vm in {append.vm for append in self.appends.values()}:
            newest = max(append.order for append in self.appends.values() if append.vm == vm)
            if vm in there:
                self.log.append(("acknowledged", vm, there[vm]))
            else:
                self.log += [("done begun", vm, newest), ("done acknowledged", vm, newest)]

    # What it says

    def find(self, entry: Entry) -> Append:
        """The append that an entry came from. Fails for one that nobody has made."""
        append = self.appends[entry.digest]
        assert (entry.vm, entry.replaces, entry.at, entry.size) == (append.vm, append.replaces, append.at, len(append.store))
        return append

    def confirm(self, moment: int, found: Recovered) -> None:
        """Fail unless `found` may be what is left after a crash at `moment`."""
        bounds = self._bounds(moment)
        there = {entry.vm: self.find(entry).order for entry in found.entries}
        assert len(there) == len(found.entries), "two entries of one VM"
        begun = {order for kind, _, order in self.log[:moment] if kind == "begun"}
        assert set(there.values()) <= begun, "a store that nobody had given yet"
        for vm, bound in bounds.items():
            order = there.get(vm)
            if order is None:
                assert bound.least <= bound.may_be_ended, f"lost: the acknowledged store {bound.least} of {vm}"
            else:
                assert order >= bound.least, f"turned back: {order} instead of {bound.least} of {vm}"
                assert order > bound.is_ended, f"come back: {order} of {vm}, ended up to {bound.is_ended}"

    def _bounds(self, moment: int) -> dict[UUID, Bounds]:
        bounds: dict[UUID, Bounds] = {}
        for kind, vm, order in self.log[:moment]:
            bound = bounds.setdefault(vm, Bounds())
            if kind == "acknowledged":
                bound.least = max(bound.least, order)
            elif kind == "done begun":
                bound.may_be_ended = max(bound.may_be_ended, order)
            elif kind == "done acknowledged":
                bound.is_ended = max(bound.is_ended, order)
        return bounds
