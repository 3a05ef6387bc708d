"""The loop: 20 VMs under load, a toolstack with moods, and the daemon killed again and again."""

import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

import trio

from killing.guards import LATE_SECONDS, Chaos, Held
from killing.interposed import Interposed
from killing.interposed_guard import InterposedGuard
from killing.life import Life
from killing.machine import GONE, Load, Machine
from killing.stores import FOREIGN, Version, set_aside
from killing.tally import Tally
from killing.trigger import MOMENTS, Trigger
from support.peer import greeted
from support.serve import Home
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Reason, Status, StatusAnswer

VMS: Final = 20
STARTING: Final = 0.15
"""Of all kills, those in the middle of a start."""
STOPPED: Final = 0.1
"""Of the others, those that are none: the daemon is told to stop."""
TOLD: Final = "told to stop"
DOWN: Final = 0.35
"""Of the longest life, for how long at most no daemon runs, where there are guards whose VMs can do without one."""
AT_A_MOMENT: Final = 0.5
"""Of the others, those at the very moment of something."""
CALM_SECONDS: Final = 60.0
"""For everything to be with the toolstack, once that works."""

_VM = re.compile(r"vm=([0-9a-f-]{36})")


@dataclass(frozen=True)
class Plan:
    """`movers`: of the VMs, those that move on to another host while a store of theirs is in the journal.

    `interposed`: those whose guards are processes, and in whose guards' place the daemon puts itself.
    """

    seed: int
    kills: int
    vms: int = VMS
    movers: int = 0
    interposed: int = 0
    longest_life: float = 1.0


def run(plan: Plan, folder: Path, say: Callable[[str], None] = lambda _: None) -> Tally:
    """Kill as planned in `folder`, and return what was counted."""
    tally = Tally()
    begun = time.monotonic()
    trio.run(_Loop(plan, Home(folder), tally, say).run)
    tally.seconds = time.monotonic() - begun
    return tally


async def waiting(control: Path) -> int:
    """How many stores wait for the toolstack, as the daemon says."""
    async with greeted(control) as peer:
        answer = await peer.call(Status(), StatusAnswer)
    return int(json.loads(answer.json)["journal"]["stores"])


