"""Unix sockets that appear whole, over what a crash left behind and over nothing else."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from support.processes import python
from varstore_companion.daemon import listen
from varstore_companion.daemon.listen import Bound
from varstore_companion.errors import ConfigurationError
from varstore_companion.wire.limits import MAX_PATH


@contextmanager
def bound(path: Path, *, mode: int = 0o660, gid: int | None = None) -> Iterator[Bound]:
    made = listen.bind(path, mode=mode, gid=gid)
    with closing(made.socket):
        yield made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o000])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_its_mode_is_what_was_asked_whatever_the_umask(tmp_path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        with bound(tmp_path / "a.sock", mode=mode) as made:
            assert stat.S_IMODE(made.path.lstat().st_mode) == mode
            assert os.umask(umask) == umask
            assert made.is_in_place()
    finally:
        os.umask(before)
    assert names(tmp_path) == ["a.sock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_its_group_is_what_was_asked(tmp_path: Path) -> None:
    with bound(tmp_path / "a.sock", gid=65_543) as made:
        assert (made.path.lstat().st_gid, made.path.lstat().st_uid) == (65_543, os.geteuid())


def test_a_path_of_the_greatest_length_is_served_and_reached(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * (90 - len(os.fsencode(tmp_path))))
    folder.mkdir()
    path = folder / ("s" * (MAX_PATH - len(os.fsencode(folder)) - 1))
    assert len(os.fsencode(path)) == MAX_PATH
    with bound(path):
        assert answers(path)
    with pytest.raises(ConfigurationError, match="at most 107 bytes"):
        listen.bind(path.with_name(path.name + "s"), mode=0o600)
    with pytest.raises(ConfigurationError, match="absolute"):
        listen.bind(Path("relative.sock"), mode=0o600)


@pytest.mark.parametrize("what", ["file", "folder", "link", "dangling link", "fifo", "datagram socket"])
def test_something_else_in_the_way_is_refused_and_left(tmp_path: Path, what: str) -> None:
    path, elsewhere = tmp_path / "a.sock", tmp_path / "elsewhere"
    with ExitStack() as stack:
        match what:
            case "file":
                path.write_text("mine")
            case "folder":
                path.mkdir()
            case "link":
                elsewhere.write_text("mine")
                path.symlink_to(elsewhere)
            case "dangling link":
                path.symlink_to(elsewhere)
            case "fifo":
                os.mkfifo(path)
            case _:
                datagram = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                datagram.bind(str(path))
        before = path.lstat()
        with pytest.raises(ConfigurationError, match=r"a\.sock"):
            listen.bind(path, mode=0o600)
        assert path.lstat() == before
        assert set(names(tmp_path)) <= {"a.sock", "elsewhere"}


def test_a_dead_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bound(path) as living:
        with pytest.raises(ConfigurationError, match="another process listens there"):
            listen.bind(path, mode=0o600)
        assert living.is_in_place()
    assert not answers(path)
    with bound(path) as second:
        assert answers(path)
        assert not living.is_in_place()
        living.unlink()
        assert second.is_in_place()
        second.unlink()
        assert not path.exists()
        second.unlink()


def test_a_living_one_with_a_full_backlog_is_living(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as stack:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(0)
            client.connect_ex(str(path))
        with pytest.raises(ConfigurationError, match="another process listens there"):
            listen.bind(path, mode=0o600)


def test_only_our_own_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bound(path) as made:
        path.unlink()
        path.write_text("somebody else's by now")
        made.unlink()
        assert path.read_text() == "somebody else's by now"


@pytest.mark.parametrize("step", ["chmod", "rename", "listen"])
def test_what_fails_leaves_nothing_behind(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the disk says no")

    before = os.umask(0o022)
    os.umask(before)
    with monkeypatch.context() as patch:
        owner = {"chmod": Path, "rename": os, "listen": socket.socket}[step]
        patch.setattr(owner, step, fail)
        with pytest.raises(ConfigurationError, match="the disk says no"):
            listen.bind(tmp_path / "a.sock", mode=0o660)
    assert names(tmp_path) == []
    assert os.umask(before) == before


def test_without_a_descriptor_the_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_given: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_room)
    with pytest.raises(ConfigurationError, match=r"vm\.sock: cannot listen there: Too many open files"):
        listen.bind(tmp_path / "vm.sock", mode=0o660)


def test_one_that_cannot_be_removed_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_given: object, **_named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    path = tmp_path / "vm.sock"
    with bound(path) as ours:
        monkeypatch.setattr(Path, "unlink", read_only)
        ours.unlink()
    assert path.exists()
    assert f"{path}: what is left of the socket cannot be removed: Read-only file system" in caplog.messages


def test_a_missing_folder_and_one_that_is_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing: No such file"):
        listen.bind(tmp_path / "missing" / "a.sock", mode=0o600)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file: Not a directory"):
        listen.bind(tmp_path / "file" / "a.sock", mode=0o600)


def test_a_name_that_was_swapped_for_a_link_gets_no_mode(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("")
    secret.chmod(0o600)
    (tmp_path / "temporary").symlink_to(secret)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="socket"):
            listen.give(folder, "temporary", listen.Access(0o666))
    finally:
        os.close(folder)
    assert stat.S_IMODE(secret.lstat().st_mode) == 0o600


BINDER = """
import sys
from pathlib import Path
from varstore_companion.daemon import listen
sys.stdin.readline()
for number in range(50):
    bound = listen.bind(Path(sys.argv[1]) / f"{sys.argv[2]}-{number}.sock", mode=0o660)
    bound.socket.close()
print("bound", flush=True)
"""


def test_several_processes_bind_in_one_folder(tmp_path: Path) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(python(BINDER, tmp_path, number)) for number in range(3)]
        for _, given, _ in others:
            given.write("\n")
            given.flush()
        assert [said.readline() for _, _, said in others] == ["bound\n"] * 3
    made = names(tmp_path)
    assert made == sorted(f"{process}-{number}.sock" for process in range(3) for number in range(50))
    assert {stat.S_IMODE((tmp_path / name).lstat().st_mode) for name in made} == {0o660}


def test_what_a_crash_left_before_the_rename_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_arguments: object, **_keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        listen.bind(tmp_path / "vm.sock", mode=0o660)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    bound = listen.bind(tmp_path / "vm.sock", mode=0o660)
    bound.socket.close()
    assert [path.name for path in tmp_path.iterdir()] == ["vm.sock"]
