"""What the rules' own work behind `inspect` and `plan` costs, without the start of a process. To know: no targets."""

from collections.abc import Iterator
from hashlib import sha256

from benchmarks import stores
from benchmarks.harness import Effort, Figure, interleaved, ratio, seconds
from benchmarks.verdicts import YARDSTICK
from varstore_companion.files import load_manifest
from varstore_companion.sources import load_bodies
from varstore_companion.trust.check import check
from varstore_companion.trust.describe import describe_plan, describe_report
from varstore_companion.trust.plan import plan


def figures(effort: Effort) -> Iterator[Figure]:
    """What they print, as plain values."""
    store, manifest = stores.store(), load_manifest()
    bodies = load_bodies(manifest, auth_folder=None).bodies
    inspect = seconds(lambda: describe_report(check(store, manifest), manifest, len(store)))
    planned = seconds(lambda: describe_plan(plan(store, manifest, bodies)))
    digest = seconds(lambda: sha256(store).digest())
    yield ratio("inspect", "inspect: report and findings", interleaved(effort.calls, inspect, digest), YARDSTICK)
    yield ratio("plan", "plan: the updated store, checked", interleaved(effort.calls, planned, digest), YARDSTICK)
