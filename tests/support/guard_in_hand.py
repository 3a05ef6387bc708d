"""A guard at its own path whose calls a test has in its hand, the daemon's and varstored's own: held, done, answered, lost.

Its processes end and are started anew. What the daemon gave up may be carried out late. What varstored itself waits for no more
never is: no daemon could help that.
"""

import os
import socket
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from uuid import UUID

import trio

from killing.stores import Version, certcheck, store_of, version_of
from support.fake_guard import SET_CALLS, Guard, VmModel, http, receive_call
from support.stock import GET_STATE
from varstore_companion.toolstack.xmlrpc import Call, build_response
from varstore_companion.trust.state import CertificatesState, Update

AWAY = http(b"", b"503 Service Unavailable")
FIRST = Version(0, is_updated=False)
_HELD = ("VM.get_NVRAM", *SET_CALLS)


class Mood(Enum):
    """What becomes of the calls that come."""

    WORKS = "each is answered"
    HOLDS = "reads and writes of the store wait"
    HOLDS_WRITES = "writes wait"
    AWAY = "503"


class Deed(Enum):
    """What becomes of a call that waits."""

    CARRY_OUT = "carried out, and not answered yet"
    ANSWER = "answered"
    LOSE = "carried out, and its answer lost"
    CUT = "left undone, and its connection closed"
    FAIL = "503"


class Held(VmModel):
    """What the toolstack holds of the VM; `violations`: what must never become of it. `is_direct`: varstored writes itself."""

    def __init__(self, vm: UUID) -> None:
        super().__init__(vm, certcheck)
        self.is_direct = False
        self.violations: list[str] = []
        self.put(store_of(FIRST), CertificatesState.UPDATE_AVAILABLE)

    @property
    def version(self) -> Version:
        """What is held."""
        assert self.store is not None
        return version_of(self.store)

    def write(self, text: str, update: str | None) -> None:
        before, marked = self.version, self.state is CertificatesState.UPDATE_ON_BOOT
        super().write(text, update)
        after = self.version
        if after < before:
            self.violations.append(f"{after} was written over {before}")  # invariant 9
        is_told = update in (Update.YES, Update.NO) or update is None
        if marked and not self.is_direct and not is_told and before.is_updated == after.is_updated:
            self.violations.append(f"{after} over {before} with {update} has ended a mark")  # invariant 7


@dataclass(eq=False)
class Waiting:
    """A call that waits. `incarnation`: which of the guard's processes it came to; `is_done`: it is carried out.

    `is_passed`: the daemon has looked at the store meanwhile.
    """

    call: Call
    is_direct: bool
    incarnation: int
    is_done: bool = False
    is_passed: bool = False
    answer: bytes = b""
    decided: trio.Event = field(default_factory=trio.Event)

    @property
    def writes(self) -> bool:
        """Whether it changes the store."""
        return self.call.method in SET_CALLS

    @property
    def version(self) -> Version:
        """What it writes."""
        return version_of(b64decode(str(self.call.parameters[2])))


