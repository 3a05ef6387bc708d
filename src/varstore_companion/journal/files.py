"""Files that a crash leaves either old or new: a new file, synced, renamed over the old one, the folder synced."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEW = ".new"
"""What the name of a file that is being written ends in. One that a crash left behind is written over the next time."""
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EACCES, errno.EPERM})
"""What the system refuses a reader that is no damage of what is on the disk: it is there when there is room, or the right."""
_HOST_START = Path("/proc/sys/kernel/random/boot_id")


def host_start() -> str | None:
    """What the kernel calls this start of the host; None where it does not say. What is true of one start only names it."""
    try:
        return _HOST_START.read_text(encoding="ascii").strip()
    except OSError:
        return None


def write(path: Path, data: bytes, mode: int = 0o600, *, new: Path | None = None, owner: tuple[int, int] | None = None) -> None:
    """Write `path` so that it holds all of `data`, durably, when this returns, and the old content until then.

    `mode`: of the file, whatever the umask; `new`: the file that is written first, in the same folder, instead of the one
    named after `path` and `NEW`; `owner`: its user and group, else the process's own. Raises `OSError`; the old content is
    there then, unless it was the last step that failed, which makes the exchange of the two durable.
    """
    new = new or path.with_name(path.name + NEW)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            with named(path):
                made = os.fstat(descriptor)
                if owner is not None and owner != (made.st_uid, made.st_gid):
                    os.fchown(descriptor, *owner)
                os.fchmod(descriptor, mode)
                write_all(descriptor, data)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.rename(path)
    except BaseException:  # Ctrl-C too must leave nothing behind
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Have an `OSError` say which file or folder it is about: the calls on a descriptor do not know."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` where the descriptor stands. Raises `OSError`, with some of it written or none."""
    # Not through a file object: to make one asks the system three things of no use here, and other threads take each as a turn.
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make a folder, durably, unless it is there. Its parent must be."""
    try:
        path.mkdir(mode)
    except FileExistsError:
        return
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make what was renamed, made or removed in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
