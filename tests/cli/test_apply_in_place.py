"""`apply --in-place FILE`: whole or not at all, with the old file's exact bytes beside report and plan first."""

import errno
import json
import os
import signal
import stat
import subprocess
from base64 import b64decode, b64encode, encodebytes
from hashlib import sha256
from pathlib import Path

import pytest

from support import own_rules
from support.commands import PROGRAM, SECONDS, Run, base64_file, raw_file
from support.own_rules import Rules
from support.processes import python_environment
from support.storemaker import scene

OLD = own_rules.store()
UPDATED = own_rules.store(updated=True)


def kept(folder: Path) -> tuple[Path, Path]:
    """The one backup in a folder, and what stands beside it."""
    (backup,) = folder.glob("*.bak")
    return backup, backup.with_suffix(".json")


@pytest.mark.parametrize("text", [OLD, b64encode(OLD), encodebytes(OLD)], ids=["raw", "base64", "wrapped base64"])
def test_the_files_exact_bytes_are_kept(text: bytes, run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, text)
    path.chmod(0o600)
    done = run("apply", *rules.options, "--in-place", path)
    backup, about = kept(tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.text.endswith(f"\n  written in place; what it was is kept as {backup}\n")
    written = path.read_bytes()
    assert (written if text == OLD else b64decode(written)) == UPDATED
    assert backup.read_bytes() == text
    assert backup.name.startswith("nvram.bin.2")
    assert backup.name.endswith(f"Z-{sha256(text).hexdigest()[:12]}.bak")
    document = json.loads(about.read_text())
    assert {key: document[key] for key in ("file", "why", "sha256", "bytes")} == {
        "file": str(path),
        "why": "apply",
        "sha256": sha256(text).hexdigest(),
        "bytes": len(text),
    }
    assert document["report"]["state"] == "update_available"
    assert [change["name"] for change in document["plan"]["changes"]] == ["new"]
    for each in (path, backup, about):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_stays_its_owners(run: Run, rules: Rules, tmp_path: Path) -> None:
    """A varstored that runs as a user of its own could not read its store any more."""
    path = raw_file(tmp_path, OLD)
    path.chmod(0o600)
    os.chown(path, 65_537, 65_538)
    assert run("apply", *rules.options, "--in-place", path).code == 0
    assert path.read_bytes() == UPDATED
    assert (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (65_537, 65_538, 0o600)
    assert kept(tmp_path)[0].stat().st_uid == 0


def test_a_file_whose_owner_cannot_be_kept_is_not_replaced(
    run: Run, rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raw_file(tmp_path, OLD)
    status = os.fstat

    def of_somebody_else(descriptor: int) -> os.stat_result:
        found = list(status(descriptor))
        found[stat.ST_UID] += 1
        return os.stat_result(found)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fstat", of_somebody_else)
    monkeypatch.setattr(os, "fchown", refuse)
    run("apply", *rules.options, path, "-o", path).fails(f"{path}: cannot be written: Operation not permitted")
    assert path.read_bytes() == OLD
    assert not list(tmp_path.glob(".varstore*"))


def test_again_there_is_nothing_to_do_and_nothing_is_written(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = base64_file(tmp_path, OLD)
    first = run("apply", *rules.options, "--in-place", "--json", path).json
    assert first["backup"] == str(kept(tmp_path)[0])
    before = path.stat()
    again = run("apply", *rules.options, "--in-place", "--json", path)
    assert (again.code, again.json["changes"], again.json["backup"]) == (0, [], None)
    assert "nothing to do" in run("apply", *rules.options, "--in-place", path).text
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(list(tmp_path.glob("*.bak"))) == 1


def test_json_is_the_plan_and_where_the_backup_is(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = base64_file(tmp_path, OLD)
    planned = run("plan", *rules.options, "--json", path).json
    done = run("apply", *rules.options, "--in-place", "--json", path)
    assert done.json == {**planned, "backup": str(kept(tmp_path)[0])}


def test_the_backup_may_go_to_another_folder(run: Run, rules: Rules, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    path = raw_file(tmp_path, OLD)
    done = run("apply", *rules.options, "--in-place", "--backup-dir", folder, path)
    done.fails(str(folder), "cannot be written: No such file or directory")
    assert path.read_bytes() == OLD
    folder.mkdir()
    assert run("apply", *rules.options, "--in-place", "--backup-dir", folder, path).code == 0
    assert kept(folder)[0].read_bytes() == OLD
    assert not list(tmp_path.glob("*.bak"))
    assert path.read_bytes() == UPDATED


@pytest.mark.parametrize("name", ["nearly_full", "version3"])
def test_what_is_refused_leaves_everything_as_it_is(name: str, run: Run, tmp_path: Path) -> None:
    path = base64_file(tmp_path, scene(name).blob)
    before = path.read_bytes()
    done = run("apply", "--in-place", "--json", path)
    assert done.code == (1 if name == "nearly_full" else 2)
    assert done.json["refused"]
    assert done.json["backup"] is None
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_only_files_are_changed_in_place(run: Run, rules: Rules, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(raw_file(tmp_path, OLD))
    run("apply", *rules.options, "--in-place", link).fails(f"{link}: is a symbolic link to ")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path):
        run("apply", *rules.options, "--in-place", path).fails(f"{path}: is not a file that can be changed in place")
    run("apply", *rules.options, "--in-place", tmp_path / "missing").fails("missing: No such file or directory")
    assert (tmp_path / "nvram.bin").read_bytes() == OLD
    assert not list(tmp_path.glob("*.bak"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x"], "one of the arguments -o/--output --in-place is required"),
        (["x", "-o", "y", "--in-place"], "not allowed with argument"),
        (["-", "--in-place"], "--in-place needs a file, and standard input is none"),
        (["x", "-o", "y", "--backup-dir", "/tmp"], "--backup-dir is for --in-place"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, run: Run) -> None:
    run("apply", *arguments).fails(said)


def test_a_name_that_leaves_no_room_for_the_backups(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, OLD, "n" * 250)
    run("apply", *rules.options, "--in-place", path).fails("cannot be written: File name too long")
    assert path.read_bytes() == OLD
    assert len([each for each in tmp_path.iterdir() if each.is_file()]) == 2


@pytest.mark.parametrize("syncs", [1, 2, 3, 4, 5, 6])
def test_killed_at_each_fsync_it_leaves_the_old_with_or_the_new_and_its_backup(
    syncs: int, rules: Rules, tmp_path: Path
) -> None:
    path = raw_file(tmp_path, OLD)
    code = (
        "import os, sys; from varstore_companion.cli import main; left = [int(sys.argv.pop(1))]; sync = os.fsync\n"
        "def fsync(descriptor):\n"
        "    left[0] -= 1\n"
        "    left[0] or os.kill(os.getpid(), 9)\n"
        "    sync(descriptor)\n"
        "os.fsync = fsync; main.run()"
    )
    arguments = [str(syncs), "apply", *map(str, rules.options), "--in-place", str(path)]
    done = subprocess.run([PROGRAM[0], "-c", code, *arguments], env=python_environment(), timeout=SECONDS, check=False)
    assert done.returncode == -signal.SIGKILL
    # A file and its folder are synced each: description, backup, and then the file.
    assert path.read_bytes() == (OLD if syncs < 6 else UPDATED)
    if syncs >= 5:
        backup, about = kept(tmp_path)
        assert backup.read_bytes() == OLD
        assert json.loads(about.read_text())["bytes"] == len(OLD)
