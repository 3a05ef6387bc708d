"""The daemon's log: in the journal's form where standard error is the journal, and with levels that change while it runs."""

import errno
import io
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import IO

from varstore_companion.efi.names import printable, without_data
from varstore_companion.errors import ConfigurationError

log = logging.getLogger(__name__)

ROOT = "varstore_companion"
LINE = 2_000
"""Characters of a line that are kept: longer than any the daemon writes, shorter than a store."""

ROOM = 262_144
"""Bytes of lines that wait for who reads them; what comes beyond is lost, and counted."""
LAST_SECONDS = 1.0
"""For the last lines to be read when the daemon ends."""
_LOST = "%d lines of the log are lost: nobody took them in time"

JOURNAL = "/run/systemd/journal/stdout"
"""journald's socket for standard output and error (systemd-journald.service(8))."""

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "inherit": logging.NOTSET,
}
"""The levels by name. `inherit`: that of the logger above it."""


class OneLine(logging.Formatter):
    """A record is one line, whatever a guest or a toolstack put into its text, without what may be part of a store.

    The lines of a traceback of ours follow it, each behind a bar, so that none of them can be taken for a line of the log.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the standard library's name
        """The line."""
        return f"{record.levelname} {clean(record.message)}"

    def format(self, record: logging.LogRecord) -> str:
        """The line, and what follows it."""
        line, *following = super().format(record).split("\n")
        return "\n".join([line, *(f"| {clean(each)}" for each in following)])


class ForJournal(OneLine):
    """As `OneLine`, each line with its priority in front (sd-daemon(3)), not its level's name. The journal adds the time."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the standard library's name
        """The line."""
        return clean(record.message)

    def format(self, record: logging.LogRecord) -> str:
        """The line, and what follows it."""
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


class UnwaitingHandler(logging.Handler):
    """Sends lines to the socket or pipe `descriptor` and never waits for who reads them, but at the end, for `LAST_SECONDS`.

    Some 280 lines fill the journal's socket: with a journald that hangs on its disk, or a logger behind a pipe that does,
    whoever waits there hangs, too, and here that would be every VM. What is not taken goes with the next line.

    Raises `OSError` for what is neither, and for a pipe that is not ours to open.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            # Opened anew: that it is not waited for would be so for every process that has this open file.
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._own: io.FileIO | socket.socket = io.FileIO(own, "w")
            self._send: Callable[[bytearray], int | None] = self._own.write
        elif stat.S_ISSOCK(mode):
            self._own = socket.socket(fileno=os.dup(descriptor))
            self._send = partial(_send_now, self._own)
        else:
            raise OSError(errno.ENOTSOCK, "neither a socket nor a pipe")
        self._waiting = bytearray()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  a log line's bug ends nothing, as in all handlers
            self.handleError(record)
            return
        self.flush()
        # Once lines are lost, until half of the room is free: one gap, not a hundred.
        if len(self._waiting) + len(line) > (ROOM // 2 if self._lost else ROOM):
            self._lost += 1
            return
        if self._lost:
            gap = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": _LOST, "args": (self._lost,)}
            line = f"{self.format(logging.makeLogRecord(gap))}\n{line}"
            self._lost = 0
        self._waiting += f"{line}\n".encode(errors="backslashreplace")
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it is taken."""
        while self._waiting:
            try:
                sent = self._send(self._waiting)
            except (OSError, ValueError):
                # There is nobody any more who would take the rest of a line, or this is closed.
                self._waiting.clear()
                return
            if sent is None:
                return
            del self._waiting[:sent]

    def close(self) -> None:
        """Send what is taken within `LAST_SECONDS`, and close the descriptor; harmless when repeated."""
        until = time.monotonic() + LAST_SECONDS
        self.flush()
        while self._waiting and (left := until - time.monotonic()) > 0:
            poller = select.poll()
            poller.register(self._own, select.POLLOUT)
            poller.poll(1_000 * left)
            self.flush()
        self._own.close()
        super().close()


def _send_now(connected: socket.socket, data: bytearray) -> int | None:
    try:
        return connected.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


def clean(text: str) -> str:
    """Text for one line: without what does not print, without what may be of a store or a key, and not too long."""
    return without_data(printable(text))[:LINE]


def is_journal(stream: IO[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to `stream` goes to the journal.

    By `JOURNAL_STREAM` (systemd.exec(5)), or by whose socket it is: systemd before 231 does not set that.
    """
    try:
        number = stream.fileno()
        status = os.fstat(number)
        if environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
            return True
        with socket.socket(fileno=os.dup(number)) as peer:
            return bool(peer.getpeername() == JOURNAL)
    except (OSError, ValueError):
        return False


def begin(stream: IO[str]) -> None:
    """Write the log to `stream` from here on."""
    handler: logging.Handler = logging.StreamHandler(stream)
    with suppress(OSError):
        handler = UnwaitingHandler(stream.fileno())
    handler.setFormatter(ForJournal() if is_journal(stream) else OneLine())
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def known() -> dict[str, logging.Logger]:
    """The daemon's loggers by their name without the program's, as `daemon.vm`; the whole of it is the empty name."""
    names = (name.removeprefix(f"{ROOT}.") for name in list(logging.root.manager.loggerDict) if name.startswith(f"{ROOT}."))
    return {"": logging.getLogger(ROOT)} | {name: logging.getLogger(f"{ROOT}.{name}") for name in sorted(names)}


def set_level(name: str, level: str) -> None:
    """Change a logger's level until the daemon ends. Raises `ConfigurationError` for a logger that there is not."""
    loggers = known()
    if name not in loggers:
        allowed = ", ".join(filter(None, loggers))
        raise ConfigurationError(f"there is no logger {printable(name)[:80]!r}: expected one of {allowed}")
    log.info("from here on the log of %s is at level %s", name or "everything", level)
    loggers[name].setLevel(LEVELS[level])


def levels() -> dict[str, str]:
    """The level of the whole log, under the empty name, and of every logger that has one of its own."""
    named = {number: name for name, number in LEVELS.items()}
    own = {name: named[logger.level] for name, logger in known().items() if logger.level}
    return {"": named[logging.getLogger(ROOT).getEffectiveLevel()]} | own
