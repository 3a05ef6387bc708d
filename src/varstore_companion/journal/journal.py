"""The journal: each VM's newest store, durable, until the toolstack has taken it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final
from uuid import UUID

import trio

from varstore_companion.journal.disk import Disk
from varstore_companion.journal.entry import Damage, Entry, Recovered

TOTAL: Final = 256 * 2**20
"""Bytes of all live records: 2,000 VMs with the largest store, or 5,000 with an ordinary one."""
SEGMENT: Final = 16 * 2**20
"""Bytes after which a new segment is begun: what a start reads, and a compaction rewrites, at a time."""


class Journal:
    """The journal in `folder`, which it has for itself: two on one folder would ruin each other's.

    `open` first, once; then `run`, which the caller's nursery keeps going; the others at any time while it runs, from the
    event loop's thread. The index is changed when a batch has become durable, not when its waiters hear of it: after a
    cancelled `append` or `done`, `pending` tells what came of it.
    """

    def __init__(self, folder: Path, *, disk: Disk | None = None, total: int = TOTAL, segment: int = SEGMENT) -> None:
        raise NotImplementedError

    def open(self) -> Recovered:
        """Make the folder, read every segment and tell what waits; blocking, for a thread.

        Damaged ranges are copied to the folder `damaged` below. What was found is durable when this returns. Raises
        `JournalError`; it can be called again then.
        """
        raise NotImplementedError

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what `append` and `done` ask for, until cancelled; those that wait then get `JournalError`.

        A batch that is being written is finished first.
        """
        raise NotImplementedError

    async def append(self, vm: UUID, store: bytes, replaces: tuple[bytes, ...], at: float) -> Entry:
        """Put a VM's store into the journal, durably; it supersedes the VM's entry at that moment.

        `replaces`: at most 64 SHA-256 digests; `at`: seconds since the epoch. When cancelled it may still come to be done.

        Raises `JournalFullError`, with nothing written; `JournalError` when the disk refuses: the VM's entry before stays
        the pending one; `OverLimitError` for a store of more than 128 KiB or too many digests.
        """
        raise NotImplementedError

    async def done(self, entry: Entry) -> None:
        """The toolstack has taken the entry, or must never get it: end it, durably. A newer one of the VM's stays.

        An entry that is not pending any more is left as it is. Raises `JournalError`: then it stays pending.
        """
        raise NotImplementedError

    async def load(self, entry: Entry) -> bytes:
        """The store of a pending entry, read and checked in a thread. Raises `JournalError`."""
        raise NotImplementedError

    def pending(self, vm: UUID) -> Entry | None:
        """The VM's entry, None when the toolstack has taken everything."""
        raise NotImplementedError

    def entries(self) -> Iterable[Entry]:
        """All entries, oldest first, as they are now."""
        raise NotImplementedError

    @property
    def pending_count(self) -> int:
        """VMs with an entry."""
        raise NotImplementedError

    @property
    def bytes_live(self) -> int:
        """Bytes of the entries' records: what `total` bounds."""
        raise NotImplementedError

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of all segments: at most twice `bytes_live` and two segments."""
        raise NotImplementedError

    @property
    def fsyncs(self) -> int:
        """Times that a file or folder was synced."""
        raise NotImplementedError

    @property
    def damages(self) -> tuple[Damage, ...]:
        """What has been found damaged in this life."""
        raise NotImplementedError
