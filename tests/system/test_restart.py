"""`serve` as systemd runs it: told to restart, killed and upgraded, with nobody outside the wiser."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support import stock
from support.daemon import updated, written
from support.processes import python_environment
from support.serve import SECONDS, Home, Serve, varstored
from support.stock import GET_BY_UUID, LOGOUT, SET, S, V
from support.storemaker import scene
from support.supervisor import NotStartedError, Supervisor
from varstore_companion.cli.client import ConnectError, RequestFailedError
from varstore_companion.cli.client import control as control_client
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import (
    Attach,
    Detach,
    GetStore,
    GetStoreAnswer,
    List,
    ListAnswer,
    Outcome,
    Ping,
    PutStore,
    Reason,
)

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT
LOAD_SECONDS = float(os.environ.get("VARSTORE_COMPANION_RESTART_SECONDS", "5"))
"""How long the load test restarts the daemon once a second; 20 and more at night."""
LOAD_VMS = 20


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def supervisor(home: Home) -> Iterator[Supervisor]:
    made = Supervisor(home)
    yield made
    made.close()


def call(path: Path, sent: bytes) -> bytes:
    """One call as an unmodified varstored makes it: it waits to connect, sends, and reads to the end."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(SECONDS)
        connection.sendall(sent)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
    return answer


def ask(path: Path, method: str, *parameters: str) -> str | None:
    """Make a call; its value's text. Raises `stock.Failed`."""
    return stock.text_of(stock.understand(call(path, stock.request(method, *parameters))), "./member[2]/value")


def write(path: Path, vm: UUID, store: bytes) -> None:
    """The calls of one write, as an unmodified varstored makes them. Raises `stock.Failed`."""
    stock.understand(call(path, stock.login()))
    assert ask(path, GET_BY_UUID, S, str(vm)) == V
    ask(path, SET, S, V, b64encode(store).decode())
    ask(path, LOGOUT, S)


def tool_reads(path: Path, vm: UUID) -> bool:
    """A framed client's read."""
    with varstored(path, vm) as client:
        return isinstance(client.call(GetStore(Reason.TOOL)), GetStoreAnswer)


def retried(request: Callable[[], bool]) -> bool:
    """A framed client's request; False when it is told, or sees, what makes it ask again."""
    try:
        done = request()
    except RequestFailedError as error:
        if error.code != ErrorCode.SHUTTING_DOWN:
            raise
        return False
    except ConnectError as error:
        if "closed the connection" not in str(error):
            raise
        return False
    assert done
    return done


def inode(path: Path) -> int:
    return path.lstat().st_ino


def list_paths(home: Home) -> list[str]:
    with control_client(home.control) as control:
        answer = control.call(List())
    assert isinstance(answer, ListAnswer)
    return [each["path"] for each in json.loads(answer.json)["attachments"]]


def test_a_connect_while_no_daemon_runs_waits_for_the_next_one(home: Home, supervisor: Supervisor) -> None:
    first = supervisor.start()
    vm = home.create(scene("ms2011").blob, AVAILABLE)
    path = home.attach(vm)
    file = inode(path)
    for number, end in enumerate([signal.SIGTERM, signal.SIGKILL, signal.SIGABRT], 1):
        supervisor.stop(end)
        assert inode(path) == file
        assert inode(home.control)
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(write, path, vm, written("ms2011", number))
            list_waits = threads.submit(list_paths, home)
            second = supervisor.start()
            waiting.result(SECONDS)
            assert list_waits.result(SECONDS) == [str(path)]
        assert inode(path) == file
        with home.database() as database:
            assert database.read(vm) == VmRecord(written("ms2011", number), AVAILABLE, number)
    assert first.lines[-2:] == ["INFO SIGTERM: stopping\n", "INFO stopped\n"]
    assert supervisor.manager.said("STOPPING") == ["1"]
    # Two that are kept, under the names that they were given first.
    supervisor.wait_for(lambda: len(supervisor.kept()) == len(set(supervisor.kept())) == 2)
    assert not any("closed" in line for line in second.lines)


def test_no_boot_read_is_left_after_a_restart(home: Home, supervisor: Supervisor) -> None:
    """Invariant 10: whether the VM has booted meanwhile nobody knows."""
    supervisor.start()
    vm = home.create(scene("ms2011").blob, ON_BOOT)
    path = home.attach(vm)
    supervisor.stop()
    with ThreadPoolExecutor() as threads:
        waits = threads.submit(call, path, stock.request(stock.GET, S, V))
        supervisor.start()
        stock.understand(waits.result(SECONDS))
    with home.database() as database:
        assert database.read(vm) == VmRecord(scene("ms2011").blob, ON_BOOT, 0)
    # A peer that says that it boots gets its update all the same.
    with varstored(path, vm) as client:
        answer = client.call(GetStore(Reason.BOOT))
    assert isinstance(answer, GetStoreAnswer)
    assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(scene("ms2011").blob))


