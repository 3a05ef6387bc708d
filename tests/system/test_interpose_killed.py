"""The daemon killed at every step of taking a guard's socket over and of giving it back: the path is never lost."""

import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from uuid import UUID

import pytest
import trio

from support.crashing import Crasher, crasher
from support.guards import Place, behind_guard
from support.serve import Home
from support.stock import Varstored
from support.storemaker import scene
from varstore_companion.cli.client import control
from varstore_companion.daemon.attachments import interposed
from varstore_companion.daemon.interpose import beside, is_left
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Attach, Detach, DetachAnswer

AVAILABLE = CertificatesState.UPDATE_AVAILABLE
OLD = scene("ms2011").blob


@pytest.fixture(scope="module")
def crashing() -> Iterator[Crasher]:
    with crasher() as started:
        yield started


def listens(path: Path) -> bool:
    """Whether somebody answers at the path, which must be there at every moment."""
    assert path.is_socket()
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


async def confirm_answers(path: Path, vm: UUID) -> None:
    assert await Varstored(path, vm).read() == OLD


@pytest.mark.parametrize("lost", [False, True], ids=["", "lost"])
@pytest.mark.parametrize("then", ["attach", "detach"])
@pytest.mark.parametrize("operation", ["attach", "detach"])
async def test_killed(
    tmp_path: Path, nursery: trio.Nursery, crashing: Crasher, operation: str, then: str, *, lost: bool
) -> None:
    """At each system call in turn. Afterwards the path answers: at once, or after the next start; with the list of attachments
    `lost`, after whatever is asked for next."""
    listening = []
    for steps in count():
        folder = tmp_path / str(steps)
        folder.mkdir()
        guard, server = behind_guard(folder, nursery, OLD, AVAILABLE)
        vm, path = guard.model.uuid, server.path
        guards = path.lstat().st_ino
        if not await trio.to_thread.run_sync(crashing.operate, folder, vm, path, operation, steps):
            break
        listening.append(listens(path))
        if listening[-1]:
            await confirm_answers(path, vm)
        place = Place(folder, nursery)
        if lost:
            place.saved.unlink(missing_ok=True)
        async with trio.open_nursery() as life:
            await life.start(place.daemon.run)
            if not lost:
                await confirm_answers(path, vm)
            if then == "attach":
                await place.daemon.attach(interposed(vm, path, resume=True))
                assert path.lstat().st_ino != guards
                assert beside(path).lstat().st_ino == guards
                await confirm_answers(path, vm)
                assert await place.daemon.attach(interposed(vm, path, resume=True))
            await place.daemon.detach(path)
            assert path.lstat().st_ino == guards
            assert not is_left(path)
            await confirm_answers(path, vm)
            assert not await place.daemon.detach(path)
            await place.daemon.stop()
            life.cancel_scope.cancel()
    assert len(listening) > 8
    # Killed after the exchange of names the path waits for the next start, and not for long.
    assert listening.count(False) in range(1, 4 if operation == "attach" else 8)
    nursery.cancel_scope.cancel()


async def test_a_daemon_that_is_killed_again_and_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A real one, whatever it does at that time; each next one finds its way."""
    guard, server = behind_guard(tmp_path, nursery, OLD, AVAILABLE)
    vm, path = guard.model.uuid, server.path
    guards = path.lstat().st_ino
    home = Home(tmp_path)
    for number in range(6):
        with home.serve("--toolstack", "guard") as serve:
            await confirm_answers(path, vm)
            with control(home.control) as client:
                request = Detach(bytes(path)) if number % 2 else Attach(vm, bytes(path), resume=True, interpose=True)
                _, frame = client._connection.request(request)
                client._socket.sendall(frame)
                if number > 2:
                    client._socket.recv(1)
                serve.process.kill()
                serve.wait()
        assert path.is_socket()
    with home.serve("--toolstack", "guard"):
        with control(home.control) as client:
            client.call(Attach(vm, bytes(path), resume=True, interpose=True))
            await Varstored(path, vm).write(OLD)
            assert guard.model.updates == ["no"]
            assert client.call(Detach(bytes(path))) == DetachAnswer(already=False)
        await confirm_answers(path, vm)
    assert path.lstat().st_ino == guards
    assert not is_left(path)
    nursery.cancel_scope.cancel()
