"""A toolstack that works, fails, hangs, lies and recovers: a guard's socket for each VM, on the real wire format.

It lives in the process that kills, so it survives, and what it holds can be looked at in the moment of an acknowledgement.
"""

from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

import trio

from killing.stores import Version, certcheck, store_of, version_of
from killing.tally import Tally
from killing.trigger import Trigger
from support.fake_guard import SET_CALLS, Guard, Server, VmModel, http
from varstore_companion.toolstack.xmlrpc import Call, Failure, build_response
from varstore_companion.trust.state import CertificatesState, Update

LATE_SECONDS: Final = 1
"""What the daemon is told: for how long a call that was given up may still be carried out."""
LATE_MOST: Final = 0.3
"""For how long one is, at most: what is between the two is for this process to notice late that one was given up."""
LATE_CHECKED: Final = 0.5
"""One that could not be carried out until then, because this process did not get its turn, never is."""
HANG_MOST: Final = 4.0
REFUSALS: Final = 2
"""In one life of the daemon: one more in a row, and it sets the store aside, as it should."""


class Deed(Enum):
    """What becomes of one call."""

    WORK = "answered"
    UNAVAILABLE = "503"
    FAIL = "failed"
    REFUSE = "refused"
    BREAK = "cut before"
    HANG = "hung"
    LIE_CLOSE = "done and cut"
    LIE_FAIL = "done and failed"
    LIE_HALF = "done and half answered"


_LYING = (Deed.LIE_CLOSE, Deed.LIE_FAIL, Deed.LIE_HALF)
_WEATHERS: Mapping[str, tuple[Deed, ...]] = {
    "fair": (Deed.WORK,),
    "away": (),
    "failing": (Deed.UNAVAILABLE, Deed.FAIL, Deed.BREAK, Deed.REFUSE),
    "hanging": (Deed.HANG, Deed.WORK),
    "lying": (*_LYING, Deed.WORK),
    "all at once": (*Deed, *[Deed.WORK] * 8),
}
"""`away`: nobody listens."""
_WEIGHTS: Final = (4, 4, 2, 4, 4, 5)

_FAILURES = (
    Failure(("Internal_error", "Stdlib.Exit")),
    Failure(("Internal_error", 'Unix.Unix_error(Unix.ECONNREFUSED, "connect", "")')),
    Failure(("Failed_to_contact_remote_service", "xapi")),
)
_UNCLEAR = Failure(("Internal_error", "Stdlib.Exit"))
_REFUSAL = Failure(("Internal_error", "Server_error(VM_BAD_POWER_STATE, [ OpaqueRef:1; halted ])"))


class Held(VmModel):
    """What the toolstack holds of one VM, and what must never become of it. `is_direct`: varstored itself writes just now."""

    def __init__(self, vm: UUID, tally: Tally) -> None:
        super().__init__(vm, certcheck)
        self._tally = tally
        self.is_direct = False
        self.put(store_of(Version(0, is_updated=False)), CertificatesState.UPDATE_AVAILABLE)

    @property
    def version(self) -> Version:
        """What is held."""
        assert self.store is not None
        return version_of(self.store)

    def write(self, text: str, update: str | None) -> None:
        before, marked = self.version, self.state is CertificatesState.UPDATE_ON_BOOT
        super().write(text, update)
        self.updates.clear()
        after = self.version
        self._tally.happened(self.uuid, f"toolstack: {after} over {before} with {update}")
        if after < before:
            self._tally.violated("turned_back", self.uuid, f"{after} was written over {before}")
        if marked and not self.is_direct and update not in (Update.YES, Update.NO) and before.is_updated == after.is_updated:
            self._tally.violated("marks_lost", self.uuid, f"{after} was written over {before} with {update}")


class Chaos:
    """All guards. `run` changes the weather, as its random numbers say, until `calm`."""

    def __init__(self, random: Random, tally: Tally, trigger: Trigger, nursery: trio.Nursery) -> None:
        self.random = random
        self.tally = tally
        self.trigger = trigger
        self.nursery = nursery
        self.guards: dict[UUID, ChaosGuard] = {}
        self.is_calm = False
        self.coming = 0
        self._deeds: tuple[Deed, ...] = (Deed.WORK,)
        self._calm = trio.Event()

    def add(self, vm: UUID, path: Path) -> "ChaosGuard":
        """A VM's guard, which listens."""
        return self.open(ChaosGuard(path, Held(vm, self.tally), self))

    def open(self, guard: "ChaosGuard") -> "ChaosGuard":
        """Have a guard listen."""
        self.guards[guard.held.uuid] = guard
        guard.open()
        return guard

    def deed(self) -> Deed:
        """What becomes of the next call."""
        return self.random.choice(self._deeds) if self._deeds else Deed.BREAK

    async def run(self) -> None:
        """Change the weather, and mark VMs for an update as an operator does."""
        while not self.is_calm:
            name = self.random.choices(list(_WEATHERS), _WEIGHTS)[0]
            self._deeds = _WEATHERS[name]
            leaves_file, all_at_once = self.random.random() < 0.5, self.random.random() < 0.7
            for guard in self.guards.values():
                if not self._deeds and (all_at_once or self.random.random() < 0.7):
                    guard.close(leaves_file=leaves_file)
                elif self._deeds:
                    guard.open()
                if guard.held.state is CertificatesState.UPDATE_AVAILABLE and self.random.random() < 0.2:
                    guard.held.state = CertificatesState.UPDATE_ON_BOOT
            with trio.move_on_after(self.random.uniform(0.1, 1.2)):
                await self._calm.wait()

    def calm(self) -> None:
        """Work from now on, all of them."""
        self.is_calm = True
        self._deeds = (Deed.WORK,)
        self._calm.set()
        for guard in self.guards.values():
            guard.refusals = 0
            guard.open()

    async def wait_for_calm(self, seconds: float) -> None:
        """Hang."""
        with trio.move_on_after(seconds):
            await self._calm.wait()


