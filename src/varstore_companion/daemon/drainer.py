"""Bringing journaled stores to the toolstack: a task for each VM that has one, so many at a time, in turn, with backoff."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

import trio

from varstore_companion.daemon.vm import Vm
from varstore_companion.errors import JournalError, ToolstackError

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Deliveries at the same time: they share the fsync that ends each of them."""
DELIVERY_SECONDS = 25.0
"""For one delivery: a busy host takes seconds for certcheck."""
PAUSE_SECONDS = 0.25
"""Before the second try; twice as long before each one after it."""
LONGEST_PAUSE_SECONDS = 30.0


@dataclass(eq=False, slots=True)
class _Job:
    """One VM's deliveries. `vm`: kept, with what it knows of the calls that were given up; `wake`: try at once."""

    vm: Vm
    wake: trio.Event = field(default_factory=trio.Event)


class Drainer:
    """`vm_of`: the daemon's side of a VM. A VM that could not be delivered is tried again when another one has been."""

    def __init__(self, vm_of: Callable[[UUID], Vm], nursery: trio.Nursery) -> None:
        self._vm_of = vm_of
        self._nursery = nursery
        self._jobs: dict[UUID, _Job] = {}
        self._delivering = True
        # First come, first served: no VM waits for the second delivery of another.
        self._slots = trio.Semaphore(AT_ONCE)

    @property
    def delivering(self) -> bool:
        """Whether the toolstack takes what waits: the last try went well, or none has been made yet."""
        return self._delivering

    def deliver(self, uuid: UUID) -> None:
        """See to it that what is pending for this VM is delivered."""
        if uuid not in self._jobs:
            job = self._jobs[uuid] = _Job(self._vm_of(uuid))
            self._nursery.start_soon(self._run, job, name=f"delivery of vm={uuid}")

    def wake(self, uuid: UUID) -> None:
        """Try at once: the way to the toolstack has changed."""
        if uuid in self._jobs:
            self._jobs[uuid].wake.set()

    async def _run(self, job: _Job) -> None:
        vm = job.vm
        failures = 0
        try:
            while not vm.is_direct:
                await vm.settled()
                try:
                    async with self._slots:
                        await vm.deliver(trio.current_time() + DELIVERY_SECONDS)
                except (ToolstackError, JournalError, OSError) as error:
                    failures += 1
                    self._delivering = False
                    if failures.bit_count() == 1:  # the 1st, 2nd, 4th, 8th…: an outage must not fill the log
                        log.warning("vm=%s its journaled store cannot be delivered yet (try %d): %s", vm.uuid, failures, error)
                    await _pause(job, failures)
                except Exception:
                    failures += 1
                    # One VM's store that meets a bug must not end the daemon.
                    log.exception("vm=%s the delivery of its journaled store met a bug", vm.uuid)
                    await _pause(job, failures + 4)
                else:
                    self._delivering = True
                    if failures:
                        self._wake_all()
                    failures = 0
        finally:
            del self._jobs[vm.uuid]

    def _wake_all(self) -> None:
        """The toolstack is back for one VM, so it may be for all."""
        for job in self._jobs.values():
            job.wake.set()


async def _pause(job: _Job, failures: int) -> None:
    seconds = min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** min(failures - 1, 10))
    # Jitter, so that the VMs of one outage do not come all at once.
    seconds *= random.uniform(0.5, 1.0)  # noqa: S311  no secret depends on it
    with trio.move_on_after(seconds):
        await job.wake.wait()
    job.wake = trio.Event()
