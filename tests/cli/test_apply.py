"""`apply FILE -o OUT`: what is missing is added, no other byte changes, and OUT is whole or as it was."""

import json
import os
import signal
import stat
import subprocess
import threading
from base64 import b64decode, b64encode, encodebytes
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support import own_rules
from support import storebytes as sb
from support.certificates import microsoft
from support.commands import (
    FIXTURE_STORES,
    PROGRAM,
    SECONDS,
    Run,
    base64_file,
    fixture_file,
    raw_file,
    shell,
)
from support.fixtures import index
from support.own_rules import Rules
from support.processes import python_environment
from support.storebytes import Variable, make_store, x509_lists
from support.storemaker import HOSTILE, SCENES, hostile, scene
from support.varstored_model import VarstoredModel

REFUSED = ("nearly_full", "room_without_headroom", "db_nearly_full")
NAMES_2023 = ("ms-kek-2023", "windows-2023", "ms-uefi-2023", "ms-uefi-rom-2023")
OLD = own_rules.store()
UPDATED = own_rules.store(updated=True)
unprivileged = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")


def _updated(blob: bytes, variables: tuple[Variable, ...], missing: dict[str, tuple[str, ...]]) -> bytes:
    """The store after the update, made from nothing but what is missing."""
    made = []
    for each in variables:
        if (each.name, each.guid) not in (("KEK", sb.GLOBAL), ("db", sb.IMAGE_SECURITY)):
            made.append(each)
            continue
        data = each.data + x509_lists(microsoft(name) for name in missing.get(str(each.name), ()))
        for body in map(microsoft, NAMES_2023):
            if sb.OWNER_MICROSOFT.bytes_le + body not in data:
                for owner in (sb.OWNER_WRONG, sb.OWNER_VIRT_FIRMWARE):
                    data = data.replace(owner.bytes_le + body, sb.OWNER_MICROSOFT.bytes_le + body, 1)
        made.append(replace(each, data=data))
    if made == list(variables):
        return blob
    version = blob[4]
    return make_store(made, version, blob[24 : 24 + sb.ANCILLARY_SIZE] if version == 2 else None)


@pytest.mark.parametrize("name", [name for name in SCENES if name not in (*REFUSED, "oversized_dbx", "version3")])
def test_every_scene(name: str, run: Run, tmp_path: Path) -> None:
    made, out = scene(name), tmp_path / "out"
    done = run("apply", "--json", base64_file(tmp_path, made.blob), "-o", out)
    assert (done.code, done.err) == (0, "")
    written = b64decode(out.read_bytes(), validate=True)
    assert written == _updated(made.blob, made.variables, dict(made.missing))
    assert done.json["bytes_after"] == len(written)
    assert VarstoredModel.load(written)
    again = tmp_path / "again"
    assert run("apply", "--json", out, "-o", again).json["changes"] == []
    assert again.read_bytes() == out.read_bytes()
    assert run("inspect", "--json", out).json["missing"] == []


@pytest.mark.parametrize("name", [name for name in FIXTURE_STORES if name != "oversized_dbx"])
def test_every_fixture(name: str, run: Run, tmp_path: Path) -> None:
    path, out = fixture_file(name), tmp_path / "out"
    blob = b64decode(path.read_bytes())
    missing = {key: tuple(value) for key, value in index()[name]["missing"].items()}
    variables = VarstoredModel.load(blob).list()
    if variables[0].name != index()[name]["variables"][0]:
        variables = variables[::-1]
    assert run("apply", path, "-o", out).code == 0
    assert b64decode(out.read_bytes()) == _updated(blob, variables, missing)
    assert VarstoredModel.load(b64decode(out.read_bytes()))


@pytest.mark.parametrize("name", [*REFUSED, "oversized_dbx", "version3"])
def test_what_is_refused_is_not_written(name: str, run: Run, tmp_path: Path) -> None:
    path, out = base64_file(tmp_path, scene(name).blob), tmp_path / "out"
    code = 1 if name in REFUSED else 2
    done = run("apply", path, "-o", out)
    assert done.code == code
    assert "refused: " in done.text
    assert any(character.isdigit() for character in done.text.split("refused: ")[1].splitlines()[0])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    out.write_bytes(b"what was there")
    assert run("apply", "--json", path, "-o", out).code == code
    assert out.read_bytes() == b"what was there"
    run("apply", path, "-o", "-").fails(str(path), "refused", code=code)


