"""`backups`, `restore` and `history` against a real daemon, and against one that is older or answers strangely."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support import own_rules
from support.commands import Daemon, Run, daemon, on_terminal, process, raw_file
from support.fake_daemon import answering, server
from varstore_companion.cli.client import Client
from varstore_companion.cli.moment import moment
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.wire import messages
from varstore_companion.wire.errors import ErrorCode

OLD, NEW = own_rules.store(), own_rules.store(updated=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all, with rules that need no certificate of Microsoft's."""
    folder = tmp_path_factory.mktemp("r")
    with daemon(folder, *own_rules.write(folder).options) as running:
        yield running


@pytest.fixture
def vm(running: Daemon, run: Run, tmp_path: Path) -> UUID:
    """A VM that was updated at boot, then shut down and detached."""
    made, path = uuid4(), tmp_path / "vm.sock"
    where = ("--manifest", running.control.with_name("rules.toml"), "--state-dir", running.state_dir)
    control = ("--control", running.control)
    assert process("vm", "create", "--uuid", made, "--store", raw_file(tmp_path, OLD), *where).code == 0
    assert process("vm", "mark", made, *where).code == 0
    assert run("attach", "--vm", made, "--socket", path, *control).code == 0
    with Client(path, messages.ClientKind.VARSTORED, vm=made) as varstored:
        answer = varstored.call(messages.GetStore(messages.Reason.BOOT))
        assert isinstance(answer, messages.GetStoreAnswer)
        assert answer.store == NEW
    assert run("detach", "--socket", path, *control).code == 0
    return made


def held(running: Daemon, vm: UUID) -> bytes | None:
    """What the toolstack holds."""
    with Database(running.state_dir / FILE_NAME) as database:
        return database.read(vm).store


def test_backups_restore_history(run: Run, running: Daemon, vm: UUID) -> None:
    control = ("--control", running.control)
    document = run("backups", "--vm", vm, "--json", *control).json
    (backup,) = document["backups"]
    assert backup == {
        "vm": str(vm),
        "id": backup["id"],
        "at": backup["at"],
        "why": "update",
        "bytes": len(OLD),
        "sha256": sha256(OLD).hexdigest(),
        "state": "update_available",
        "problem": None,
    }
    taken = f"{datetime.fromtimestamp(backup['at'], UTC):%Y-%m-%d %H:%M:%SZ}"
    line = [str(vm), backup["id"], taken, "update", "update_available", f"{len(OLD):,}", backup["sha256"]]
    assert run("backups", "--vm", vm, *control).text == "\t".join(line) + "\n"
    assert "\t".join(line) in run("backups", *control).text

    done = run("restore", "--vm", vm, *control)
    (_, second) = run("backups", "--vm", vm, "--json", *control).json["backups"]
    assert (done.code, done.err) == (0, "")
    assert done.text.splitlines() == [
        f"vm {vm}: backup {backup['id']} is back: update_available, {len(OLD):,} bytes",
        f"  what was there is kept as {second['id']}",
        # The embedded toolstack's certcheck has the shipped rules.
        "  the field is now ok",
    ]
    assert held(running, vm) == OLD

    done = run("restore", "--vm", vm, "--backup", backup["id"], "--json", *control)
    assert (done.code, done.json["restored"], done.json["changed"], done.json["refused"]) == (0, backup, False, None)
    assert "it is the store that was there before" in run("restore", "--vm", vm, "--backup", backup["id"], *control).text

    told = run("history", "--vm", vm, "--json", *control).json
    assert (told["vm"], told["unreadable"]) == (str(vm), 0)
    assert [each["what"] for each in told["events"]] == ["updated", "restored", "restored", "restored"]
    assert (told["events"][0]["before"], told["events"][0]["after"]) == (sha256(OLD).hexdigest(), sha256(NEW).hexdigest())
    lines = [line.split("\t") for line in run("history", "--vm", vm, *control).text.splitlines()]
    assert lines[0] == ["1", moment(told["events"][0]["at"]), "updated", "own 3", backup["id"], "add Its successor in db"]
    assert len(lines) == 4


def test_a_vm_that_is_attached_is_refused(run: Run, running: Daemon, vm: UUID, tmp_path: Path) -> None:
    path, control = tmp_path / "again.sock", ("--control", running.control)
    assert run("attach", "--vm", vm, "--socket", path, *control).code == 0
    said = f"NOT_ALLOWED: VM {vm} may be running: {path} is attached: shut the VM down and detach it"
    run("restore", "--vm", vm, *control).fails(f"varstore-companion restore: {said}", code=1)
    done = run("restore", "--vm", vm, "--json", *control)
    assert (done.code, done.json, done.err) == (1, {"vm": str(vm), "restored": None, "refused": said}, "")
    assert held(running, vm) == NEW
    assert run("detach", "--socket", path, *control).code == 0


