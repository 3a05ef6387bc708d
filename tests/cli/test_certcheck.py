"""`varstore-nvram-certcheck` as the toolstack runs it: one line on standard output, an exit code, and nothing else."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import fixtures
from support.every import EVERY, known
from support.places import FIXTURES
from support.processes import python_environment
from support.shipped import shipped
from support.storemaker import HOSTILE, hostile, scene
from varstore_companion.cli import certcheck, store_file
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.errors import MalformedError
from varstore_companion.trust.check import check

WORDS = ("update_ok", "update_required", "unknown")
Captured = pytest.CaptureFixture[str]


def run(*arguments: str, given_input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "varstore_companion.cli.certcheck", *arguments]
    return subprocess.run(command, input=given_input, env=python_environment(), capture_output=True, check=False)


def answer(done: subprocess.CompletedProcess[bytes]) -> str:
    """The word, as xapi takes it: the output trimmed."""
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 1
    word = done.stdout.decode().strip()
    assert word in WORDS
    return word


@pytest.mark.parametrize("name", ["ms2011", "all2023", "custom_keys", "oversized_dbx", "version3"])
def test_the_process_answers_for_base64_and_raw_from_file_and_standard_input(name: str, tmp_path: Path) -> None:
    made = scene(name)
    text = base64.b64encode(made.blob)
    path = tmp_path / "store"
    for content in (made.blob, text + b"\n"):
        path.write_bytes(content)
        assert answer(run(str(path))) == made.certcheck
    assert answer(run("-", given_input=text)) == made.certcheck


@pytest.mark.parametrize("name", ["ms2011", "oversized_dbx"])
def test_the_process_answers_for_the_fixtures_as_they_are(name: str) -> None:
    fixtures.store(name)
    done = run(str(FIXTURES / "stores" / f"{name}.b64"))
    assert answer(done) == fixtures.index()[name]["certcheck"]
    assert bool(done.stderr) == (name == "oversized_dbx")


@pytest.mark.parametrize("name", EVERY)
def test_every_store_is_answered(name: str, tmp_path: Path, capsys: Captured) -> None:
    made = known(name)
    path = tmp_path / "store"
    for content in (made.blob, base64.b64encode(made.blob), base64.encodebytes(made.blob)):
        path.write_bytes(content)
        assert certcheck.main([str(path)]) is ExitCode.FINE
        printed = capsys.readouterr()
        assert printed.out == f"{made.certcheck}\n"
        assert bool(printed.err) == (made.report in ("damaged", "unknown"))
    assert certcheck.main(["--json", str(path)]) is ExitCode.FINE
    names = [each for names in made.missing.values() for each in names]
    assert json.loads(capsys.readouterr().out) == {"certcheck": made.certcheck, "state": made.report, "missing": names}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_store_is_answered_and_the_reason_told(name: str, tmp_path: Path, capsys: Captured) -> None:
    """Invariant 11: never `update_ok` for what cannot be read."""
    made = hostile(name)
    path = tmp_path / "store"
    path.write_bytes(base64.b64encode(made.blob))
    assert certcheck.main([str(path)]) is ExitCode.FINE
    printed = capsys.readouterr()
    assert printed.out.strip() in WORDS
    report = check(made.blob, shipped())
    assert (printed.out == "unknown\n") == (report.certcheck == "unknown")
    assert all(line.startswith(f"varstore-nvram-certcheck: {path}: ") for line in printed.err.splitlines())
    assert len(printed.err.splitlines()) == len(report.reasons)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "24 bytes of header, found 0 bytes in all"),
        (b"not base64!", "expected base64 text, or a raw store"),
        (b"VkFSUw=", "expected base64 text, or a raw store"),
        (b"VkFSUw==\0", "expected base64 text, or a raw store"),
        (b"VkFSUw==", "24 bytes of header, found 4 bytes in all"),
        (b"VARS", "24 bytes of header, found 4 bytes in all"),
        (b"\xef\xbb\xbfVkFSUw==", "expected base64 text, or a raw store"),
        (bytes(2 * 1024 * 1024), "at most 1,048,576 bytes"),
        (b"VARS" + bytes(2 * 1024 * 1024), "at most 1,048,576 bytes"),
    ],
    ids=["empty", "text", "padding", "trailing", "short base64", "short", "byte order mark", "2 MiB", "2 MiB of store"],
)
def test_what_is_no_store_is_unknown(content: bytes, reason: str, tmp_path: Path, capsys: Captured) -> None:
    """Invariant 11; xapi logs a warning for it, and takes any other exit code for a failure."""
    path = tmp_path / "store"
    path.write_bytes(content)
    assert certcheck.main([str(path)]) is ExitCode.FINE
    printed = capsys.readouterr()
    assert printed.out == "unknown\n"
    assert reason in printed.err
    assert str(path) in printed.err
    assert certcheck.main([str(path), "--json"]) is ExitCode.FINE
    assert json.loads(capsys.readouterr().out) == {"certcheck": "unknown", "state": "damaged", "missing": []}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(base64.b64encode)))
def test_any_file_is_answered(content: bytes, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "store"
    path.write_bytes(content)
    assert certcheck.main([str(path)]) is ExitCode.FINE
    assert capsys.readouterr().out == "unknown\n"


def test_a_file_without_end_is_unknown(capsys: Captured) -> None:
    assert certcheck.main(["/dev/zero"]) is ExitCode.FINE
    assert capsys.readouterr().out == "unknown\n"


def test_blanks_in_base64_do_not_matter(tmp_path: Path, capsys: Captured) -> None:
    made = scene("ms2011")
    text = base64.b64encode(made.blob)
    path = tmp_path / "store"
    path.write_bytes(b" \t\r\n" + b"\r\n".join(text[at : at + 64] for at in range(0, len(text), 64)) + b"\n\n")
    assert certcheck.main([str(path)]) is ExitCode.FINE
    assert capsys.readouterr().out == "update_required\n"


@pytest.mark.parametrize("as_process", [False, True], ids=["in process", "as a process"])
@pytest.mark.parametrize(("name", "reason"), [("absent", "No such file or directory"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_a_failure(
    name: str, reason: str, tmp_path: Path, capsys: Captured, *, as_process: bool
) -> None:
    """No answer at all: the exit code is not 0, and nothing is on standard output."""
    path = tmp_path / name
    if as_process:
        done = run(str(path))
        code, out, err = done.returncode, done.stdout.decode(), done.stderr.decode()
    else:
        code = certcheck.main([str(path)])
        out, err = capsys.readouterr()
    assert (code, out) == (ExitCode.UNUSABLE, "")
    assert err == f"varstore-nvram-certcheck: {path}: {reason}\n"


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--jsom", "a"], ["-x"], ["--json"]])
def test_wrong_usage_is_a_failure_and_shows_the_usage(arguments: list[str], capsys: Captured) -> None:
    assert certcheck.main(arguments) is ExitCode.UNUSABLE
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", certcheck.USAGE)


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["--json", "--help"], ["file", "-h"]])
def test_help_is_no_failure(arguments: list[str], capsys: Captured) -> None:
    assert certcheck.main(arguments) is ExitCode.FINE
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (certcheck.USAGE, "")
    assert all(word in certcheck.USAGE for word in WORDS)


def test_the_process_has_its_exit_codes() -> None:
    assert run("--help").returncode == 0
    assert run().returncode == 2
    assert run("-", given_input=b"garbage!").stdout == b"unknown\n"


def test_standard_input_is_bounded(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"A" * (store_file.LIMIT + 1))))
    assert certcheck.main(["-"]) is ExitCode.FINE
    printed = capsys.readouterr()
    assert printed.out == "unknown\n"
    assert "input at offset 1048576: expected at most 1,048,576 bytes" in printed.err


def test_a_broken_manifest_is_a_failure_not_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "store"
    path.write_bytes(scene("ms2011").blob)
    broken = tmp_path / "broken.toml"
    broken.write_text("format = 9", encoding="utf-8")
    monkeypatch.setattr("varstore_companion.files.SHIPPED_MANIFEST", str(broken))
    assert certcheck.main([str(path)]) is ExitCode.UNUSABLE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{broken}: format: expected 1" in printed.err


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_a_store_is_written_back_in_the_form_in_which_it_was_read(newline: bytes) -> None:
    blob = scene("custom_keys").blob
    text = base64.b64encode(blob) + newline
    assert store_file.decode(text).encode(blob) == text
    assert store_file.decode(blob).encode(blob) == blob
    assert store_file.decode(text).blob == blob


def test_what_is_neither_names_the_offset() -> None:
    with pytest.raises(MalformedError) as caught:
        store_file.decode(b"*")
    assert caught.value.offset == 0


def test_it_starts_without_what_it_does_not_need() -> None:
    """It runs for every write whose verdict nobody knows: trio alone would be five times the whole run."""
    script = (
        "import sys\nfrom varstore_companion.cli import certcheck\n"
        "code = certcheck.main(['-'])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=scene("ms2011").blob, env=python_environment(), capture_output=True, check=True
    )
    word, names = done.stdout.decode().splitlines()
    assert word == "update_required"
    unwanted = {"trio", "cryptography", "argparse", "pathlib", "json", "logging", "socket", "asyncio", "virt", "tempfile"}
    assert unwanted & set(names.split()) == set()
    assert "varstore_companion" in names.split()