def test_a_framed_client_is_told_to_connect_again_and_does(home: Home, supervisor: Supervisor) -> None:
    supervisor.start()
    vm = home.create(scene("ms2011").blob, AVAILABLE)
    path = home.attach(vm)
    with varstored(path, vm) as client:
        client.call(PutStore(written("ms2011", 1)))
        supervisor.stop()
        with pytest.raises(RequestFailedError) as refused:
            client.call(PutStore(written("ms2011", 2)))
        assert refused.value.code == ErrorCode.SHUTTING_DOWN
    with ThreadPoolExecutor() as threads:

        def again() -> None:
            with varstored(path, vm) as client:
                client.call(PutStore(written("ms2011", 2)))

        waits = threads.submit(again)
        supervisor.start()
        waits.result(SECONDS)
    with home.database() as database:
        assert database.read(vm) == VmRecord(written("ms2011", 2), AVAILABLE, 2)


def test_what_is_detached_is_kept_no_longer(home: Home, supervisor: Supervisor) -> None:
    supervisor.start()
    vm = home.create(scene("ms2011").blob, AVAILABLE)
    path, other = home.attach(vm), home.attach(vm, "other.sock")
    supervisor.wait_for(lambda: len(supervisor.kept()) == 3)
    with control_client(home.control) as control:
        control.call(Detach(bytes(path)))
    supervisor.wait_for(lambda: len(supervisor.kept()) == 2)
    assert not path.exists()
    supervisor.stop()
    supervisor.start()
    assert list_paths(home) == [str(other)]
    write(home.attach(vm), vm, written("ms2011", 1))


def test_a_socket_that_was_removed_is_made_again_and_the_old_one_let_go(home: Home, supervisor: Supervisor) -> None:
    supervisor.start()
    vm = home.create(scene("ms2011").blob, AVAILABLE)
    path = home.attach(vm)
    path.unlink()
    home.attach(vm)
    supervisor.wait_for(lambda: len(supervisor.manager.said("FDSTOREREMOVE")) == 1)
    write(path, vm, written("ms2011", 1))
    supervisor.stop()
    path.unlink()
    again = supervisor.start()
    write(path, vm, written("ms2011", 2))
    assert any("nobody's any more" in line for line in again.lines)
    supervisor.wait_for(lambda: len(supervisor.kept()) == 2)
    # What somebody else has put there is neither served nor removed.
    supervisor.stop()
    path.unlink()
    path.write_text("somebody else's by now")
    again = supervisor.start()
    assert path.read_text() == "somebody else's by now"
    assert list_paths(home) == []


def test_the_socket_of_xapi_s_clients_stays_too(home: Home) -> None:
    path = home.folder / "xapi"
    supervisor = Supervisor(home, "--xapi-socket", path)
    try:
        supervisor.start()
        supervisor.wait_for(lambda: len(supervisor.kept()) == 2)
        file = inode(path)
        supervisor.stop()
        with ThreadPoolExecutor() as threads:
            waits = threads.submit(call, path, stock.login())
            supervisor.start()
            stock.understand(waits.result(SECONDS))
        assert inode(path) == file
    finally:
        supervisor.close()


def test_what_is_nobodys_is_closed(home: Home, supervisor: Supervisor) -> None:
    supervisor.start()
    paths = [home.attach(home.create(None, OK), f"{number}.sock") for number in range(3)]
    supervisor.stop()
    kept = len(supervisor.kept())
    saved = home.state / "attached.json"
    document = json.loads(saved.read_text())
    document["attachments"] = document["attachments"][:1]
    saved.write_text(json.dumps(document))
    supervisor.start()
    supervisor.wait_for(lambda: len(supervisor.kept()) == kept - 2)
    write(paths[0], UUID(document["attachments"][0]["vm"]), scene("ms2011").blob)
    for path in paths[1:]:
        with pytest.raises(ConnectionRefusedError):
            call(path, b"")
    # A list that cannot be read is put aside: nothing of it is served, and every one can be attached anew.
    supervisor.stop()
    saved.write_text("not a list")
    supervisor.start()
    supervisor.wait_for(lambda: len(supervisor.kept()) == 1)
    home.attach(home.create(None, OK), "0.sock")


