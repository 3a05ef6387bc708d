"""A VM's varstored under load: it writes, resumes and reboots, and holds the daemon to what it has acknowledged."""

from base64 import b64encode
from pathlib import Path
from random import Random
from typing import Protocol
from uuid import UUID
from xml.etree import ElementTree

import trio

from killing.stores import Version, store_of, version_of
from killing.tally import Tally
from killing.trigger import Trigger
from support.peer import HungUp, Peer, Refused, greeted
from support.stock import GET_BY_UUID, LOGOUT, SET, Failed, S, V, Varstored, exchange, login
from varstore_companion.wire.errors import ErrorCode, LocalProtocolError
from varstore_companion.wire.messages import (
    Attach,
    AttachAnswer,
    Detach,
    DetachAnswer,
    Durable,
    Outcome,
    PutStore,
    PutStoreAnswer,
    Reason,
)

GONE = (OSError, trio.BrokenResourceError, HungUp, ElementTree.ParseError, Failed, LocalProtocolError)
"""What a client meets when the daemon is not there, is killed, or stops."""
THINKING = 0.02


class Truth(Protocol):
    """Who knows what the toolstack holds."""

    def holds(self, vm: UUID) -> Version | None:
        """What it holds right now; None when that cannot be seen."""


class Load:
    """What all VMs share. `is_up`: whether there is a daemon to speak to."""

    def __init__(self, random: Random, tally: Tally, trigger: Trigger, truth: Truth, control: Path) -> None:
        self.random = random
        self.tally = tally
        self.trigger = trigger
        self.truth = truth
        self.control = control
        self.is_over = trio.Event()
        self._up = trio.Event()

    def up(self) -> None:
        """A daemon is ready."""
        self._up.set()

    def down(self) -> None:
        """It is killed."""
        if self._up.is_set():
            self._up = trio.Event()

    async def wait_until_up(self) -> None:
        """Wait for one; a client that has just been cut off must not come back in the same turn."""
        await trio.lowlevel.checkpoint()
        await self._up.wait()


