"""The stand-in for varstored's backend beside real daemons: boots, writes, failures, and the daemon killed anywhere."""

import random
import re
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

import pytest

from conformance.client import Client
from conformance.frames import Frame, vector, with_id
from support import c_code
from support.daemon import updated
from support.serve import Home, varstored
from support.storemaker import Variable, make_store, scene
from support.varstored_model import VarstoredModel
from varstore_companion.cli.client import Client as PythonClient
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import GetStore, GetStoreAnswer, Reason

OK, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_ON_BOOT
VENDOR = UUID("9d0da369-540b-46f8-85a0-2b5f2c301e15")
NV, VOLATILE = 7, 6
SECONDS = 60


class Backend:
    """A running stand-in."""

    def __init__(self, path: Path, vm: UUID, milliseconds: int = 30_000) -> None:
        command = [c_code.example("backend"), str(path), str(vm), str(milliseconds)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def does(self, line: str) -> str:
        """Its answer to a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def sets(self, name: str, data: bytes, attributes: int = NV) -> str:
        return self.does(f"set {name} {VENDOR} {attributes} {data.hex() or '-'}")

    def gets(self, name: str) -> bytes | None:
        word, _, digits = self.does(f"get {name} {VENDOR}").partition(" ")
        return bytes.fromhex(digits) if word == "ok" else None

    def store(self) -> bytes:
        return bytes.fromhex(self.does("dump").removeprefix("ok "))

    def ends(self) -> tuple[int, str]:
        """Its exit code once it has nothing more to read, and its log."""
        _, log = self._process.communicate(timeout=SECONDS)
        return self._process.returncode, log


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def is_durable(said: str) -> bool:
    """Acknowledged, with the verdict `no`, wherever it is kept."""
    return re.fullmatch(r"ok 2 [12] [0-9]+", said) is not None


def held(home: Home, vm: UUID) -> bytes | None:
    with home.database() as database:
        return database.read(vm).store


def test_first_boot_and_writes(home: Home) -> None:
    with home.serve():
        vm = home.create(None, OK)
        with Backend(home.attach(vm), vm) as backend:
            assert backend.does("init boot") == "ok first-boot 0 0"
            assert is_durable(backend.sets("A", b"\x01\x02"))
            assert is_durable(backend.sets("B", b"\x03"))
            assert is_durable(backend.sets("A", b"\x04"))
            assert is_durable(backend.sets("B", b""))
            assert backend.sets("B", b"") == "error EFI_NOT_FOUND"
            assert backend.sets("V", b"\x05", VOLATILE) == "ok volatile"
            assert backend.sets("A", b"\x05", VOLATILE) == "error EFI_INVALID_PARAMETER"
            assert (backend.gets("A"), backend.gets("B"), backend.gets("V")) == (b"\x04", None, b"\x05")
            assert held(home, vm) == backend.store()
            assert backend.does("sb-failure it did not start") == "ok"
            assert backend.ends() == (0, "")
    # What varstored makes of it.
    store = held(home, vm)
    assert store is not None
    assert VarstoredModel.load(store).get("A", VENDOR).data == b"\x04"


def test_a_boot_with_an_update_and_a_resume(home: Home) -> None:
    old = scene("ms2011").blob
    with home.serve():
        vm = home.create(old, ON_BOOT)
        path = home.attach(vm)
        with Backend(path, vm) as backend:
            assert backend.does("init resume") == "ok present 0 0"
            assert backend.store() == old
        with Backend(path, vm) as backend:
            assert backend.does("init boot") == "ok present 1 1"
            assert backend.store() == updated(old)
            assert is_durable(backend.sets("A", b"\x01"))


def test_a_vm_whose_store_cannot_be_read_does_not_start(home: Home) -> None:
    with Backend(home.folder / "none.sock", UUID(int=1), 200) as backend:
        assert backend.does("init boot") == "error unavailable none"
        code, log = backend.ends()
    assert code == 1
    assert log == "the store was not read: unavailable, none: no server answers at the socket (No such file or directory)\n"
    with home.serve():
        vm = home.create(b"VARS", OK)
        with Backend(home.attach(vm), vm) as backend:
            assert backend.does("init boot") == "error unreadable"
            assert backend.ends()[0] == 1
        with Backend(home.folder / "vm.sock", UUID(int=1)) as backend:
            assert backend.does("init boot") == "error refused WRONG_VM"
            assert backend.ends()[0] == 1


def test_a_write_that_fails_is_taken_back(home: Home) -> None:
    with home.serve() as serve:
        vm = home.create(None, OK)
        with Backend(home.attach(vm), vm, 1000) as backend:
            backend.does("init boot")
            assert backend.sets("A", b"\x01").startswith("ok")
            before = backend.store()
            serve.process.kill()
            serve.wait()
            assert backend.sets("A", b"\x02") == "error EFI_DEVICE_ERROR"
            assert backend.sets("B", b"\x02") == "error EFI_DEVICE_ERROR"
            assert (backend.gets("A"), backend.gets("B"), backend.store()) == (b"\x01", None, before)
            with home.serve():
                assert backend.sets("C", b"\x03").startswith("ok")
                assert held(home, vm) == backend.store()


def test_limits_are_kept_before_anything_is_sent(home: Home) -> None:
    with home.serve():
        vm = home.create(None, OK)
        with Backend(home.attach(vm), vm) as backend:
            backend.does("init boot")
            assert backend.sets("A", bytes(57_345)) == "error EFI_OUT_OF_RESOURCES"
            assert backend.sets("A", b"\x01" * 57_344).startswith("ok")
            assert backend.sets("B", b"\x01" * 57_344).startswith("ok")
            assert backend.sets("C", b"\x01" * 57_344) == "error EFI_OUT_OF_RESOURCES"
            # It may be counted, and not saved: a store has a header.
            assert backend.sets("C", b"\x01" * 15_835) == "error EFI_OUT_OF_RESOURCES"
            assert backend.sets("C", b"\x01" * 15_834).startswith("ok")
            assert len(backend.store()) == 131_072
            assert backend.sets("N" * 2049, b"\x01") == "error EFI_INVALID_PARAMETER"
            assert held(home, vm) == backend.store()


def test_save_and_load_carry_everything(home: Home) -> None:
    with home.serve():
        vm = home.create(scene("ms2011").blob, ON_BOOT)
        path = home.attach(vm)
        with Backend(path, vm) as backend:
            backend.does("init resume")
            backend.sets("A", b"\x01")
            backend.sets("V", b"\x02", VOLATILE)
            store = backend.store()
            assert backend.does(f"save {home.folder / 'saved'}") == "ok"
        with Backend(path, vm) as backend:
            assert backend.does(f"load {home.folder / 'saved'}") == "ok"
            assert (backend.store(), backend.gets("A"), backend.gets("V")) == (store, b"\x01", b"\x02")
            assert is_durable(backend.sets("A", b"\x03"))
        with Backend(path, vm) as backend:
            (home.folder / "saved").write_bytes((home.folder / "saved").read_bytes()[:-1])
            assert backend.does(f"load {home.folder / 'saved'}") == "error"
            assert backend.ends()[0] == 1


@pytest.mark.parametrize("ends", [True, False])
def test_what_may_be_held_is_put_right_before_the_vm_leaves(tmp_path: Path, *, ends: bool) -> None:
    """The guest was told of an error, and the toolstack may hold the change all the same."""
    changed, told = make_store([Variable("A", VENDOR, b"\x01", NV)]), make_store([])
    command = ["sh", "-c", 'exec "$0" "$@" 400', c_code.example("backend")]
    stored = bytes.fromhex(vector("put-store-answer-no")["hex"])
    with Client(command, tmp_path) as server:
        server.say(f"set A {VENDOR} {NV} 01")
        stream, request_id = server.request(Frame("PUT_STORE", "request", 0, {"store": changed.hex()}))
        assert server.line() == "error EFI_DEVICE_ERROR"
        if ends:
            server.end_of_input()
        else:
            server.say(f"save {tmp_path / 'saved'}")
        stream.send(with_id(stored, request_id))
        stream, request_id = server.request(Frame("PUT_STORE", "request", 0, {"store": told.hex()}))
        stream.send(with_id(stored, request_id))
        if not ends:
            assert server.line() == "ok"
        server.finish()


def test_no_acknowledged_write_is_lost_when_the_daemon_is_killed(home: Home) -> None:
    """It writes on and on while the daemon is killed, or stopped, and started again; every write is acknowledged in the end."""
    dice = random.Random(20_230)
    rounds = 12
    with home.serve():
        vm = home.create(scene("ms2011").blob, ON_BOOT)
        path = home.attach(vm)
    writes = Writes()
    with Backend(path, vm) as backend, ThreadPoolExecutor(1) as pool:
        for number in range(rounds):
            with home.serve() as serve:
                if number == 0:
                    assert backend.does("init resume").startswith("ok present")
                    writing = pool.submit(writes.run, backend)
                with varstored(path, vm) as client:
                    acknowledged = writes.acknowledged
                    assert counter(client) >= acknowledged
                writes.wait_for(dice.randrange(1, 6))
                for _ in range(dice.randrange(20_000)):
                    pass
                serve.process.send_signal(signal.SIGTERM if number % 4 == 3 else signal.SIGKILL)
                serve.wait()
        with home.serve(), varstored(path, vm) as client:
            writes.over.set()
            assert writing.result(SECONDS) == []
            assert counter(client) == writes.acknowledged > rounds
            answer = client.call(GetStore(Reason.TOOL))
            assert isinstance(answer, GetStoreAnswer)
            assert answer.store == backend.store()


class Writes:
    """One write after the other; `acknowledged` is the number in the last that was."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.over = threading.Event()
        self._written = threading.Semaphore(0)

    def run(self, backend: Backend) -> list[str]:
        """Write until it is over; returns the answers that were not as they should be."""
        wrong = []
        while not self.over.is_set():
            number = self.acknowledged + 1
            answer = backend.sets("Counter", number.to_bytes(8, "little") * (1 + number % 7 * 500))
            if not answer.startswith("ok "):
                wrong.append(answer)
            self.acknowledged = number
            self._written.release()
        return wrong

    def wait_for(self, count: int) -> None:
        """Wait until so many more were acknowledged than were waited for."""
        while self._written.acquire(blocking=False):
            pass
        for _ in range(count):
            assert self._written.acquire(timeout=SECONDS)


def counter(client: PythonClient) -> int:
    """The number in the store that a read gets now."""
    answer = client.call(GetStore(Reason.TOOL))
    assert isinstance(answer, GetStoreAnswer)
    assert answer.store is not None
    model = VarstoredModel.load(answer.store)
    return int.from_bytes(model.get("Counter", VENDOR).data[:8], "little") if ("Counter", VENDOR) in model else 0
