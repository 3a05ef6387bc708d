"""The journal and the ledger at the daemon's start, and what `status` says of them."""

import logging
from collections.abc import Container
from itertools import islice
from pathlib import Path
from uuid import UUID

from varstore_companion import threads
from varstore_companion.daemon.backlog import Mode
from varstore_companion.daemon.drainer import Drainer
from varstore_companion.errors import ConfigurationError, JournalError
from varstore_companion.journal.journal import Journal
from varstore_companion.journal.ledger import Ledger

log = logging.getLogger(__name__)

MOST_NAMED = 16
"""VMs that are not attached and whose stores wait, in what `status` says: of thousands a person reads the first."""


async def opened(folder: Path) -> Journal:
    """The journal with what an earlier daemon left in it. Raises `ConfigurationError`."""
    journal = Journal(folder)
    try:
        found = await threads.run_sync(journal.open)
    except (JournalError, OSError) as error:  # the latter when the system gives no thread
        raise ConfigurationError(str(error)) from None
    for damage in found.damages:
        log.error("journal: %s; it is set aside below %s", damage, folder / "damaged")
    if found.entries:
        log.warning("journal: %d stores wait for the toolstack since before this start", len(found.entries))
    return journal


def opened_ledger(path: Path) -> Ledger:
    """The ledger with what an earlier daemon left in it. Raises `ConfigurationError`."""
    ledger = Ledger(path)
    try:
        ledger.open()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    return ledger


def describe(journal: Journal, drainer: Drainer | None, attached: Container[UUID]) -> dict[str, object]:
    """The mode of all VMs together, and what waits, as plain values for JSON.

    `unattached`: VMs whose store waits and that are not among the `attached`, at most `MOST_NAMED`: no list has them, and a
    guard takes nothing for them before they are attached again.
    """
    entries = journal.entries()
    oldest = min((entry.at for entry in entries), default=None)
    unattached = list(islice((str(entry.vm) for entry in entries if entry.vm not in attached), MOST_NAMED))
    mode = Mode.DIRECT
    if journal.pending_count:
        mode = Mode.DRAINING if drainer is not None and drainer.delivering else Mode.QUEUED
    waits = {"stores": journal.pending_count, "bytes": journal.bytes_live, "oldest_at": oldest, "unattached": unattached}
    return {"mode": mode.value, "journal": {**waits, "damaged": len(journal.damages)}}
