"""The same on the embedded toolstack, whose file another process keeps locked now and then for longer than it is waited for."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

import trio

from killing.life import Life
from killing.loop import CALM_SECONDS, waiting
from killing.machine import Load, Machine
from killing.stores import Version, store_of, version_of
from killing.tally import Tally
from killing.trigger import Trigger
from support.serve import Home
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.trust.state import CertificatesState

VMS: Final = 6
Kill = Callable[[], None]
What = Callable[[trio.Nursery, Kill], Awaitable[None]]
LONGEST_LOCK: Final = 4.0
"""Seconds. The daemon waits three for the file."""
MOMENTS: Final = ("write sent", "write acknowledged", "read answered")


class EmbeddedLoop:
    """`run` kills as often as `kills` says."""

    def __init__(self, folder: Path, seed: int, kills: int) -> None:
        self.tally = Tally()
        self._home = Home(folder)
        self._kills = kills
        self._random = Random(seed)
        self._trigger = Trigger()
        self._load = Load(Random(seed + 1), self.tally, self._trigger, self, self._home.control)
        self._calm = trio.Event()
        self._database: Database
        self._machines: list[Machine] = []

    def holds(self, vm: UUID) -> Version | None:
        """See `Truth`."""
        store = self._database.read(vm).store
        return None if store is None else version_of(store)

    async def run(self) -> None:
        """Live and die."""
        async with trio.open_nursery() as nursery:
            await self._live(nursery, self._first)
            with self._database:
                nursery.start_soon(self._lock_now_and_then)
                for _ in range(self._kills):
                    await self._live(nursery, self._some_time)
                    self.tally.kills += 1
                await self._live(nursery, self._recover)
            nursery.cancel_scope.cancel()

    async def _live(self, nursery: trio.Nursery, what: What) -> None:
        life = await Life.begin(self._home.command(), nursery, lambda _: None)
        await life.ready.wait()
        self._load.up()
        kill = life.killer(self._load.down)
        await what(nursery, kill)
        kill()
        await life.ended()
        self.tally.longest_wait = max(self.tally.longest_wait, life.longest_wait)
        if life.process.returncode != -9 or life.bugs:
            self.tally.violated("died", None, "\n".join(life.lines[-60:]))

    async def _first(self, nursery: trio.Nursery, _kill: Kill) -> None:
        """The VMs are created and boot, and each has written once."""
        self._database = self._home.database()
        for number in range(VMS):
            vm = self._home.create(store_of(Version(0, is_updated=False)), CertificatesState.UPDATE_ON_BOOT)
            path = self._home.folder / f"vm{number}"
            self._machines.append(Machine(vm, path, self._load, is_stock=number % 2 == 1, upstream=None))
            nursery.start_soon(self._machines[-1].run)
        for machine in self._machines:
            with trio.fail_after(CALM_SECONDS):
                await machine.has_written.wait()

    async def _some_time(self, _nursery: trio.Nursery, kill: Kill) -> None:
        if self._random.random() < 0.5:
            await trio.sleep(self._random.uniform(0.05, LONGEST_LOCK))
            return
        pulled = self._trigger.set(self._random.choice(MOMENTS), self._random.randrange(1, 20), kill)
        with trio.move_on_after(LONGEST_LOCK):
            await pulled.wait()
        self._trigger.clear()

    async def _lock_now_and_then(self) -> None:
        with closing(sqlite3.connect(self._home.state / FILE_NAME, isolation_level=None, timeout=0)) as other:
            while not self._calm.is_set():
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    await trio.sleep(0.002)
                    continue
                with trio.move_on_after(self._random.choice((0.3, LONGEST_LOCK, LONGEST_LOCK))):
                    await self._calm.wait()
                other.execute("ROLLBACK")
                with trio.move_on_after(self._random.uniform(0.1, 0.5)):
                    await self._calm.wait()

    async def _recover(self, _nursery: trio.Nursery, _kill: Kill) -> None:
        with trio.move_on_after(CALM_SECONDS):
            while not self.tally.to_journal:  # noqa: ASYNC110  the load goes on until some of it has been journaled
                await trio.sleep(0.02)
        self._load.is_over.set()
        self._calm.set()
        with trio.fail_after(CALM_SECONDS):
            for machine in self._machines:
                await machine.stopped.wait()
            while await waiting(self._home.control):  # noqa: ASYNC110  another process's
                await trio.sleep(0.02)
        for machine in self._machines:
            record = self._database.read(machine.vm)
            assert record.store is not None
            version = version_of(record.store)
            machine.confirm(version, "is with the toolstack in the end")
            if (record.state is CertificatesState.OK) != version.is_updated:
                self.tally.violated("fields_untrue", machine.vm, f"{record.state} of {version}")
        self.tally.quarantined = len(list((self._home.state / "quarantine").glob("*")))
