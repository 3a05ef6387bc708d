"""How long the field of 10,000 VMs takes when the embedded toolstack opens a file from before it."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from uuid import uuid4

from benchmarks import stores
from benchmarks.harness import Effort, Figure
from support.old_databases import make_version_1
from support.shipped import shipped
from varstore_companion.toolstack.database import FILE_NAME
from varstore_companion.toolstack.operations import Operations
from varstore_companion.trust.check import derived_state
from varstore_companion.trust.state import CertificatesState

VMS = 10_000
TARGET = 20.0


def figures(effort: Effort) -> Iterator[Figure]:
    """Wall time of opening the file, from a file with fewer VMs: each takes as long as the others."""
    values = tuple(_opened(effort.vms) * VMS / effort.vms for _ in range(effort.daemons))
    yield Figure("upgrade", f"the fields of {VMS:,} VMs of 60 KiB, in an upgrade", values, "s", TARGET)


def _opened(vms: int) -> float:
    store = stores.store()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE_NAME)
        make_version_1(path, [(uuid4(), store, CertificatesState.OK) for _ in range(vms)])
        begun = time.perf_counter()
        with closing(Operations(path, partial(derived_state, manifest=shipped()))) as operations:
            took = time.perf_counter() - begun
            assert {vm.state for vm in operations.summaries()} == {CertificatesState.UPDATE_AVAILABLE}
    return took
