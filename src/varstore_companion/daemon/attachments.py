"""Which sockets the daemon serves for which VM, kept on disk so that they come back after a restart."""

import json
import logging
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from varstore_companion.daemon.interpose import beside
from varstore_companion.errors import ConfigurationError
from varstore_companion.journal import files
from varstore_companion.wire.limits import MAX_GID, MAX_MODE

log = logging.getLogger(__name__)

FORMAT = 1
DEFAULT_MODE = 0o660
"""As xapi makes the socket of a deprivileged varstored: for its owner and the domain's own group."""


class NewerListError(ConfigurationError):
    """A list that a later version of this program wrote: it stays as it is, for that version."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One socket. `gid`: its group, None to leave it; `resume`: no read through it is a cold boot (invariant 10).

    `upstream`: the VM's own socket at a toolstack that has one for each VM. `interpose`: `path` is that socket, taken over, and
    `upstream` is where it has been put (see `interpose`); its group and mode are the guard's, `gid` and `mode` say nothing.
    """

    vm: UUID
    path: Path
    gid: int | None
    mode: int
    resume: bool
    upstream: Path | None = None
    interpose: bool = False

    def __str__(self) -> str:
        """All but the path, for a person."""
        return ", ".join(f"{key} {value}" for key, value in self.describe().items() if key != "path" and value is not None)

    def describe(self) -> dict[str, object]:
        """As plain values for JSON."""
        return {
            "vm": str(self.vm),
            "path": os.fspath(self.path),
            "gid": self.gid,
            "mode": None if self.interpose else f"{self.mode:04o}",
            "resume": self.resume,
            "upstream": None if self.upstream is None else os.fspath(self.upstream),
            "interpose": self.interpose,
        }

    def leads_to_itself(self, ours: Collection[tuple[int, int]]) -> bool:
        """Whether `upstream` is `path`, however it is spelled, or one of `ours`: devices and inodes of what is served here."""
        if self.upstream is None:
            return False
        with suppress(OSError):
            found = self.upstream.stat()
            if (found.st_dev, found.st_ino) in ours:
                return True
        return self.calls(self.path)

    def calls(self, path: Path) -> bool:
        """Whether `upstream` is `path`, however it is spelled."""
        if self.upstream is None:
            return False
        # `path` may not be there yet. Path.resolve() raises for links in a circle.
        upstream = Path(os.path.realpath(self.upstream))
        with suppress(OSError):
            return upstream.name == path.name and upstream.parent.samefile(path.parent)
        return False


def interposed(vm: UUID, path: Path, *, resume: bool) -> Attachment:
    """The attachment that takes over the guard's socket at `path`. Raises `ConfigurationError` as `interpose.beside`."""
    return Attachment(vm, path, None, DEFAULT_MODE, resume, beside(path), interpose=True)


def load(path: Path) -> tuple[Attachment, ...]:
    """Read the attachments that were saved; none when there is no file, or the host has been started anew since.

    A varstored's socket has its domain's number in its path: after a start of the host the same path may be another VM's,
    which would be given a store that is not its own (invariant 8).

    Raises `NewerListError`, `ConfigurationError` for what is no such list, and `OSError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not a list of attachments: {error}") from None
    try:
        document = json.loads(text)
        number = document["format"]
        if isinstance(number, int) and number > FORMAT:
            raise NewerListError(
                f"{path}: format {number}, from a later version of this program: this one reads up to format {FORMAT}; "
                "install the later one again, or move the file away to start without its sockets"
            )
        if number != FORMAT:
            raise ConfigurationError(f"{path}: format {number!r}: expected {FORMAT}")
        kept = tuple(_attachment(entry) for entry in document["attachments"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not a list of attachments: {error!r}") from None
    start = files.host_start()
    if start is None or document.get("host_start") != start:
        if kept:
            log.warning("the host was started anew: %d sockets do not come back, each VM's has to be attached again", len(kept))
        return ()
    return kept


def load_or_put_aside(path: Path) -> tuple[Attachment, ...]:
    """As `load`, but none for a list that cannot be used: it is put aside, as `NAME.unreadable`.

    Raises `NewerListError`, and `ConfigurationError` where the system has no room or right to read it now: put aside, it would
    cost every VM its socket, and the next start reads it.
    """
    try:
        return load(path)
    except NewerListError:
        raise
    except (ConfigurationError, OSError) as error:
        if isinstance(error, OSError) and error.errno in files.PASSING:
            raise ConfigurationError(f"{path}: {error.strerror}") from None
        aside = path.with_name(f"{path.name}.unreadable")
        with suppress(OSError):
            path.rename(aside)
        log.error("no socket comes back, the list is put aside as %s: %s", aside, error)  # noqa: TRY400  the reason is enough
        return ()


def save(path: Path, attachments: Iterable[Attachment]) -> None:
    """Keep the attachments, durably. Raises `OSError`; what was kept before stays then."""
    described = [attachment.describe() for attachment in attachments]
    document = {"format": FORMAT, "host_start": files.host_start(), "attachments": described}
    files.write(path, (json.dumps(document, indent=1) + "\n").encode())


def _attachment(entry: Any) -> Attachment:  # noqa: ANN401  what json gives
    upstream, is_interposed = entry.get("upstream"), entry.get("interpose", False)  # absent in files from before them
    gid, path = entry["gid"], entry["path"]
    mode = DEFAULT_MODE if is_interposed else int(entry["mode"], 8)
    if (
        not (gid is None or (isinstance(gid, int) and 0 <= gid <= MAX_GID))
        or not 0 <= mode <= MAX_MODE
        or "\0" in path + (upstream or "")
        or not isinstance(is_interposed, bool)
    ):
        raise ValueError(f"an attachment that cannot be: {entry}")
    if is_interposed:
        return interposed(UUID(entry["vm"]), Path(path), resume=bool(entry["resume"]))
    there = None if upstream is None else Path(upstream)
    return Attachment(UUID(entry["vm"]), Path(path), gid, mode, bool(entry["resume"]), there)
