"""What the database keeps: VMs, messages, counters. The contract suite has what every toolstack does."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from varstore_companion.errors import ToolstackConflictError, ToolstackRefusedError
from varstore_companion.toolstack import database as module
from varstore_companion.toolstack import rows
from varstore_companion.toolstack.database import Database, VmDetails
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toolstack.db"


def test_show_gives_what_create_was_given(path: Path) -> None:
    vm = uuid4()
    with Database(path) as database:
        database.create(vm, "söme name", b"store", ON_BOOT)
        assert database.show(vm) == VmDetails(vm, "söme name", VmRecord(b"store", ON_BOOT, 0))


def test_it_is_all_there_after_reopening(path: Path) -> None:
    vm = uuid4()
    with Database(path) as database:
        database.create(vm, "name", None, AVAILABLE)
        database.write(vm, b"store", Update.NO)
        database.alert(vm, Alert("NAME", 5, "body"))
        before = (database.show(vm), database.alerts(), database.counters())
    with Database(path) as database:
        assert (database.show(vm), database.alerts(), database.counters()) == before


def test_a_second_vm_of_the_same_uuid_is_refused_and_the_first_stays(path: Path) -> None:
    vm = uuid4()
    with Database(path) as database:
        database.create(vm, "first", b"store", AVAILABLE)
        with pytest.raises(ToolstackRefusedError) as refused:
            database.create(vm, "second", None, OK)
        assert refused.value.code == "DUPLICATE_VM"
        assert database.show(vm) == VmDetails(vm, "first", VmRecord(b"store", AVAILABLE, 0))


def test_a_name_that_is_not_unicode_is_kept_readable(path: Path) -> None:
    vm = uuid4()
    with Database(path) as database:
        database.create(vm, "a\udcff\0b", None, OK)
        assert database.show(vm).name == "a\\udcff\0b"


def test_the_counters_tell_verdicts_and_runs(path: Path) -> None:
    vm = uuid4()
    with Database(path) as database:
        assert database.counters() == {
            "certcheck_runs": 0,
            "writes_yes": 0,
            "writes_no": 0,
            "writes_unspecified": 0,
        }
        database.create(vm, "name", None, OK)
        for update in (Update.YES, Update.NO, Update.NO):
            database.write(vm, b"store", update)
        for _ in range(3):
            database.write_checked(vm, b"store", AVAILABLE)
        with pytest.raises(ToolstackConflictError):
            database.write_checked(vm, b"store", OK, expected=0)
        assert database.counters() == {
            "certcheck_runs": 3,
            "writes_yes": 1,
            "writes_no": 2,
            "writes_unspecified": 3,
        }


def test_alerts_of_one_vm_and_of_all(path: Path) -> None:
    one, other = uuid4(), uuid4()
    with Database(path) as database:
        for vm in (one, other):
            database.create(vm, "name", None, OK)
        for vm in (one, other, one):
            database.alert(vm, Alert("NAME", 5, str(vm)))
        assert [kept.vm for kept in database.alerts()] == [one, other, one]
        assert [kept.vm for kept in database.alerts(one)] == [one, one]
        assert database.alerts(uuid4()) == []
        assert all(kept.created > 1_700_000_000 for kept in database.alerts())


def test_a_long_alert_is_cut(path: Path) -> None:
    vm = uuid4()
    with Database(path) as database:
        database.create(vm, "name", None, OK)
        database.alert(vm, Alert("N" * 100_000, 5, "b" * 1_000_000))
        (kept,) = database.alerts()
        assert kept.alert == Alert("N" * rows.TEXT_LIMIT, 5, "b" * rows.TEXT_LIMIT)


def _alert(database: Database, vm: UUID, numbers: range) -> None:
    for number in numbers:
        database.alert(vm, Alert("NAME", 5, str(number)))


def test_one_noisy_vm_drives_out_only_its_own_alerts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MESSAGES_PER_VM", 5)
    quiet, noisy = uuid4(), uuid4()
    with Database(path) as database:
        database.create(quiet, "quiet", None, OK)
        database.create(noisy, "noisy", None, OK)
        _alert(database, quiet, range(2))
        _alert(database, noisy, range(20))
        assert [kept.alert.body for kept in database.alerts(quiet)] == ["0", "1"]
        assert [kept.alert.body for kept in database.alerts(noisy)] == ["15", "16", "17", "18", "19"]


def test_alerts_are_bounded_over_all_vms(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MESSAGES", 7)
    monkeypatch.setattr(module, "MESSAGES_PER_VM", 3)
    with Database(path) as database:
        vms = [uuid4() for _ in range(4)]
        for vm in vms:
            database.create(vm, "name", None, OK)
            _alert(database, vm, range(5))
        assert [(kept.vm, kept.alert.body) for kept in database.alerts()] == [
            (vms[1], "4"),
            *[(vm, body) for vm in vms[2:] for body in ("2", "3", "4")],
        ]


def test_confirm_sees_the_vm_and_its_generation(path: Path) -> None:
    vm = uuid4()
    with Database(path) as database:
        with pytest.raises(ToolstackRefusedError, match="HANDLE_INVALID"):
            database.confirm(vm, None)
        database.create(vm, "name", None, OK)
        database.confirm(vm, 0)
        database.confirm(vm, None)
        with pytest.raises(ToolstackConflictError, match="generation 0, not 1"):
            database.confirm(vm, 1)
