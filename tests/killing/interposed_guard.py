"""A guard whose varstored calls it at its own path, where the daemon may have put itself: a process, killed and started anew.

The toolstack behind it carries out a VM's calls in the order in which they come: what varstored has begun to write past the
daemon when that takes the path over is with the toolstack before what the daemon asks from then on.
"""

from pathlib import Path
from typing import Final

import trio

from killing.guard_process import GuardProcess
from killing.guards import Chaos, ChaosGuard, Deed, Held
from killing.stores import Version
from support.fake_guard import SET_CALLS, Server, http
from varstore_companion.toolstack.xmlrpc import Call, build_response

LIFE: Final = (0.2, 4.0)
"""Seconds between two ends of a guard."""
AWAY: Final = 1.2
KILLED: Final = 0.7
"""Of all ends those by SIGKILL, which leave its socket; the others remove what is at its path."""


class InterposedGuard(ChaosGuard):
    """`serves`: its path, as varstored knows it; `path` is the toolstack's behind it. Opened, it is a new process.

    `direct_reads`: how often varstored itself was given the store, past the daemon; `newest_direct`: what it wrote so last.
    """

    def __init__(self, serves: Path, path: Path, held: Held, chaos: Chaos) -> None:
        super().__init__(path, held, chaos)
        self.serves = serves
        self.direct_reads = 0
        self.newest_direct = Version(0, is_updated=False)
        self._direct = _Direct(path.with_name(f"{path.name}-direct"), self, chaos)
        self._process: GuardProcess | None = None

    @property
    def is_open(self) -> bool:
        """Whether its process runs."""
        return self._process is not None

    def open(self) -> None:
        super().open()
        if self._is_open and self._process is None:
            self.incarnation += 1
            self._direct.listen()
            self._chaos.nursery.start_soon(self._direct.run)
            self._process = GuardProcess(self.serves, self.path, self._direct.path)

    def close(self, *, leaves_file: bool) -> None:
        if self._direct.is_running:
            super().close(leaves_file=True)
        if self._process is not None and not self._is_open:
            if not leaves_file:
                self._process.end()
            self.kill()
            self._direct.stop()
            self._chaos.tally.guards_ended += 1

    def kill(self) -> None:
        """Leave no process behind."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    async def end(self) -> None:
        """End with its VM, until `come_back`."""
        self.pin()
        while self.is_open:
            await trio.lowlevel.checkpoint()
            self.pin()

    async def run_and_die(self) -> None:
        """Be killed, or end, and be started anew, again and again until all is calm."""
        chaos = self._chaos
        while not chaos.is_calm:
            await chaos.wait_for_calm(chaos.random.uniform(*LIFE))
            if chaos.is_calm or not self.is_open:
                continue
            self.close(leaves_file=chaos.random.random() < KILLED)
            if chaos.random.random() < 0.5:
                await chaos.wait_for_calm(chaos.random.uniform(0, AWAY))
            self.open()

    async def _in_turn(self) -> None:
        await self._direct.idle()

    def carried_out_directly(self, call: Call) -> bytes:
        """The answer to what varstored asks past the daemon."""
        held = self.held
        if call.method in SET_CALLS:
            self.direct_in = self.incarnation
        elif call.method == "VM.get_NVRAM":
            self.direct_reads += 1
        held.is_direct = True
        try:
            answer = http(build_response(self.answer(call)))
        finally:
            held.is_direct = False
        if call.method in SET_CALLS:
            self.newest_direct = max(self.newest_direct, held.version)
        return answer


class _Direct(Server):
    """What varstored asks the guard itself. What it waits for no more is never carried out: no daemon could help that."""

    def __init__(self, path: Path, guard: InterposedGuard, chaos: Chaos) -> None:
        super().__init__(path, guard.answer)
        self._guard = guard
        self._chaos = chaos
        self._under_way = 0
        self._none = trio.Event()

    async def idle(self) -> None:
        """Wait until none of its calls is under way."""
        while self._under_way:
            await self._none.wait()

    @property
    def is_running(self) -> bool:
        """Whether it can be stopped."""
        return self._scope is not None

    def stop(self) -> None:
        super().stop()
        self._scope = None

    async def _one(self, stream: trio.SocketStream) -> None:
        self._under_way += 1
        try:
            await self._answer(stream)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._none.set()
                self._none = trio.Event()

    async def _answer(self, stream: trio.SocketStream) -> None:
        call = await self._receive(stream)
        self.calls.clear()
        self.requests.clear()
        if call is None:
            return
        chaos, guard = self._chaos, self._guard
        deed = chaos.deed() if call.method in SET_CALLS or chaos.random.random() < 0.1 else Deed.WORK
        chaos.tally.happened(guard.held.uuid, f"toolstack, past the daemon: {call.method}: {deed.value}")
        match deed:
            case Deed.UNAVAILABLE | Deed.FAIL | Deed.REFUSE:
                await stream.send_all(http(b"", b"503 Service Unavailable"))
            case Deed.BREAK:
                pass
            case Deed.LIE_CLOSE | Deed.LIE_FAIL | Deed.LIE_HALF:
                answer = guard.carried_out_directly(call)
                await stream.send_all(answer[: chaos.random.randrange(len(answer))])
            case Deed.WORK | Deed.HANG:
                if deed is Deed.HANG:
                    await chaos.wait_for_calm(chaos.random.uniform(0.05, 0.5))
                await stream.send_all(guard.carried_out_directly(call))
