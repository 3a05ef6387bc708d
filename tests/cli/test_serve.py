"""`serve`: what keeps it from starting, said in one line, and how it ends."""

import signal
import socket
from pathlib import Path
from uuid import uuid4

import pytest

from support.commands import Done, Run, daemon, process
from support.own_rules import Rules
from varstore_companion.daemon import main as daemon_main
from varstore_companion.daemon.config import Settings, Source


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told(number: signal.Signals, tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        assert running.stop(number) == 0
    assert not running.control.exists()
    assert running.log[-2:] == [f"INFO {number.name}: stopping\n", "INFO stopped\n"]
    assert all(line.split()[0] in ("INFO", "WARNING") for line in running.log)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--control", "{0}/file/c.sock"], "--control: {0}/file: exists and is not a folder"),
        (["--control", "{0}"], "--control: {0}: exists and is not a socket"),
        (["--control", "relative.sock"], "--control: relative.sock: expected an absolute path of at most 107 bytes"),
        (["--control", "{0}/{1}"], "expected an absolute path of at most 107 bytes"),
        (["--state-dir", "{0}/file"], "--state-dir: {0}/file: exists and is not a folder"),
        (["--state-dir", "{0}/file/state"], "--state-dir: {0}/file: exists and is not a folder"),
        (["--state-dir", "/dev/null/x"], "--state-dir: /dev/null: exists and is not a folder"),
        (["--manifest", "{0}/missing.toml"], "--manifest: {0}/missing.toml: No such file or directory"),
        (["--certificates", "{0}/missing"], "--certificates: {0}/missing: expected a folder with certificates"),
        (["--headroom", "57345"], "--headroom: expected a whole number from 0 to 57,344, found 57,345"),
        (["--toolstack", "xen"], "invalid choice: 'xen' (choose from"),
        (["--toolstack", "guard", "--xapi-socket", "{0}/x"], "--xapi-socket: only the embedded toolstack"),
        (["--xapi-socket", "{0}/none/x"], "--xapi-socket: {0}/none: there is no such folder"),
        (["--toolstack", "xapi", "--xapi", "{0}/file"], "--xapi: {0}/file: exists and is not a socket"),
        (["--toolstack", "xapi", "--xapi", "{0}/file/x"], "--xapi: {0}/file: exists and is not a folder"),
        (["--config", "{0}/missing.toml"], "{0}/missing.toml: No such file or directory"),
        (["--config", "{0}"], "{0}: Is a directory"),
        (["--config", "{0}/file"], "{0}/file: cntrol: unknown key"),
        (["--config", "{0}/places"], "{0}/places, line 3: xapi_socket: /dev/null: exists and is not a folder"),
        (["--config", "{0}/rules"], "{0}/rules, line 1: manifest: /nowhere: No such file or directory"),
        (["--config", "/dev/zero"], "/dev/zero: file at offset 65536: expected at most 65,536 bytes"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_keeps_it_from_starting(options: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text('cntrol = "/x"\n')
    (tmp_path / "places").write_text('# one\n\nxapi_socket = "/dev/null/x"\n')
    (tmp_path / "rules").write_text('manifest = "/nowhere"\n')
    filled = [option.format(tmp_path, "x" * 120) for option in options]
    for name in ("control", "state-dir"):
        if f"--{name}" not in filled:
            filled += [f"--{name}", str(tmp_path / name)]
    done = process("serve", *filled)
    assert (done.code, done.out) == (2, b"")
    last = done.err.splitlines()[-1]
    assert last.startswith("varstore-companion serve: ")
    assert said.format(tmp_path) in last
    assert "Traceback" not in done.err


def test_a_state_folder_has_one_daemon(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        done = process("serve", "--control", tmp_path / "other.sock", "--state-dir", running.state_dir)
        done.fails(f"serve: {running.state_dir}: another daemon runs on this state folder")
        done = process("serve", "--control", running.control, "--state-dir", tmp_path / "other")
        assert done.code == 2
        assert f"{running.control}: another process listens there" in done.err.splitlines()[-1]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as still:
            still.connect(str(running.control))


def test_what_a_crash_left_does_not_keep_it(tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        running.process.kill()
        running.process.wait()
    assert running.control.exists()
    with daemon(tmp_path):
        pass


def test_options_go_before_the_file(run: Run, rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    async def started(settings: Settings, _source: Source) -> None:
        seen.append(settings)

    monkeypatch.setattr(daemon_main, "serve", started)
    config = tmp_path / "config.toml"
    config.write_text(f'control = "/from/file"\nheadroom = 7\nmanifest = "{rules.manifest}"\n')
    assert run("serve", "--config", config).code == 0
    assert run("serve", "--config", config, "--control", "/given", "--headroom", "0").code == 0
    assert run("serve").code == 0
    from_file = Settings(control=Path("/from/file"), headroom=7, manifest=rules.manifest)
    given = Settings(control=Path("/given"), headroom=0, manifest=rules.manifest)
    assert seen == [from_file, given, Settings()]


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    process("serve", "--control", tmp_path / "c", "--state-dir", "/proc/none").fails("serve: /proc/none: ")


def test_a_guards_socket_is_given_with_attach_and_listed(run: Run, tmp_path: Path) -> None:
    """Nobody has to be there yet: a guard may restart while the daemon does."""
    vm, path, guard = uuid4(), tmp_path / "vm.sock", tmp_path / "guard.sock"
    attach = ("attach", "--vm", vm, "--socket", path)
    with daemon(tmp_path, "--toolstack", "guard") as running:
        control = ("--control", running.control)
        run(*attach, *control).fails("INVALID_ARGUMENT", "upstream", "guard")
        assert run(*attach, "--upstream", guard, *control).code == 0
        run(*attach, "--upstream", tmp_path / "other", *control).fails("CONFLICT", str(guard))
        assert [each["upstream"] for each in run("list", "--json", *control).json["attachments"]] == [str(guard)]
        assert run("list", *control).text.rstrip("\n").endswith(f"\t{guard}")
        status = run("status", "--vm", vm, "--json", *control).json
        assert (status["sockets"], status["field"]) == ([str(path)], None)
        assert "No such file" in status["error"]
        running.stop()
    with daemon(tmp_path, "--toolstack", "guard") as running:
        listed = run("list", "--json", "--control", running.control).json["attachments"]
        assert [(each["vm"], each["upstream"]) for each in listed] == [(str(vm), str(guard))]
    with daemon(tmp_path) as running:
        assert any("does not come back" in line and "embedded" in line for line in running.log)


def test_an_upstream_is_refused_where_there_is_none(run: Run, tmp_path: Path) -> None:
    with daemon(tmp_path, "--toolstack", "xapi", "--xapi", tmp_path / "xapi") as running:
        attach = ("attach", "--vm", uuid4(), "--socket", tmp_path / "vm.sock", "--control", running.control)
        run(*attach, "--upstream", tmp_path / "guard").fails("INVALID_ARGUMENT", "upstream", "xapi")
        assert run("status", "--json", "--control", running.control).json["toolstack"] == "xapi"


def test_a_guards_socket_is_taken_over_and_given_back(run: Run, tmp_path: Path) -> None:
    vm, path = uuid4(), tmp_path / "guard.sock"
    attach = ("attach", "--vm", vm, "--interpose", path, "--resume")
    with socket.socket(socket.AF_UNIX) as guard, daemon(tmp_path, "--toolstack", "guard") as running:
        control = ("--control", running.control)
        run(*attach, *control).fails("INVALID_ARGUMENT", str(path), "no guard listens there")
        guard.bind(str(path))
        guard.listen()
        inode = path.stat().st_ino
        assert run(*attach, *control).text == f"{path}: attached\n"
        assert run(*attach, *control).text == f"{path}: was attached already\n"
        run("attach", "--vm", vm, "--interpose", path, *control).fails("CONFLICT", str(path))
        (listed,) = run("list", "--json", *control).json["attachments"]
        assert (listed["path"], listed["upstream"], listed["interpose"]) == (str(path), f"{path}.interposed", True)
        assert path.stat().st_ino != inode
        assert run("detach", "--socket", path, *control).text == f"{path}: detached\n"
        assert path.stat().st_ino == inode
        for option, value in (("--gid", 0), ("--mode", "0600"), ("--upstream", path)):
            run(*attach, option, value, *control).fails(f"{option} is not for --interpose")
        run("attach", "--vm", vm, "--interpose", path, "--socket", path, *control).fails("not allowed with argument")
        run("attach", "--vm", vm, *control).fails("one of the arguments --socket --interpose is required")


def test_nothing_is_taken_over_where_there_are_no_guards(run: Run, tmp_path: Path) -> None:
    with daemon(tmp_path) as running:
        attach = ("attach", "--vm", uuid4(), "--interpose", tmp_path / "guard.sock", "--control", running.control)
        run(*attach).fails("INVALID_ARGUMENT", "the embedded toolstack has no socket for each VM")


def test_an_upstream_that_is_served_here_is_refused(run: Run, tmp_path: Path) -> None:
    """Each request would come back to the daemon that sent it."""
    path, other, vms = tmp_path / "vm.sock", tmp_path / "other.sock", tmp_path / "vms"
    vms.symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(path)
    with daemon(tmp_path, "--toolstack", "guard") as running:
        control = ("--control", running.control)

        def attach(socket: Path, upstream: Path) -> Done:
            return run("attach", "--vm", uuid4(), "--socket", socket, "--upstream", upstream, *control)

        spellings = [path, tmp_path / "." / ".." / tmp_path.name / "vm.sock", vms / "vm.sock", tmp_path / "dangling"]
        for upstream in [*spellings, running.control]:
            attach(path, upstream).fails("INVALID_ARGUMENT", f"{path}: upstream: ", "is served by this daemon itself")
        # Left by a crash: dead, and about to be replaced.
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        attach(path, vms / "vm.sock").fails("INVALID_ARGUMENT", "is served by this daemon itself")
        path.unlink()
        assert attach(path, tmp_path / "guard.sock").code == 0
        for upstream in spellings:
            attach(other, upstream).fails("INVALID_ARGUMENT", f"{other}: upstream: ", "is served by this daemon itself")
        assert not other.exists()
        (tmp_path / "circle").symlink_to("circle")
        assert attach(other, tmp_path / "circle").code == 0
