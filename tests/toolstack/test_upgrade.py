"""A file from before the digest: the field of every VM is computed, once, whoever is killed or writes meanwhile."""

import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support.old_databases import make_version_1
from support.processes import TESTS, python
from support.vms import AVAILABLE, OK, ON_BOOT, derive, new_store, old_store
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.toolstack import schema, upgrade
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.interface import Alert
from varstore_companion.toolstack.nvram import Nvram
from varstore_companion.toolstack.operations import Operations
from varstore_companion.toolstack.records import Firmware, VmKind
from varstore_companion.trust.state import CertificatesState, Update


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toolstack.db"


BEFORE_AND_AFTER = [
    (old_store(), OK, AVAILABLE),
    (old_store(), AVAILABLE, AVAILABLE),
    (old_store(), ON_BOOT, ON_BOOT),
    (new_store(), OK, OK),
    (new_store(), AVAILABLE, OK),
    (new_store(), ON_BOOT, OK),
    (None, OK, OK),
    (None, AVAILABLE, OK),
    (b"not a store at all", AVAILABLE, OK),
]


def test_every_field_is_computed_and_the_rest_is_as_it_was(path: Path) -> None:
    vms = [(uuid4(), store, state) for store, state, _ in BEFORE_AND_AFTER]
    make_version_1(path, vms)
    with Operations(path, derive) as operations:
        for (vm, store, _), (_, _, after) in zip(vms, BEFORE_AND_AFTER, strict=True):
            found = operations.record(vm)
            assert (found.nvram.store, found.state, found.stale, found.generation) == (store, after, False, 5)
            assert (found.name, found.kind, found.firmware, found.snapshot_of) == ("name", VmKind.VM, Firmware.UEFI, None)
            (message,) = operations.alerts(vm)
            assert message.alert == Alert("NAME", 5, "")
        assert operations.counters() == {"certcheck_runs": 3, "writes_yes": 1, "writes_no": 2, "writes_unspecified": 3}
        assert operations.auto_update() is False


def test_a_field_is_computed_once(path: Path) -> None:
    make_version_1(path, [(uuid4(), old_store(), OK), (uuid4(), None, OK)])
    seen: list[bytes] = []

    def counting(store: bytes) -> CertificatesState:
        seen.append(store)
        return derive(store)

    for _ in range(3):
        Operations(path, counting).close()
    assert seen == [old_store()]


def _forget(path: Path) -> None:
    """As a file that was brought to this schema and then no further."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE vm SET state_of = NULL")


def test_snapshots_and_templates_too_but_not_what_is_not_judged(path: Path) -> None:
    with Operations(path, derive) as operations:
        made = {kind: uuid4() for kind in (VmKind.TEMPLATE, VmKind.DEFAULT_TEMPLATE, VmKind.CONTROL_DOMAIN, VmKind.VM)}
        for kind, vm in made.items():
            operations.create_vm(vm, "name", Nvram(new_store()), kind=kind)
        snapshot, bios = operations.snapshot(made[VmKind.VM], "snapshot"), uuid4()
        operations.create_vm(bios, "name", Nvram(new_store()), firmware=Firmware.BIOS)
    # The rules are stricter now.
    _forget(path)
    with Operations(path, lambda _: AVAILABLE) as operations:
        states = {vm: operations.state(vm) for vm in operations.uuids()}
        assert not any(vm.stale for vm in operations.summaries())
    assert states == {
        made[VmKind.VM]: AVAILABLE,
        made[VmKind.TEMPLATE]: AVAILABLE,
        snapshot: AVAILABLE,
        made[VmKind.DEFAULT_TEMPLATE]: OK,
        made[VmKind.CONTROL_DOMAIN]: OK,
        bios: OK,
    }


def test_without_rules_the_field_is_left_and_reported(path: Path) -> None:
    vm = uuid4()
    make_version_1(path, [(vm, old_store(), OK)])
    with Database(path) as database:
        assert database.read(vm).state is OK
        database.write(vm, old_store(1), Update.NO)
    stale: list[bool] = []

    def looking(store: bytes) -> CertificatesState:
        with Database(path) as other, other._reader.reading() as connection:
            stale.append(connection.execute("SELECT state_of IS NULL FROM vm").fetchone() == (1,))
        return derive(store)

    with Operations(path, looking) as operations:
        assert operations.state(vm) is AVAILABLE
    assert stale == [True]


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_progress_is_told_batch_by_batch(path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(upgrade, "BATCH", batch)
    make_version_1(path, [(uuid4(), old_store(number), OK) for number in range(7)])
    told: list[tuple[int, int]] = []
    Operations(path, derive, progress=lambda done, total: told.append((done, total))).close()
    assert told == [(min(done, 7), 7) for done in range(batch, 7 + batch, batch)]
    told.clear()
    Operations(path, derive, progress=lambda done, total: told.append((done, total))).close()
    assert told == []


# Says each batch, and after the one of that number waits to be killed.
UPGRADER = f"""{TESTS}
from pathlib import Path
from support.vms import derive
from varstore_companion.toolstack import schema, upgrade
from varstore_companion.toolstack.operations import Operations
upgrade.BATCH = 10
last = int(sys.argv[2])
def progress(done, total):
    print(done, flush=True)
    if done // 10 == last:
        sys.stdin.readline()
