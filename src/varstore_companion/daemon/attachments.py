"""Which sockets the daemon serves for which VM, kept on disk so that they come back after a restart."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from varstore_companion.errors import ConfigurationError
from varstore_companion.journal import files
from varstore_companion.wire.limits import MAX_GID, MAX_MODE

FORMAT = 1
DEFAULT_MODE = 0o660
"""As xapi makes the socket of a deprivileged varstored: for its owner and the domain's own group."""


class NewerListError(ConfigurationError):
    """A list that a later version of this program wrote: it stays as it is, for that version."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One socket. `gid`: its group, None to leave it; `resume`: no read through it is a cold boot (invariant 10).

    `upstream`: the VM's own socket at a toolstack that has one for each VM.
    """

    vm: UUID
    path: Path
    gid: int | None
    mode: int
    resume: bool
    upstream: Path | None = None

    def describe(self) -> dict[str, object]:
        """As plain values for JSON."""
        return {
            "vm": str(self.vm),
            "path": os.fspath(self.path),
            "gid": self.gid,
            "mode": f"{self.mode:04o}",
            "resume": self.resume,
            "upstream": None if self.upstream is None else os.fspath(self.upstream),
        }


def load(path: Path) -> tuple[Attachment, ...]:
    """Read the attachments that were saved; none when there is no file.

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
        return tuple(_attachment(entry) for entry in document["attachments"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not a list of attachments: {error!r}") from None


def save(path: Path, attachments: Iterable[Attachment]) -> None:
    """Keep the attachments, durably. Raises `OSError`; what was kept before stays then."""
    document = {"format": FORMAT, "attachments": [attachment.describe() for attachment in attachments]}
    files.write(path, (json.dumps(document, indent=1) + "\n").encode())


def _attachment(entry: Any) -> Attachment:  # noqa: ANN401  what json gives
    gid, mode, path = entry["gid"], int(entry["mode"], 8), entry["path"]
    upstream = entry.get("upstream")  # absent in files from before it
    if (
        not (gid is None or (isinstance(gid, int) and 0 <= gid <= MAX_GID))
        or not 0 <= mode <= MAX_MODE
        or "\0" in path + (upstream or "")
    ):
        raise ValueError(f"an attachment that cannot be: {entry}")
    there = None if upstream is None else Path(upstream)
    return Attachment(UUID(entry["vm"]), Path(path), gid, mode, bool(entry["resume"]), there)
