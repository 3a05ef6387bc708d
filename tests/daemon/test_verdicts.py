"""The ring of verdicts of one VM: what it keeps, and what a guest cannot make of it."""

import json
import sys

import pytest

from support import storebytes as sb
from support.daemon import NOW, Place, written
from support.storemaker import make_store, scene
from varstore_companion.daemon.verdicts import LENGTH, REASON, Occasion, Verdicts
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.trust.check import State
from varstore_companion.trust.state import CertificatesState, Update

ON_BOOT, OK, AVAILABLE = CertificatesState.UPDATE_ON_BOOT, CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE


def reasons(history: Verdicts) -> list[object]:
    return [entry["reason"] for entry in history.describe()]


def test_the_same_again_only_counts() -> None:
    history = Verdicts()
    history.add(1.0, Occasion.WRITE, Update.UNSPECIFIED, "rare")
    for at in range(2, 1_000):
        history.add(float(at), Occasion.WRITE, Update.NO, "boot entries")
    assert history.describe() == [
        {"occasion": "write", "verdict": "unspecified", "reason": "rare", "first": 1.0, "last": 1.0, "count": 1},
        {"occasion": "write", "verdict": "no", "reason": "boot entries", "first": 2.0, "last": 999.0, "count": 998},
    ]
    history.add(1_000.0, Occasion.UPDATE, None, "boot entries")
    history.add(1_001.0, Occasion.WRITE, Update.NO, "boot entries")
    assert [entry["count"] for entry in history.describe()] == [1, 998, 1, 1]


def test_the_oldest_goes_first() -> None:
    history = Verdicts()
    for number in range(LENGTH + 5):
        history.add(float(number), Occasion.WRITE, Update.NO, str(number))
    assert reasons(history) == [str(number) for number in range(5, LENGTH + 5)]


def test_it_stays_small_whatever_the_reasons_are() -> None:
    history = Verdicts()
    for number in range(1_000):
        history.add(float(number), Occasion.UPDATE, None, f"{number}" + "\U0001f511ü\0\udcff" * 1_000)
    found = reasons(history)
    assert all(len(str(reason).encode()) <= REASON for reason in found)
    # JSON escapes each character that is not ASCII with up to twelve.
    assert len(json.dumps(history.describe())) < LENGTH * (REASON * 3 + 200)
    assert sum(sys.getsizeof(entry) + sys.getsizeof(entry.reason) for entry in history._entries) < LENGTH * 1_200


async def test_a_vm_remembers_its_writes_its_update_and_its_correction(still: Place) -> None:
    vm = still.new_vm(scene("ms2011").blob, ON_BOOT)
    await vm.boot()
    for number in range(3):
        await vm.put(written("all2023", number))
    await vm.put(scene("custom_keys").blob)
    found = [(entry["occasion"], entry["verdict"], entry["count"], entry["first"]) for entry in vm.verdicts.describe()]
    assert found == [("update", "yes", 1, NOW), ("write", "no", 3, NOW), ("write", "unspecified", 1, NOW)]
    assert vm.certcheck_saved == 4
    stale = still.new_vm(scene("all2023").blob, AVAILABLE)
    await stale.boot()
    (entry,) = stale.verdicts.describe()
    assert (entry["occasion"], entry["verdict"]) == ("correction", "yes")
    assert entry["reason"] == "the field said update_available of a store that is ok"


async def test_a_failed_update_is_remembered_with_its_reason(still: Place) -> None:
    vm = still.new_vm(scene("ms2011").blob, ON_BOOT)
    still.toolstack.fail_next("write", ToolstackUnavailableError("xapi restarts"))
    await vm.boot()
    (entry,) = vm.verdicts.describe()
    assert (entry["occasion"], entry["verdict"], entry["reason"]) == ("update", None, "failed: xapi restarts")


async def test_a_write_that_failed_is_no_verdict(still: Place) -> None:
    vm = still.new_vm(scene("ms2011").blob, OK)
    still.host.journal._total = 0
    still.toolstack.fail_next("write", *[ToolstackUnavailableError("away")] * 2)
    for _ in range(2):
        with pytest.raises(ToolstackUnavailableError):
            await vm.put(written("ms2011", 1))
    assert vm.verdicts.describe() == []
    assert vm.certcheck_saved == 0


async def test_a_damaged_store_that_its_guest_mends_is_not_told_as_damaged_any_more(still: Place) -> None:
    """Whoever put an older store back for it would lose what was written since."""
    mended = scene("all2023").variables
    malformed = sb.dbx_variable(b"no lists")
    vm = still.new_vm(make_store([*mended, malformed]), OK)
    await vm.boot()
    assert vm.report is State.DAMAGED
    await vm.put(make_store([*mended, malformed, sb.Variable("BootNext", sb.GLOBAL, bytes(2))]))
    assert vm.report is State.DAMAGED
    await vm.put(make_store(mended))
    assert (vm.report, vm.last_verdict) == (State.OK, Update.NO)