with Operations(Path(sys.argv[1]), derive, busy_timeout=60, progress=progress) as operations:
    print("complete", sum(vm.stale for vm in operations.summaries()), flush=True)
"""


def _hundred(path: Path) -> dict[UUID, CertificatesState]:
    states = (OK, AVAILABLE, ON_BOOT)
    vms = [(uuid4(), old_store(number) if number % 2 else new_store(number), states[number % 3]) for number in range(100)]
    make_version_1(path, vms)
    return {vm: (ON_BOOT if state is ON_BOOT else AVAILABLE) if derive(store) is AVAILABLE else OK for vm, store, state in vms}


def _missing(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM vm WHERE state_of IS NULL").fetchone()
    return int(count)


def test_an_upgrade_killed_anywhere_is_gone_on_with(path: Path) -> None:
    expected = _hundred(path)
    left = 100
    for after in (1, 2, 3):
        with python(UPGRADER, path, after) as (process, _, said):
            for batch in range(1, after + 1):
                assert said.readline() == f"{10 * batch}\n"
            os.kill(process.pid, signal.SIGKILL)
        left -= 10 * after
        assert _missing(path) == left
    told: list[tuple[int, int]] = []
    with Operations(path, derive, progress=lambda done, total: told.append((done, total))) as operations:
        assert {vm.uuid: vm.state for vm in operations.summaries()} == expected
        assert not any(vm.stale for vm in operations.summaries())
    assert told[-1] == (left, left)


def test_an_upgrade_killed_while_it_runs_is_gone_on_with(path: Path) -> None:
    expected = _hundred(path)
    code = UPGRADER.replace("upgrade.BATCH = 10", "upgrade.BATCH = 1")
    done = 0
    while done < 60:
        with python(code, path, 99) as (process, _, said):
            for _ in range(7):
                said.readline()
            # It is somewhere in the next ones by now.
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert 100 - _missing(path) >= done + 7
        done = 100 - _missing(path)
    with Operations(path, derive) as operations:
        assert {vm.uuid: vm.state for vm in operations.summaries()} == expected


SCHEMA_KILLER = """
import os, sys
from pathlib import Path
from varstore_companion.toolstack import schema
from varstore_companion.toolstack.database import Database
def killed(*, strict):
    for number, statement in enumerate(schema.second_version(strict=strict)):
        if number == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        yield statement