def test_a_list_of_a_later_version_stays_and_so_do_the_sockets(home: Home, supervisor: Supervisor) -> None:
    supervisor.start()
    vm = home.create(scene("ms2011").blob, AVAILABLE)
    path = home.attach(vm)
    supervisor.stop()
    saved = home.state / "attached.json"
    ours = saved.read_text()
    saved.write_text(theirs := ours.replace('"format": 1', '"format": 2'))
    with pytest.raises(NotStartedError, match=r"attached.json: format 2, from a later version.*reads up to format 1") as ended:
        supervisor.start()
    assert ended.value.args[0] == 2
    assert saved.read_text() == theirs
    with ThreadPoolExecutor() as threads:
        waits = threads.submit(write, path, vm, written("ms2011", 1))
        saved.write_text(ours)  # as the later version would read its own
        supervisor.start()
        waits.result(SECONDS)


def test_a_socket_unit_s_control_socket_is_served_and_outlives_the_daemon(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.control))
        listener.listen()
        home.control.chmod(0o600)
        file = inode(home.control)
        supervisor = Supervisor(home, activated={"control": listener})
        try:
            with ThreadPoolExecutor() as threads:
                waits = threads.submit(list_paths, home)
                supervisor.start()
                assert waits.result(SECONDS) == []
                supervisor.stop()
                waits = threads.submit(list_paths, home)
                supervisor.start()
                assert waits.result(SECONDS) == []
                supervisor.stop()
            assert inode(home.control) == file
            assert supervisor.kept() == []
        finally:
            supervisor.close()


def is_listening(path: Path) -> bool:
    """Whether somebody listens at a path (proc_net(5), SO_ACCEPTCON); a connection to find out would be the first one."""
    lines = Path("/proc/net/unix").read_text(encoding="ascii", errors="replace").splitlines()
    return any(line.split()[3] == "00010000" and line.endswith(f" {path}") for line in lines)


def test_the_first_command_starts_the_daemon(home: Home) -> None:
    """With systemd's own program for the sockets of a socket unit."""
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not here")
    options = ["--listen", str(home.control), "--fdname=control", "--setenv=PYTHONPATH"]
    environment = python_environment()
    with subprocess.Popen([activate, *options, *home.command()], stderr=subprocess.PIPE, text=True, env=environment) as process:
        serve = Serve(process)
        try:
            while not is_listening(home.control):
                assert process.poll() is None
                os.sched_yield()
            file = inode(home.control)
            path = home.folder / "vm.sock"
            with control_client(home.control) as control:
                control.call(Attach(uuid4(), bytes(path)))
            assert (inode(home.control), list_paths(home)) == (file, [str(path)])
            process.send_signal(signal.SIGTERM)
            assert serve.wait() == 0
            # Its file is the socket unit's, which is there still.
            assert inode(home.control) == file
        finally:
            process.kill()
            serve.wait()


def test_the_watchdog_is_fed_and_a_daemon_that_stands_still_is_not(home: Home) -> None:
    supervisor = Supervisor(home)
    supervisor.watchdog_usec = 300_000
    try:
        serve = supervisor.start()
        fed = supervisor.manager.said("WATCHDOG")
        supervisor.wait_for(lambda: len(supervisor.manager.said("WATCHDOG")) >= len(fed) + 5)
        serve.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor() as threads:
            stands = threads.submit(list_paths, home)
            before = len(supervisor.manager.said("WATCHDOG"))
            with pytest.raises(TimeoutError):
                stands.result(1)
            assert len(supervisor.manager.said("WATCHDOG")) <= before + 1
            serve.process.send_signal(signal.SIGCONT)
            stands.result(SECONDS)
        # What systemd ends it with leaves in the log where it stood.
        supervisor.stop(signal.SIGABRT)
        assert any("Current thread" in line for line in serve.lines)
    finally:
        supervisor.close()


def test_a_request_that_is_carried_out_is_finished_before_the_end(home: Home, supervisor: Supervisor) -> None:
    supervisor.start()
    vm = home.create(scene("ms2011").blob, AVAILABLE)
    path = home.attach(vm)
    sent = stock.request(SET, S, V, b64encode(written("ms2011", 1)).decode())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(SECONDS)
        connection.sendall(sent[:-10])
        with control_client(home.control) as control:
            control.call(Ping())  # so that the connection before it has been accepted
        with ThreadPoolExecutor() as threads:
            ended = threads.submit(supervisor.stop)
            supervisor.wait_for(lambda: bool(supervisor.manager.said("STOPPING")))
            connection.sendall(sent[-10:])
            answer = b""
            while data := connection.recv(65_536):
                answer += data
            ended.result(SECONDS)
    stock.understand(answer)
    with home.database() as database:
        assert database.read(vm) == VmRecord(written("ms2011", 1), AVAILABLE, 1)