def test_what_cannot_be_brought_back(run: Run, running: Daemon, vm: UUID) -> None:
    control = ("--control", running.control)
    run("restore", "--vm", uuid4(), *control).fails("INVALID_ARGUMENT", "has no backup")
    (backup,) = run("backups", "--vm", vm, "--json", *control).json["backups"]
    run("restore", "--vm", vm, "--backup", "20200101T000000Z-0123456789ab", *control).fails(backup["id"])
    for name in ("", "x" * 65, "ü", "a\tb"):
        run("restore", "--vm", vm, "--backup", name, *control).fails("--backup: expected an id")
    (running.state_dir / "backups" / str(vm) / f"{backup['id']}.vars").write_bytes(NEW)
    run("restore", "--vm", vm, *control).fails("INVALID_ARGUMENT", f"backup {backup['id']} is damaged")
    assert held(running, vm) == NEW
    (running.state_dir / "backups" / str(vm) / f"{backup['id']}.json").unlink()
    shown = run("backups", "--vm", vm, *control)
    assert shown.text == "\t".join([str(vm), backup["id"], "-", "-", "its description is missing", "-", "-"]) + "\n"


def test_a_torn_history_says_so(run: Run, running: Daemon, vm: UUID) -> None:
    control = ("--control", running.control)
    path = running.state_dir / "history" / f"{vm}.jsonl"
    assert run("history", "--vm", vm, "--json", *control).json["unreadable"] == 0
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    done = run("history", "--vm", vm, *control)
    assert (done.code, len(done.text.splitlines())) == (0, 1)
    assert done.err == "varstore-companion history: 1 of its lines cannot be read\n"
    assert run("history", "--vm", vm, "--json", *control).json["unreadable"] == 1


def test_nothing_to_show(run: Run, running: Daemon) -> None:
    for command in ("backups", "history"):
        done = run(command, "--vm", uuid4(), "--control", running.control)
        assert (done.code, done.out, done.err) == (0, b"", "")


def test_on_a_terminal(run: Run, running: Daemon, vm: UUID) -> None:
    assert run("restore", "--vm", vm, "--control", running.control).code == 0
    for command, headings in (("backups", "vm  "), ("history", "number  at  ")):
        code, shown = on_terminal(command, "--vm", vm, "--control", running.control)
        assert code == 0
        first, *rest = shown.splitlines()
        assert first.removeprefix("\x1b[2m").startswith(headings)
        assert len(rest) == 2


@pytest.mark.parametrize("command", [["backups"], ["restore", "--vm", str(uuid4())], ["history", "--vm", str(uuid4())]])
def test_an_older_daemon_is_named_as_that(command: list[str], run: Run, tmp_path: Path) -> None:
    with server(tmp_path / "s", answering(lambda _: (ErrorCode.UNKNOWN_TYPE, "type 0x0106"))):
        run(*command, "--control", tmp_path / "s").fails("the running daemon is older than this program", "restart it")


def test_texts_that_a_daemon_read_from_files_do_not_reach_the_terminal_as_they_are(run: Run, tmp_path: Path) -> None:
    event = {"number": 1, "at": 1e300, "what": "\x1b[31mred", "manifest": None, "backup": None, "detail": "\ud800\n\t"}
    page = json.dumps({"events": [event], "unreadable": 0})
    with server(tmp_path / "s", answering(lambda _: messages.HistoryAnswer(page))):
        done = run("history", "--vm", uuid4(), "--control", tmp_path / "s")
    assert done.text == "1\t-\t\ufffd[31mred\t-\t-\t\ufffd\ufffd\ufffd\n"


def test_every_page_is_asked_for(run: Run, tmp_path: Path) -> None:
    entry = {"vm": "v", "id": "i", "at": None, "why": None, "bytes": None, "sha256": None, "state": None, "problem": None}
    page = json.dumps({"backups": [entry]})
    cursors: list[bytes | None] = []

    def answer(request: messages.RequestMessage) -> messages.AnswerMessage:
        assert isinstance(request, messages.Backups)
        cursors.append(request.after)
        return messages.BackupsAnswer(page, b"%d" % len(cursors) if len(cursors) < 3 else None)

    with server(tmp_path / "s", answering(answer)):
        done = run("backups", "--json", "--control", tmp_path / "s")
    assert done.json == {"backups": [entry] * 3}
    assert cursors == [None, b"1", b"2"]
