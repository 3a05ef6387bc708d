"""A host: the daemon on real sockets with its embedded toolstack, xapi's own client, and varstoreds."""

import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
import trio
import XenAPI

import varstore_companion
from support.shipped import microsoft_bodies, shipped
from support.storemaker import Variable, make_store, scene
from varstore_companion.cli.client import Client
from varstore_companion.daemon.attachments import DEFAULT_MODE, Attachment
from varstore_companion.daemon.config import Settings
from varstore_companion.daemon.main import Daemon, opened
from varstore_companion.toolstack.database import FILE_NAME
from varstore_companion.toolstack.operations import Operations
from varstore_companion.trust.check import derived_state
from varstore_companion.wire.connection import Connection
from varstore_companion.wire.messages import (
    AnswerMessage,
    ClientKind,
    GetStore,
    GetStoreAnswer,
    Hello,
    PutStore,
    PutStoreAnswer,
    Reason,
    Socket,
)
from varstore_companion.wire.states import Role

T = TypeVar("T")

Api = Any
"""What `XenAPI.Session.xenapi` is: the package carries no type information."""

_CERTCHECK = "import sys; sys.path.insert(0, {!r}); from varstore_companion.cli.certcheck import run; run()"
_VENDOR = UUID("9d0da369-540b-46f8-85a0-2b5f2c301e15")
_SOURCES = str(Path(varstore_companion.__file__).parents[1])


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for sockets: xapi's client writes / as _, so no _ may be in its path, and it has to be short."""
    folder = Path("/tmp") / f"vc-{uuid4().hex[:12]}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def xapi_client(path: Path, *, login: bool = True) -> Iterator[Any]:
    """The official client, as its own `xapi_local` connects it; gives the `XenAPI.Session`."""
    transport = XenAPI.UDSTransport()
    session = XenAPI.Session("http://" + str(path).replace("/", "_") + "/", transport=transport)
    try:
        if login:
            session.login_with_password("root", "", "1.0", "varstore-companion's tests")
        yield session
    finally:
        transport.close()


@dataclass(frozen=True)
class Host:
    """One host. Everything that waits for the daemon runs in a thread."""

    folder: Path
    daemon: Daemon

    @property
    def xapi(self) -> Path:
        """The socket of xapi's clients."""
        return self.folder / "xapi"

    async def ask(self, calls: Callable[[Api], T]) -> T:
        """Log in with xapi's client and make calls."""

        def run() -> T:
            with xapi_client(self.xapi) as session:
                return calls(session.xenapi)

        return await trio.to_thread.run_sync(run)

    @contextmanager
    def operations(self) -> Iterator[Operations]:
        """The toolstack's file, as the commands open it beside the daemon."""
        with Operations(self.folder / "state" / FILE_NAME, partial(derived_state, manifest=shipped())) as operations:
            yield operations

    def counters(self) -> dict[str, int]:
        """What the toolstack was told about the stores that it was given."""
        with self.operations() as operations:
            return operations.counters()

    async def attach(self, vm: str, name: str = "varstored", *, resume: bool = False) -> "Varstored":
        """Have the daemon serve a socket of the VM, which is named by its uuid or its reference."""
        varstored = Varstored(UUID(vm.removeprefix("OpaqueRef:")), self.folder / name)
        await self.daemon.attach(Attachment(varstored.vm, varstored.path, None, DEFAULT_MODE, resume))
        return varstored


@dataclass(frozen=True)
class Varstored:
    """A VM's socket, and what its varstored asks for there."""

    vm: UUID
    path: Path

    def call(self, *requests: GetStore | PutStore) -> list[AnswerMessage]:
        """Make requests on a connection; blocks."""
        with Client(self.path, ClientKind.VARSTORED, vm=self.vm) as client:
            return [client.call(request) for request in requests]

    def cut(self, request: PutStore) -> None:
        """Begin a request and go away before its last byte; blocks."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(str(self.path))
            connection = Connection(Role.CLIENT, socket=Socket.VM)
            peer.sendall(connection.request(Hello.of(ClientKind.VARSTORED, vm=self.vm, name="varstored"))[1])
            connection.receive_data(peer.recv(65_536))
            assert list(connection.events())
            peer.sendall(connection.request(request)[1][:-1])

    async def get(self, reason: Reason = Reason.BOOT) -> GetStoreAnswer:
        """Read the store."""
        (answer,) = await trio.to_thread.run_sync(self.call, GetStore(reason))
        assert isinstance(answer, GetStoreAnswer)
        return answer

    async def put(self, store: bytes) -> PutStoreAnswer:
        """Write the store."""
        (answer,) = await trio.to_thread.run_sync(self.call, PutStore(store))
        assert isinstance(answer, PutStoreAnswer)
        return answer


def counted(name: str, number: int) -> bytes:
    """The scene's store after its guest wrote a variable of its own: the keys are as they were."""
    return make_store([*scene(name).variables, Variable("Counter", _VENDOR, number.to_bytes(8, "little"))])


@pytest.fixture
def certcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certcheck program of these sources: the interpreter of the tests may have no installed one beside it."""
    command = (sys.executable, "-c", _CERTCHECK.format(_SOURCES))
    monkeypatch.setattr("varstore_companion.toolstack.certcheck.default_command", lambda: command)


@asynccontextmanager
async def running(folder: Path, *, headroom: int | None = None) -> AsyncIterator[Host]:
    """A host in `folder` as long as this is entered."""
    microsoft_bodies()  # skips where they are absent
    settings = Settings(
        control=folder / "control",
        state_dir=folder / "state",
        auth_dir=folder / "absent",
        headroom=headroom,
        xapi_socket=folder / "xapi",
    )
    async with opened(settings) as daemon, trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        yield Host(folder, daemon)
        await daemon.stop()
        nursery.cancel_scope.cancel()


@pytest.fixture
async def host(certcheck: None) -> AsyncIterator[Host]:
    """A host of its own."""
    with short_folder() as folder:
        async with running(folder) as host:
            yield host
