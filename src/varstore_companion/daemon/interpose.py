"""Taking over the socket that xapi-guard serves for a VM, and giving it back: a few system calls on one folder.

PATH is where varstored connects. While it leads to us, the guard's own socket stands beside it, under PATH's name and `BESIDE`,
and is the VM's upstream. Nobody but us uses that name.

Taking over (`prepare`, the list of attachments saved, `Taking.switch`), and where a crash after each step leaves PATH:

| step | PATH leads to | who mends it |
|---|---|---|
| 1. our socket listens under a temporary name, with the guard's owner, group and mode | the guard | nobody has to |
| 2. it is renamed to the name beside PATH; what a crash left there is gone | the guard | nobody has to |
| 3. the list of attachments is saved, this one in it | the guard | the next start takes it over |
| 4. the two names are exchanged, in one step | us | the next start: nobody listens at PATH, the guard is beside it |

The list comes before the exchange, since after it a daemon that does not know of PATH would leave it dead; and as late as it
can, so that what fails has failed before it. A link and a rename would be free of gaps as well, but lose the socket of a guard
that makes PATH anew between the look and the rename: an exchange puts aside whatever is there, and loses nothing.

Giving back: the names are exchanged, then ours is removed from beside PATH, then the list is saved. A crash before the list is
saved leaves PATH with the guard, and the next start takes it over again: nobody had been told that it was given back.

A guard that restarts removes PATH and makes it anew. Then the socket at PATH is the guard, and what stands beside it is stale.
A living socket at PATH goes before everything else; when another process listens beside it, another daemon has taken PATH over,
and PATH is left alone. Where PATH is dead, or gone, the guard is the one beside it, if that lives.
"""

import errno
import os
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from varstore_companion.daemon.listen import Access, Bound, give, is_living, listener_of, make, place
from varstore_companion.daemon.rename import Flag, rename
from varstore_companion.errors import ConfigurationError, RefusedBySystemError
from varstore_companion.wire.limits import MAX_PATH

BESIDE = ".interposed"
"""What the name of a guard's socket ends in while PATH leads to us."""


def beside(path: Path) -> Path:
    """Where the guard's socket goes. Raises `ConfigurationError` for a path that cannot be interposed, whatever is there."""
    most = MAX_PATH - len(BESIDE)
    if not path.is_absolute() or len(os.fsencode(path)) > most:
        raise ConfigurationError(f"{path}: expected an absolute path of at most {most} bytes, so that {BESIDE} fits behind it")
    if path.name.endswith(BESIDE):
        raise ConfigurationError(f"{path}: a name in {BESIDE} is that of a socket which is interposed already")
    return path.with_name(path.name + BESIDE)


class How(Enum):
    """How PATH comes to lead to us."""

    EXCHANGE = "a guard's socket is there: it changes places with ours, which stands beside it"
    REPLACE = "a dead socket is there, and the guard is beside it: ours takes its place"
    CREATE = "nothing is there, and the guard is beside it"
    WAIT = "nothing is there, and no guard: ours has no name until one comes, since beside it is where the guard is called"


