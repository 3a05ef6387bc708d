"""`attach`, `detach`, `list`, `status` and `plan --vm` against a real daemon."""

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support import own_rules
from support.commands import Daemon, Run, daemon, on_terminal, process, raw_file, shell
from support.descriptors import needs_descriptors
from varstore_companion.cli.client import Client
from varstore_companion.journal import files
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire import messages
from varstore_companion.wire.limits import MAX_LIST

MANY = MAX_LIST + 17


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all, with rules that need no certificate of Microsoft's."""
    folder = tmp_path_factory.mktemp("d")
    with daemon(folder, *own_rules.write(folder).options) as running:
        yield running


@pytest.fixture
def vm(running: Daemon, tmp_path: Path) -> UUID:
    """A VM whose store needs an update."""
    made = uuid4()
    path = raw_file(tmp_path, own_rules.store())
    options = ("--manifest", _manifest(running), "--state-dir", running.state_dir)
    assert process("vm", "create", "--uuid", made, "--store", path, *options).code == 0
    return made


def _manifest(running: Daemon) -> Path:
    return running.control.with_name("rules.toml")


def test_attach_list_status_detach(run: Run, running: Daemon, vm: UUID, tmp_path: Path) -> None:
    control, path = ("--control", running.control), tmp_path / "vm.sock"
    done = run("attach", "--vm", vm, "--socket", path, *control)
    assert (done.code, done.text, done.err) == (0, f"{path}: attached\n", "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660

    listed = [each for each in run("list", "--json", *control).json["attachments"] if each["vm"] == str(vm)]
    assert [each["path"] for each in listed] == [str(path)]
    assert listed[0] | {"report": None, "field": None} == listed[0]
    assert [line for line in run("list", *control).text.splitlines() if str(vm) in line] == [
        "\t".join([str(vm), str(path), "-", "-", "-", "0", "to come", "-"])
    ]

    with Client(path, messages.ClientKind.VARSTORED, vm=vm) as varstored:
        answer = varstored.call(messages.GetStore(messages.Reason.BOOT))
        assert isinstance(answer, messages.GetStoreAnswer)
        assert answer.store == own_rules.store()
        status = run("status", "--vm", vm, "--json", *control).json
        (listed,) = [each for each in run("list", "--json", *control).json["attachments"] if each["vm"] == str(vm)]
        assert listed["connections"] == 1
    assert (status["vm"], status["sockets"], status["error"]) == (str(vm), [str(path)], None)
    assert (status["report"], status["field"]) == ("update_available", "update_available")

    done = run("detach", "--socket", path, *control)
    assert (done.code, done.text, done.err) == (0, f"{path}: detached\n", "")
    assert not path.exists()
    assert str(vm) not in run("list", *control).text


def test_twice_is_harmless(run: Run, running: Daemon, vm: UUID, tmp_path: Path) -> None:
    path, more = tmp_path / "vm.sock", ("--json", "--control", running.control)
    for already in (False, True):
        done = run("attach", "--vm", vm, "--socket", path, *more)
        assert (done.code, done.json) == (0, {"vm": str(vm), "socket": str(path), "already": already})
    assert run("attach", "--vm", vm, "--socket", path, *more[1:]).text == f"{path}: was attached already\n"
    for already in (False, True):
        done = run("detach", "--socket", path, *more)
        assert (done.code, done.json) == (0, {"socket": str(path), "already": already})
    assert run("detach", "--socket", path, *more[1:]).text == f"{path}: was not attached\n"


def test_otherwise_is_a_conflict(run: Run, running: Daemon, vm: UUID, tmp_path: Path) -> None:
    path, control = tmp_path / "vm.sock", ("--control", running.control)
    assert run("attach", "--vm", vm, "--socket", path, *control).code == 0
    run("attach", "--vm", uuid4(), "--socket", path, *control).fails("CONFLICT", str(path), str(vm))
    run("attach", "--vm", vm, "--socket", path, "--resume", *control).fails("CONFLICT", str(path), str(vm))
    assert run("detach", "--socket", path, *control).code == 0


def test_group_and_mode(run: Run, running: Daemon, vm: UUID, tmp_path: Path) -> None:
    path, control = tmp_path / "vm.sock", ("--control", running.control)
    gid = os.getegid()
    assert run("attach", "--vm", vm, "--socket", path, "--gid", gid, "--mode", "0600", "--resume", *control).code == 0
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o600, gid)
    (listed,) = [each for each in run("list", "--json", *control).json["attachments"] if each["vm"] == str(vm)]
    assert (listed["gid"], listed["mode"], listed["resume"]) == (gid, "0600", True)
    assert run("detach", "--socket", path, *control).code == 0


@pytest.mark.parametrize("name", ["with spaces.sock", "grün-☃.sock", "-o.sock", "no-text-\udcff.sock", 'quote"\\.sock'])
def test_a_path_of_any_characters(name: str, run: Run, running: Daemon, vm: UUID, tmp_path: Path) -> None:
    path, control = tmp_path / name, ("--control", running.control)
    attached = process("attach", "--vm", vm, "--socket", path, "--json", *control)
    assert (attached.code, attached.err) == (0, "")
    assert attached.json["socket"] == str(path)
    assert stat.S_ISSOCK(path.stat().st_mode)
    for command in ("list", "status"):
        for options in ((), ("--json",)):
            done = process(command, *(("--vm", vm) if command == "status" else ()), *options, *control)
            assert (done.code, done.err) == (0, "")
            if options:
                found = done.json["sockets"] if command == "status" else [each["path"] for each in done.json["attachments"]]
                assert str(path) in found
    assert run("detach", "--socket", path, "--json", *control).json["already"] is False
    assert not path.exists()