def test_a_headroom_of_the_operators_own(run: Run, rules: Rules, tmp_path: Path) -> None:
    path, out = raw_file(tmp_path, OLD), tmp_path / "out"
    done = run("apply", *rules.options, "--headroom", sb.TOTAL_LIMIT, path, "-o", out)
    assert done.code == 1
    assert "of the 131,072 that the guest's next append to dbx needs" in done.text
    assert not out.exists()
    broken = rules.certificates / "successor.pem"
    broken.write_text("this is none")
    done = run("apply", *rules.options, path, "-o", out)
    assert (done.code, out.exists()) == (1, False)
    assert done.err.startswith(f"varstore-companion apply: {broken}: not used: ")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_store_is_refused_or_goes_through_as_it_is(name: str, run: Run, tmp_path: Path) -> None:
    made, out = hostile(name), tmp_path / "out"
    done = run("apply", base64_file(tmp_path, made.blob), "-o", out)
    if out.exists():
        assert done.code == 0
        assert made.loads
        assert b64decode(out.read_bytes()) == made.blob
    else:
        assert done.code == 2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (OLD, UPDATED),
        (b64encode(OLD), b64encode(UPDATED)),
        (b64encode(OLD) + b"\n", b64encode(UPDATED) + b"\n"),
        (encodebytes(OLD), b64encode(UPDATED) + b"\n"),
        (b64encode(UPDATED) + b"\n", b64encode(UPDATED) + b"\n"),
        (UPDATED, UPDATED),
    ],
    ids=["raw", "base64", "base64 and newline", "wrapped base64", "complete base64", "complete raw"],
)
def test_the_form_goes_back_as_it_came(
    source: bytes, expected: bytes, *, run: Run, rules: Rules, standard_input: Callable[[bytes], None], tmp_path: Path
) -> None:
    path, out = raw_file(tmp_path, source), tmp_path / "out"
    assert run("apply", *rules.options, path, "-o", out).code == 0
    assert out.read_bytes() == expected
    assert run("apply", *rules.options, out, "-o", out).code == 0
    assert out.read_bytes() == expected
    standard_input(source)
    done = run("apply", *rules.options, "-", "-o", "-")
    assert (done.code, done.out, done.err) == (0, expected, "")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_version_stays(version: int, run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, own_rules.store(version=version))
    assert run("apply", *rules.options, path, "-o", path).code == 0
    assert path.read_bytes() == own_rules.store(version=version, updated=True)


def test_out_may_be_the_file_and_keeps_its_mode(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, OLD)
    path.chmod(0o606)
    done = run("apply", *rules.options, path, "-o", path)
    assert done.text.startswith(f"{path}: update_available to ok")
    assert path.read_bytes() == UPDATED
    assert stat.S_IMODE(path.stat().st_mode) == 0o606


