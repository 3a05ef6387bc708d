"""`vm`: each command on a real file, through its JSON, its table, its exit code and its errors."""

import io
import json
import os
import pty
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support.commands import VM_COMMANDS, Run
from support.old_databases import make_version_1
from support.processes import python_environment
from support.storemaker import scene
from support.vms import AVAILABLE
from varstore_companion.cli.vm.common import Progress
from varstore_companion.toolstack.database import FILE_NAME

VM = "11111111-2222-3333-4444-55555555555a"


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(name="run")
def run_vm(run: Run, state_dir: Path) -> Run:
    """Runs `vm` with the words given."""
    return lambda *words: run("vm", *words, "--state-dir", state_dir)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The file of a store with Microsoft's certificates of 2011."""
    path = tmp_path / "old.bin"
    path.write_bytes(scene("ms2011").blob)
    return path


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    path = tmp_path / "complete.bin"
    path.write_bytes(scene("all2023").blob)
    return path


def test_a_whole_life(run: Run, old: Path, complete: Path) -> None:
    created = run("create", "--uuid", VM, "--name", "web", "--store", old, "--json")
    assert created.code == 0
    assert created.json == {
        "uuid": VM,
        "name": "web",
        "kind": "vm",
        "firmware": "uefi",
        "snapshot_of": None,
        "secureboot_certificates_state": "update_available",
        "stale": False,
        "generation": 0,
        "store_bytes": old.stat().st_size,
        "nvram_keys": ["EFI-variables"],
        "refused": None,
    }
    assert run("mark", VM, "--json").json["secureboot_certificates_state"] == "update_on_boot"
    snapshot = run("snapshot", VM, "--name", "before", "--json").json
    assert (snapshot["kind"], snapshot["snapshot_of"], snapshot["name"]) == ("snapshot", VM, "before")
    assert run("unmark", VM, "--json").json["secureboot_certificates_state"] == "update_available"
    clone = run("clone", VM, "--json").json
    copy = run("copy", VM, "--name", "copy", "--json").json
    assert [(each["name"], each["secureboot_certificates_state"]) for each in (clone, copy)] == [
        ("web", "update_available"),
        ("copy", "update_available"),
    ]
    reverted = run("revert", snapshot["uuid"], "--json").json
    assert (reverted["uuid"], reverted["secureboot_certificates_state"], reverted["generation"]) == (VM, "update_on_boot", 1)
    listed = run("list", "--json").json["vms"]
    assert [each["uuid"] for each in listed] == sorted([VM, snapshot["uuid"], clone["uuid"], copy["uuid"]])
    assert run("destroy", VM, "--json").json == {"uuid": VM, "destroyed": True, "refused": None}
    assert run("show", snapshot["uuid"], "--json").json["snapshot_of"] is None
    assert run("create", "--store", complete, "--json").json["secureboot_certificates_state"] == "ok"


def test_tables(run: Run, old: Path) -> None:
    run("create", "--uuid", VM, "--name", "web", "--store", old)
    line = f"{VM}\tweb\tvm\tuefi\tupdate_available\tno\t{old.stat().st_size}\n"
    assert run("list").text == line
    shown = run("show", VM).text.splitlines()
    assert f"uuid\t{VM}" in shown
    assert "secureboot certificates state\tupdate_available" in shown
    assert "snapshot of\t-" in shown
    assert run("destroy", VM).text == f"{VM}: destroyed\n"
    assert run("list").text == ""


