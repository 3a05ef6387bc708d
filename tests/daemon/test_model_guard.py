"""A VM whose guard's socket is taken over, through any sequence of events, against what its varstored was told: writes, boots,
hung, lost and late calls, ends of guards, domains and daemons, and what operators do meanwhile.

The daemon runs in this process, on real sockets and a virtual clock. Time goes on only while a rule is carried out.
"""

import shutil
import tempfile
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch
from uuid import UUID

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from trio.testing import wait_all_tasks_blocked

from killing.machine import GONE
from killing.stores import Version, set_aside, store_of, version_of
from support.certificates import microsoft_folder
from support.daemon import MANIFEST, loaded
from support.guard_in_hand import FIRST, Deed, GuardInHand, Held, Mood
from support.hosts import host_in
from support.running import Running
from support.stock import GET_BY_UUID, LOGOUT, SET, S, V, Varstored, exchange, login
from varstore_companion.daemon import listen
from varstore_companion.daemon.attachments import interposed
from varstore_companion.daemon.config import Settings, Source
from varstore_companion.daemon.held import digest_of
from varstore_companion.daemon.journals import opened_ledger
from varstore_companion.daemon.limits import Limits
from varstore_companion.daemon.main import Daemon
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.session import RequestRefusedError
from varstore_companion.errors import ConfigurationError, ToolstackError
from varstore_companion.toolstack.guard import GuardToolstack
from varstore_companion.trust.state import CertificatesState

VM = UUID(int=1)
LATE_SECONDS = 40.0
SECONDS = st.sampled_from([0.0, 0.01, 0.3, 1.0, 1.5, 4.0, 15.0, 45.0])
MOSTLY = st.sampled_from([True, True, False])
T = TypeVar("T")


