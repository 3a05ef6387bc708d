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


class Backups:
    """The backups below `folder`, which is made when the first one is kept."""

    def __init__(self, folder: Path, *, keep: int = KEEP) -> None:
        self._folder = folder
        self._keep = keep

    async def keep(self, vm: UUID, store: bytes, plan: Mapping[str, object], now: float) -> str:
        """Keep `store`, durably, off the event loop; return the backup's name. `now`: seconds since the epoch.

        Raises `OSError`. When cancelled it may still come to be kept.
        """
        return await trio.to_thread.run_sync(self._write, vm, store, plan, now, abandon_on_cancel=True)

    def _write(self, vm: UUID, store: bytes, plan: Mapping[str, object], now: float) -> str:
        folder = self._folder / str(vm)
        for path in (self._folder, folder):
            files.make_folder(path)
        digest = sha256(store).hexdigest()
        name = f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{digest[:12]}"
        about = {"vm": str(vm), "at": now, "sha256": digest, "bytes": len(store), "plan": plan}
        files.write(folder / f"{name}.vars", store)
        files.write(folder / f"{name}.json", (json.dumps(about, indent=1) + "\n").encode())
        for old in sorted(folder.glob("*.vars"))[: -self._keep]:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)
        return name
