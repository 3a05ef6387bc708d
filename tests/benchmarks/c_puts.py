"""What a write costs a varstored on the C client: vsc_put_store of 60 KiB, against an echo server in C of the same bytes.

One C program makes both and takes the times, so that nothing of Python is in them but the daemon. It makes them in batches
that take turns: what the daemon does once it has answered would else fall into the time of the echo.
"""

import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import stores
from benchmarks.harness import Effort, Figure, UnavailableError, ratio
from benchmarks.placement import Placement, apart, free, placed, together
from benchmarks.processes import running, server
from benchmarks.servers import SOCKET, VM
from support import c_code
from support.processes import python_environment

YARDSTICK = "a C echo of the same bytes"
TARGET = 4.0
BATCHES = 10
"""Each gives one median and one 99th percentile of either side."""
SECONDS = 600


def figures(effort: Effort) -> Iterator[Figure]:
    """The daemon keeps its stores in memory; each of the three runs in a process of its own."""
    for where, target in ((apart(), TARGET), (together(), None), (free(), None)):
        yield from _placed(effort, where, target)


def _placed(effort: Effort, where: Placement, target: float | None) -> Iterator[Figure]:
    if not c_code.compilers():
        raise UnavailableError("there is no C compiler (gcc or clang)")
    program = c_code.build("c_puts", [Path(__file__).with_name("c_puts.c"), c_code.LIBRARY], "-O2", f"-I{c_code.FOLDER}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with placed(where.answers):
            stack.enter_context(server("daemon", str(folder)))
            stack.enter_context(running([program, "echo", str(folder / "echo")], python_environment()))
        command = [program, "put", str(folder / SOCKET), str(VM), str(folder / "echo"), str(BATCHES), str(effort.exchanges)]
        both = stores.store() + stores.store_with_boot_entry()
        with placed(where.asks):
            said = subprocess.run(command, input=both, stdout=subprocess.PIPE, check=True, timeout=SECONDS).stdout
    pairs = [tuple(int(text) / 1e9 for text in line.split()) for line in said.splitlines()]
    batches = [pairs[at : at + effort.exchanges] for at in range(0, len(pairs), effort.exchanges)]
    for name, what, part in (("c-put-p50", "median", 50), ("c-put-p99", "99th percentile", 99)):
        rounds = [
            (_percentile([put for put, _ in batch], part), _percentile([echo for _, echo in batch], part)) for batch in batches
        ]
        yield ratio(f"{name}{where.name}", f"vsc_put_store of 60 KiB, {what}, {where.words}", rounds, YARDSTICK, target)


def _percentile(values: list[float], part: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[part - 1]
