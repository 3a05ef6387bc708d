"""`mark`, `unmark`, `status`, `stats`, `log`, `reload` and `config check` beside a running daemon."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support import own_rules
from support.commands import Daemon, Run, daemon, on_terminal, raw_file
from support.own_rules import Rules
from support.serve import varstored
from support.storebytes import GLOBAL, Variable
from varstore_companion import paths
from varstore_companion.cli.client import Client
from varstore_companion.daemon import config
from varstore_companion.wire.messages import GetStore, GetStoreAnswer, Outcome, PutStore, Reason


@pytest.fixture
def settings(rules: Rules, tmp_path: Path) -> Path:
    """A settings file with own rules, and no .auth files of this machine."""
    path = tmp_path / "config.toml"
    path.write_text(
        f'manifest = "{rules.manifest}"\ncertificates = "{rules.certificates}"\nauth_dir = "{tmp_path / "no auth files"}"\n'
    )
    return path


@pytest.fixture
def running(settings: Path, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, "--config", settings) as running:
        yield running


class Vm:
    """A VM of the embedded toolstack with an attached socket."""

    def __init__(self, run: Run, running: Daemon, folder: Path, rules: Rules) -> None:
        store = raw_file(folder, own_rules.store(), "store")
        common = ("--state-dir", running.state_dir, "--manifest", rules.manifest, "--json")
        self.uuid = UUID(run("vm", "create", "--name", "vm", "--store", store, *common).json["uuid"])
        self.path = folder / "vm.sock"
        assert run("attach", "--vm", self.uuid, "--socket", self.path, "--control", running.control).code == 0

    def varstored(self) -> Client:
        return varstored(self.path, self.uuid)


@pytest.fixture
def vm(run: Run, running: Daemon, tmp_path: Path, rules: Rules) -> Vm:
    return Vm(run, running, tmp_path, rules)


def test_a_mark_and_what_becomes_of_it(run: Run, running: Daemon, vm: Vm) -> None:
    control = ("--control", running.control)
    assert run("mark", "--vm", vm.uuid, *control).text == f"{vm.uuid}: update_on_boot\n"
    assert run("unmark", "--vm", vm.uuid, *control).text == f"{vm.uuid}: update_available\n"
    for _ in range(2):
        done = run("mark", "--vm", vm.uuid, "--json", *control)
        assert (done.code, done.json) == (0, {"vm": str(vm.uuid), "field": "update_on_boot"})
    with vm.varstored() as client:
        answer = client.call(GetStore(Reason.BOOT))
        assert isinstance(answer, GetStoreAnswer)
        assert answer.outcome is Outcome.UPDATED
        for number in range(3):
            client.call(PutStore(own_rules.store(updated=True, more=(Variable(f"V{number}", GLOBAL, b"x"),))))
    run("mark", "--vm", vm.uuid, *control).fails("NOT_ALLOWED", code=1)
    run("mark", "--vm", uuid4(), *control).fails("UNKNOWN_VM")
    run("unmark", *control).fails("unmark", "required: --vm")

    status = run("status", "--json", *control).json
    assert (status["manifest"], status["mode"], status["reload_failed"]) == ("own 3", "direct", None)
    (known,) = status["vms"]
    assert (known["vm"], known["delivery"], known["last_verdict"]) == (str(vm.uuid), "direct", "no")
    assert (known["report"], known["field"]) == ("ok", "ok")
    assert (known["certcheck_saved"], known["last_update"]["outcome"]) == (4, "updated")
    one = run("status", "--vm", vm.uuid, "--json", *control).json
    assert [(each["occasion"], each["verdict"], each["count"]) for each in one["verdicts"]] == [
        ("update", "yes", 1),
        ("write", "no", 3),
    ]
    lines = run("status", *control).text.splitlines()
    assert any(line.startswith(f"{vm.uuid}\tdirect\tok\tok\tno\t4\t") and line.endswith("updated") for line in lines)
    lines = run("status", "--vm", vm.uuid, *control).text.splitlines()
    assert any("\t3\twrite\tno\tPK, KEK and db are unchanged" in line for line in lines)
    code, shown = on_terminal("status", *control)
    assert code == 0
    assert "certcheck saved  last update" in shown


def test_a_guard_cannot_be_asked_for_a_mark(run: Run, tmp_path: Path) -> None:
    with daemon(tmp_path, "--toolstack", "guard") as running:
        vm, control = uuid4(), ("--control", running.control)
        run("attach", "--vm", vm, "--socket", tmp_path / "vm.sock", "--upstream", tmp_path / "guard.sock", *control)
        run("mark", "--vm", vm, *control).fails("ask xapi", code=1)
        run("unmark", "--vm", vm, *control).fails("ask xapi", code=1)


def test_a_vm_on_two_sockets_is_one_row(run: Run, running: Daemon, vm: Vm, tmp_path: Path) -> None:
    control = ("--control", running.control)
    run("attach", "--vm", vm.uuid, "--socket", tmp_path / "other.sock", *control)
    assert [each["vm"] for each in run("status", "--json", *control).json["vms"]] == [str(vm.uuid)]
    assert len(run("list", "--json", *control).json["attachments"]) == 2


def test_stats_for_people_machines_and_prometheus(run: Run, running: Daemon, vm: Vm, tmp_path: Path) -> None:
    control = ("--control", running.control)
    with vm.varstored() as client:
        client.call(GetStore(Reason.BOOT))
    found = {each["name"]: each for each in run("stats", "--json", *control).json["metrics"]}
    assert found["varstore_companion_boots_total"]["samples"] == [{"labels": {}, "value": 1}]
    calls = found["varstore_companion_toolstack_call_seconds"]["samples"]
    assert next(each["count"] for each in calls if each["labels"] == {"call": "read"}) == 1
    lines = run("stats", *control).text.splitlines()
    assert "boots_total\t1" in lines
    assert "vms report=update_available\t1" in lines
    assert any(line.startswith("boot_seconds\t1, 0.") and "99 % within" in line for line in lines)
    assert "toolstack_call_seconds call=mark\t0" in lines
    text = run("stats", "--prometheus", *control).text
    assert "\nvarstore_companion_boots_total 1\n" in text
    out = tmp_path / "collector" / "vc.prom"
    out.parent.mkdir()
    done = run("stats", "--prometheus", "-o", out, *control)
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert "\nvarstore_companion_up 1\n" in out.read_text()
    inode = out.stat().st_ino
    run("stats", "--prometheus", "-o", out, *control)
    # Another file took its name: who has opened the old one reads it to its end.
    assert out.stat().st_ino != inode
    assert [path.name for path in out.parent.iterdir()] == ["vc.prom"]


def test_without_a_daemon_the_collector_is_told(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "vc.prom"
    out.write_text("varstore_companion_boots_total 7\n")
    run("stats", "--prometheus", "-o", out, "--control", tmp_path / "none").fails("no daemon answers there")
    assert out.read_text().splitlines()[-1] == "varstore_companion_up 0"
    assert "boots" not in out.read_text()
    run("stats", "--json", "--prometheus").fails("--prometheus or --json")
    run("stats", "-o", out).fails("-o goes with --prometheus")


def test_log_levels(run: Run, running: Daemon, vm: Vm) -> None:
    control = ("--control", running.control)
    assert run("log", *control).text == "everything\tinfo\n"
    done = run("log", "debug", "--for", "daemon.upstream", "daemon.session", "--json", *control)
    assert done.json == {"levels": {"": "info", "daemon.upstream": "debug", "daemon.session": "debug"}}
    with vm.varstored() as client:
        client.call(PutStore(own_rules.store()))
    assert run("log", "error", *control).text.splitlines()[0] == "everything\terror"
    run("log", "inherit", "--for", "daemon.upstream", "daemon.session", *control)
    run("log", "debug", "--for", "daemon.nothing", *control).fails("INVALID_ARGUMENT", "daemon.nothing", "daemon.upstream")
    run("log", "loud").fails("invalid choice: 'loud'")
    run("log", "--for", "daemon.upstream").fails("--for needs a LEVEL")
    running.stop()
    assert any(line.startswith(f"DEBUG vm={vm.uuid} wrote") for line in running.log)
    # From the change to error on, nothing less is said.
    assert running.log[-1].endswith("from here on the log of everything is at level error\n")


def test_reload_and_what_it_refuses(run: Run, running: Daemon, rules: Rules, settings: Path) -> None:
    control = ("--control", running.control)
    rules.manifest.write_text(rules.manifest.read_text().replace("revision = 3", "revision = 4"))
    assert run("reload", *control).text == "reloaded: manifest own 4\n"
    good = settings.read_text()
    settings.write_text(f"{good}headroom = 57345\n")
    run("reload", *control).fails(f"{settings}: headroom: expected a whole number from 0 to 57,344", "line 4", "own 4", code=1)
    done = run("reload", "--json", *control)
    assert (done.code, done.json["manifest"]) == (1, "own 4")
    status = run("status", "--json", *control).json
    assert status["reload_failed"]["error"] == done.json["error"]
    assert (status["reloads"], status["reloads_refused"]) == (1, 2)
    settings.write_text(f'{good}control = "/run/other.sock"\ntoolstack = "xapi"\n')
    done = run("reload", *control)
    # The option that was given on the command line still goes before the file.
    assert done.text.splitlines()[-1] == "  needs a restart: toolstack"
    assert done.code == 0


def test_sighup_reloads_and_does_not_end_it(run: Run, running: Daemon, rules: Rules) -> None:
    rules.manifest.write_text(rules.manifest.read_text().replace("revision = 3", "revision = 5"))
    running.process.send_signal(signal.SIGHUP)
    control = ("--control", running.control)
    while run("status", "--json", *control).json["manifest"] != "own 5":
        assert running.process.poll() is None
    rules.manifest.write_text("nonsense")
    for _ in range(20):
        running.process.send_signal(signal.SIGHUP)
    while not (failed := run("status", "--json", *control).json["reload_failed"]):
        assert running.process.poll() is None
    assert str(rules.manifest) in failed["error"]
    running.process.send_signal(signal.SIGHUP)
    assert running.stop() == 0
    assert any("reloaded: manifest own 5" in line for line in running.log)
    assert any(line.startswith("ERROR reload refused, everything stays as it was: ") for line in running.log)


def test_config_check(run: Run, settings: Path, rules: Rules, tmp_path: Path) -> None:
    done = run("config", "check", settings)
    assert (done.code, done.text) == (0, f"{settings}: fine: manifest own 3, 1 of 1 certificates, headroom 1000\n")
    document = run("config", "check", settings, "--json").json
    assert document == {
        "file": str(settings),
        "error": None,
        "rules": "manifest own 3, 1 of 1 certificates, headroom 1000",
        "warnings": [],
    }
    (certificate,) = rules.certificates.iterdir()
    certificate.write_text("no certificate")
    done = run("config", "check", settings)
    assert done.code == 0
    assert [line.split(":")[0] for line in done.text.splitlines()[1:]] == ["  warning", "  warning"]
    settings.write_text("# a comment\ncontrol = 'here'\n")
    run("config", "check", settings).fails(f"{settings}: control: expected an absolute path, found 'here' (at line 2)")
    done = run("config", "check", settings, "--json")
    assert (done.code, done.json["rules"], done.json["error"]) == (
        2,
        None,
        f"{settings}: control: expected an absolute path, found 'here' (at line 2)",
    )
    settings.write_text('manifest = "/nowhere"\n')
    run("config", "check", settings).fails(f"{settings}, line 1: manifest: /nowhere: No such file")
    settings.write_text('certificates = "/nowhere"\n')
    run("config", "check", settings).fails(f"{settings}, line 1: certificates: /nowhere: expected a folder with certificates")
    settings.write_text("updates_at_once = 0\n")
    run("config", "check", settings).fails(f"{settings}: updates_at_once: expected a whole number from 1 to 100,000, found '0'")
    settings.write_text('state_dir = "/dev/null/x"\n')
    run("config", "check", settings).fails(f"{settings}, line 1: state_dir: /dev/null: exists and is not a folder")
    settings.write_text('toolstack = "xapi"\nxapi_socket = "/run/x"\n')
    run("config", "check", settings).fails("xapi_socket: only the embedded toolstack")
    run("config", "check", tmp_path / "missing").fails("missing: No such file or directory")
    run("config").fails("required: check")
    run("config", "show").fails("invalid choice: 'show'")


def test_the_usual_file_counts_when_it_is_there(run: Run, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = settings.with_name("usual.toml")
    monkeypatch.setattr(config, "CONFIG", usual)
    done = run("config", "check", "--json")
    assert (done.code, done.json["file"]) == (0, None)
    usual.write_text("headrom = 1\n")
    run("config", "check").fails(f"{usual}: headrom: unknown key: expected one of control, ", "(at line 1)")
    usual.write_text(settings.read_text())
    assert run("config", "check").text.startswith(f"{usual}: fine: manifest own 3")
    assert os.fspath(paths.CONFIG) == "/etc/varstore-companion/config.toml"


def test_a_collector_never_reads_half(run: Run, running: Daemon, tmp_path: Path) -> None:
    """The file is there whole under its name, and every name that a writer uses meanwhile is none that a collector reads."""
    out = tmp_path / "collector" / "vc.prom"
    out.parent.mkdir()
    names: set[str] = set()
    rename = os.rename

    def spy(source: str | Path, target: str | Path, **more: int) -> None:
        names.update(path.name for path in out.parent.iterdir())
        rename(source, target, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", spy)
        patch.setattr(os, "replace", spy)
        assert run("stats", "--prometheus", "-o", out, "--control", running.control).code == 0
    assert names
    assert not any(name.endswith(".prom") for name in names)
    assert out.read_text().startswith("# HELP varstore_companion_up ")
