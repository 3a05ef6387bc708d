"""The daemon's own process on disks that fail: a guest gets an error, or an acknowledgement that holds (invariant 6)."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from support.daemon import certcheck, written
from support.fake_guard import Guard, Server, VmModel
from support.peer import Refused, greeted
from support.processes import python_environment
from support.serve import Home
from support.storemaker import scene
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Attach, AttachAnswer, Durable, Reason, Status, StatusAnswer

SECONDS = 20
NO_ROOM = (ErrorCode.UNCLEAR, ErrorCode.TOOLSTACK_UNAVAILABLE)
CLOCK = """
import sys
from varstore_companion.cli.main import run
from varstore_companion.daemon import main
now = float(sys.argv[1])
del sys.argv[1]
main.time = lambda: now
run()
"""


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips a test where nothing can be mounted, with the reason: a skip from within an async test says none."""
    folder = tmp_path_factory.mktemp("mounted")
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.splitlines()[0]}")
    unmounted(folder)


def mounted(folder: Path, *options: str) -> None:
    """Mount an empty file system."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, check=True)


def unmounted(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be changed there, until the end."""
    subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True, capture_output=True)
        yield
    finally:
        unmounted(folder)


class Site:
    """A VM, its guard, and one daemon after the other beside them."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.home = Home(folder)
        self.vm = uuid4()
        self.path = folder / "vm.sock"
        self.model = VmModel(self.vm, certcheck)
        self.model.put(scene("ms2011").blob, CertificatesState.UPDATE_AVAILABLE)
        self._nursery = nursery
        self._guard = Server(folder / "guard", Guard(self.model).answer)
        self._config = folder / "config.toml"
        self._config.write_text("late_seconds = 0\n")

    @property
    def options(self) -> tuple[object, ...]:
        return "--config", self._config, "--toolstack", "guard"

    async def comes(self) -> None:
        """The toolstack does."""
        self._guard.listen()
        await self._nursery.start(self._guard.run)

    def goes(self) -> None:
        self._guard.stop()

    async def attached(self) -> None:
        """The VM runs, and its store is known."""
        await self.comes()
        async with greeted(self.home.control) as control:
            await control.call(Attach(self.vm, bytes(self.path), upstream=bytes(self._guard.path)), AttachAnswer)
        await self.read()

    async def read(self) -> bytes | None:
        async with greeted(self.path, self.vm) as peer:
            return (await peer.get(Reason.RESUME)).store

    async def read_fails(self) -> bool:
        """Whether there is an error instead of a store."""
        try:
            await self.read()
        except Refused as refused:
            return refused.code is ErrorCode.TOOLSTACK_UNAVAILABLE
        return False

    async def put(self, number: int) -> Durable | ErrorCode:
        """Write; where the store is, or why it is not taken."""
        async with greeted(self.path, self.vm) as peer:
            try:
                return (await peer.put(written("ms2011", number))).durable
            except Refused as refused:
                return refused.code

    async def delivered(self, number: int) -> None:
        """Wait until nothing is pending; the toolstack holds this store then."""
        with trio.fail_after(SECONDS):
            while await self._pending():  # noqa: ASYNC110  it is another process's
                await trio.sleep(0.02)
        assert self.model.store == written("ms2011", number)

    async def _pending(self) -> int:
        async with greeted(self.home.control) as control:
            journal = json.loads((await control.call(Status(), StatusAnswer)).json)["journal"]
        return int(journal["stores"])


@pytest.fixture
async def site(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Site]:
    site = Site(tmp_path, nursery)
    yield site
    nursery.cancel_scope.cancel()


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a byte is left there, until the end."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (65_536, 4_096, 1):
            try:
                while os.write(descriptor, bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017  the way out of the loop
        yield
    finally:
        os.close(descriptor)
        filler.unlink()


@pytest.mark.usefixtures("mounts")
async def test_a_full_disk(site: Site) -> None:
    mounted(site.home.state, "-o", "size=1m")
    try:
        with site.home.serve(*site.options):
            await site.attached()
            site.goes()
            assert await site.put(1) is Durable.JOURNAL
            with full(site.home.state):
                # The page of the store before it is not given up before the new one is durable.
                assert await site.put(2) in NO_ROOM
                assert await site.read() == written("ms2011", 1)
                # What waits can be delivered all the same, and nothing is needed for a write that the toolstack takes.
                await site.comes()
                await site.delivered(1)
                assert await site.put(3) is Durable.TOOLSTACK
                site.goes()
            with full(site.home.state):
                assert await site.put(4) in NO_ROOM
            assert await site.put(5) is Durable.JOURNAL
        with site.home.serve(*site.options):
            await site.comes()
            await site.delivered(5)
    finally:
        unmounted(site.home.state)


@pytest.mark.usefixtures("mounts")
async def test_a_daemon_is_killed_and_started_on_a_full_disk(site: Site) -> None:
    mounted(site.home.state, "-o", "size=1m")
    try:
        with site.home.serve(*site.options):
            await site.attached()
            site.goes()
            assert await site.put(1) is Durable.JOURNAL
        with full(site.home.state), site.home.serve(*site.options):
            assert await site.read() == written("ms2011", 1)
            assert await site.put(2) in NO_ROOM
            await site.comes()
            await site.delivered(1)
            assert await site.put(3) is Durable.TOOLSTACK
    finally:
        unmounted(site.home.state)


@pytest.mark.usefixtures("mounts")
async def test_a_journal_that_can_only_be_read(site: Site) -> None:
    with site.home.serve(*site.options):
        await site.attached()
        site.goes()
        journal = site.home.state / "journal"
        mounted(journal, "-o", "ro")
        try:
            assert await site.put(1) in NO_ROOM
            await site.comes()
            assert await site.put(2) is Durable.TOOLSTACK
            site.goes()
        finally:
            unmounted(journal)
        assert await site.put(3) is Durable.JOURNAL
    with site.home.serve(*site.options):
        await site.comes()
        await site.delivered(3)


@pytest.mark.usefixtures("mounts")
async def test_a_state_folder_that_can_only_be_read_is_refused_at_the_start(site: Site) -> None:
    with site.home.serve(*site.options):
        await site.attached()
        site.goes()
        assert await site.put(1) is Durable.JOURNAL
    with read_only(site.home.state):
        code, said = await refused(site)
        assert (code, "Read-only file system" in said, str(site.home.state) in said) == (2, True, True), said
    with site.home.serve(*site.options):
        await site.comes()
        await site.delivered(1)


async def test_the_state_folder_is_removed_under_the_running_daemon(site: Site) -> None:
    with site.home.serve(*site.options):
        await site.attached()
        site.goes()
        shutil.rmtree(site.home.state)
        assert await site.put(1) in NO_ROOM
        await site.comes()
        assert await site.put(2) is Durable.TOOLSTACK
        site.goes()
        site.home.state.mkdir(0o700)
        # Acknowledged now means that it is where a daemon after this one looks for it.
        assert await site.put(3) is Durable.JOURNAL
    with site.home.serve(*site.options):
        await site.comes()
        # Which sockets there were went with the folder.
        await site.attached()
        await site.delivered(3)


async def test_the_folder_goes_with_what_was_acknowledged_before(site: Site) -> None:
    with site.home.serve(*site.options):
        await site.attached()
        site.goes()
        assert await site.put(1) is Durable.JOURNAL
        shutil.rmtree(site.home.state)
        # Nobody has that store any more, and nobody is told otherwise.
        assert await site.read_fails()
        site.home.state.mkdir(0o700)
        assert await site.read_fails()
        # The write that finds out may fail, and the one after it does not.
        number = 2
        while await site.put(number) is not Durable.JOURNAL:
            number += 1
        assert number <= 3
        assert await site.read() == written("ms2011", number)
        await site.comes()
        await site.delivered(number)


async def test_a_clock_that_was_set_back(site: Site) -> None:
    years = 10 * 365 * 86_400
    for number, now in enumerate((2_000_000_000, 2_000_000_000 - years, 1_000_000, 0), start=1):
        command = site.home.command(*site.options)
        command[1:3] = ["-c", CLOCK, str(now)]
        with site.home.serving(command):
            if number == 1:
                await site.attached()
                site.goes()
            else:
                assert await site.read() == written("ms2011", number - 1)
            assert await site.put(number) is Durable.JOURNAL
    with site.home.serve(*site.options):
        await site.comes()
        await site.delivered(4)
    assert not (site.home.state / "backups").exists()


async def test_a_second_daemon_on_the_state_folder(site: Site) -> None:
    with site.home.serve(*site.options):
        await site.attached()
        site.goes()
        assert await site.put(1) is Durable.JOURNAL
        code, said = await refused(site)
        assert (code, "another daemon runs on this state folder" in said) == (2, True), said
        # It has changed nothing for the first one.
        assert await site.put(2) is Durable.JOURNAL
        await site.comes()
        await site.delivered(2)


async def refused(site: Site) -> tuple[int, str]:
    """A daemon that does not come to be: its exit code, and what it says."""
    command = site.home.command(*site.options, "--control", site.home.folder / "other.sock")
    ended = await trio.run_process(command, capture_stderr=True, check=False, env=python_environment())
    assert ended.stderr is not None
    return ended.returncode, ended.stderr.decode()
