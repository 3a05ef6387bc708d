"""Any sequence of writes, boots, outages, lost and late answers, foreign writes and restarts, against a dictionary.

The daemon runs in this process, on a virtual clock and a toolstack in memory. Time goes on only while a rule is carried out.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch
from uuid import UUID

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from killing.stores import FOREIGN, Version, certcheck, set_aside, store_of, version_of
from support.certificates import microsoft_folder
from support.daemon import MANIFEST, DirectBackups, DirectHistory, DirectJournal, loaded
from support.hosts import host_in
from support.moody_toolstack import FIRST, LATE_SECONDS, VMS, Moody
from support.running import Running
from varstore_companion.daemon import attachments, listen, main
from varstore_companion.daemon.alerts import SET_ASIDE
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.cold_boot import BootOutcome
from varstore_companion.daemon.config import Settings, Source
from varstore_companion.daemon.journals import opened_ledger
from varstore_companion.daemon.limits import Limits
from varstore_companion.daemon.main import Daemon
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.sockets import Sockets
from varstore_companion.daemon.vm import Vm
from varstore_companion.errors import (
    ToolstackError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState

UUIDS = st.sampled_from(VMS)
SLOWNESS = st.sampled_from([0.0, 0.02, 0.05])
T = TypeVar("T")


class SlowJournal(DirectJournal):
    """A journal whose writes take the disk a while, in which other things happen."""

    slowness = 0.0

    async def _in_thread(self, call: Callable[[], T]) -> T:
        result = await super()._in_thread(call)
        await trio.sleep(self.slowness)
        return result


class StillSockets(Sockets):
    """Sockets whose list is written without a thread: the virtual clock does not wait for threads."""

    async def _save(self, kept: Iterable[Attachment]) -> None:
        attachments.save(self._saved, tuple(kept))


@dataclass
class Modelled:
    """A VM in the dictionary. `newest`: the last one acknowledged; `others`: what may be there instead, and is not older.

    `foreign`: another host's since the last look at everything.
    """

    newest: Version = FIRST
    others: set[Version] = field(default_factory=set)
    foreign: Version | None = None
    number: int = 0

    @property
    def allowed(self) -> set[Version]:
        """What a read may give."""
        return {self.newest, *self.others, *({self.foreign} if self.foreign else ())}

    def took(self, version: Version) -> None:
        """Acknowledged, or read: nothing older may be seen any more."""
        if version != self.foreign:
            self.newest = version
            self.others = {other for other in self.others if other > version}


class Machine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="model-")
        self.path = Path(self.folder.name)
        self.toolstack = Moody()
        self.model = {vm: Modelled() for vm in VMS}
        self.foreign = FOREIGN
        self.now = 2e9
        SlowJournal.slowness = 0.0
        self.run = Running()
        self.run(self._start)

    def teardown(self) -> None:
        try:
            self.recover()
        finally:
            self.run.end()
            self.folder.cleanup()

    # What happens

    @rule(vm=UUIDS, brings_back=st.booleans())
    def write(self, vm: UUID, brings_back: bool) -> None:
        model = self.model[vm]
        model.number += 1
        version = Version(model.number, model.newest.is_updated and not brings_back)

        async def put() -> None:
            try:
                await self._vm(vm).put(store_of(version))
            except ToolstackUnclearError:
                model.others.add(version)
            except ToolstackError:
                pass  # it says that the old store stays: nobody may ever see this one
            else:
                model.newest, model.others = version, set()

        self.run(put)

    @rule(vm=UUIDS, before=st.integers(1, 3), after=st.integers(1, 12))
    def write_while_an_outage_ends(self, vm: UUID, before: int, after: int) -> None:
        self.toolstack.is_away = True
        for _ in range(before):
            self.write(vm, brings_back=False)
        self.toolstack.is_away = False
        for _ in range(after):
            self.write(vm, brings_back=False)

    @rule(vm=UUIDS)
    def boot(self, vm: UUID) -> None:
        model = self.model[vm]

        async def boot() -> None:
            try:
                boot = await self._vm(vm).boot()
            except ToolstackError:
                assert self.toolstack.is_away or vm not in self.toolstack.attached or self.toolstack.held
                return
            version = self._seen(boot.store)
            if boot.outcome is BootOutcome.UPDATED:
                assert version.is_updated
                assert model.allowed & {version, Version(version.number, is_updated=False)}
                self._replace(model, version)
                return
            assert version in model.allowed, (version, model)
            model.took(version)
            if boot.outcome is BootOutcome.FAILED:
                # It may have been sent, and land late.
                model.others.add(Version(version.number, is_updated=True))

        self.run(boot)

    @rule(vm=UUIDS)
    def read(self, vm: UUID) -> None:
        model = self.model[vm]

        async def read() -> None:
            try:
                version = self._seen((await self._vm(vm).read()).store)
            except ToolstackError:
                assert self.toolstack.is_away or vm not in self.toolstack.attached
                return
            assert version in model.allowed, (version, model)
            model.took(version)

        self.run(read)

    @rule(vm=UUIDS)
    def mark(self, vm: UUID) -> None:
        record = self.toolstack.vms[vm]
        if record.state is CertificatesState.UPDATE_AVAILABLE:
            self.toolstack.vms[vm] = VmRecord(record.store, CertificatesState.UPDATE_ON_BOOT, record.generation)

    @rule(is_away=st.booleans())
    def toolstack_goes_or_comes(self, is_away: bool) -> None:
        self.toolstack.is_away = is_away

    @rule(seconds=SLOWNESS)
    def toolstack_slows_down(self, seconds: float) -> None:
        self.toolstack.slowness = seconds

    @rule(seconds=SLOWNESS)
    def disk_slows_down(self, seconds: float) -> None:
        SlowJournal.slowness = seconds

    @rule(mood=st.sampled_from(["unclear before", "unclear after", "late"]))
    def next_write(self, mood: str) -> None:
        self.toolstack.next_write = mood

    @precondition(lambda self: self.toolstack.held)
    @rule()
    def late_ones_land(self) -> None:
        self.run(self.toolstack.land)

    @rule(seconds=st.sampled_from([0.01, 0.03, 0.1, 1.0, 15.0, 50.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.run(partial(trio.sleep, seconds))

    @rule(seconds=st.sampled_from([-1e9, -60.0, 1e9]))
    def clock_is_set(self, seconds: float) -> None:
        self.now += seconds

    @rule(vm=UUIDS)
    def another_host_writes(self, vm: UUID) -> None:
        self.foreign += 1
        record, model = self.toolstack.vms[vm], self.model[vm]
        model.foreign = Version(self.foreign, is_updated=False)
        self.toolstack.vms[vm] = VmRecord(store_of(model.foreign), certcheck(store_of(model.foreign)), record.generation + 1)
        # Nothing that this host has under way reaches a VM that has moved on.
        self.toolstack.moves[vm] += 1
        self.toolstack.held = [held for held in self.toolstack.held if held[1] != vm]
        pending = self.daemon._host.journal.pending(vm)
        # One that is with the toolstack already may be pending until that is on disk.
        if pending is not None and pending.digest not in self.toolstack.landed:
            self.toolstack.floor[vm] = model.number

    @rule(vm=UUIDS)
    def detach_or_attach(self, vm: UUID) -> None:
        async def change() -> None:
            if vm in self.toolstack.attached:
                assert await self.daemon.detach(self._attachment(vm).path)
            else:
                await self.daemon.attach(self._attachment(vm))

        self.run(change)

    @rule()
    def restart(self) -> None:
        async def restart() -> None:
            await self._stop()
            await self._start()

        self.run(restart)

    @rule()
    def recover(self) -> None:
        """Everything works again; what the toolstack then has is the newest, or another host's."""

        async def recover() -> None:
            self.toolstack.is_away, self.toolstack.next_write = False, ""
            for vm in VMS:
                if vm not in self.toolstack.attached:
                    await self.daemon.attach(self._attachment(vm))
            with trio.fail_after(600):
                while self.daemon._host.journal.pending_count or not all(  # noqa: ASYNC110  some of it nothing tells of
                    self._vm(vm).is_direct for vm in VMS
                ):
                    await trio.sleep(1)
            await trio.sleep(LATE_SECONDS)
            for vm, model in self.model.items():
                self._judge(vm, model)
                # As a VM that comes back to this host: who writes has read before.
                assert (await self._vm(vm).read()).store == self.toolstack.vms[vm].store

        self.run(recover)

    # What must hold

    def _judge(self, vm: UUID, model: Modelled) -> None:
        version = self._seen(self.toolstack.vms[vm].store)
        assert version in model.allowed, (version, model)
        if version == model.foreign and model.newest != version and self.toolstack.floor[vm] >= 0:
            kept = set_aside(self.path / "backups" / str(vm))
            # What was acknowledged, in the journal or since, is with the toolstack or here.
            assert kept or model.newest.number >= FOREIGN, (version, model, kept)
            assert SET_ASIDE in [alert.name for of, alert in self.toolstack.alerts if of == vm]
        self._replace(model, version)
        self.toolstack.floor[vm] = -1

    @staticmethod
    def _replace(model: Modelled, version: Version) -> None:
        model.newest, model.others, model.foreign = version, set(), None

    @staticmethod
    def _seen(store: bytes | None) -> Version:
        assert store is not None
        return version_of(store)

    # The daemon

    def _vm(self, vm: UUID) -> Vm:
        return self.daemon.vm(vm)

    def _attachment(self, vm: UUID) -> Attachment:
        name = f"vm{vm.int}"
        return Attachment(vm, self.path / name, None, 0o660, resume=False, upstream=self.path / f"{name}.guard")

    async def _start(self) -> None:
        host = host_in(
            self.path,
            self.toolstack,
            Rules(MANIFEST, loaded(), limits=Limits(write_burst=0)),
            lambda: self.now,
            backups=DirectBackups,
            history=DirectHistory,
            journal=SlowJournal,
            upstreams=self.toolstack,
        )
        host.ledger = opened_ledger(self.path / "ledger")
        self.bound = listen.bind(self.path / "control", mode=0o600)
        with patch.object(main, "Sockets", StillSockets):
            reloader = Reloader(host, Source(), Settings())
            self.daemon = Daemon(host, reloader, self.path / "attached.json", self.bound)
        self.toolstack.attached.clear()
        self.scope, self.ended = trio.CancelScope(), trio.Event()
        started = trio.Event()

        async def live() -> None:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.daemon.run)
                    started.set()
            self.ended.set()

        self.run.nursery.start_soon(live)
        await started.wait()
        if not (self.path / "attached.json").exists():
            for vm in VMS:
                await self.daemon.attach(self._attachment(vm))
        # As a VM that runs: its store has been read.
        for vm in VMS:
            if vm in self.toolstack.attached and not self.toolstack.is_away:
                self.model[vm].took(self._seen((await self._vm(vm).read()).store))

    async def _stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()
        assert self.daemon._host.ledger is not None
        self.daemon._host.ledger.close()


Machine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestModel = pytest.mark.skipif(microsoft_folder() is None, reason="virt-firmware is not installed")(Machine.TestCase)
