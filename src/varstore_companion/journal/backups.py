"""The exact old store of each VM before an update, with what was planned: `backups/VM/TIME-DIGEST.vars` and `.json`."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import trio

from varstore_companion.journal import files

KEEP = 10
"""Backups of one VM; the oldest go first. A VM is updated once in years: this bounds what a misbehaving one can fill."""

AT_ONCE = 4
"""Backups being written at the same time."""


class Backups:
    """The backups below `folder`, which is made when the first one is kept."""

    def __init__(self, folder: Path, *, keep: int = KEEP) -> None:
        self._folder = folder
        self._keep = keep
        # Their own: on a disk that hangs they must not use up the threads that everything else needs.
        self._threads = trio.CapacityLimiter(AT_ONCE)

    async def keep(self, vm: UUID, store: bytes, plan: Mapping[str, object], now: float) -> str:
        """Keep `store`, durably, off the event loop; return the backup's name. `now`: seconds since the epoch.

        Raises `OSError`. When cancelled it may still come to be kept.
        """
        return await trio.to_thread.run_sync(self._write, vm, store, plan, now, abandon_on_cancel=True, limiter=self._threads)

    def _write(self, vm: UUID, store: bytes, plan: Mapping[str, object], now: float) -> str:
        folder = self._folder / str(vm)
        for path in (self._folder, folder):
            files.make_folder(path)
        digest = sha256(store).hexdigest()
        name = f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{digest[:12]}"
        about = {"vm": str(vm), "at": now, "sha256": digest, "bytes": len(store), "plan": plan}
        files.write(folder / f"{name}.vars", store)
        files.write(folder / f"{name}.json", (json.dumps(about, indent=1) + "\n").encode())
        # The one just kept stays, whatever the clock says: its store is about to be replaced.
        others = sorted(other for other in folder.glob("*.vars") if other.stem != name)
        for old in others[: max(0, len(others) - self._keep + 1)]:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)
        return name
