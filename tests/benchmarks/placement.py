"""Where the processes of an exchange run: a ratio of two exchanges is about the programs only if both are placed alike.

Left to itself, the kernel keeps a small yardstick on its caller's processor, where nobody has to be woken, and the daemon on
another, which sleeps by then: in a virtual machine that alone takes as long as three exchanges of the yardstick, and is neither
program's. So the ratio that has a target is that of both on another processor than their caller.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import UnavailableError


@dataclass(frozen=True, slots=True)
class Placement:
    """The processors of who asks, and of all who answer. `name`, `words`: after those of a figure."""

    name: str
    words: str
    asks: frozenset[int]
    answers: frozenset[int]


def apart() -> Placement:
    """Who asks on one processor, who answers on another, as on a host with processors to spare: each wakes the other."""
    one, other = two()
    return Placement("", "caller and servers apart", frozenset({one}), frozenset({other}))


def together() -> Placement:
    """All on one processor: nobody is woken on another, so this is the work alone."""
    one = frozenset({min(os.sched_getaffinity(0))})
    return Placement("-together", "all on one processor", one, one)


def free() -> Placement:
    """As the kernel places them, each for itself."""
    processors = frozenset(os.sched_getaffinity(0))
    return Placement("-free", "as the kernel places them", processors, processors)


def two() -> tuple[int, int]:
    """Two processors. Raises `UnavailableError`."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise UnavailableError("there is one processor, and some processes have to have one for themselves")
    return processors[0], processors[1]


def threads(pid: int) -> list[int]:
    """Of a process."""
    return [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]


def place(pid: int, processors: Iterable[int]) -> None:
    """Have a process run there, with all that it starts from now on."""
    for thread in threads(pid):
        os.sched_setaffinity(thread, processors)


@contextmanager
def placed(processors: Iterable[int]) -> Iterator[None]:
    """Have this process run there meanwhile, and for good what it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
