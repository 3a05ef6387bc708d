"""A crash leaves either the old file or the new one."""

import errno
import os
import stat
from pathlib import Path

import pytest

from support.processes import python
from varstore_companion.journal import files


def test_a_file_holds_what_was_written_last(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"", bytes(200_000), b"last"):
        files.write(path, data)
        assert path.read_bytes() == data
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_on_the_disk_before_it_takes_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    steps: list[tuple[str, bytes, bytes]] = []

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append((target.name, path.read_bytes(), b"" if target.is_dir() else target.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    files.write(path, b"new")
    assert steps == [("file.new", b"old", b"new"), (tmp_path.name, b"new", b"")]


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename"])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    files.write(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path if step == "rename" else os, step, fail)
    with pytest.raises(OSError, match="no space"):
        files.write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_failure_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=f"no space: '{tmp_path / 'file'}'"):
        files.write(tmp_path / "file", b"new")


def test_what_the_system_takes_in_pieces_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    files.write(tmp_path / "file", bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


def test_what_a_crash_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file.new").write_bytes(b"half of something much longer than what comes")
    files.write(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_link_in_the_new_files_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "file.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        files.write(tmp_path / "file", b"x")
    assert victim.read_bytes() == b"mine"


def test_folders_are_made_once_and_for_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    files.make_folder(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o750)
    files.make_folder(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    with pytest.raises(FileNotFoundError):
        files.make_folder(tmp_path / "missing" / "folder")


WRITER = """
import sys
from pathlib import Path
from varstore_companion.journal import files
number = 0
while True:
    number += 1
    files.write(Path(sys.argv[1]), number.to_bytes(4, "little") * 20_000)
    print(number, flush=True)
"""


def test_killed_anywhere_the_file_is_whole_and_none_older_than_was_said(tmp_path: Path) -> None:  # invariant 6
    path = tmp_path / "file"
    for lines in (1, 2, 5, 9):
        with python(WRITER, path) as (process, _, said):
            acknowledged = [int(said.readline()) for _ in range(lines)][-1]
            process.kill()
            acknowledged = max([acknowledged, *map(int, said.read().split())])
        data = path.read_bytes()
        number = int.from_bytes(data[:4], "little")
        assert number in {acknowledged, acknowledged + 1}
        assert data == number.to_bytes(4, "little") * 20_000