def test_an_export_is_imported(run: Run, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("create", "--uuid", VM, "--name", "wéb", "--store", old)
    run("mark", VM)
    file = tmp_path / "web.json"
    exported = run("export", VM)
    written = run("export", VM, "-o", file, "--json")
    assert written.json == {"uuid": VM, "file": str(file), "bytes": file.stat().st_size}
    assert file.read_bytes() == exported.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = run("show", VM, "--json").json
    refused = run("import", file)
    assert (refused.code, refused.err) == (2, f"varstore-companion vm: DUPLICATE_VM: there is already a VM {VM}\n")
    run("destroy", VM)
    assert run("import", file, "--json").json == {**before, "generation": before["generation"] + 1}
    # From a toolstack without the field, on standard input, under a new uuid.
    document = json.loads(file.read_text())
    del document["secureboot_certificates_state"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(document).encode())))
    imported = run("import", "-", "--new-uuid", "--json").json
    assert imported["uuid"] != VM
    assert imported["secureboot_certificates_state"] == "update_available"
    # The document's word on the field is not taken.
    document |= {"uuid": str(uuid4()), "secureboot_certificates_state": "ok"}
    file.write_text(json.dumps(document))
    assert run("import", file, "--json").json["secureboot_certificates_state"] == "update_available"


def test_a_bad_document_makes_nothing(run: Run, tmp_path: Path, state_dir: Path) -> None:
    file = tmp_path / "web.json"
    file.write_text('{"format": 1}')
    done = run("import", file)
    assert (done.code, done.out) == (2, b"")
    assert done.err == f"varstore-companion vm: {file}: export: key 'uuid' at offset 0: expected to be there\n"
    assert run("import", tmp_path / "missing").code == 2
    assert not state_dir.exists()


def test_an_export_that_cannot_be_written_leaves_what_was_there(run: Run, old: Path, tmp_path: Path) -> None:
    run("create", "--uuid", VM, "--store", old)
    for target in (tmp_path, tmp_path / "missing" / "file"):
        done = run("export", VM, "-o", target)
        assert (done.code, done.out) == (2, b"")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".new"] == []
    kept = tmp_path / "kept"
    kept.write_text("kept")
    assert run("export", str(uuid4()), "-o", kept).code == 2
    assert kept.read_text() == "kept"


def test_a_store_that_varstored_would_refuse_makes_nothing(run: Run, tmp_path: Path, state_dir: Path) -> None:
    file = tmp_path / "store"
    for blob in (b"", b"VARS", scene("oversized_dbx").blob):
        file.write_bytes(blob)
        assert run("create", "--store", file).code == 2
    assert not state_dir.exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["mark"], "OPERATION_NOT_ALLOWED"),
        (["unmark"], "OPERATION_NOT_ALLOWED"),
        (["revert"], "OPERATION_NOT_ALLOWED"),
    ],
)
def test_a_refusal_is_an_answer(run: Run, words: list[str], code: str) -> None:
    run("create", "--uuid", VM)
    done = run(*words, VM)
    assert (done.code, done.out) == (1, b"")
    assert done.err.startswith(f"varstore-companion vm: {code}: ")
    told = run(*words, VM, "--json")
    assert told.code == 1
    assert told.json["refused"].startswith(f"{code}: ")
    assert told.json["secureboot_certificates_state"] == "ok"


def test_kinds_that_some_commands_are_not_for(run: Run) -> None:
    made = {
        kind: run("create", "--kind", kind, "--json").json["uuid"]
        for kind in ("template", "default_template", "control_domain")
    }
    for words, refusal in (
        (["snapshot", made["template"]], "VM_IS_TEMPLATE"),
        (["destroy", made["default_template"]], "VM_IS_TEMPLATE"),
        (["destroy", made["control_domain"]], "OPERATION_NOT_ALLOWED"),
        (["clone", made["control_domain"]], "OPERATION_NOT_ALLOWED"),
    ):
        done = run(*words, "--json")
        assert done.code == 1
        assert done.json["refused"].startswith(refusal)
    run("destroy", made["template"])
    assert len(run("list", "--json").json["vms"]) == 2


@pytest.mark.parametrize("command", ["show", "export", "clone", "copy", "snapshot", "revert", "mark", "unmark", "destroy"])
def test_an_unknown_vm(run: Run, command: str) -> None:
    run("create")
    done = run(command, VM)
    assert (done.code, done.out) == (2, b"")
    assert done.err == f"varstore-companion vm: HANDLE_INVALID: there is no VM {VM}\n"