class Taking:
    """Our socket, which listens under another name than PATH until `switch`. One of `switch` and `abandon` is called.

    `bound`: the socket as it is after `switch`; whoever takes it closes it. `how`: what `switch` does.
    """

    def __init__(self, folder: int, bound: Bound, at: str, how: How, access: Access) -> None:
        self.bound = bound
        self.how = how
        self._folder = folder
        self._at = at
        self._access = access

    def switch(self) -> None:
        """Have PATH lead to us, in one step. Raises `ConfigurationError`, with PATH as it was, when it changed meanwhile."""
        name = self.bound.path.name
        try:
            match self.how:
                case How.EXCHANGE:
                    self._exchange(name)
                case How.REPLACE:
                    rename(self._folder, self._at, name, Flag.EXCHANGE)
                    with suppress(OSError):  # it is in nobody's way, and is replaced the next time
                        os.unlink(self._at, dir_fd=self._folder)
                case How.CREATE:
                    rename(self._folder, self._at, name, Flag.NOREPLACE)
                case How.WAIT:
                    os.unlink(self._at, dir_fd=self._folder)
        except OSError as error:
            self.abandon()
            raise RefusedBySystemError(f"{self.bound.path}: cannot be interposed: {error.strerror}") from None
        os.close(self._folder)

    def abandon(self) -> None:
        """Leave PATH as it is, and no trace of ours."""
        with suppress(OSError):
            found = os.stat(self._at, dir_fd=self._folder, follow_symlinks=False)
            if _identity(found) == (self.bound.device, self.bound.inode):
                os.unlink(self._at, dir_fd=self._folder)
        os.close(self._folder)
        self.bound.socket.close()

    def _exchange(self, name: str) -> None:
        rename(self._folder, self._at, name, Flag.EXCHANGE)
        try:
            put_aside = os.stat(self._at, dir_fd=self._folder, follow_symlinks=False)
        except OSError:
            rename(self._folder, self._at, name, Flag.EXCHANGE)
            raise
        if not stat.S_ISSOCK(put_aside.st_mode):
            rename(self._folder, self._at, name, Flag.EXCHANGE)
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        # A guard first listens and then gives its path owner, group and mode. What it gave before the exchange shows on its
        # socket now, and what it gives after it goes to ours.
        access = _access(put_aside)
        if access != self._access:
            with suppress(OSError):
                give(self._folder, name, access)


def prepare(path: Path, ours: Collection[tuple[int, int]], *, returning: bool = False) -> Taking:
    """Make our socket for PATH, and find out how PATH comes to lead to it. Nothing changes at PATH.

    `ours`: device and inode of each socket that this daemon serves. `returning`: PATH is known to have been interposed, so
    that it is made ours again even while there is no guard.

    Raises `ConfigurationError`, with nothing changed, for a path without a guard, and for one that is no socket or ours.
    """
    name, aside = path.name, beside(path).name
    with _named(path):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        folder = _open_folder(path)
        with _named(path):
            how, access = _how(path, _look(folder, name), _look(folder, aside), ours, returning=returning)
            if how is How.EXCHANGE:
                at, status = aside, place(folder, listener, aside, access)
            else:
                at, status = make(folder, listener, aside, access)
    except BaseException:  # whatever it is, no descriptor stays open
        listener.close()
        if folder >= 0:
            os.close(folder)
        raise
    return Taking(folder, Bound(listener, path, status.st_dev, status.st_ino), at, how, access)


def give_back(path: Path, bound: Bound | None) -> bool:
    """Have PATH lead to the guard again, in one step, and remove our socket; False when there was nothing of ours.

    `bound`: what is served there; None when nothing is, and only what a crash left is to be mended. Raises
    `ConfigurationError`.
    """
    name, aside = path.name, beside(path).name
    if not os.path.lexists(path.parent):
        # The domain is gone, and its folder with it.
        return bound is not None
    folder = _open_folder(path)
    try:
        with _named(path):
            there, put_aside = _look(folder, name), _look(folder, aside)
            ours = None if bound is None else (bound.device, bound.inode)
            is_ours = bound is not None and there.identity == ours
            if not put_aside.is_socket:
                if is_ours:
                    os.unlink(name, dir_fd=folder)
                return is_ours
            if not (there.is_absent or there.is_socket):
                raise ConfigurationError(f"{path}: exists and is not a socket: the guard stays beside it")
            if there.is_absent and put_aside.is_living:
                rename(folder, aside, name, Flag.NOREPLACE)
                return True
            is_dead = there.is_socket and not there.is_living
            if is_ours or (is_dead and put_aside.is_living):
                rename(folder, aside, name, Flag.EXCHANGE)
                if _identity(os.stat(aside, dir_fd=folder, follow_symlinks=False)) != there.identity:
                    # A guard has made PATH anew since the look: that one is the guard.
                    rename(folder, aside, name, Flag.EXCHANGE)
            elif bound is None and put_aside.is_living:
                return False
            os.unlink(aside, dir_fd=folder)
            return is_ours or is_dead or bound is not None
    finally:
        os.close(folder)


