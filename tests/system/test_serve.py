"""`serve` as a process: stopped, asked by strangers, short of descriptors, and what it leaves behind."""

import fcntl
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import termios
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from support.daemon import updated, written
from support.processes import python_command, python_environment
from support.serve import SECONDS, Home, varstored
from support.storemaker import scene
from varstore_companion.cli.client import Client, ConnectError, RequestFailedError
from varstore_companion.cli.client import control as control_client
from varstore_companion.toolstack.database import FILE_NAME
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.connection import Answer, Connection
from varstore_companion.wire.messages import (
    Durable,
    GetStore,
    GetStoreAnswer,
    Mark,
    MarkAnswer,
    Outcome,
    Ping,
    PutStore,
    PutStoreAnswer,
    Reason,
    SbFailure,
    Status,
    StatusAnswer,
    Verdict,
)

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def taken(connection: socket.socket) -> bool:
    """Whether the peer has read all that was sent to it (SIOCOUTQ, unix(7))."""
    (left,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return not left


def pings(client: Client) -> bool:
    """Whether the daemon still answers this connection."""
    try:
        client.call(Ping())
    except (RequestFailedError, ConnectError):
        return False
    return True


def alive_in_session(session: int) -> list[str]:
    """The processes of a session that run still."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            fields = text.rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(text)
    return found


def test_the_whole_life_of_a_vm(home: Home) -> None:
    with home.serve() as serve:
        vm = home.create(scene("ms2011").blob, AVAILABLE)
        path = home.attach(vm)
        with control_client(home.control) as control:
            assert control.call(Mark(vm, mark=True)) == MarkAnswer("update_on_boot")
        with varstored(path, vm) as client:
            answer = client.call(GetStore(Reason.BOOT))
            assert isinstance(answer, GetStoreAnswer)
            assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(scene("ms2011").blob))
            put = client.call(PutStore(written("all2023", 1)))
            assert isinstance(put, PutStoreAnswer)
            assert put.verdict in {Verdict.YES, Verdict.NO}
            client.call(SbFailure("a\nERROR vm=0 forged\r\x1b[31mred\u2028line"))
            with pytest.raises(RequestFailedError, match="NOT_A_STORE"):
                client.call(PutStore(b"\nERROR forged\n" * 20))
        with home.database() as database:
            assert database.read(vm).store == written("all2023", 1)
            assert database.read(vm).state is OK
            assert database.counters()["certcheck_runs"] == 0
            alerts = [message.alert.name for message in database.alerts(vm)]
        assert alerts == ["VM_SECURE_BOOT_CERTIFICATES_UPDATED", "VM_SECURE_BOOT_FAILED"]
        (backup,) = (home.state / "backups" / str(vm)).glob("*.vars")
        assert backup.read_bytes() == scene("ms2011").blob
        serve.process.send_signal(signal.SIGTERM)
        assert serve.wait() == 0
    # The log: a line each, none forged, each about a VM names it, none has a store.
    assert serve.lines[-1] == "INFO stopped\n"
    for line in serve.lines:
        assert re.fullmatch(r"(DEBUG|INFO|WARNING|ERROR) [^\x00-\x1f\x7f\u2028]{1,900}\n", line), line
        assert not line.startswith("ERROR")
        assert "forged" not in line
        assert scene("ms2011").blob[:16].hex() not in line
    about = [line for line in serve.lines if not re.match(r"\w+ (ready|stopped|SIGTERM|certificate file|no source)", line)]
    assert len(about) >= 4
    assert all(f"vm={vm}" in line for line in about)
    # What is left: what is kept, and the VM's socket, which comes back.
    assert names(home.folder) == ["state", "vm.sock"]
    kept = ["attached.json", "backups", "history", "journal", "lock", FILE_NAME, f"{FILE_NAME}-reserve"]
    assert names(home.state) == kept
    assert alive_in_session(serve.process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_before_it_stops(home: Home, number: signal.Signals) -> None:
    with home.serve() as serve:
        vm = home.create(scene("ms2011").blob, ON_BOOT)
        path = home.attach(vm)
        with varstored(path, vm) as idle, varstored(path, vm) as client:
            with closing(sqlite3.connect(home.state / FILE_NAME, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                connection: Connection = client._connection
                request, frame = connection.request(PutStore(written("ms2011", 1)))
                client._socket.sendall(frame)
                while not taken(client._socket):
                    os.sched_yield()
                serve.process.send_signal(number)
                # The idle one is let go, so the signal has come.
                while pings(idle):
                    pass
                other.execute("ROLLBACK")
            answers: list[Answer] = []
            while not answers:
                data = client._socket.recv(65_536)
                assert data
                connection.receive_data(data)
                answers = [event for event in connection.events() if isinstance(event, Answer)]
            assert answers == [Answer(request, PutStoreAnswer(Verdict.NO, Durable.TOOLSTACK, 1))]
        assert serve.wait() == 0
    with home.database() as database:
        assert database.read(vm).store == written("ms2011", 1)
        assert database.read(vm).state is ON_BOOT


def test_what_was_attached_comes_back_after_a_restart_and_after_a_kill(home: Home) -> None:
    with home.serve() as first:
        vm = home.create(scene("all2023").blob, OK)
        path = home.attach(vm)
        first.process.send_signal(signal.SIGTERM)
        assert first.wait() == 0
    assert path.is_socket()
    for number in (signal.SIGKILL, signal.SIGTERM):
        with home.serve() as serve:
            with varstored(path, vm) as client:
                answer = client.call(GetStore(Reason.BOOT))
                assert isinstance(answer, GetStoreAnswer)
                assert answer.store == scene("all2023").blob
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
            serve.process.send_signal(number)
            serve.wait()
    assert names(home.folder) == ["state", "vm.sock"]


def unusable(home: Home, *more: object) -> str:
    """What a daemon that does not start says: one line, and exit code 2."""
    done = subprocess.run(
        home.command(*more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=python_environment(),
        timeout=SECONDS,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("INFO ", "WARNING "))]
    assert (done.returncode, done.stdout, len(errors)) == (2, "", 1), done.stderr
    return errors[0]


def test_a_second_daemon_is_refused_and_the_first_one_goes_on(home: Home) -> None:
    with home.serve():
        line = unusable(home, "--control", home.folder / "other.sock")
        assert "another daemon runs on this state folder" in line
        assert str(home.state) in line
        line = unusable(home, "--state-dir", home.folder / "other")
        assert "another process listens there" in line
        with control_client(home.control) as control:
            control.call(Ping())


def test_what_it_cannot_work_with_is_one_line(home: Home) -> None:
    assert "absolute" in unusable(home, "--control", "relative.sock")
    assert "at most 107 bytes" in unusable(home, "--control", home.folder / ("x" * 120))
    (home.folder / "a file").write_text("not TOML")
    assert "not a socket" in unusable(home, "--control", home.folder / "a file")
    assert "not TOML" in unusable(home, "--config", home.folder / "a file")
    assert "a file" in unusable(home, "--state-dir", home.folder / "a file")
    assert "a file" in unusable(home, "--certificates", home.folder / "a file")
    assert "a file" in unusable(home, "--manifest", home.folder / "a file")
    (home.state / FILE_NAME).unlink(missing_ok=True)
    (home.state / FILE_NAME).write_bytes(b"something else" * 100)
    assert FILE_NAME in unusable(home)


STRANGER = """
import os, socket, sys
from pathlib import Path
from varstore_companion.cli.client import RequestFailedError, control
os.chdir(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    control(Path("control.sock"))
except RequestFailedError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_stranger_may_not_use_the_control_socket_whatever_its_mode(home: Home) -> None:
    with home.serve() as serve:
        home.folder.chmod(0o755)
        home.control.chmod(0o666)
        done = subprocess.run(
            python_command(STRANGER, home.folder),
            capture_output=True,
            text=True,
            env=python_environment(),
            timeout=SECONDS,
            check=False,
        )
        assert done.stdout.startswith("NOT_ALLOWED"), done.stderr
        assert "65534" in done.stdout
        with control_client(home.control) as control:
            answer = control.call(Status())
        assert isinstance(answer, StatusAnswer)
        assert json.loads(answer.json)["attached"] == 0
        assert serve.process.poll() is None


def test_without_descriptors_it_waits_and_goes_on(home: Home) -> None:
    with home.serve(descriptors=40) as serve:
        vms = [home.create(scene("ms2011").blob, ON_BOOT) for _ in range(3)]
        paths = [home.attach(vm, f"{number}.sock") for number, vm in enumerate(vms)]
        with ExitStack() as stack:
            for path in [*paths * 8, *[home.control] * 15]:
                each = stack.enter_context(socket.socket(socket.AF_UNIX))
                each.settimeout(SECONDS)
                each.connect(str(path))
            # The log says when the system has no more.
            while not any("cannot accept" in line for line in serve.lines):
                assert serve.process.poll() is None
                os.sched_yield()
        for vm, path in zip(vms, paths, strict=True):
            with varstored(path, vm) as client:
                answer = client.call(PutStore(written("ms2011", 7)))
                assert isinstance(answer, PutStoreAnswer)
        serve.process.send_signal(signal.SIGTERM)
        assert serve.wait() == 0
    with home.database() as database:
        assert [database.read(vm).store for vm in vms] == [written("ms2011", 7)] * 3