def test_under_load_no_request_fails_and_no_write_is_lost(home: Home, supervisor: Supervisor) -> None:
    """Invariants 6 and 9: every write of every VM is answered once and is there, whenever the daemon is restarted."""
    supervisor.start()
    vms = [home.create(scene("ms2011").blob, AVAILABLE) for _ in range(LOAD_VMS)]
    paths = [home.attach(vm, f"{number}.sock") for number, vm in enumerate(vms)]
    enough = threading.Event()

    def load(vm: UUID, path: Path) -> int:
        number = 0
        while not enough.is_set():
            write(path, vm, written("ms2011", number + 1))
            number += 1
        return number

    def tools() -> int:
        """A framed client that connects anew for each request, and an operator."""
        done = 0
        while not enough.is_set():
            done += retried(lambda: tool_reads(paths[0], vms[0])) + retried(lambda: len(list_paths(home)) == LOAD_VMS)
        return done

    restarts = 0
    with ThreadPoolExecutor(LOAD_VMS + 1) as threads:
        writers = [threads.submit(load, vm, path) for vm, path in zip(vms, paths, strict=True)]
        asking = threads.submit(tools)
        try:
            end = time.monotonic() + LOAD_SECONDS
            while time.monotonic() < end:
                begun = time.monotonic()
                supervisor.stop()
                supervisor.start()
                restarts += 1
                enough.wait(max(0.0, begun + 1 - time.monotonic()))
        finally:
            enough.set()
        counts = [each.result(SECONDS) for each in writers]
        assert asking.result(SECONDS) > 0
    assert restarts >= 2
    assert min(counts) > 0
    with home.database() as database:
        for vm, count in zip(vms, counts, strict=True):
            assert database.read(vm) == VmRecord(written("ms2011", count), AVAILABLE, count)
    supervisor.wait_for(lambda: len(supervisor.kept()) == LOAD_VMS + 1)


def test_a_reload_is_told_from_its_begin_to_its_end(home: Home, supervisor: Supervisor) -> None:
    serve = supervisor.start()
    serve.process.send_signal(signal.SIGHUP)
    supervisor.wait_for(lambda: len(supervisor.manager.said("READY")) == 2)
    told = [next(iter(news.fields)) for news in supervisor.manager.news]
    assert told.index("RELOADING") == len(told) - 1 - told[::-1].index("READY") - 1
    supervisor.stop()
    assert any("reloaded:" in line for line in serve.lines)


def test_a_guard_s_socket_that_is_taken_over_stays_ours_over_a_restart(home: Home) -> None:
    path, vm = home.folder / "vm.sock", uuid4()
    supervisor = Supervisor(home, "--toolstack", "guard")
    try:
        with socket.socket(socket.AF_UNIX) as guard:
            guard.bind(str(path))
            guard.listen()
            path.chmod(0o622)
            supervisor.start()
            with control_client(home.control) as control:
                control.call(Attach(vm, bytes(path), interpose=True))
            file = inode(path)
            supervisor.wait_for(lambda: len(supervisor.kept()) == 2)
            supervisor.stop()
            with ThreadPoolExecutor() as threads:
                waits = threads.submit(call, path, stock.login())
                again = supervisor.start()
                stock.understand(waits.result(SECONDS))
            assert (inode(path), path.lstat().st_mode & 0o777) == (file, 0o622)
            assert not any("closed" in line for line in again.lines)
            # A guard that has made its socket anew meanwhile is taken over anew.
            supervisor.stop()
            path.unlink()
            with socket.socket(socket.AF_UNIX) as another:
                another.bind(str(path))
                another.listen()
                supervisor.start()
                supervisor.wait_for(lambda: len(supervisor.manager.said("FDSTOREREMOVE")) == 1)
                stock.understand(call(path, stock.login()))
                with control_client(home.control) as control:
                    control.call(Detach(bytes(path)))
                supervisor.wait_for(lambda: len(supervisor.kept()) == 1)
                another.settimeout(SECONDS)
                with socket.socket(socket.AF_UNIX) as varstored:
                    varstored.connect(str(path))
                    another.accept()[0].close()
    finally:
        supervisor.close()
