"""Metrics: everything that is counted is told, under names that stay."""

import json
import re
from typing import Any

import pytest
import trio

from support.daemon import NOW, Place, written
from support.memory_toolstack import Call
from support.peer import Refused
from support.storemaker import scene
from varstore_companion.daemon import metrics
from varstore_companion.daemon.stats import CALLS, FAILURES, Stats
from varstore_companion.trust.check import State
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import SbFailure, SbFailureAnswer

ON_BOOT, AVAILABLE, OK = CertificatesState.UPDATE_ON_BOOT, CertificatesState.UPDATE_AVAILABLE, CertificatesState.OK

NAMES = {
    "info": "gauge",
    "start_time_seconds": "gauge",
    "attached_sockets": "gauge",
    "missing_sockets": "gauge",
    "connections": "gauge",
    "journal_stores": "gauge",
    "journal_bytes": "gauge",
    "journal_oldest_seconds": "gauge",
    "journal_damaged": "gauge",
    "journal_fsyncs_total": "counter",
    "certificates_missing": "gauge",
    "rules_loaded_time_seconds": "gauge",
    "updates_paused": "gauge",
    "alerts_waiting": "gauge",
    "bytes_in_flight": "gauge",
    "last_reload_failed": "gauge",
    "vms": "gauge",
    "vms_by_field": "gauge",
    "boots_total": "counter",
    "updates_total": "counter",
    "updates_failed_total": "counter",
    "updates_held_back_total": "counter",
    "refused_total": "counter",
    "journaled_total": "counter",
    "delivered_total": "counter",
    "set_aside_total": "counter",
    "secure_boot_failures_total": "counter",
    "connections_refused_total": "counter",
    "alerts_dropped_total": "counter",
    "reloads_total": "counter",
    "reloads_refused_total": "counter",
    "writes_total": "counter",
    "certcheck_saved_total": "counter",
    "toolstack_failures_total": "counter",
    "boot_seconds": "histogram",
    "write_seconds": "histogram",
    "toolstack_call_seconds": "histogram",
}
"""What dashboards and alerts are built on: a name that goes or changes its type breaks them."""


def told(place: Place) -> dict[str, Any]:
    """Every sample's value, or its count, by name and labels."""
    found: dict[str, Any] = {}
    for metric in json.loads(json.dumps(place.daemon.metrics())):
        for sample in metric["samples"]:
            labels = "".join(f" {value}" for value in sample["labels"].values())
            found[f"{metric['name']}{labels}".removeprefix(metrics.PREFIX)] = sample.get("value", sample.get("count"))
    return found


async def test_the_names_and_types_are_these(place: Place) -> None:
    found = {str(each["name"]): each["type"] for each in place.daemon.metrics()}
    assert found == {metrics.PREFIX + name: kind for name, kind in NAMES.items()}
    assert all(str(each["help"]).endswith((".", ": always 1.")) for each in place.daemon.metrics())


def test_every_counter_has_a_meaning() -> None:
    assert set(Stats().counters) == set(metrics.COUNTERS)


async def test_names_and_labels_are_valid_and_no_sample_comes_twice(place: Place) -> None:
    await place.machine(scene("ms2011").blob)
    for metric in place.daemon.metrics():
        name, samples = metric["name"], metric["samples"]
        assert isinstance(samples, list)
        assert re.fullmatch(r"varstore_companion_[a-z][a-z_]*", str(name))
        assert (metric["type"] == "counter") is str(name).endswith("_total")
        seen = [tuple(sample["labels"].items()) for sample in samples]
        assert len(seen) == len(set(seen))
        assert all(re.fullmatch("[a-z_]+", label) for sample in samples for label in sample["labels"])


async def test_what_happens_is_counted(place: Place) -> None:
    first = await place.machine(scene("ms2011").blob, ON_BOOT)
    second = await place.machine(scene("nearly_full").blob, ON_BOOT, name="second.sock")
    await place.machine(scene("ms2011").blob, AVAILABLE, name="third.sock")
    await first.boot()
    await second.boot()
    await first.put(written("all2023", 1))
    await first.put(scene("custom_keys").blob)
    async with first.peer() as peer:
        await peer.call(SbFailure(None), SbFailureAnswer)
        with pytest.raises(Refused, match="store header"):
            await peer.put(b"nothing")
        found = told(place)
    assert found["info 0.1.0 memory microsoft-2023 1"] == 1
    assert (found["boots_total"], found["updates_total"], found["updates_failed_total"], found["refused_total"]) == (2, 1, 1, 1)
    assert (found["writes_total yes"], found["writes_total no"], found["writes_total unspecified"]) == (1, 1, 1)
    assert (found["certcheck_saved_total"], found["secure_boot_failures_total"]) == (2, 1)
    assert (found["boot_seconds"], found["write_seconds"]) == (2, 3)
    assert (found["attached_sockets"], found["connections"]) == (3, 1)
    assert (found["vms custom"], found["vms update_available"], found["vms unseen"]) == (1, 1, 1)
    assert (found["vms_by_field update_on_boot"], found["vms_by_field unseen"]) == (1, 2)
    assert found["start_time_seconds"] == found["rules_loaded_time_seconds"] == NOW
    assert (found["certificates_missing"], found["last_reload_failed"]) == (0, 0)
    assert {name for name in found if name.startswith("vms ")} == {f"vms {state}" for state in [*State, metrics.UNSEEN]}


async def test_a_vm_with_two_sockets_is_one(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    await place.attach(machine.vm, "other.sock")
    found = told(place)
    assert (found["attached_sockets"], found["vms unseen"]) == (2, 1)


@pytest.mark.parametrize("call", CALLS)
async def test_calls_are_told_by_their_name(place: Place, call: Call) -> None:
    place.host.stats.call_seconds[call].add(0.3)
    for failure in FAILURES:
        place.host.stats.call_failures[call][failure] += 1
    found = told(place)
    assert found[f"toolstack_call_seconds {call}"] == 1
    assert all(found[f"toolstack_failures_total {call} {failure}"] == 1 for failure in FAILURES)


async def test_a_slow_boot_is_seen_as_such(place: Place, mock_clock: trio.testing.MockClock) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    hang = place.toolstack.hang_next("read")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.boot)
        await hang.reached.wait()
        mock_clock.jump(6)
        hang.release.set()
    stats = place.host.stats.boot_seconds
    assert stats.total == pytest.approx(6)
