"""Listening sockets that outlive the process: systemd keeps them, and whoever connects meanwhile waits for the next daemon."""

import itertools
import logging
import os
import re
import socket
import stat
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from varstore_companion.daemon import listen
from varstore_companion.daemon.listen import Access, Bound
from varstore_companion.daemon.systemd import Passed, Service

log = logging.getLogger(__name__)

LONGEST_NAME = 46
"""Characters. All names are passed to the next daemon in one variable, for which the system has 128 KiB."""
_NAME = re.compile(r"vsc-([0-9a-f]{16})-([0-9a-f]{1,8})-([0-9a-f]{1,16})", re.ASCII)


def name_of(bound: Bound) -> str:
    """The name under which a socket is kept: a digest of its path, which need be neither short nor ASCII, and its file.

    A socket does not say which file leads to it by now, since it was renamed; and a path does not say whether it leads to
    this socket still. As long as the socket lives, the system gives its file's number to no other file.
    """
    return f"vsc-{_digest(bound.path)}-{bound.device:x}-{bound.inode:x}"


class Kept:
    """The sockets that systemd passed, and those that it keeps. Without systemd there are none.

    Whoever takes one out serves it. What is left when all are attached belongs to nobody: `close_rest`.
    """

    def __init__(self, service: Service | None = None, passed: Iterable[Passed] = ()) -> None:
        self._service = service or Service()
        self._stored: dict[str, list[Passed]] = {}
        self._others: list[Passed] = []
        for each in passed:
            known = _NAME.fullmatch(each.name)
            (self._others if known is None else self._stored.setdefault(known[1], [])).append(each)
        self._held: set[str] = set()
        self._activated: set[str] = set()

    def take(self, path: Path, access: Access | None) -> Bound | None:
        """The socket that the last daemon had at `path`, if it is there, listens and is what the path leads to still.

        `access`: given to it again; None leaves it as it is. Raises `RefusedBySystemError`.
        """
        candidates = self._stored.get(_digest(path), [])
        for each in candidates:
            device, inode = each.name.split("-")[2:]
            bound = Bound(each.socket, path, int(device, 16), int(inode, 16))
            if _listens(each.socket) and bound.is_in_place():
                if access is not None:
                    listen.give_again(bound, access)
                candidates.remove(each)
                self._held.add(each.name)
                return bound
        return None

    def take_activated(self, path: Path) -> Bound | None:
        """The socket that a socket unit made at `path`; its mode and its file are the unit's."""
        try:
            found = path.lstat()
        except OSError:
            return None
        for each in self._others:
            if stat.S_ISSOCK(found.st_mode) and _listens(each.socket) and _is_bound_to(each.socket, path):
                self._others.remove(each)
                bound = Bound(each.socket, path, found.st_dev, found.st_ino)
                self._activated.add(name_of(bound))
                return bound
        return None

    def holds(self, bound: Bound) -> bool:
        """Whether the socket stays when this process ends, so that its file has to stay, too."""
        name = name_of(bound)
        return name in self._held or name in self._activated

    async def keep(self, bound: Bound) -> None:
        """Have a socket kept from now on; nothing happens when it is already, or when there is nobody to keep it.

        Nor when its path leads elsewhere: what is interposed before there is a guard must not be taken for one by the next.
        """
        if self._service.has_manager and not self.holds(bound) and bound.is_in_place():
            self._held.add(name_of(bound))
            await self._service.store(name_of(bound), bound.socket)

    async def forget(self, bound: Bound) -> None:
        """Have a socket kept no longer."""
        name = name_of(bound)
        if name in self._held:
            self._held.remove(name)
            await self._service.remove(name)

    async def close_rest(self) -> None:
        """Close what nobody has taken, also where systemd has it."""
        for each in itertools.chain(self._others, *self._stored.values()):
            log.warning("a socket from systemd that is nobody's any more is closed: %s", each.name or "without a name")
            each.socket.close()
            if _NAME.fullmatch(each.name):
                await self._service.remove(each.name)
        self._others.clear()
        self._stored.clear()


def _digest(path: Path) -> str:
    return sha256(os.fsencode(path)).hexdigest()[:16]


def _listens(each: socket.socket) -> bool:
    def option(number: int) -> int:
        return each.getsockopt(socket.SOL_SOCKET, number)

    return each.family == socket.AF_UNIX and option(socket.SO_TYPE) == socket.SOCK_STREAM and option(socket.SO_ACCEPTCONN) == 1


def _is_bound_to(each: socket.socket, path: Path) -> bool:
    name = each.getsockname()
    if not isinstance(name, str) or Path(name).name != path.name:
        return False
    try:
        return Path(name).parent.samefile(path.parent)
    except OSError:
        return False