def test_a_relative_path(running: Daemon, vm: UUID, tmp_path: Path) -> None:
    done = shell('cd "$1" && vc attach --vm "$2" --socket vm.sock --control "$3"', tmp_path, vm, running.control)
    assert (done.code, done.text) == (0, f"{tmp_path}/vm.sock: attached\n")
    done = shell('cd "$1" && vc detach --socket ./vm.sock --json --control "$2"', tmp_path, running.control)
    assert done.json == {"socket": f"{tmp_path}/vm.sock", "already": False}


def test_what_cannot_be_attached(run: Run, running: Daemon, vm: UUID, tmp_path: Path) -> None:
    control = ("--control", running.control)

    def attach(path: Path) -> None:
        done = run("attach", "--vm", vm, "--socket", path, *control)
        done.fails("varstore-companion attach: ", str(path.parent if "missing" in str(path) else path))

    attach(tmp_path / "missing" / "vm.sock")
    attach(tmp_path)
    occupied = raw_file(tmp_path, b"somebody's", "vm.sock")
    attach(occupied)
    assert occupied.read_bytes() == b"somebody's"
    run("attach", "--vm", vm, "--socket", tmp_path / ("x" * 120), *control).fails("107 bytes")
    run("detach", "--socket", tmp_path / ("x" * 120), *control).fails("107 bytes")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()
        attach(tmp_path / "other.sock")
    assert str(vm) not in run("list", *control).text


def test_plan_of_a_vm(run: Run, running: Daemon, vm: UUID) -> None:
    control = ("--control", running.control)
    done = run("plan", "--vm", vm, "--json", *control)
    assert done.code == 1
    assert [(each["action"], each["name"]) for each in done.json["changes"]] == [("add", "new")]
    assert run("plan", "--vm", vm, *control).text.startswith(f"vm {vm}: update_available to ok")


def test_a_vm_that_nobody_knows(run: Run, running: Daemon) -> None:
    unknown = uuid4()
    for command in ("plan", "status"):
        run(command, "--vm", unknown, "--control", running.control).fails("UNKNOWN_VM", str(unknown))


def test_a_vm_before_its_first_boot(run: Run, running: Daemon) -> None:
    made = uuid4()
    with Database(running.state_dir / FILE_NAME) as database:
        database.create(made, "", None, CertificatesState.OK)
    run("plan", "--vm", made, "--control", running.control).fails("INVALID_ARGUMENT", str(made), "no store yet")
    assert run("status", "--vm", made, "--json", "--control", running.control).json["field"] == "ok"


def test_totals(run: Run, running: Daemon) -> None:
    control = ("--control", running.control)
    document = run("status", "--json", *control).json
    assert {"version", "toolstack", "manifest", "attached", "connections", "boots", "writes"} <= set(document)
    assert document["manifest"] == "own 3"
    assert document["certificates"]["new"].endswith("successor.pem")
    shown = dict(line.split("\t") for line in run("status", *control).text.splitlines())
    assert shown["manifest"] == "own 3"
    for verdict, count in document["writes"].items():
        assert shown[f"writes {verdict}"] == str(count)
    code, terminal = on_terminal("status", *control)
    assert code == 0
    assert terminal.startswith("version ")
    assert "\x1b" not in terminal


def test_the_list_on_a_terminal(run: Run, running: Daemon, vm: UUID, tmp_path: Path) -> None:
    control = ("--control", running.control)
    assert run("attach", "--vm", vm, "--socket", tmp_path / "vm.sock", *control).code == 0
    code, shown = on_terminal("list", *control)
    assert code == 0
    heading, line = shown.splitlines()
    assert heading.startswith("\x1b[2mvm ")
    plain = heading.removeprefix("\x1b[2m")
    assert line.startswith(str(vm))
    assert line[plain.index("socket") :].startswith(str(tmp_path / "vm.sock"))
    assert run("detach", "--socket", tmp_path / "vm.sock", *control).code == 0


@needs_descriptors(2 * MANY)
def test_more_than_a_page(run: Run, tmp_path: Path) -> None:
    """As after a restart: with the list of attachments that an earlier daemon kept."""
    folder, state = tmp_path / "s", tmp_path / "state"
    folder.mkdir()
    state.mkdir()
    paths = [str(folder / f"{number}-é.sock") for number in range(MANY)]
    entries = [{"vm": str(uuid4()), "path": path, "gid": None, "mode": "0660", "resume": False} for path in paths]
    (state / "attached.json").write_text(json.dumps({"format": 1, "host_start": files.host_start(), "attachments": entries}))
    with daemon(tmp_path) as many:
        control = ("--control", many.control)
        listed = run("list", "--json", *control).json["attachments"]
        assert [each["path"] for each in listed] == sorted(paths, key=os.fsencode)
        assert {each["vm"] for each in listed} == {each["vm"] for each in entries}
        assert len(run("list", *control).text.splitlines()) == MANY
        assert run("status", "--json", *control).json["attached"] == MANY
        # What was never asked for is not kept; what was, goes.
        assert run("detach", "--socket", paths[0], "--json", *control).json["already"] is False
        assert len(run("list", "--json", *control).json["attachments"]) == MANY - 1