class ChaosGuard(Server):
    """One VM's guard. `held`: what the toolstack behind it holds.

    `incarnation`: which of its processes runs, where it has any; `direct_in`: the last one that varstored wrote through itself.
    """

    def __init__(self, path: Path, held: Held, chaos: Chaos) -> None:
        self.held = held
        super().__init__(path, Guard(held).answer)
        self._chaos = chaos
        self._is_open = False
        self._is_pinned = False
        self._moves = 0
        self.refusals = 0
        self.incarnation = 0
        self.direct_in = 0

    def open(self) -> None:
        """Listen, unless it is kept closed."""
        if not (self._is_open or self._is_pinned):
            self._is_open = True
            self._chaos.tally.happened(self.held.uuid, "toolstack: listens")
            self.listen()
            self._chaos.nursery.start_soon(self.run)

    def close(self, *, leaves_file: bool) -> None:
        """Do not listen any more; what is under way is cut off, or goes on though nobody hears of it."""
        if self._is_open and self._scope is not None:
            self._is_open = False
            self._chaos.tally.happened(self.held.uuid, "toolstack: closed")
            self.stop()
            self._scope = None
            if not leaves_file:
                self.path.unlink(missing_ok=True)

    def pin(self) -> None:
        """Be closed until `come_back`."""
        self._is_pinned = True
        self.close(leaves_file=False)

    def move(self, version: Version) -> None:
        """As another host writes that runs the VM now: nothing that this one has under way can land any more, ever."""
        self._moves += 1
        self.pin()
        self.held.put(store_of(version), CertificatesState.UPDATE_AVAILABLE)

    def come_back(self) -> None:
        """The VM's guard is on this host again."""
        self._is_pinned = False
        self.open()

    async def _one(self, stream: trio.SocketStream) -> None:
        call = await self._receive(stream)
        self.calls.clear()
        self.requests.clear()
        if call is None:
            return
        chaos, writes = self._chaos, call.method in SET_CALLS
        if writes:
            chaos.trigger.hit("write arrived")
        await self._in_turn()
        deed = chaos.deed()
        if deed is Deed.REFUSE:
            self.refusals += writes
            if self.refusals > REFUSALS:
                deed = Deed.FAIL
        if writes:
            chaos.tally.deeds[deed.value] += 1
        elif deed is Deed.HANG and chaos.random.random() < 0.8:
            # A VM whose reads hang does nothing else.
            deed = Deed.WORK
        chaos.tally.happened(self.held.uuid, f"toolstack: {call.method}: {deed.value}")
        match deed:
            case Deed.WORK:
                await stream.send_all(self._carried_out(call))
            case Deed.UNAVAILABLE:
                await stream.send_all(http(b"", b"503 Service Unavailable"))
            case Deed.FAIL:
                await stream.send_all(http(build_response(chaos.random.choice(_FAILURES))))
            case Deed.REFUSE:
                await stream.send_all(http(build_response(_REFUSAL)))
            case Deed.HANG:
                await self._hang(stream, call)
            case Deed.LIE_CLOSE:
                self._carried_out(call)
            case Deed.LIE_FAIL:
                self._carried_out(call)
                await stream.send_all(http(build_response(_UNCLEAR)))
            case Deed.LIE_HALF:
                answer = self._carried_out(call)
                await stream.send_all(answer[: chaos.random.randrange(len(answer))])

    async def _in_turn(self) -> None:
        """Wait until what came past the daemon before is carried out."""

    def _carried_out(self, call: Call) -> bytes:
        answer = http(build_response(self.answer(call)))
        if call.method in SET_CALLS:
            self._chaos.trigger.hit("write carried out")
        return answer

    async def _hang(self, stream: trio.SocketStream, call: Call) -> None:
        """Do nothing for a while, or until the caller gives up; what changes something is carried out then, or later."""
        chaos, moves, incarnation = self._chaos, self._moves, self.incarnation
        given_up = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_gone, stream, nursery.cancel_scope)
                await chaos.wait_for_calm(chaos.random.uniform(0.05, HANG_MOST))
                given_up = False
                nursery.cancel_scope.cancel()
        finally:
            if given_up and call.method in SET_CALLS and chaos.random.random() < 0.8:
                chaos.coming += 1
                chaos.nursery.start_soon(self._land, call, moves, incarnation, trio.current_time())
        if not given_up:
            await stream.send_all(self._carried_out(call))

    @staticmethod
    async def _until_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(1):
                pass
        scope.cancel()

    async def _land(self, call: Call, moves: int, incarnation: int, given_up: float) -> None:
        chaos = self._chaos
        await trio.sleep(chaos.random.uniform(0, LATE_MOST))
        # What varstored wrote through a later guard, past the daemon, no daemon can keep an earlier call from landing on.
        is_past = self.direct_in > incarnation
        if trio.current_time() - given_up < LATE_CHECKED and moves == self._moves and not is_past:
            self._carried_out(call)
            chaos.tally.late += 1
        chaos.coming -= 1
