"""Sockets that the system refuses at a start: tried again until they are back, in the list all the while."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock

from support import guards
from support.daemon import Machine, Place, written
from support.storemaker import scene
from varstore_companion.daemon import attachments, sockets
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.interpose import beside
from varstore_companion.daemon.main import Daemon
from varstore_companion.daemon.session import RequestRefusedError
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Durable, Outcome, Ping, PingAnswer, Reason

OK, AVAILABLE, ON_BOOT = CertificatesState
OLD = scene("ms2011").blob


def obstacle(path: Path) -> Path:
    """What makes the system refuse a socket at `path`: a folder in place of the name under which it is made."""
    return path.with_name(f".varstore-companion-{sha256(path.name.encode()).hexdigest()[:16]}")


def listed(saved: Path) -> set[Path]:
    return {each.path for each in attachments.load(saved)}


async def come_back(daemon: Daemon, mock_clock: MockClock) -> None:
    with trio.fail_after(60):
        while daemon._sockets.missing:
            await trio.testing.wait_all_tasks_blocked(0.001)
            mock_clock.jump(sockets.AGAIN_SECONDS[0])


@asynccontextmanager
async def started(place: Place, *saved: Attachment) -> AsyncIterator[Daemon]:
    attachments.save(place.saved, saved)
    for each in saved:
        place.toolstack.vms[each.vm] = VmRecord(OLD, ON_BOOT, 1)
    async with trio.open_nursery() as nursery:
        await nursery.start(place.daemon.run)
        yield place.daemon
        nursery.cancel_scope.cancel()


async def test_it_comes_back_when_the_system_refuses_it_no_more(
    tmp_path: Path, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    missing = Attachment(uuid4(), tmp_path / "vm.sock", None, 0o660, resume=False)
    other = Attachment(uuid4(), tmp_path / "other.sock", None, 0o660, resume=False)
    new = Attachment(uuid4(), tmp_path / "new.sock", None, 0o660, resume=False)
    obstacle(missing.path).mkdir()
    place = Place(tmp_path)
    async with started(place, missing, other) as daemon:
        async with Machine(other.vm, other.path).peer() as peer:
            await peer.call(Ping(), PingAnswer)
        assert (await daemon.status(None))["missing"] == 1
        assert (await daemon.status(missing.vm))["missing"] == [str(missing.path)]
        # It is not known that the VM does not run (invariant 8), and nothing else that is attached costs it its socket.
        assert daemon._sockets.in_use(missing.vm) == f"{missing.path} is attached: shut the VM down and detach it"
        await daemon.attach(new)
        assert listed(place.saved) == {missing.path, other.path, new.path}
        for _ in range(5):
            mock_clock.jump(sockets.AGAIN_SECONDS[1])
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert not missing.path.exists()
        obstacle(missing.path).rmdir()
        await come_back(daemon, mock_clock)
        assert (await Machine(missing.vm, missing.path).boot()).outcome is Outcome.UPDATED
        assert (await daemon.status(None))["missing"] == 0
        assert (await daemon.status(missing.vm))["missing"] == []
    assert listed(place.saved) == {missing.path, other.path, new.path}
    said = [line for line in caplog.messages if f"vm={missing.vm}" in line and "back" in line]
    assert len(said) == 2, said
    assert "is not back yet, and is tried again" in said[0]
    assert said[1].endswith(f"{missing.path} is back")


async def test_one_that_is_attached_anew_is_not_tried_again(tmp_path: Path, mock_clock: MockClock) -> None:
    missing = Attachment(uuid4(), tmp_path / "vm.sock", None, 0o660, resume=False)
    another = Attachment(uuid4(), missing.path, None, 0o600, resume=True)
    obstacle(missing.path).mkdir()
    place = Place(tmp_path)
    async with started(place, missing) as daemon:
        obstacle(missing.path).rmdir()
        await daemon.attach(another)
        await come_back(daemon, mock_clock)
        assert [each["vm"] for each in daemon.listed()] == [str(another.vm)]
    assert attachments.load(place.saved) == (another,)


async def test_one_that_is_detached_is_forgotten(tmp_path: Path, mock_clock: MockClock) -> None:
    missing = Attachment(uuid4(), tmp_path / "vm.sock", None, 0o660, resume=False)
    obstacle(missing.path).mkdir()
    place = Place(tmp_path)
    async with started(place, missing) as daemon:
        assert await daemon.detach(missing.path)
        assert not await daemon.detach(missing.path)
        obstacle(missing.path).rmdir()
        mock_clock.jump(sockets.AGAIN_SECONDS[1])
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert not missing.path.exists()
        assert daemon._sockets.in_use(missing.vm) is None
    assert attachments.load(place.saved) == ()


async def test_a_domain_that_is_gone_meanwhile_is_forgotten(
    tmp_path: Path, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Attachment(uuid4(), tmp_path / "domain" / "vm.sock", None, 0o660, resume=False)
    missing.path.parent.mkdir()
    obstacle(missing.path).mkdir()
    place = Place(tmp_path)
    async with started(place, missing) as daemon:
        obstacle(missing.path).rmdir()
        missing.path.parent.rmdir()
        await come_back(daemon, mock_clock)
        assert daemon.listed() == []
    assert f"vm={missing.vm} its socket does not come back: {missing.path.parent}: No such file or directory" in caplog.messages


async def test_one_that_was_interposed_asks_its_guard_again(  # invariants 6 and 9
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """And is not given back while a store waits that its guard does not have."""
    first = guards.Place(tmp_path, nursery)
    async with trio.open_nursery() as life:
        await life.start(first.daemon.run)
        machine, guard, server = await first.interposed(OLD, AVAILABLE, resume=True)
        await machine.boot(Reason.RESUME)
        server.stop()
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
        await first.daemon.stop()
        life.cancel_scope.cancel()
    obstacle(beside(machine.path)).mkdir()
    second = guards.Place(tmp_path, nursery)
    await nursery.start(second.daemon.run)
    assert second.daemon.listed() == []
    with pytest.raises(RequestRefusedError, match="not with its toolstack yet") as refused:
        await second.daemon.detach(machine.path)
    assert refused.value.code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert listed(second.saved) == {machine.path}
    # The guard is back at its own path, and its guest writes past the daemon.
    await nursery.start(server.run)
    guard.model.put(past := written("ms2011", 2), AVAILABLE)
    obstacle(beside(machine.path)).rmdir()
    await come_back(second.daemon, mock_clock)
    assert (await machine.boot(Reason.RESUME)).store == past
    nursery.cancel_scope.cancel()