class Machine:
    """One VM. `acknowledged`: the newest store that it was told is durable, by a write or by a read."""

    def __init__(self, vm: UUID, path: Path, load: Load, *, is_stock: bool, upstream: Path | None) -> None:
        self.vm = vm
        self.path = path
        self.acknowledged = Version(0, is_updated=False)
        self.is_journaled = False
        """Whether the last acknowledged write was said, or seen, to be in the journal alone."""
        self.tried: dict[int, bool] = {0: False}
        self.stays = trio.Event()
        """Set to have it write no more."""
        self.stopped = trio.Event()
        self.has_written = trio.Event()
        self._has = self.acknowledged
        self._load = load
        self._is_stock = is_stock
        self._upstream = upstream
        self._number = 0
        self._varstored = Varstored(path, vm)
        self._reads_boot = True
        self.is_attached = False

    async def run(self) -> None:
        """Live until the load is over."""
        while not (self._load.is_over.is_set() or self.stays.is_set()):
            await self._load.wait_until_up()
            try:
                if not self.is_attached:
                    await self.attach()
                await (self._live_stock() if self._is_stock else self._live_framed())
            except (*GONE, Refused) as error:
                if isinstance(error, Refused) and error.code is not ErrorCode.SHUTTING_DOWN:
                    raise
                self._happened(f"met {error!r}")
                await trio.sleep(THINKING)
        self.stopped.set()

    async def settle(self) -> None:
        """Have its socket served in the end."""
        if not self.is_attached:
            await self.attach()

    async def attach(self) -> None:
        """Have its socket served."""
        upstream = None if self._upstream is None else bytes(self._upstream)
        async with greeted(self._load.control) as control:
            await control.call(Attach(self.vm, bytes(self.path), upstream=upstream), AttachAnswer)
        self.is_attached = True
        self._happened("attached")

    async def _reboot(self) -> None:
        """The domain ends and starts again, as the toolstack goes about it."""
        self.is_attached = False
        async with greeted(self._load.control) as control:
            await control.call(Detach(bytes(self.path)), DetachAnswer)
        self._load.tally.reboots += 1
        self._happened("detached")
        self._reads_boot = True

    # A framed client

    async def _live_framed(self) -> None:
        async with greeted(self.path, self.vm) as peer:
            while not (self._load.is_over.is_set() or self.stays.is_set()):
                await self._think()
                chance = self._load.random.random()
                if chance < 0.01:
                    break
                if self._reads_boot or chance < 0.1:
                    reason = Reason.BOOT if self._reads_boot else Reason.RESUME
                    try:
                        answer = await peer.get(reason)
                    except Refused:
                        continue
                    self._reads_boot = False
                    self._load.tally.updates += answer.outcome is Outcome.UPDATED
                    self._read(answer.store)
                else:
                    await self._put(peer)
            else:
                return
        await self._reboot()

    async def _put(self, peer: Peer) -> None:
        version = self._next()
        is_answered = False
        try:
            request = await peer.send(PutStore(store_of(version)))
            self._happened(f"{version} sent")
            self._load.trigger.hit("write sent")
            answer = await peer.answer(request)
            is_answered = True
        except Refused as error:
            self._load.tally.failed += 1
            self._happened(f"{version} failed: {error}")
            return
        finally:
            self._load.tally.cut += not is_answered
        assert isinstance(answer, PutStoreAnswer)
        self._is_acknowledged(version, is_journaled=answer.durable is Durable.JOURNAL)

    # An unmodified varstored

    async def _live_stock(self) -> None:
        while not (self._load.is_over.is_set() or self.stays.is_set()):
            await self._think()
            chance = self._load.random.random()
            if chance < 0.01:
                await self._reboot()
                return
            if self._reads_boot or chance < 0.1:
                try:
                    await self._read_store()
                except Failed as error:
                    if not error.status:
                        return
            else:
                await self._set()

    async def _read_store(self) -> None:
        store = await self._varstored.read()
        self._reads_boot = False
        self._read(store)

    async def _set(self) -> None:
        version = self._next()
        text = b64encode(store_of(version)).decode()
        is_answered = False
        try:
            await exchange(self.path, login())
            await self._varstored.call(GET_BY_UUID, S, str(self.vm))
            self._happened(f"{version} sent")
            self._load.trigger.hit("write sent")
            await self._varstored.call(SET, S, V, text)
            is_answered = True
        except Failed as error:
            is_answered = error.status != 0
            self._load.tally.failed += is_answered
            self._happened(f"{version} failed: {error}")
            return
        finally:
            self._load.tally.cut += not is_answered
        holds = self._load.truth.holds(self.vm)
        self._is_acknowledged(version, is_journaled=holds is None or holds < version)
        await self._varstored.call(LOGOUT, S)

    # What it was told

    def _next(self) -> Version:
        """What it writes next: a change of something of its own; now and then its owner brings the keys of 2011 back."""
        self._number += 1
        keys = self._has.is_updated and self._load.random.random() > 0.03
        self.tried[self._number] = keys
        return Version(self._number, keys)

    def _is_acknowledged(self, version: Version, *, is_journaled: bool) -> None:
        tally = self._load.tally
        holds = self._load.truth.holds(self.vm)
        if is_journaled:
            tally.to_journal += 1
        else:
            tally.to_toolstack += 1
            if holds is not None and holds < version:
                tally.violated("lies", self.vm, f"{version} is said to be with the toolstack, which holds {holds}")
        self._happened(f"{version} acknowledged, {'journal' if is_journaled else 'toolstack'}")
        self.acknowledged = self._has = version
        self.is_journaled = is_journaled
        self.has_written.set()
        self._load.trigger.hit("write acknowledged")

    def _read(self, store: bytes | None) -> None:
        self._load.tally.reads += 1
        self._load.trigger.hit("read answered")
        if store is None:
            self._load.tally.violated("lost", self.vm, "was told that it has no store")
            return
        version = version_of(store)
        self._happened(f"{version} read")
        self.confirm(version, "was read")
        # It runs with that one now, so that one must stay.
        self.acknowledged = self._has = version

    def confirm(self, version: Version, what: str) -> None:
        """See that a version may be there."""
        if version < self.acknowledged:
            self._load.tally.violated("lost", self.vm, f"{version} {what}, {self.acknowledged} was acknowledged")
        elif version.number not in self.tried or version.is_updated < self.tried[version.number]:
            self._load.tally.violated("lost", self.vm, f"{version} {what}, which nobody has written")

    def _happened(self, what: str) -> None:
        self._load.tally.happened(self.vm, f"VM: {what}")

    async def _think(self) -> None:
        with trio.move_on_after(self._load.random.uniform(0, THINKING)):
            await self.stays.wait()