class _Loop:
    def __init__(self, plan: Plan, home: Home, tally: Tally, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._home = home
        self._tally = tally
        self._say = say
        self._has_said = False
        # One a purpose: what one of them draws must not depend on how often another had its turn.
        self._random = Random(plan.seed)
        self._trigger = Trigger()
        self._machines: list[Machine] = []
        self._guards: list[InterposedGuard] = []
        config = home.folder / "config.toml"
        config.write_text(f"late_seconds = {LATE_SECONDS}\n")
        self._command = home.command("--config", config, "--toolstack", "guard")

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            for guard in self._guards:
                guard.kill()

    async def _run(self) -> None:
        plan, tally = self._plan, self._tally
        async with trio.open_nursery() as nursery:
            chaos = self._chaos = Chaos(Random(plan.seed + 1), tally, self._trigger, nursery)
            load = self._load = Load(Random(plan.seed + 2), tally, self._trigger, self, self._home.control)
            for number in range(plan.vms):
                vm = UUID(int=self._random.getrandbits(128))
                if number >= plan.vms - plan.interposed:
                    self._machines.append(self._interposed(vm, number))
                    continue
                upstream = self._home.folder / f"guard{number}"
                chaos.add(vm, upstream)
                path = self._home.folder / f"vm{number}"
                self._machines.append(Machine(vm, path, load, is_stock=number % 2 == 1, upstream=upstream))
            for machine in self._machines:
                nursery.start_soon(machine.run)
            await self._all_boot(nursery)
            nursery.start_soon(chaos.run)
            for machine in self._machines[: plan.movers]:
                nursery.start_soon(self._move, machine)
            for guard in self._guards:
                nursery.start_soon(guard.run_and_die)
            for _ in range(plan.kills):
                await self._live_and_die(nursery)
                if plan.interposed:
                    await trio.sleep(max(0.0, self._random.uniform(-DOWN, DOWN) * plan.longest_life))
            await self._recover(nursery)
            nursery.cancel_scope.cancel()

    def _interposed(self, vm: UUID, number: int) -> Interposed:
        home = self._home.folder
        folder = home / f"domain{number}"
        folder.mkdir()
        guard = InterposedGuard(folder / "socket", home / f"toolstack{number}", Held(vm, self._tally), self._chaos)
        self._guards.append(guard)
        self._chaos.open(guard)
        return Interposed(guard, self._load)

    def holds(self, vm: UUID) -> Version | None:
        """See `Truth`."""
        return self._chaos.guards[vm].held.version

    # Lives

    async def _begin(self, nursery: trio.Nursery) -> Life:
        for guard in self._chaos.guards.values():
            guard.refusals = 0
        return await Life.begin(self._command, nursery, self._said)

    def _said(self, line: str) -> None:
        """Keep what the daemon says of a VM."""
        if found := _VM.search(line):
            self._tally.happened(UUID(found[1]), f"daemon: {line}")
        else:
            for machine in self._machines:
                self._tally.happened(machine.vm, f"daemon: {line}")

    async def _all_boot(self, nursery: trio.Nursery) -> None:
        """Nothing has gone wrong yet: every VM boots and has written once."""
        life = await self._begin(nursery)
        await life.ready.wait()
        self._load.up()
        for machine in self._machines:
            with trio.fail_after(CALM_SECONDS):
                await machine.has_written.wait()
        life.killer(self._load.down)()
        await self._ended(life)

    async def _live_and_die(self, nursery: trio.Nursery) -> None:
        random, tally = self._random, self._tally
        life = await self._begin(nursery)
        kill = life.killer(self._load.down)
        if random.random() < STARTING:
            how = "in a start"
            with trio.move_on_after(random.uniform(0, 0.8)):
                await life.ready.wait()
        else:
            await life.ready.wait()
            if not life.has_ended:
                self._load.up()
            if random.random() < STOPPED:
                how = TOLD
                await trio.sleep(random.uniform(0.02, self._plan.longest_life))
                await self._stop(life)
            elif random.random() < AT_A_MOMENT:
                how = random.choice(MOMENTS)
                pulled = self._trigger.set(how, random.randrange(1, 15), kill)
                with trio.move_on_after(self._plan.longest_life) as scope:
                    await pulled.wait()
                self._trigger.clear()
                how = "at no moment" if scope.cancelled_caught else how
            else:
                how = "at a time"
                await trio.sleep(random.uniform(0.02, self._plan.longest_life))
        for machine in self._machines:
            tally.happened(machine.vm, f"killed {how}")
        kill()
        await self._ended(life, *([0] if how == TOLD else []))
        tally.kills += 1
        tally.kills_by[how] += 1
        if tally.notes and not self._has_said:
            # The first one says most: those behind it may only follow from it.
            self._has_said = True
            self._say(tally.notes[0])
        if tally.kills % 20 == 0:
            self._say(f"{tally.kills} kills, {tally.acknowledged:,} acknowledged, {len(tally.notes)} violations")

    async def _stop(self, life: Life) -> None:
        """It may still be killed while it stops."""
        self._load.down()
        life.process.terminate()
        with trio.move_on_after(self._plan.longest_life):
            await life.process.wait()

    async def _ended(self, life: Life, *codes: int) -> None:
        await life.ended()
        for machine in self._machines:
            if isinstance(machine, Interposed):
                machine.confirm_set_aside(self._quarantined(machine))
        tally = self._tally
        tally.longest_wait = max(tally.longest_wait, life.longest_wait)
        if life.process.returncode not in (-signal.SIGKILL, *codes):
            tally.violated("died", None, f"exit code {life.process.returncode}:\n" + "\n".join(life.lines[-30:]))
        if life.bugs:
            tally.violated("bugs", None, "\n".join(life.lines[-60:]))

    # VMs that move on

    async def _move(self, machine: Machine) -> None:
        """Let another host write while the newest store of a VM is in this one's journal, and have its guard come back."""
        guard = self._chaos.guards[machine.vm]
        await trio.sleep(self._random.uniform(0, self._plan.kills * self._plan.longest_life / 4))
        guard.pin()
        while not (machine.is_journaled and guard.held.version < machine.acknowledged):
            if self._load.is_over.is_set():
                break
            await trio.sleep(0.01)
        else:
            machine.stays.set()
            guard.move(Version(FOREIGN, is_updated=False))
            self._tally.moved += 1
            await machine.stopped.wait()
        guard.come_back()

    # The end

    async def _recover(self, nursery: trio.Nursery) -> None:
        life = await self._begin(nursery)
        await life.ready.wait()
        self._load.up()
        await trio.sleep(1.0)  # some more load on the daemon that has to bring it all in
        self._load.is_over.set()
        self._chaos.calm()
        begun = trio.current_time()
        with trio.move_on_after(CALM_SECONDS) as scope:
            for machine in self._machines:
                await machine.stopped.wait()
                await machine.settle()
            await self._drained()
        if scope.cancelled_caught:
            waiting = [str(machine.vm) for machine in self._machines if not machine.stopped.is_set()]
            self._tally.violated("died", None, f"not done in {CALM_SECONDS:g} s; {waiting}\n" + "\n".join(life.lines[-60:]))
        self._tally.longest_drain = trio.current_time() - begun
        for machine in self._machines:
            await self._judge(machine)
        self._load.down()
        life.process.kill()
        await self._ended(life)

    async def _drained(self) -> None:
        while await waiting(self._home.control) or self._chaos.coming:  # noqa: ASYNC110  another process's
            await trio.sleep(0.02)

    async def _judge(self, machine: Machine) -> None:
        held = self._chaos.guards[machine.vm].held
        if held.version.number >= FOREIGN:
            self._judge_moved(machine)
            return
        machine.confirm(held.version, "is with the toolstack in the end")
        store = await self._read_in_the_end(machine)
        if store != held.store:
            self._tally.violated("lost", machine.vm, f"reads another store than the toolstack's {held.version}")
        if (held.state is CertificatesState.OK) != held.version.is_updated:
            self._tally.violated("fields_untrue", machine.vm, f"{held.state} of {held.version}")
        if self._quarantined(machine) and not isinstance(machine, Interposed):
            self._tally.quarantined += 1
            self._tally.violated("lost", machine.vm, "has stores in quarantine")

    async def _read_in_the_end(self, machine: Machine) -> bytes | None:
        with trio.move_on_after(CALM_SECONDS):
            while True:
                try:
                    async with greeted(machine.path, machine.vm) as peer:
                        return (await peer.get(Reason.TOOL)).store
                except GONE:
                    # Its guard was started last thing, and has its socket to itself for a moment.
                    await machine.settle()
        self._tally.violated("died", machine.vm, f"nobody answers at {machine.path} in {CALM_SECONDS:g} s")
        return None

    def _judge_moved(self, machine: Machine) -> None:
        """The foreign store has stayed; what was acknowledged last is in quarantine."""
        kept = self._quarantined(machine)
        self._tally.quarantined += bool(kept)
        # A write that a kill has cut may have taken its place before.
        if max(kept, default=Version(-1, is_updated=False)) < machine.acknowledged:
            self._tally.violated("lost", machine.vm, f"{machine.acknowledged} is not in quarantine, but {kept}")

    def _quarantined(self, machine: Machine) -> set[Version]:
        return set_aside(self._home.state / "backups" / str(machine.vm))