class Machine(RuleBasedStateMachine):
    """`acknowledged`: the newest store that varstored was told is durable, by a write or by a read."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="model-")
        self.state = Path(self.folder.name) / "state"
        self.state.mkdir()
        self.path = Path(self.folder.name) / "guard"
        self.acknowledged = FIRST
        self.has = FIRST
        self.tried = {0: False}
        self.number = 0
        self.has_read = True
        self.calling: trio.CancelScope | None = None
        self.slowness = 0.0
        self.on_disk: set[trio.CancelScope] = set()
        self.errors: list[Exception] = []
        self.daemon: Daemon | None = None
        self.numbers = count(1)
        self.patched = patch.object(trio.to_thread, "run_sync", self._on_disk)
        self.patched.start()
        self.run = Running()

    @initialize(is_new=st.booleans())
    def begin(self, is_new: bool) -> None:
        async def begin() -> None:
            self.guard = GuardInHand(self.path, Held(VM), self.run.nursery, LATE_SECONDS, is_new=is_new)
            self.guard.start()
            await self._start_daemon()
            await self._attach(resume=True)

        self.run(begin)

    def teardown(self) -> None:
        try:
            if hasattr(self, "guard"):
                self.calm()
        finally:
            self.run.end()
            self.patched.stop()
            self.folder.cleanup()

    # No rule has a precondition: what is drawn goes by nothing that the kernel or the collector decides.

    # The VM's varstored, which makes one call at a time

    @rule(brings_back=st.sampled_from([False, False, True]))
    def write(self, brings_back: bool) -> None:
        if self.has_read and self.calling is None:
            self._meanwhile(partial(self._call, self._write, self._next(brings_back=brings_back)))

    @rule(mood=st.sampled_from(Mood), times=st.integers(1, 3), then=st.sampled_from([None, "detach", "status"]), after=SECONDS)
    def write_in_a_mood(self, mood: Mood, times: int, then: str | None, after: float) -> None:
        self.guard.mood = mood
        for _ in range(times):
            self.write(brings_back=False)
        if then is not None:
            self.operate(then)
        self.time_goes_by(after)

    @rule()
    def read(self) -> None:
        if self.calling is None:
            self._meanwhile(partial(self._call, self._read))

    # The guard and the toolstack behind it

    @rule(which=st.sampled_from([0, 0, 1, 2]), deed=st.sampled_from(Deed))
    def call_is_decided(self, which: int, deed: Deed) -> None:
        for waiting in self.guard.waiting[which : which + 1]:
            self._now(partial(self.guard.decide, waiting, deed))

    @rule(which=st.sampled_from([0, 0, 1, 2]))
    def late_one_lands(self, which: int) -> None:
        if which < len(self.guard.late):
            self._now(partial(self.guard.land, which))

    @rule(finishes=st.booleans(), leaves_file=st.booleans(), starts=MOSTLY)
    def guard_ends(self, finishes: bool, leaves_file: bool, starts: bool) -> None:
        if self.guard.has_escaped or not self.guard.is_there:
            return
        self._now(lambda: self.guard.end(finishes=finishes, leaves_file=leaves_file))
        if starts:
            self._now(self.guard.start)

    @rule()
    def guard_starts(self) -> None:
        if not self.guard.is_there:
            self._now(self.guard.start)

    @rule(
        mood=st.sampled_from(Mood),
        before=st.sampled_from([None, Deed.CARRY_OUT]),
        finishes=st.booleans(),
        after=st.sampled_from([0.3, 1.0, 1.5]),
        deed=st.sampled_from(Deed),
    )
    def write_past_the_daemon(self, mood: Mood, before: Deed | None, finishes: bool, after: float, deed: Deed) -> None:
        """A guard that is started anew has its socket to itself, until the daemon takes that over."""
        if self.guard.has_escaped:
            return
        for each in self.guard.waiting if before is not None else ():
            self._now(partial(self.guard.decide, each, Deed.CARRY_OUT))
        if self.guard.is_there:
            self.guard_ends(finishes, leaves_file=True, starts=False)
        self.guard_starts()
        self.write_in_a_mood(mood, 1, None, after)
        for each in [each for each in self.guard.waiting if each.is_direct]:
            self._now(partial(self.guard.decide, each, deed))

    # The host

    @rule(seconds=SECONDS, slowness=st.sampled_from([0.0, 0.0, 0.02, 0.3]), mood=st.sampled_from([None, *Mood]))
    def time_goes_by(self, seconds: float, slowness: float = 0.0, mood: Mood | None = None) -> None:
        self.slowness = slowness
        self.guard.mood = mood or self.guard.mood
        self.run(partial(trio.sleep, seconds))

    @rule(what=st.sampled_from(["the domain", "the daemon, cleanly", "the daemon, killed"]), starts=MOSTLY)
    def something_ends(self, what: str, starts: bool) -> None:
        if what == "the domain":
            self._domain_ends(starts=starts)
            return
        if self.daemon is not None:
            self.run(self._kill_daemon if what == "the daemon, killed" else self._stop_daemon)
        if starts:
            self.run(self._start_daemon)

    def _domain_ends(self, *, starts: bool) -> None:
        """And with it its varstored, whatever that is at, and its guard; the next one's is at the same path."""
        if self.calling is not None:
            self._now(self.calling.cancel)
        if self.guard.is_there:
            self._now(lambda: self.guard.end(finishes=False, leaves_file=False))
        self.path.unlink(missing_ok=True)
        if starts:
            self._now(self.guard.start)
        self.has_read = False

    @rule()
    def daemon_starts(self) -> None:
        if self.daemon is None:
            self.run(self._start_daemon)

    # The operator

    @rule(resume=st.booleans())
    def attach(self, resume: bool) -> None:
        if self.daemon is None:
            return
        # Else the next read of anybody would be taken for the boot.
        self._meanwhile(
            partial(self._attach, resume=resume or self.has_read or self.calling is not None), self.daemon_now._host.nursery
        )

    @rule(action=st.sampled_from(["detach", "mark", "status"]))
    def operate(self, action: str) -> None:
        if action == "mark":
            if self.guard.held.state is CertificatesState.UPDATE_AVAILABLE:
                self.guard.held.state = CertificatesState.UPDATE_ON_BOOT
        elif self.daemon is not None:
            self._meanwhile(self._detach if action == "detach" else self._status, self.daemon_now._host.nursery)

    # What must hold

    def calm(self) -> None:
        """Everything works again; what the toolstack then has is what varstored was told, or newer."""
        self.run(self._calm)

    @invariant()
    def nothing_is_violated(self) -> None:
        if not hasattr(self, "guard"):
            return
        self.run(wait_all_tasks_blocked)
        if self.errors:
            raise self.errors[0]
        assert self.guard.held.violations == []
        for version in set_aside(self.state / "backups" / str(VM)):
            assert version < self.guard.newest_direct, f"{version} was set aside for nothing"  # invariant 6

    async def _calm(self) -> None:
        guard = self.guard
        guard.mood, self.slowness = Mood.WORKS, 0.0
        for waiting in list(guard.waiting):
            guard.decide(waiting, Deed.ANSWER)
        if not guard.is_there:
            guard.start()
        if self.daemon is None:
            await self._start_daemon()
        with trio.fail_after(300):
            await self._until(lambda: self.calling is None)
            while self.path not in self.daemon_now._sockets.served:
                await self._attach(resume=True)
                await trio.sleep(1)
            await self._until(lambda: self.daemon_now.vm(VM).is_direct)
        await trio.sleep(LATE_SECONDS)
        await self._call(self._read)
        assert self.has_read
        held = guard.held.version
        assert held >= self.acknowledged, f"{self.acknowledged} was acknowledged, and {held} is held"  # invariant 6
        assert held == self.has, f"{self.has} was read, and {held} is held"
        version = self._next(brings_back=False)
        await self._call(self._write, version)
        assert guard.held.version == version
        assert not self.daemon_now._host.journal.pending_count

    async def _until(self, what: Callable[[], bool]) -> None:
        while not what():  # noqa: ASYNC110  some of it nothing tells of
            await trio.sleep(1)

    def _meanwhile(self, call: Callable[[], Awaitable[object]], nursery: trio.Nursery | None = None) -> None:
        """Begin it, as a task of the daemon's where its nursery is given, and go on to where it has to wait."""

        async def kept() -> None:
            try:
                await call()
            except Exception as error:  # noqa: BLE001  raised by the next look at what must hold
                self.errors.append(error)

        async def begin() -> None:
            (nursery or self.run.nursery).start_soon(kept)
            await wait_all_tasks_blocked()

        self.run(begin)

    def _now(self, call: Callable[[], object]) -> None:
        async def now() -> None:
            call()
            await wait_all_tasks_blocked()

        self.run(now)

    # What varstored does

    def _next(self, *, brings_back: bool) -> Version:
        self.number += 1
        self.tried[self.number] = self.has.is_updated and not brings_back
        return Version(self.number, self.tried[self.number])

    async def _call(self, call: Callable[..., Awaitable[None]], *arguments: object) -> None:
        with trio.CancelScope() as self.calling, suppress(*GONE):
            await call(*arguments)
        self.calling = None

    async def _write(self, version: Version) -> None:
        varstored, store = Varstored(self.path, VM), store_of(version)
        await exchange(self.path, login())
        await varstored.call(GET_BY_UUID, S, str(VM))
        await varstored.call(SET, S, V, b64encode(store).decode())
        self.acknowledged = self.has = version
        if self.daemon is not None and self.guard.held.version < version:
            pending = self.daemon._host.journal.pending(VM)
            assert pending is not None, f"{version} is not durable"  # invariant 6
            assert pending.digest == digest_of(store)
        await varstored.call(LOGOUT, S)

    async def _read(self) -> None:
        before = self.guard.direct_reads
        store = await Varstored(self.path, VM).read()
        assert store is not None
        version = version_of(store)
        assert version.number in self.tried
        assert version.is_updated >= self.tried[version.number], f"nobody has written {version}"
        self.has, self.has_read = version, True
        if self.guard.direct_reads == before:
            assert version >= self.acknowledged, f"{version} was read, {self.acknowledged} was acknowledged"
        # What its guard gives it itself may be older than what waits in the journal.
        self.acknowledged = max(self.acknowledged, version)

    # What the operator does

    async def _attach(self, *, resume: bool) -> None:
        with suppress(RequestRefusedError, ConfigurationError):
            await self.daemon_now.attach(interposed(VM, self.path, resume=resume))

    async def _detach(self) -> None:
        daemon, incarnation = self.daemon_now, self.guard.incarnation
        with suppress(RequestRefusedError, ConfigurationError):
            if not await daemon.detach(self.path) or incarnation != self.guard.incarnation:
                return
            if self.path.exists() and self.path not in daemon._sockets.served:
                pending = daemon._host.journal.pending(VM)
                assert pending is None, "detached with a store that waits, and its guard may be there"

    async def _status(self) -> None:
        with suppress(ToolstackError):
            await self.daemon_now.status(VM)

    # The daemon

    @property
    def daemon_now(self) -> Daemon:
        assert self.daemon is not None
        return self.daemon

    async def _start_daemon(self) -> None:
        toolstack = GuardToolstack(self.numbers, late_seconds=LATE_SECONDS)
        rules = Rules(MANIFEST, loaded(), limits=Limits(write_burst=0))
        host = host_in(self.state, toolstack, rules, lambda: 2e9, upstreams=toolstack)
        host.ledger = opened_ledger(self.state / "ledger")
        bound = listen.bind(self.state.with_name("control"), mode=0o600)
        reloader = Reloader(host, Source(), Settings())
        daemon = Daemon(host, reloader, self.state / "attached.json", bound)
        self.scope, self.ended = trio.CancelScope(), trio.Event()
        started = trio.Event()

        async def live() -> None:
            try:
                with self.scope:
                    async with trio.open_nursery() as nursery:
                        await nursery.start(daemon.run)
                        started.set()
            except Exception as error:  # noqa: BLE001  raised by the next look at what must hold
                self.errors.append(error)
            self.ended.set()
            started.set()

        self.run.nursery.start_soon(live)
        await started.wait()
        self.daemon = daemon

    async def _stop_daemon(self) -> None:
        await self.daemon_now.stop()
        await self._end_daemon()

    async def _kill_daemon(self) -> None:
        """What it would still write as it ends is not there."""
        left = self.state.with_name("left")
        shutil.copytree(self.state, left)
        for scope in self.on_disk:
            scope.shield = False
        await self._end_daemon()
        shutil.rmtree(self.state)
        left.rename(self.state)

    async def _end_daemon(self) -> None:
        self.scope.cancel()
        await self.ended.wait()
        assert self.daemon_now._host.ledger is not None
        self.daemon_now._host.ledger.close()
        self.daemon = None

    async def _on_disk(self, call: Callable[..., T], *arguments: object, **_how: object) -> T:
        """In place of a thread, for which the virtual clock does not wait."""
        with trio.CancelScope(shield=True) as scope:
            self.on_disk.add(scope)
            try:
                await trio.sleep(self.slowness / 2)
                result = call(*arguments)
                await trio.sleep(self.slowness / 2)
            finally:
                self.on_disk.remove(scope)
        return result


Machine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestModel = pytest.mark.skipif(microsoft_folder() is None, reason="virt-firmware is not installed")(Machine.TestCase)
