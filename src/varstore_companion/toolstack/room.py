"""Room on the disk for the index that SQLite makes beside a file in WAL mode, so that a full disk keeps nobody from opening it.

SQLite removes that index with the last connection, and cannot even read without it.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

BYTES: Final = 32_768
"""What SQLite takes for a log of up to 4,096 pages, four times what one comes to before it is brought into the file."""


def keep(database: Path) -> None:
    """Take up the room, unless that has been done or the disk has not even that."""
    path = _reserve(database)
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, BYTES)
        except OSError:
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def free(database: Path) -> None:
    """Give it up, for SQLite to take."""
    with suppress(OSError):
        _reserve(database).unlink(missing_ok=True)


def _reserve(database: Path) -> Path:
    return database.with_name(f"{database.name}-reserve")
