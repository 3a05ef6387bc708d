"""Unix sockets: bound so that they appear whole, with their mode and group, over what a crash left behind."""

import errno
import logging
import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from varstore_companion.errors import ConfigurationError, RefusedBySystemError
from varstore_companion.wire.limits import MAX_PATH

log = logging.getLogger(__name__)

BACKLOG = 128
"""Connections that wait to be accepted, also for the next daemon during a restart: one more fails at once where its peer does
not wait to connect, as with a timeout in Python. A varstored makes one; the control socket serves half as many together."""
_CREDENTIALS = struct.Struct("3i")
"""Linux' struct ucred: process, user, group."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect to a socket: its permission bits, owner and group. None: those of the process."""

    mode: int
    gid: int | None = None
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket and the file it made, by which it is told from one that somebody put there since."""

    socket: socket.socket
    path: Path
    device: int
    inode: int

    def is_in_place(self) -> bool:
        """Whether the path still leads to this socket."""
        try:
            found = self.path.lstat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.inode)

    def unlink(self) -> None:
        """Remove the file, unless it is somebody else's by now. One that cannot be removed is dead, and in nobody's way."""
        if self.is_in_place():
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s: what is left of the socket cannot be removed: %s", self.path, error.strerror)


def bind(path: Path, *, mode: int, gid: int | None = None) -> Bound:
    """Listen on `path`. It is bound under another name in the same folder, given mode and group, and renamed into place.

    Raises `ConfigurationError` when something other than a dead socket is there, when the path is too long or relative, and
    when the system refuses.
    """
    if not path.is_absolute() or len(os.fsencode(path)) > MAX_PATH:
        raise ConfigurationError(f"{path}: expected an absolute path of at most {MAX_PATH} bytes")
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise RefusedBySystemError(f"{path}: cannot listen there: {error.strerror}") from None
    try:
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise RefusedBySystemError(f"{path.parent}: {error.strerror}") from None
        try:
            _refuse_living(path)
            status = place(folder, listener, path.name, Access(mode, gid))
        except OSError as error:
            raise RefusedBySystemError(f"{path}: cannot listen there: {error.strerror}") from None
        finally:
            os.close(folder)
    except BaseException:
        listener.close()
        raise
    return Bound(listener, path, status.st_dev, status.st_ino)


def give_again(bound: Bound, access: Access) -> None:
    """Give a socket that is in place its mode and group, if it has others by now.

    Raises `RefusedBySystemError`.
    """
    path = bound.path
    try:
        found = path.lstat()
        if stat.S_IMODE(found.st_mode) == access.mode and access.gid in (None, found.st_gid):
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            give(folder, path.name, access)
        finally:
            os.close(folder)
    except OSError as error:
        raise RefusedBySystemError(f"{path}: cannot be given its group and mode: {error.strerror}") from None


def place(folder: int, listener: socket.socket, name: str, access: Access) -> os.stat_result:
    """Listen in a folder under `name`, over what is there; returns the socket's status. Raises `OSError`."""
    temporary, status = make(folder, listener, name, access)
    try:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(temporary, dir_fd=folder)
        raise
    return status


def make(folder: int, listener: socket.socket, name: str, access: Access) -> tuple[str, os.stat_result]:
    """Listen in a folder under a temporary name, which is returned with the socket's status. Raises `OSError`.

    Through the folder's descriptor `name` may be longer than a socket's path allows, and the folder cannot be swapped. The
    temporary one is always the same for one `name`, so that what a crash left behind is replaced.
    """
    temporary = f".varstore-companion-{sha256(os.fsencode(name)).hexdigest()[:16]}"
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    # The umask is the whole process's: one that takes the owner's rights would reach a folder being made on a thread.
    before = os.umask(0o077)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{temporary}")
    finally:
        os.umask(before)
    try:
        status = give(folder, temporary, access)
        listener.listen(BACKLOG)
    except OSError:
        os.unlink(temporary, dir_fd=folder)
        raise
    return temporary, status


def give(folder: int, name: str, access: Access) -> os.stat_result:
    """Give a socket its owner, group and mode; returns its status from before. Raises `OSError`.

    By its own descriptor: in a folder that others write to, the name may be swapped.
    """
    itself = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(itself)
        if not stat.S_ISSOCK(status.st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        path = Path(f"/proc/self/fd/{itself}")
        # While it is ours: a root without CAP_FOWNER may not change the mode of somebody else's.
        path.chmod(access.mode)
        if access.uid is not None or access.gid is not None:
            os.chown(path, -1 if access.uid is None else access.uid, -1 if access.gid is None else access.gid)
    finally:
        os.close(itself)
    return status


def _refuse_living(path: Path) -> None:
    """Raise for anything but nothing and a socket that nobody serves any more."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"{path}: exists and is not a socket")
    if is_living(path):
        raise ConfigurationError(f"{path}: another process listens there")


def is_living(path: Path) -> bool:
    """Whether a process listens on the socket at `path`. Raises `OSError` when that cannot be found out."""
    return listener_of(path) is not None


def listener_of(path: Path) -> int | None:
    """The process that began to listen on the socket at `path`; 0 for an unknown one, None when nobody listens.

    Raises `OSError` when that cannot be found out.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return None
        except BlockingIOError:
            return 0  # a full backlog: somebody is there
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(credentials)[0])