@pytest.mark.parametrize("command", [["list"], ["show", VM], ["mark", VM], ["export", VM], ["destroy", VM], ["pool"]])
def test_without_a_toolstack_none_is_made(run: Run, command: list[str], state_dir: Path) -> None:
    done = run(*command)
    assert (done.code, done.err) == (2, f"varstore-companion vm: {state_dir / FILE_NAME}: there is no embedded toolstack\n")
    assert not state_dir.exists()


def test_the_pools_flag(run: Run, old: Path) -> None:
    assert run("pool", "--auto-update", "yes", "--json").json == {"auto_update_vm_secureboot_certificates": True}
    assert run("create", "--store", old, "--json").json["secureboot_certificates_state"] == "update_on_boot"
    assert run("create", "--store", old, "--firmware", "bios", "--json").json["secureboot_certificates_state"] == "ok"
    assert run("pool", "--auto-update", "no").text == "auto update vm secureboot certificates\tno\n"
    assert run("pool", "--json").json == {"auto_update_vm_secureboot_certificates": False}
    assert run("create", "--store", old, "--json").json["secureboot_certificates_state"] == "update_available"


def test_a_stale_field_is_reported(run: Run, old: Path, complete: Path, state_dir: Path) -> None:
    run("create", "--uuid", VM, "--store", complete)
    with closing(sqlite3.connect(state_dir / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE nvram SET value = ?", (old.read_bytes(),))
    assert run("show", VM, "--json").json["stale"] is True
    assert run("list", "--json").json["vms"][0]["stale"] is True
    assert "stale\tyes" in run("show", VM).text
    assert run("list").text.split("\t")[4:6] == ["ok", "yes"]
    mended = run("mark", VM, "--json").json
    assert (mended["secureboot_certificates_state"], mended["stale"]) == ("update_on_boot", False)


@pytest.mark.parametrize("command", VM_COMMANDS)
def test_every_command_has_examples_of_its_own(run: Run, command: str) -> None:
    _, _, examples = run(command, "--help").text.partition("examples:\n")
    lines = examples.split("\n\n", maxsplit=1)[0].splitlines()
    assert lines
    assert all(line.startswith("  varstore-companion vm ") and f"vm {command}" in line for line in lines)


def test_opening_an_older_file_computes_its_fields(run: Run, old: Path, state_dir: Path) -> None:
    state_dir.mkdir()
    make_version_1(state_dir / FILE_NAME, [(UUID(VM), old.read_bytes(), AVAILABLE)])
    listed = run("list", "--json")
    assert listed.err == ""
    assert (listed.json["vms"][0]["secureboot_certificates_state"], listed.json["vms"][0]["stale"]) == (AVAILABLE, False)


# A clock that has gone on by a minute each time it is looked at.
SLOW = """
import itertools, sys, time
from varstore_companion.cli.main import main
time.monotonic = map(float, itertools.count(0, 60)).__next__
sys.exit(main(sys.argv[1:]))
"""


def test_a_terminal_is_told_how_far_an_upgrade_is(state_dir: Path) -> None:
    state_dir.mkdir()
    make_version_1(state_dir / FILE_NAME, [(uuid4(), None, AVAILABLE) for _ in range(450)])
    ours, its = pty.openpty()
    command = [sys.executable, "-c", SLOW, "vm", "list", "--state-dir", str(state_dir)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=its, env=python_environment(), check=True, timeout=60)
    os.close(its)
    shown = os.read(ours, 65_536).decode().replace("\r\n", "\n")
    os.close(ours)
    told = "\rupgrading the toolstack's file: "
    assert shown == f"{told}200 of 450 VMs{told}400 of 450 VMs{told}450 of 450 VMs\n"
    assert len(done.stdout.splitlines()) == 450


def test_a_short_upgrade_is_not_worth_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, now = Terminal(), [0.0]
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(lambda: now[0])
    progress(1, 3)
    progress.end()
    assert terminal.getvalue() == ""
    now[0] = 1.0
    progress(2, 3)
    now[0] = 0.5  # once begun, each is told
    progress(3, 3)
    progress.end()
    assert terminal.getvalue().count("\r") == 2
    assert terminal.getvalue().endswith("3 of 3 VMs\n")
