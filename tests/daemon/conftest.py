"""The daemon under test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from support.daemon import Place


@pytest.fixture
async def place(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    await nursery.start(place.daemon.run)
    yield place
    nursery.cancel_scope.cancel()


@pytest.fixture
def still(tmp_path: Path) -> Iterator[Place]:
    """A place whose daemon does not run, for what needs no sockets."""
    place = Place(tmp_path)
    yield place
    place.bound.socket.close()
