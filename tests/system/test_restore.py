"""An update taken back and made again, with the daemon as a process; and killed in the middle (invariants 2, 6 and 9)."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from support.commands import Done, process
from support.daemon import updated
from support.serve import Home, varstored
from support.storemaker import scene
from varstore_companion.cli.client import control as control_client
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Detach, GetStore, GetStoreAnswer, Mark, Outcome, Reason, Restore

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT
OLD = scene("ms2011").blob


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def command(home: Home, *arguments: object) -> Done:
    return process(*arguments, "--json", "--control", home.control)


def backups(home: Home, vm: UUID) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = command(home, "backups", "--vm", vm).json["backups"]
    return found


def boot(home: Home, vm: UUID, name: str) -> GetStoreAnswer:
    """Attach, boot, shut down and detach."""
    path = home.attach(vm, name)
    with varstored(path, vm) as client:
        answer = client.call(GetStore(Reason.BOOT))
    with control_client(home.control) as control:
        control.call(Detach(bytes(path)))
    assert isinstance(answer, GetStoreAnswer)
    return answer


def record(home: Home, vm: UUID) -> VmRecord:
    with home.database() as database:
        return database.read(vm)


def test_an_update_is_taken_back_and_made_again(home: Home) -> None:
    new = updated(OLD)
    with home.serve():
        vm = home.create(OLD, ON_BOOT)
        path = home.attach(vm)
        with varstored(path, vm) as client:
            answer = client.call(GetStore(Reason.BOOT))
            assert isinstance(answer, GetStoreAnswer)
            assert (answer.outcome, answer.store) == (Outcome.UPDATED, new)
            done = command(home, "restore", "--vm", vm)
            assert (done.code, "may be running" in done.json["refused"]) == (1, True)
        # Its varstored has gone, and yet it may start again at any time.
        assert command(home, "restore", "--vm", vm).code == 1
        assert record(home, vm) == VmRecord(new, OK, 1)
        assert command(home, "detach", "--socket", path).code == 0
        (backup,) = backups(home, vm)
    # All of it outlives the daemon.
    with home.serve() as serve:
        assert backups(home, vm) == [backup]
        done = command(home, "restore", "--vm", vm, "--backup", backup["id"])
        assert (done.code, done.json["field"], done.json["report"]) == (0, "update_available", "update_available")
        assert record(home, vm) == VmRecord(OLD, AVAILABLE, 2)
        with control_client(home.control) as control:
            control.call(Mark(vm, mark=True))
        again = boot(home, vm, "again.sock")
        assert (again.outcome, again.store) == (Outcome.UPDATED, new)
        assert record(home, vm) == VmRecord(new, OK, 3)
        told = command(home, "history", "--vm", vm).json
        assert [each["what"] for each in told["events"]] == ["updated", "restored", "updated"]
        # The store before the update is the newest but one: what the restore replaced lies between.
        assert [each["why"] for each in backups(home, vm)] == ["update", "restore", "update"]

        newest = home.state / "backups" / str(vm) / f"{backups(home, vm)[-1]['id']}.vars"
        newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")
        process("restore", "--vm", vm, "--control", home.control).fails("is damaged")
        assert record(home, vm) == VmRecord(new, OK, 3)
        serve.process.terminate()
        assert serve.wait() == 0
    for line in serve.lines:
        assert OLD[:16].hex() not in line
        assert not line.startswith("ERROR")


def test_killed_in_the_middle_it_leaves_the_old_or_the_new(home: Home) -> None:
    new = updated(OLD)
    seen = set()
    vm = None
    for each in range(8):
        with home.serve() as serve:
            if vm is None:
                vm = home.create(OLD, ON_BOOT)
                assert boot(home, vm, "vm.sock").outcome is Outcome.UPDATED
                first = backups(home, vm)[0]["id"]
            before = record(home, vm)
            folder = home.state / "backups" / str(vm)
            there = len(list(folder.glob("*.vars")))
            with control_client(home.control) as control:
                # From the old to the new and back, so that each round has something to change.
                held = sha256(before.store or b"").hexdigest()
                wanted = [entry["id"] for entry in backups(home, vm) if entry["sha256"] != held][-1]
                _, frame = control._connection.request(Restore(vm, wanted))
                control._socket.sendall(frame)
                if each % 4 == 1:
                    # One that an earlier round left is not made again.
                    while len(list(folder.glob("*.vars"))) == there and record(home, vm) == before:
                        assert serve.process.poll() is None
                if each % 4 == 2:
                    while record(home, vm) == before:
                        assert serve.process.poll() is None
                if each % 4 == 3:
                    control._socket.recv(1)
                serve.process.kill()
                serve.wait()
        after = record(home, vm)
        other = OLD if before.store == new else new
        assert after.store in (before.store, other)
        if each % 4 >= 2:
            # It was carried out, and with the answer begun it was acknowledged.
            assert after.store == other
        if after.store == other:
            # Nothing is replaced without being kept.
            kept = [path for path in sorted(folder.glob("*.vars")) if path.read_bytes() == before.store]
            assert kept
            assert all(json.loads(path.with_suffix(".json").read_text())["bytes"] == len(before.store or b"") for path in kept)
        seen.add(after.store)
    assert seen == {OLD, new}
    assert vm is not None
    # The next daemon has every backup and every history.
    with home.serve():
        assert all(each["problem"] is None for each in backups(home, vm))
        assert command(home, "restore", "--vm", vm, "--backup", first).code == 0
        assert command(home, "history", "--vm", vm).json["events"][-1]["what"] == "restored"
    assert record(home, vm).store == OLD