def is_left(path: Path) -> bool:
    """Whether something stands where a guard's socket is put that was at `path`."""
    return os.path.lexists(path.with_name(path.name + BESIDE))


def has_guard(path: Path, bound: Bound | None) -> bool:
    """Whether the VM that `bound` serves at `path` may write to its guard once `bound` is gone; None where nothing is served.

    The guard whose socket was put beside it lives, or a new one has made `path` anew, or either is away and may come back. One
    that ends with its VM removes `path` (xapi-guard's `depriv_varstored_destroy`), and xenopsd then the folder.
    """
    if bound is not None and bound.is_in_place():
        return is_left(path)
    try:
        return path.is_socket() or is_living(beside(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # No descriptor left, or no memory: what may be there must not be written past.
        return True


def is_displaced(bound: Bound) -> bool:
    """Whether another living socket is where `bound` was: a guard has made PATH anew."""
    if bound.is_in_place():
        return False
    try:
        return stat.S_ISSOCK(bound.path.lstat().st_mode) and is_living(bound.path)
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class _Found:
    """What a name leads to. `status`: None where there is nothing; `listener`: as `listener_of`."""

    status: os.stat_result | None
    listener: int | None = None

    @property
    def is_living(self) -> bool:
        return self.listener is not None

    @property
    def is_absent(self) -> bool:
        return self.status is None

    @property
    def is_socket(self) -> bool:
        return self.status is not None and stat.S_ISSOCK(self.status.st_mode)

    @property
    def identity(self) -> tuple[int, int] | None:
        return None if self.status is None else _identity(self.status)


def _look(folder: int, name: str) -> _Found:
    try:
        itself = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return _Found(None)
    try:
        status = os.fstat(itself)
        if not stat.S_ISSOCK(status.st_mode):
            return _Found(status)
        return _Found(status, listener_of(Path(f"/proc/self/fd/{itself}")))
    finally:
        os.close(itself)


def _how(path: Path, there: _Found, aside: _Found, ours: Collection[tuple[int, int]], *, returning: bool) -> tuple[How, Access]:
    if there.identity in ours:
        raise ConfigurationError(f"{path}: this daemon itself serves that socket")
    for name, found in ((path, there), (beside(path), aside)):
        if not (found.is_absent or found.is_socket):
            raise ConfigurationError(f"{name}: exists and is not a socket")
    if there.is_living and aside.is_living and (there.listener != aside.listener or not there.listener):
        # No guard leaves its former socket to another process: to put it over that one would be the end of the guard.
        both = f"process {there.listener} listens there, and process {aside.listener} beside it"
        raise ConfigurationError(f"{path}: {both}: another daemon has taken it over")
    if there.status is not None and (there.is_living or (returning and not aside.is_living)):
        return How.EXCHANGE, _access(there.status)
    if aside.status is not None and aside.is_living:
        return (How.CREATE, _access(aside.status)) if there.status is None else (How.REPLACE, _access(there.status))
    if returning:
        return How.WAIT, Access(0o600)
    raise ConfigurationError(f"{path}: no guard listens there")


def _access(status: os.stat_result) -> Access:
    return Access(stat.S_IMODE(status.st_mode), status.st_gid, status.st_uid)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_folder(path: Path) -> int:
    try:
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedBySystemError(f"{path.parent}: {error.strerror}") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have system calls that fail say which path they were for."""
    try:
        yield
    except OSError as error:
        raise RefusedBySystemError(f"{path}: cannot be interposed: {error.strerror}") from None
