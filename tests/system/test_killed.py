"""The daemon killed anywhere: what it acknowledged is there, and nothing older (invariants 6 and 9)."""

from pathlib import Path

import pytest

from support.daemon import updated, written
from support.serve import Home, varstored
from support.storemaker import scene
from varstore_companion.cli.client import ConnectError, RequestFailedError
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import GetStore, GetStoreAnswer, Outcome, PutStore, PutStoreAnswer, Reason, Verdict

OK, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_ON_BOOT


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_killed_in_the_middle_of_writes(home: Home) -> None:
    rounds, number = 14, 0
    vm = None
    path = home.folder / "vm.sock"
    for each in range(rounds):
        with home.serve() as serve:
            if vm is None:
                vm = home.create(scene("ms2011").blob, ON_BOOT)
                home.attach(vm)
            # After the first round the socket has come back by itself.
            with varstored(path, vm) as client:
                for _ in range(1 + each * each % 11):
                    answer = client.call(PutStore(written("ms2011", number + 1, 8 + number % 7 * 4000)))
                    assert isinstance(answer, PutStoreAnswer)
                    number += 1
                    assert (answer.verdict, answer.generation) == (Verdict.NO, number)
                # One more is on its way.
                _, frame = client._connection.request(PutStore(written("ms2011", number + 1, 8 + number % 7 * 4000)))
                client._socket.sendall(frame)
                if each % 2:
                    client._socket.recv(1)
                serve.process.kill()
                serve.wait()
        with home.database() as database:
            record = database.read(vm)
        if each % 2:
            # Its answer had begun, so it was acknowledged.
            assert record.generation == number + 1
        assert record.generation in {number, number + 1}
        number = record.generation
        assert record == VmRecord(written("ms2011", number, 8 + (number - 1) % 7 * 4000), ON_BOOT, number)


def test_killed_in_the_middle_of_an_update(home: Home) -> None:
    old, new = scene("ms2011").blob, updated(scene("ms2011").blob)
    outcomes = set()
    for each in range(6):
        name = f"{each}.sock"
        with home.serve() as serve:
            vm = home.create(old, ON_BOOT)
            path = home.attach(vm, name)
            with varstored(path, vm) as client:
                _, frame = client._connection.request(GetStore(Reason.BOOT))
                client._socket.sendall(frame)
                if each % 3 == 1:
                    # The backup has come to be, the rest may have.
                    backups = home.state / "backups" / str(vm)
                    while not (backups.exists() and any(backups.iterdir())):
                        assert serve.process.poll() is None
                if each % 3 == 2:
                    client._socket.recv(1)
                serve.process.kill()
                serve.wait()
        with home.database() as database:
            record = database.read(vm)
        assert record in (VmRecord(old, ON_BOOT, 0), VmRecord(new, OK, 1))
        outcomes.add(record.state)
        if record.state is OK:
            # No update without the exact old store beside it.
            (backup,) = (home.state / "backups" / str(vm)).glob("*.vars")
            assert backup.read_bytes() == old
            assert backup.with_suffix(".json").exists()
    assert OK in outcomes
    # The next boot of each goes through; what was updated is not updated twice (invariant 3).
    with home.serve(), varstored(path, vm) as client:
        answer = client.call(GetStore(Reason.BOOT))
    assert isinstance(answer, GetStoreAnswer)
    assert (answer.store, answer.outcome) == (new, Outcome.NOT_ASKED if record.state is OK else Outcome.UPDATED)


def test_a_varstored_whose_daemon_is_killed_sees_the_end_and_no_answer(home: Home) -> None:
    with home.serve() as serve:
        vm = home.create(scene("ms2011").blob, ON_BOOT)
        with varstored(home.attach(vm), vm) as client:
            serve.process.kill()
            serve.wait()
            with pytest.raises((ConnectError, RequestFailedError)):
                client.call(PutStore(written("ms2011", 1)))
    with home.database() as database:
        assert database.read(vm) == VmRecord(scene("ms2011").blob, ON_BOOT, 0)
