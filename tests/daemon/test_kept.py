"""Sockets that outlive the daemon: only those that are what they say come back."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.notify import Manager
from varstore_companion.daemon import listen
from varstore_companion.daemon.kept import LONGEST_NAME, Kept, name_of
from varstore_companion.daemon.listen import Access, Bound
from varstore_companion.daemon.systemd import Passed, Service
from varstore_companion.wire.limits import MAX_PATH


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager.at(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Bound]:
    made = listen.bind(tmp_path / "a.sock", mode=0o660)
    with closing(made.socket):
        yield made


def kept(manager: Manager, *passed: Passed) -> Kept:
    return Kept(Service.from_environment({"NOTIFY_SOCKET": manager.address}), passed)


def again(bound: Bound, name: str | None = None) -> Passed:
    """The socket as the next daemon gets it."""
    return Passed(name_of(bound) if name is None else name, socket.socket(fileno=os.dup(bound.socket.fileno())))


async def test_a_name_is_one_that_systemd_takes_whatever_the_path(tmp_path: Path, manager: Manager) -> None:
    folder = tmp_path / "\udcff:é\n"
    folder.mkdir()
    made = listen.bind(folder / ("x" * (MAX_PATH - 1 - len(os.fsencode(folder)))), mode=0o600)
    with closing(made.socket):
        await kept(manager).keep(made)
        manager.take()  # which looks at the name
        assert len(name_of(made)) <= LONGEST_NAME == len(name_of(Bound(made.socket, made.path, 0xFFFF_FFFF, (1 << 64) - 1)))
        assert [name for name, _ in manager.store] == [name_of(made)]
        (back,) = [Passed(name, socket.socket(fileno=os.dup(descriptor))) for name, descriptor in manager.store]
        taken = kept(manager, back).take(made.path, Access(0o600))
    assert taken is not None
    assert (taken.path, taken.device, taken.inode) == (made.path, made.device, made.inode)
    taken.socket.close()


async def test_what_comes_back_is_kept_and_stays_until_it_is_forgotten(manager: Manager, bound: Bound) -> None:
    sockets = kept(manager, again(bound))
    taken = sockets.take(bound.path, Access(0o660))
    assert taken is not None
    assert sockets.holds(taken)
    await sockets.keep(taken)  # nothing to say: it is kept
    assert sockets.take(bound.path, Access(0o660)) is None
    await sockets.close_rest()
    await sockets.forget(taken)
    assert not sockets.holds(taken)
    await sockets.forget(taken)
    taken.socket.close()
    manager.datagrams.settimeout(0)
    assert manager.take().fields == {"FDSTOREREMOVE": "1", "FDNAME": name_of(bound)}
    with pytest.raises(BlockingIOError):
        manager.take()


async def test_its_mode_is_given_again(manager: Manager, bound: Bound) -> None:
    bound.path.chmod(0o666)
    taken = kept(manager, again(bound)).take(bound.path, Access(0o620))
    assert taken is not None
    taken.socket.close()
    assert stat.S_IMODE(bound.path.lstat().st_mode) == 0o620


def test_what_it_has_is_not_given_again(manager: Manager, bound: Bound) -> None:
    before = bound.path.lstat()
    taken = kept(manager, again(bound)).take(bound.path, Access(0o660, before.st_gid))
    assert taken is not None
    taken.socket.close()
    assert bound.path.lstat().st_ctime_ns == before.st_ctime_ns


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
async def test_its_group_is_given_again(manager: Manager, bound: Bound) -> None:
    taken = kept(manager, again(bound)).take(bound.path, Access(0o660, 65_543))
    assert taken is not None
    taken.socket.close()
    assert bound.path.lstat().st_gid == 65_543


@pytest.mark.parametrize(
    "what", ["removed", "another's", "moved", "other name", "hostile name", "not listening", "datagrams", "inet"]
)
async def test_what_is_not_the_socket_at_the_path_is_not_taken_and_closed(
    manager: Manager, bound: Bound, what: str, tmp_path: Path
) -> None:
    name, given, path = name_of(bound), again(bound).socket, bound.path
    match what:
        case "removed":
            path.unlink()
        case "another's":
            path.unlink()
            path.write_text("somebody else's by now")
        case "moved":
            path.rename(tmp_path / "b.sock")
            path = tmp_path / "b.sock"
        case "other name":
            name = name[:-1] + ("0" if name[-1] != "0" else "1")
        case "hostile name":
            name += "f" * 300
        case _:
            given.close()
            kind = socket.SOCK_DGRAM if what == "datagrams" else socket.SOCK_STREAM
            given = socket.socket(socket.AF_INET if what == "inet" else socket.AF_UNIX, kind)
    sockets = kept(manager, Passed(name, given))
    assert sockets.take(path, Access(0o660)) is None
    assert sockets.take_activated(path) is None
    await sockets.close_rest()
    assert given.fileno() == -1
    if what != "hostile name":
        assert manager.take().fields == {"FDSTOREREMOVE": "1", "FDNAME": name}


async def test_of_two_of_the_same_name_one_is_served_and_one_closed(manager: Manager, bound: Bound) -> None:
    one, two = again(bound), again(bound)
    sockets = kept(manager, one, two)
    taken = sockets.take(bound.path, Access(0o660))
    assert taken is not None
    assert taken.socket is one.socket
    await sockets.close_rest()
    assert two.socket.fileno() == -1
    taken.socket.close()


async def test_a_socket_unit_s_is_served_and_its_file_left_alone(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    (tmp_path / "link").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "link" / "control.sock"))
        listener.listen()
        path.chmod(0o640)
        sockets = kept(manager, Passed("control", listener))
        assert sockets.take(path, Access(0o600)) is None
        assert sockets.take_activated(tmp_path / "other.sock") is None
        taken = sockets.take_activated(path)
        assert taken is not None
        assert sockets.holds(taken)
        await sockets.keep(taken)  # systemd has it already, and not in the store
        await sockets.forget(taken)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o640
        manager.datagrams.settimeout(0)
        with pytest.raises(BlockingIOError):
            manager.take()


@pytest.mark.parametrize("what", ["removed", "no socket"])
def test_a_socket_unit_s_whose_file_has_gone_is_not_taken(manager: Manager, tmp_path: Path, what: str) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.unlink()
        if what == "no socket":
            path.write_text("")
        assert kept(manager, Passed("control", listener)).take_activated(path) is None


@pytest.mark.parametrize("address", ["\0abstract", ""])
def test_a_socket_without_a_file_is_not_taken(manager: Manager, tmp_path: Path, address: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        assert kept(manager, Passed("control", listener)).take_activated(tmp_path / "control.sock") is None


async def test_without_systemd_nothing_is_kept(bound: Bound) -> None:
    alone = Kept()
    await alone.keep(bound)
    assert not alone.holds(bound)
    await alone.forget(bound)
    await alone.close_rest()