def test_a_new_file_has_the_mode_that_the_umask_leaves(run: Run, rules: Rules, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", tmp_path / "out").code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_no_neighbour_of_out_is_touched(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, OLD, "nvram.new")
    out = tmp_path / "nvram"
    assert run("apply", *rules.options, path, "-o", out).code == 0
    assert path.read_bytes() == OLD
    assert out.read_bytes() == UPDATED


def test_the_name_of_out_may_have_any_length(run: Run, rules: Rules, tmp_path: Path) -> None:
    out = tmp_path / ("n" * 255)
    assert run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", out).code == 0
    assert out.read_bytes() == UPDATED
    run("apply", *rules.options, out, "-o", tmp_path / ("n" * 256)).fails("nnn: cannot be written: File name too long")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing may be left."""
    folder = tmp_path / "watched"
    folder.mkdir()
    yield folder
    folder.chmod(0o700)
    assert list(folder.iterdir()) == []


def test_out_in_a_missing_folder(run: Run, rules: Rules, tmp_path: Path) -> None:
    out = tmp_path / "missing" / "out"
    run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", out).fails(f"{out}: cannot be written: No such file")
    run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", tmp_path / "nvram.bin" / "out").fails("Not a directory")


def test_out_is_a_folder(run: Run, rules: Rules, watched: Path, tmp_path: Path) -> None:
    run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", watched).fails(f"{watched}: cannot be written: Is a directory")
    run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", "").fails("''")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_in_a_folder_that_takes_no_files(run: Run, rules: Rules, watched: Path, tmp_path: Path) -> None:
    watched.chmod(0o500)
    out = watched / "out"
    run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", out).fails(f"{out}: cannot be written: Permission denied")


@unprivileged
def test_out_in_a_folder_of_somebody_else(rules: Rules, watched: Path, tmp_path: Path) -> None:
    out = watched / "out"
    source = raw_file(tmp_path, OLD)
    code = (
        "import os, sys; from varstore_companion.cli import apply; from varstore_companion.cli.main import main;"
        "load = apply.load_rules; apply.load_rules = lambda options: (load(options), os.setresuid(65534, 65534, 65534))[0];"
        "read = apply.store_file.read; blob = read(sys.argv[1]); apply.store_file.read = lambda name: blob;"
        "sys.exit(main(['apply', *sys.argv[2:]]))"
    )
    run = subprocess.run(
        [PROGRAM[0], "-c", code, source, *map(str, rules.options), str(source), "-o", str(out)],
        env=python_environment(),
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, b"")
    assert run.stderr.decode() == f"varstore-companion apply: {out}: cannot be written: Permission denied\n"


def test_a_symbolic_link_is_neither_followed_nor_replaced(run: Run, rules: Rules, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    source = raw_file(tmp_path, OLD)
    for content in (None, b"what was there"):
        if content is not None:
            target.write_bytes(content)
        run("apply", *rules.options, source, "-o", link).fails(f"{link}: is a symbolic link to {target}")
        assert link.is_symlink()
        assert (target.read_bytes() if target.exists() else None) == content


def test_a_folder_that_is_a_link_is_followed(run: Run, rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", tmp_path / "link" / "out").code == 0
    assert (tmp_path / "real" / "out").read_bytes() == UPDATED


def test_a_pipe_is_written_into(run: Run, rules: Rules, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    assert run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", fifo).code == 0
    reader.join()
    assert read == [UPDATED]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    done = shell(
        'vc apply "${@:2}" -o >(cat >"$1")/dev/null; vc apply "${@:2}" -o /dev/null',
        tmp_path / "x",
        *rules.options,
        tmp_path / "nvram.bin",
    )
    assert done.code == 0


def test_a_disk_that_is_full(rules: Rules, watched: Path, tmp_path: Path) -> None:
    source, out = raw_file(tmp_path, OLD), watched / "out"
    for kept in (None, b"what was there"):
        if kept is not None:
            out.write_bytes(kept)
        for limit in ("1", "0"):  # KiB
            done = shell('trap "" XFSZ; ulimit -f $1; vc apply "${@:3}" -o "$2"', limit, out, *rules.options, source)
            done.fails(f"{out}: cannot be written: File too large")
            assert [each.read_bytes() for each in watched.iterdir()] == ([] if kept is None else [kept])
    out.unlink()
    run_full = shell('vc apply "$@" -o /dev/full', *rules.options, source)
    run_full.fails("/dev/full: cannot be written: No space left on device")


def test_a_full_standard_output(rules: Rules, tmp_path: Path) -> None:
    for more in ("-o -", f"-o {tmp_path / 'out'} --json"):
        done = shell(f'vc apply "$@" {more} >/dev/full', *rules.options, raw_file(tmp_path, OLD))
        done.fails("standard output: No space left on device")


def test_a_reader_that_goes_away_is_not_told_that_all_went_well(rules: Rules, tmp_path: Path) -> None:
    done = shell('vc apply "$@" -o - | true; echo "${PIPESTATUS[0]}"', *rules.options, raw_file(tmp_path, OLD))
    assert (done.text.strip(), done.err) == ("141", "")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_whatever_goes_wrong_leaves_nothing(
    call: str, error: BaseException, *, run: Run, rules: Rules, watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        assert len(list(watched.iterdir())) == 1
        raise error

    monkeypatch.setattr(os, call, fail)
    done = run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", watched / "out")
    monkeypatch.undo()
    if isinstance(error, OSError):
        done.fails(f"{watched / 'out'}: cannot be written: Input/output error")
    else:
        assert (done.code, done.out, done.err) == (130, b"", "")


def test_a_killed_apply_leaves_out_as_it_was(rules: Rules, tmp_path: Path) -> None:
    out = raw_file(tmp_path, b"what was there", "out")
    code = "import os; from varstore_companion.cli import main; os.fsync = lambda _: os.kill(os.getpid(), 9); main.run()"
    arguments = ["apply", *map(str, rules.options), str(raw_file(tmp_path, OLD)), "-o", str(out)]
    done = subprocess.run([PROGRAM[0], "-c", code, *arguments], env=python_environment(), timeout=SECONDS, check=False)
    assert done.returncode == -signal.SIGKILL
    assert out.read_bytes() == b"what was there"


def test_json_and_the_store_do_not_share_standard_output(run: Run, rules: Rules, tmp_path: Path) -> None:
    run("apply", *rules.options, raw_file(tmp_path, OLD), "-o", "-", "--json").fails("--json and -o -")


def test_json_is_the_plan(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, OLD)
    planned = run("plan", *rules.options, "--json", path).json
    assert json.loads(run("apply", *rules.options, "--json", path, "-o", tmp_path / "out").out) == planned
