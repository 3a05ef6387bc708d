"""`varstore-companion` itself: which command, which exit code, what is loaded, and errors that all of them share."""

import importlib.metadata
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import own_rules
from support.commands import PROGRAM, SECONDS, Done, Run, as_somebody_else, process
from support.own_rules import Rules
from support.processes import python_environment
from varstore_companion import __version__
from varstore_companion.cli import inspect as inspect_command
from varstore_companion.cli import main
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.main import COMMANDS
from varstore_companion.cli.store_file import LIMIT

VM = "11111111-2222-3333-4444-555555555555"
FILE_COMMANDS = ("inspect", "plan", "apply", "vm")


@pytest.fixture
def on_file(run: Run, tmp_path: Path) -> Callable[[str, object], Done]:
    """Runs a command that takes FILE on a file; whatever it would write must not appear."""

    def run_on(command: str, path: object) -> Done:
        out, state_dir = tmp_path / "out", tmp_path / "state"
        match command:
            case "apply":
                done = run("apply", path, "-o", out)
            case "vm":
                done = run("vm", "create", "--store", path, "--state-dir", state_dir)
            case _:
                done = run(command, path)
        assert not out.exists()
        assert not state_dir.exists()
        return done

    return run_on


def test_without_a_command(run: Run) -> None:
    done = run()
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith("usage: varstore-companion COMMAND")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str, run: Run) -> None:
    done = run(option)
    assert (done.code, done.err) == (0, "")
    for name, text in COMMANDS.items():
        assert f"  {name:<7}  {text}\n" in done.text


def test_version(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.text, done.err) == (0, f"varstore-companion {__version__}\n", "")


@pytest.mark.parametrize("name", ["destroy", "", "main", "../x", "Inspect", "--json"])
def test_no_such_command(name: str, run: Run) -> None:
    run(name).fails(repr(name), "inspect, plan, apply")