schema.STEPS = (schema.first_version, killed)
Database(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("statement", range(len(schema.second_version(strict=True))))
def test_killed_between_the_statements_of_the_schema_the_file_is_as_it_was(path: Path, statement: int) -> None:
    vm = uuid4()
    make_version_1(path, [(vm, old_store(), ON_BOOT)])
    with python(SCHEMA_KILLER, path, statement) as (process, _, _):
        assert process.wait() == -signal.SIGKILL
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    with Operations(path, derive) as operations:
        assert operations.state(vm) is ON_BOOT


def test_killed_before_anything_was_computed_the_file_is_whole(path: Path) -> None:
    expected = _hundred(path)
    code = UPGRADER.replace("from support.vms import derive", "import os\ndef derive(store): os.kill(os.getpid(), 9)")
    with python(code, path, 1) as (process, _, said):
        assert said.read() == ""
        assert process.wait() == -signal.SIGKILL
    assert _missing(path) == 100
    with Operations(path, derive) as operations:
        assert {vm.uuid: vm.state for vm in operations.summaries()} == expected


def test_opened_by_several_at_once_it_is_upgraded_all_the_same(path: Path) -> None:
    expected = _hundred(path)
    with ExitStack() as stack:
        # The first one stays in the middle, the others go on without it.
        _, given, first = stack.enter_context(python(UPGRADER, path, 4))
        for batch in range(1, 5):
            assert first.readline() == f"{10 * batch}\n"
        others = [stack.enter_context(python(UPGRADER, path, 99)) for _ in range(2)]
        for _, _, said in others:
            assert said.read().endswith("complete 0\n")
        given.write("\n")
        given.flush()
        assert first.read().endswith("complete 0\n")
    with Operations(path, derive) as operations:
        assert {vm.uuid: vm.state for vm in operations.summaries()} == expected


def test_the_schema_of_one_file_is_changed_by_one_of_several(path: Path) -> None:
    _hundred(path)
    opened: list[Operations] = []
    threads = [threading.Thread(target=lambda: opened.append(Operations(path, derive, busy_timeout=60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for operations in opened:
        assert not any(vm.stale for vm in operations.summaries())
        operations.close()


Meanwhile = Callable[[Operations, UUID], object]


@pytest.mark.parametrize(
    ("meanwhile", "state"),
    [
        pytest.param(lambda o, vm: o.mark(vm), ON_BOOT, id="mark"),
        pytest.param(lambda o, vm: o.write(vm, new_store(9), Update.YES), OK, id="yes"),
        pytest.param(lambda o, vm: o.write(vm, old_store(9), Update.NO), AVAILABLE, id="no"),
        pytest.param(lambda o, vm: o.write_checked(vm, new_store(9), OK), OK, id="unspecified"),
        pytest.param(lambda o, vm: o.set_nvram(vm, Nvram(new_store(9))), OK, id="set_NVRAM"),
    ],
)
def test_what_happens_to_a_vm_while_it_is_looked_at_wins(path: Path, meanwhile: Meanwhile, state: CertificatesState) -> None:
    vm = uuid4()
    make_version_1(path, [(vm, old_store(), OK)])
    happened: list[bool] = []

    def interrupted(store: bytes) -> CertificatesState:
        if not happened:
            happened.append(True)
            # The upgrade holds no lock while it looks at a store: another process gets its turn at once.
            with Operations(path, derive, busy_timeout=0) as other:
                meanwhile(other, vm)
        return derive(store)

    with Operations(path, interrupted) as operations:
        found = operations.record(vm)
        assert (found.state, found.stale) == (state, False)


def test_a_mark_without_rules_meanwhile_is_not_lost(path: Path) -> None:
    vm = uuid4()
    make_version_1(path, [(vm, old_store(), AVAILABLE)])

    def interrupted(store: bytes) -> CertificatesState:
        with Database(path) as other:
            other.mark(vm)
        return derive(store)

    with Operations(path, interrupted) as operations:
        assert operations.state(vm) is ON_BOOT


def test_a_store_written_without_rules_meanwhile_is_looked_at_the_next_time(path: Path) -> None:
    vm = uuid4()
    make_version_1(path, [(vm, new_store(), OK)])

    def interrupted(store: bytes) -> CertificatesState:
        with Database(path) as other:
            other.write(vm, old_store(), Update.NO)
        return derive(store)

    with Operations(path, interrupted) as operations:
        assert (operations.state(vm), operations.record(vm).stale) == (OK, True)
    with Operations(path, derive) as operations:
        assert (operations.state(vm), operations.record(vm).stale) == (AVAILABLE, False)


def test_a_file_that_stays_locked_is_unavailable_and_nothing_is_lost(path: Path) -> None:
    expected = _hundred(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(ToolstackUnavailableError):
            Operations(path, derive, busy_timeout=0.05)
        holder.execute("ROLLBACK")
    with Operations(path, derive) as operations:
        assert {vm.uuid: vm.state for vm in operations.summaries()} == expected
