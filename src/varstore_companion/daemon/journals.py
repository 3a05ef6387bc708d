"""The journal and the ledger at the daemon's start, and what `status` says of them."""

import logging
from pathlib import Path

import trio

from varstore_companion.daemon.backlog import Mode
from varstore_companion.daemon.drainer import Drainer
from varstore_companion.errors import ConfigurationError, JournalError
from varstore_companion.journal.journal import Journal
from varstore_companion.journal.ledger import Ledger

log = logging.getLogger(__name__)


async def opened(folder: Path) -> Journal:
    """The journal with what an earlier daemon left in it. Raises `ConfigurationError`."""
    journal = Journal(folder)
    try:
        found = await trio.to_thread.run_sync(journal.open)
    except JournalError as error:
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


def describe(journal: Journal, drainer: Drainer | None) -> dict[str, object]:
    """The mode of all VMs together, and what waits, as plain values for JSON."""
    oldest = min((entry.at for entry in journal.entries()), default=None)
    mode = Mode.DIRECT
    if journal.pending_count:
        mode = Mode.DRAINING if drainer is not None and drainer.delivering else Mode.QUEUED
    waits = {"stores": journal.pending_count, "bytes": journal.bytes_live, "oldest_at": oldest}
    return {"mode": mode.value, "journal": {**waits, "damaged": len(journal.damages)}}
