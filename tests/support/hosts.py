"""A host with its journal, on a folder of the test's."""

from collections.abc import Callable
from pathlib import Path

from varstore_companion.daemon.host import Host
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.staging import Staging
from varstore_companion.journal.backups import Backups
from varstore_companion.journal.history import History
from varstore_companion.journal.journal import Journal
from varstore_companion.toolstack.interface import Toolstack, Upstreams


def host_in(
    folder: Path,
    toolstack: Toolstack,
    rules: Rules,
    now: Callable[[], float],
    *,
    backups: type[Backups] = Backups,
    history: type[History] = History,
    journal: type[Journal] = Journal,
    upstreams: Upstreams | None = None,
) -> Host:
    """A host whose journal has been opened; nobody runs it yet."""
    opened = journal(folder / "journal")
    opened.open()
    staging = Staging(folder / "updates-paused.json", lambda: host.rules.limits, now)
    host = Host(
        toolstack,
        rules,
        backups(folder / "backups"),
        history(folder / "history"),
        opened,
        staging,
        now,
        upstreams=upstreams,
    )
    return host
