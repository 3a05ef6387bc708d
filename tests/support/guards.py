"""A daemon in this process before fake guards, as `support.daemon` has one on a toolstack in memory."""

from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio

from support.daemon import Machine, certcheck, still_host
from support.fake_guard import Guard, Server, VmModel
from varstore_companion.daemon import listen
from varstore_companion.daemon.attachments import Attachment, interposed
from varstore_companion.daemon.config import Settings, Source
from varstore_companion.daemon.main import Daemon
from varstore_companion.daemon.reload import Reloader
from varstore_companion.toolstack.guard import GuardToolstack
from varstore_companion.trust.state import CertificatesState


def behind_guard(
    folder: Path, nursery: trio.Nursery, store: bytes | None, state: CertificatesState, *, is_new: bool = True
) -> tuple[Guard, Server]:
    """A VM behind its guard, which listens."""
    model = VmModel(uuid4(), certcheck)
    model.put(store, state)
    guard = Guard(model, is_new=is_new)
    server = Server(folder / f"guard-{str(model.uuid)[:8]}", guard.answer)
    server.listen()
    nursery.start_soon(server.run)
    return guard, server


class Place:
    """A daemon on the guard toolstack."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.nursery = nursery
        self.toolstack = GuardToolstack(count(1))
        self.host = still_host(folder, self.toolstack, upstreams=self.toolstack)
        self.control = folder / "control"
        self.saved = folder / "attached.json"
        reloader = Reloader(self.host, Source(), Settings())
        self.daemon = Daemon(self.host, reloader, self.saved, listen.bind(self.control, mode=0o600))

    def guard(self, store: bytes | None, state: CertificatesState, *, is_new: bool = True) -> tuple[Guard, Server]:
        return behind_guard(self.folder, self.nursery, store, state, is_new=is_new)

    async def machine(
        self, store: bytes | None, state: CertificatesState, *, is_new: bool = True, resume: bool = False
    ) -> tuple[Machine, Guard, Server]:
        """A VM behind its guard, attached."""
        guard, server = self.guard(store, state, is_new=is_new)
        attachment = self.attachment(guard.model.uuid, server.path, resume=resume)
        assert not await self.daemon.attach(attachment)
        return Machine(attachment.vm, attachment.path), guard, server

    def attachment(self, vm: UUID, upstream: Path | None, *, resume: bool = False, name: str = "vm") -> Attachment:
        return Attachment(vm, self.folder / f"{name}-{str(vm)[:8]}", None, 0o660, resume, upstream)

    async def interposed(
        self, store: bytes | None, state: CertificatesState, *, is_new: bool = True, resume: bool = False
    ) -> tuple[Machine, Guard, Server]:
        """A VM whose guard's own socket is taken over."""
        guard, server = self.guard(store, state, is_new=is_new)
        assert not await self.daemon.attach(interposed(guard.model.uuid, server.path, resume=resume))
        return Machine(guard.model.uuid, server.path), guard, server

    def names(self) -> set[str]:
        """Of the sockets in its folder, but for its own."""
        return {each.name for each in self.folder.iterdir() if each.is_socket()} - {"control"}


@pytest.fixture
async def place(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Place]:
    """One whose daemon runs. In place of `conftest`'s for who imports it."""
    place = Place(tmp_path, nursery)
    await nursery.start(place.daemon.run)
    yield place
    nursery.cancel_scope.cancel()


def inode(path: Path) -> int:
    """Of the socket itself."""
    return path.lstat().st_ino
