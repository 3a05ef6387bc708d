"""A journal at work, for tests."""

import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import trio

from varstore_companion.journal.disk import Disk
from varstore_companion.journal.journal import SEGMENT, TOTAL, Journal


def vm(number: int) -> UUID:
    return UUID(int=number)


@asynccontextmanager
async def running(
    folder: Path, *, disk: Disk | None = None, total: int = TOTAL, segment: int = SEGMENT
) -> AsyncIterator[Journal]:
    """One life of a journal."""
    journal = Journal(folder, disk=disk, total=total, segment=segment)
    journal.open()
    async with serving(journal):
        yield journal


@asynccontextmanager
async def serving(journal: Journal) -> AsyncIterator[None]:
    """Keep an opened journal going."""
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a journal does by itself, in its thread."""
    with trio.fail_after(20):
        while not condition():
            await trio.lowlevel.checkpoint()


def segments(folder: Path) -> list[str]:
    """The names of a journal's segments, oldest first."""
    return sorted(path.name for path in folder.glob("*.segment"))


def files(folder: Path) -> list[Path]:
    """All that is in a folder."""
    return sorted(folder.iterdir())


def size(folder: Path) -> int:
    """Bytes of a journal's segments."""
    return sum((folder / name).stat().st_size for name in segments(folder))


def mode(path: Path) -> int:
    """Who may do what with a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)
