"""`make bench`: measure every figure, print one table, say plainly which target was missed. Always ends with 0.

    python -I tests/benchmarks/run.py [--json] [--smoke]

--smoke measures each figure once or twice, to see that it can be measured at all.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# The line above makes them importable in isolated mode.
from benchmarks import (
    answers,
    backlogs,
    boots,
    c_puts,
    crowd,
    guarded,
    memory,
    noisy,
    puts,
    starts,
    upgrades,
    verdicts,
    writes,
)
from benchmarks.harness import FULL, SMOKE, Effort, Figure, UnavailableError
from benchmarks.table import as_json, as_table

GROUPS: dict[str, tuple[Callable[[Effort], Iterator[Figure]], tuple[str, ...]]] = {
    "the verdict on a write": (verdicts.figures, ("verdict-same", "verdict-boot-entry", "verdict-db")),
    "a write over a socket": (puts.figures, ("put",)),
    "a write through to a guard": (
        guarded.figures,
        ("guard-cpu", "guard-elapsed", "guard-elapsed-together", "guard-elapsed-free", "guard-many"),
    ),
    "a write by the C client": (
        c_puts.figures,
        ("c-put-p50", "c-put-p99", "c-put-p50-together", "c-put-p99-together", "c-put-p50-free", "c-put-p99-free"),
    ),
    "the journal": (backlogs.figures, ("journal-fsyncs", "journal-drain", "journal-idle", "journal-ledger")),
    "a write in the toolstack": (writes.figures, ("certcheck-avoided",)),
    "an upgrade of the toolstack's file": (upgrades.figures, ("upgrade",)),
    "a run of certcheck": (starts.figures, ("certcheck-wall", "certcheck-cpu")),
    "the daemon's memory": (memory.figures, ("memory-idle", "memory-vm")),
    "the memory of a host with many VMs": (crowd.memory, ("crowd-memory",)),
    "the start of a host with many VMs": (crowd.start, ("crowd-start",)),
    "the boots of many VMs at once": (crowd.boots, ("crowd-boots", "crowd-boot")),
    "the writes of many VMs beside one that never stops": (noisy.figures, ("noisy",)),
    "a boot": (boots.figures, ("boot-update",)),
    "inspect and plan": (answers.figures, ("inspect", "plan")),
}
"""What is measured, with the names of its figures."""


def measure(effort: Effort) -> tuple[list[Figure], dict[str, str]]:
    """Every figure, and why those that are missing could not be measured."""
    measured: list[Figure] = []
    skipped: dict[str, str] = {}
    for title, (figures, names) in GROUPS.items():
        sys.stderr.write(f"measuring {title}\n")
        try:
            found = list(figures(effort))
        except UnavailableError as error:
            skipped |= dict.fromkeys(names, str(error))
        else:
            assert tuple(figure.name for figure in found) == names
            measured += found
    return measured, skipped


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the program costs, in ratios to named yardsticks.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--smoke", action="store_true", help="only see that each figure can be measured")
    options = parser.parse_args()
    measured, skipped = measure(SMOKE if options.smoke else FULL)
    if options.json:
        print(json.dumps(as_json(measured, skipped), indent=1))
        return
    print(f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f}\n")
    print(as_table(measured, skipped))


if __name__ == "__main__":
    main()
