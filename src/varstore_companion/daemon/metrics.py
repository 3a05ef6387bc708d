"""What is counted and known as metrics: each with its name, type and meaning, for `stats` and Prometheus.

Names and labels keep to Prometheus' data model; none of them, nor any value, comes from a guest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from varstore_companion.daemon.host import Host
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.vm import Vm
from varstore_companion.trust.check import State
from varstore_companion.trust.state import CertificatesState

PREFIX = "varstore_companion_"

COUNTERS = {
    "boots": "Cold boots that asked for their store.",
    "updates": "Updates of Secure Boot certificates made at boot.",
    "updates_failed": "Updates at boot that failed; the VM booted with its old store and stays marked.",
    "updates_held_back": "Marked boots that were not updated, because updates are paused or too many were being made.",
    "refused": "Writes refused because the bytes were not a store, or one that varstored would not load again.",
    "journaled": "Writes acknowledged from the journal, because the toolstack could not take them.",
    "delivered": "Journaled stores that the toolstack has taken since.",
    "set_aside": "Journaled stores that must not be delivered any more, and are kept among the backups.",
    "secure_boot_failures": "Reports by varstored that a guest failed Secure Boot verification.",
    "connections_refused": "Connections refused because too many were open.",
    "alerts_dropped": "Alerts that operators did not get, or may not have: each is in the log with the reason.",
    "reloads": "Reloads of settings, manifest and certificates that came into force.",
    "reloads_refused": "Reloads that were refused; everything stayed as it was.",
}
"""The meaning of each plain counter of `Stats`."""

UNSEEN = "unseen"
"""In place of a report or a field that the daemon has not seen since it was started, or since the rules changed."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known beside the counters. `vms`: those with an attached socket."""

    version: str
    started_at: float
    attached: int
    missing: int
    connections: int
    vms: Iterable[Vm]
    reloader: Reloader


def describe(host: Host, known: Known) -> list[dict[str, object]]:
    """Every metric: `name`, `type`, `help`, and `samples` with `labels` and a `value`, or what `Histogram.describe` gives."""
    return [
        {"name": PREFIX + name, "type": kind, "help": text, "samples": samples}
        for name, kind, text, samples in (*_gauges(host, known), *_counters(host), *_histograms(host))
    ]


Metric = tuple[str, str, str, list[dict[str, object]]]


def _one(value: float, **labels: str) -> dict[str, object]:
    return {"labels": labels, "value": value}


def _gauges(host: Host, known: Known) -> Iterator[Metric]:
    info = _one(1, version=known.version, toolstack=host.toolstack.name, manifest=host.rules.name)
    yield "info", "gauge", "What runs: always 1.", [info]
    yield "start_time_seconds", "gauge", "When the daemon was started, in seconds since the epoch.", [_one(known.started_at)]
    yield "attached_sockets", "gauge", "Sockets of VMs that are served.", [_one(known.attached)]
    text = "Sockets of VMs that the system refused at the start, and that are tried again."
    yield "missing_sockets", "gauge", text, [_one(known.missing)]
    yield "connections", "gauge", "Connections that are open, to all sockets.", [_one(known.connections)]
    journal = host.journal
    yield "journal_stores", "gauge", "Stores that wait in the journal for the toolstack.", [_one(journal.pending_count)]
    yield "journal_bytes", "gauge", "Bytes of the stores that wait in the journal.", [_one(journal.bytes_live)]
    oldest = min((entry.at for entry in journal.entries()), default=None)
    waited = 0.0 if oldest is None else max(0.0, host.now() - oldest)
    yield "journal_oldest_seconds", "gauge", "How long the oldest of them has waited.", [_one(waited)]
    yield "journal_damaged", "gauge", "Places of the journal that were found damaged.", [_one(len(journal.damages))]
    yield "journal_fsyncs_total", "counter", "Times that the journal synced a file or a folder.", [_one(journal.fsyncs)]
    missing = sum(each.sha256 not in host.rules.bodies for each in host.rules.required)
    yield "certificates_missing", "gauge", "Certificates of the manifest whose body no source has.", [_one(missing)]
    text = "When settings, manifest and certificates came into force, in seconds since the epoch."
    yield "rules_loaded_time_seconds", "gauge", text, [_one(known.reloader.loaded_at)]
    paused = int(host.staging.paused is not None)
    yield (
        "updates_paused",
        "gauge",
        "1 while no VM of this host is updated at boot, until an operator resumes it.",
        [_one(paused)],
    )
    text = "Alerts that wait for the toolstack, and are tried again."
    yield "alerts_waiting", "gauge", text, [_one(host.alerting.waiting)]
    yield "bytes_in_flight", "gauge", "Bytes of requests that are not carried out yet.", [_one(host.in_flight.total)]
    failed = known.reloader.failed is not None
    yield "last_reload_failed", "gauge", "1 when the last reload was refused.", [_one(int(failed))]
    reports: dict[str, int] = dict.fromkeys([*State, UNSEEN], 0)
    states: dict[str, int] = dict.fromkeys([*CertificatesState, UNSEEN], 0)
    for vm in known.vms:
        reports[vm.report or UNSEEN] += 1
        states[vm.field or UNSEEN] += 1
    text = "Attached VMs by the report on their store, as it was last seen."
    yield "vms", "gauge", text, [_one(count, report=report) for report, count in reports.items()]
    text = "Attached VMs by the toolstack's field, as it was last seen."
    yield "vms_by_field", "gauge", text, [_one(count, field=state) for state, count in states.items()]


def _counters(host: Host) -> Iterator[Metric]:
    stats = host.stats
    for name, count in stats.counters.items():
        yield f"{name}_total", "counter", COUNTERS[name], [_one(count)]
    text = "Stores that the toolstack took, by the verdict that it was told."
    yield "writes_total", "counter", text, [_one(count, update=update.value) for update, count in stats.writes.items()]
    text = "Runs of certcheck that the toolstack was spared: writes with a verdict."
    yield "certcheck_saved_total", "counter", text, [_one(stats.certcheck_saved)]
    failures = [
        _one(count, call=call, failure=failure)
        for call, failures in stats.call_failures.items()
        for failure, count in failures.items()
    ]
    yield "toolstack_failures_total", "counter", "Calls to the toolstack that failed.", failures


def _histograms(host: Host) -> Iterator[Metric]:
    stats = host.stats
    yield "boot_seconds", "histogram", "Time to the answer to a cold boot.", [{"labels": {}, **stats.boot_seconds.describe()}]
    text = "Time to the answer to a write that a VM's varstored made."
    yield "write_seconds", "histogram", text, [{"labels": {}, **stats.write_seconds.describe()}]
    calls = [{"labels": {"call": call}, **histogram.describe()} for call, histogram in stats.call_seconds.items()]
    yield "toolstack_call_seconds", "histogram", "Time of the calls to the toolstack.", calls