class GuardInHand:
    """See the module. `path`: where varstored calls it. A process of it has `nursery`'s tasks.

    `waiting`: calls in the order in which they came; `late`: writes that were given up, each with when it was.
    `has_escaped`: varstored's own write was carried out after a look of the daemon's that came after it, and no look since. As
    long as that is so, a look is answered whatever the mood, and what the daemon sends from that former look fails.
    `direct_in`: the last process that varstored wrote through itself; `newest_direct`: what it wrote so last.
    """

    def __init__(self, path: Path, held: Held, nursery: trio.Nursery, late_seconds: float, *, is_new: bool) -> None:
        self.path = path
        self.held = held
        self.mood = Mood.WORKS
        self.waiting: list[Waiting] = []
        self.late: list[tuple[float, Waiting]] = []
        self.incarnation = 0
        self.direct_in = 0
        self.direct_reads = 0
        self.newest_direct = FIRST
        self.has_escaped = False
        self._guard = Guard(held, is_new=is_new)
        self._nursery = nursery
        self._late_seconds = late_seconds
        self._listens: trio.CancelScope | None = None
        self._lives = trio.CancelScope()

    @property
    def is_there(self) -> bool:
        """Whether its process runs."""
        return self._listens is not None

    def start(self) -> None:
        """A new process, which makes the socket anew."""
        assert not self.is_there
        with suppress(FileNotFoundError):
            self.path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(self.path))
        listener.listen(16)
        self.incarnation += 1
        self._listens, self._lives = trio.CancelScope(), trio.CancelScope()
        self._nursery.start_soon(self._run, listener, self._listens, self._lives)

    async def _run(self, listener: socket.socket, listens: trio.CancelScope, lives: trio.CancelScope) -> None:
        with lives:
            async with trio.open_nursery() as calls:
                with listens:
                    accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                    await trio.serve_listeners(self._serve, [accepting], handler_nursery=calls)

    def end(self, *, finishes: bool, leaves_file: bool) -> None:
        """Listen no more. `finishes`: what has come to it goes on; else its connections are closed, too."""
        assert self._listens is not None
        if not leaves_file:
            self.path.unlink(missing_ok=True)
        (self._listens if finishes else self._lives).cancel()
        self._listens = None

    def may_carry_out(self, waiting: Waiting) -> bool:
        """What varstored wrote through a later process, no daemon can keep an earlier call from landing on."""
        if not waiting.writes:
            return True
        if self.has_escaped and not waiting.is_direct and waiting.version < self.held.version:
            return False
        return waiting.incarnation >= self.direct_in

    def decide(self, waiting: Waiting, deed: Deed) -> None:
        """Have it become of a call that waits."""
        carries_out = deed in (Deed.CARRY_OUT, Deed.ANSWER, Deed.LOSE)
        if carries_out and not waiting.is_done:
            if not self.may_carry_out(waiting):
                deed = Deed.FAIL
            else:
                self._carry_out(waiting)
        if deed is Deed.CARRY_OUT:
            return
        if deed is Deed.FAIL and not waiting.is_done:
            waiting.answer = AWAY
        elif deed is not Deed.ANSWER:
            waiting.answer = b""
        waiting.decided.set()

    def land(self, index: int) -> None:
        """Carry out what was given up, if it still may be."""
        given_up, waiting = self.late.pop(index)
        if trio.current_time() < given_up + self._late_seconds and self.may_carry_out(waiting):
            self._carry_out(waiting)

    def _carry_out(self, waiting: Waiting) -> None:
        held = self.held
        held.is_direct = waiting.is_direct
        waiting.is_done = True
        waiting.answer = http(build_response(self._guard.answer(waiting.call)))
        held.is_direct = False
        if waiting.is_direct and waiting.writes:
            self.direct_in = max(self.direct_in, waiting.incarnation)
            self.newest_direct = max(self.newest_direct, held.version)
        if waiting.is_direct and waiting.writes:
            self.has_escaped = waiting.is_passed
            for each in self.waiting:
                if self.has_escaped and not each.is_direct:
                    self.decide(each, Deed.FAIL)
        elif waiting.call.method == "VM.get_NVRAM":
            if waiting.is_direct:
                self.direct_reads += 1
            else:
                self.has_escaped = False
                for each in self.waiting:
                    each.is_passed |= each.is_direct and each.writes

    async def _serve(self, stream: trio.SocketStream) -> None:
        incarnation = self.incarnation
        with suppress(trio.BrokenResourceError):
            async with stream:
                received = await receive_call(stream)
                if received is not None:
                    call, head = received
                    await self._meet(stream, Waiting(call, "user-agent: varstored/0.1" in head, incarnation))

    async def _meet(self, stream: trio.SocketStream, waiting: Waiting) -> None:
        escapes = self.has_escaped and not waiting.is_direct
        # The second half of a look, of which the first was answered.
        escapes |= waiting.call.method == GET_STATE
        if self.mood is Mood.AWAY and not escapes:
            await stream.send_all(AWAY)
            return
        holds = self.mood is Mood.HOLDS or (self.mood is Mood.HOLDS_WRITES and waiting.writes)
        if holds and waiting.call.method in _HELD and not escapes:
            await self._hold(stream, waiting)
        elif self.may_carry_out(waiting):
            self._carry_out(waiting)
        else:
            waiting.answer = AWAY
        if waiting.answer:
            await stream.send_all(waiting.answer)

    async def _hold(self, stream: trio.SocketStream, waiting: Waiting) -> None:
        """Wait until it is decided, or until nobody waits for it any more."""
        self.waiting.append(waiting)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, stream, nursery.cancel_scope)
                await waiting.decided.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.waiting.remove(waiting)
            if not waiting.decided.is_set():
                waiting.answer = b""
                if waiting.writes and not waiting.is_direct and not waiting.is_done:
                    self.late.append((trio.current_time(), waiting))


async def _until_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(1):
            pass
    scope.cancel()