def test_the_installed_scripts_are_these() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts")
    found = {each.name: each.value for each in scripts if each.value.startswith("varstore_companion.")}
    if not found:
        pytest.skip("the package is not installed")
    assert found["varstore-companion"] == "varstore_companion.cli.main:run"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["attach", "--help"], ["inspect", "--help"], ["vm", "--help"]]
)
def test_as_a_process(arguments: list[str]) -> None:
    done = process(*arguments)
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith(("usage: varstore-companion", "varstore-companion 0."))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["attach", "--help"],
        ["attach", "--vm", VM, "--socket", "/x.sock", "--control", "/nonexistent"],
        ["detach", "--socket", "/x.sock", "--control", "/nonexistent"],
        ["list", "--control", "/nonexistent"],
        ["status", "--control", "/nonexistent"],
        ["backups", "--control", "/nonexistent"],
        ["restore", "--vm", VM, "--control", "/nonexistent"],
        ["history", "--vm", VM, "--control", "/nonexistent"],
    ],
    ids=" ".join,
)
def test_what_talks_to_the_daemon_starts_without_its_libraries(arguments: list[str]) -> None:
    code = (
        "import sys; from varstore_companion.cli.main import main; main(sys.argv[1:]);"
        "print(sorted({'trio', 'cryptography', 'asyncio', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=python_environment(), timeout=SECONDS, check=True
    )
    assert done.stdout.splitlines()[-1] == b"[]"


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_a_file_that_cannot_be_read(command: str, on_file: Callable[[str, object], Done], tmp_path: Path) -> None:
    on_file(command, tmp_path / "missing").fails(f"{tmp_path / 'missing'}: No such file or directory")
    on_file(command, tmp_path).fails(f"{tmp_path}: Is a directory")
    on_file(command, "").fails("'': No such file or directory")
    on_file(command, "/dev/zero").fails(f": /dev/zero: file at offset {LIMIT}: expected at most 1,048,576 bytes")
    big = tmp_path / "big"
    big.write_bytes(bytes(2 * LIMIT))
    on_file(command, big).fails(f": {big}: file at offset {LIMIT}: expected at most 1,048,576 bytes")


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_a_file_that_is_no_store(command: str, on_file: Callable[[str, object], Done], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x7fELF" + bytes(range(256)))
    on_file(command, path).fails(f": {path}: store at offset 0: expected base64 text, or a raw store")
    path.write_bytes(b"QUJDRE,GSElK")
    on_file(command, path).fails(f": {path}: store at offset 6: expected base64 text")


@pytest.mark.parametrize("command", ["inspect", "plan", "apply"])
def test_an_empty_file(command: str, on_file: Callable[[str, object], Done], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    done = on_file(command, path)
    assert (done.code, done.err) == (2, "")
    assert done.text.startswith(f"{path}: damaged")
    assert "store header at offset 0: expected 24 bytes of header, found 0 bytes" in done.text


def test_a_vm_is_not_made_of_an_empty_file(on_file: Callable[[str, object], Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    on_file("vm", tmp_path / "file").fails(f"{tmp_path / 'file'}: store header at offset 0: expected 24 bytes")


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_too_much_on_standard_input(
    command: str, on_file: Callable[[str, object], Done], standard_input: Callable[[bytes], None]
) -> None:
    standard_input(bytes(LIMIT + 1))
    on_file(command, "-").fails(f": standard input: input at offset {LIMIT}: expected at most 1,048,576 bytes")


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_a_file_of_somebody_else(command: str, tmp_path: Path) -> None:
    path = tmp_path / "nvram"
    path.touch(0o600)
    process(command, path, prefix=as_somebody_else()).fails(f"{path}: Permission denied")


@pytest.mark.parametrize("command", ["inspect", "plan", "apply", "vm create --store"])
def test_rules_that_cannot_be_used(command: str, run: Run, rules: Rules, tmp_path: Path) -> None:
    store = tmp_path / "nvram"
    store.write_bytes(own_rules.store())
    more = {"apply": ["-o", tmp_path / "out"], "vm create --store": ["--state-dir", tmp_path / "state"]}.get(command, [])
    given = [*command.split(), store, *more, "--manifest"]
    run(*given, tmp_path / "missing.toml").fails(f": {tmp_path / 'missing.toml'}: No such file or directory")
    run(*given, tmp_path).fails(f": {tmp_path}: Is a directory")
    path = rules.manifest
    text = path.read_text()
    for broken, said in [
        ("format = [", "not TOML"),
        (text.replace("format = 1", "format = 9"), "format: expected 1"),
        (text.replace("headroom", "headrom"), "headroom: expected a whole number, found nothing"),
        ("strict = true\n" + text, "strict: unknown key"),
        (text.replace('present = "old"', 'present = "older"'), "rule[1].present: expected one of old, new, found 'older'"),
        (text + "\n" + "#" * 262_144, "not a manifest: file at offset 262144: expected at most 262,144 bytes"),
    ]:
        path.write_text(broken)
        run(*given, path).fails(f": {path}: {said}")
    path.write_bytes(b"\xff\xfe")
    run(*given, path).fails(f": {path}: not a manifest: 'utf-8'")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("command", ["plan", "apply"])
@pytest.mark.parametrize("option", ["--certificates", "--auth-dir"])
def test_folders_that_are_not_there(command: str, option: str, run: Run, tmp_path: Path) -> None:
    store = tmp_path / "nvram"
    store.write_bytes(own_rules.store())
    more = ["-o", tmp_path / "out"] if command == "apply" else []
    for folder in (tmp_path / "missing", store):
        run(command, store, *more, option, folder).fails(f": {folder}: expected a folder with")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, ""),
        (BrokenPipeError(), ExitCode.UNREAD, ""),
        (OSError(28, "No space left on device", "/some/where"), 2, "varstore-companion inspect: /some/where: No space left"),
        (OSError(24, "Too many open files"), 2, "varstore-companion inspect: [Errno 24] Too many open files"),
    ],
)
def test_what_ends_a_command(error: BaseException, code: int, said: str, *, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_arguments: list[str]) -> ExitCode:
        raise error

    monkeypatch.setattr(inspect_command, "main", fail)
    done = run("inspect", "x")
    assert (done.code, done.out) == (code, b"")
    assert done.err.startswith(said)
    assert done.err.count("\n") == (1 if said else 0)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_arguments: list[str]) -> ExitCode:
        raise ZeroDivisionError

    monkeypatch.setattr(inspect_command, "main", fail)
    with pytest.raises(ZeroDivisionError):
        main.main(["inspect", "x"])


def test_ctrl_c(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(
        [*PROGRAM, "inspect", str(fifo)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=python_environment()
    ) as started:
        # Opening it waits until the command has come to reading it.
        with fifo.open("wb"):
            started.send_signal(signal.SIGINT)
            assert started.wait(SECONDS) == 130
        assert started.communicate(timeout=SECONDS) == (b"", b"")
