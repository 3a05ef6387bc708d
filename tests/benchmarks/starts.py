"""What a run of varstore-nvram-certcheck costs: a toolstack starts one for each write whose verdict nobody gave."""

import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

from benchmarks import stores
from benchmarks.harness import Effort, Figure, interleaved, ratio
from benchmarks.processes import script, whole_process

YARDSTICK = "python -I -c 'import construct'"
TARGET = 1.3


def figures(effort: Effort) -> Iterator[Figure]:
    """The whole process, wall time and CPU time."""
    program = script("varstore-nvram-certcheck")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "nvram")
        file.write_bytes(b64encode(stores.store()))
        rounds = interleaved(
            effort.processes,
            whole_process([program, str(file)]),
            whole_process([sys.executable, "-I", "-c", "import construct"]),
        )
    for name, what, which in (
        ("certcheck-wall", "certcheck, a whole process, wall time", 0),
        ("certcheck-cpu", "certcheck, a whole process, CPU time", 1),
    ):
        yield ratio(name, what, [(ours[which], theirs[which]) for ours, theirs in rounds], YARDSTICK, TARGET)
