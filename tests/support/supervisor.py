"""A systemd in small: runs `serve` as a unit of Type=notify with a descriptor store, and restarts it."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping

from support.notify import Manager
from support.processes import python_environment
from support.serve import SECONDS, Home, Serve

_AS_A_UNIT = """
import os, sys
count = int(sys.argv[1])
given = [int(each) for each in sys.argv[2].split(",") if each]
high = [os.dup(each) for each in given]
while high and min(high) < 3 + count:
    high = [os.dup(each) for each in high]
for index, each in enumerate(high):
    os.dup2(each, 3 + index)
os.closerange(3 + count, max([2 + count, *high, *given]) + 1)
os.environ["LISTEN_PID"] = str(os.getpid())
del sys.argv[1:3]
from varstore_companion.cli.main import run
run()
"""
"""Puts the descriptors where systemd puts them, and says so under the process's own number."""


class NotStartedError(Exception):
    """The daemon ended before it was ready: its exit code and its log."""


class Supervisor:
    """One unit. `activated`: the socket unit's listening sockets, by name; they outlive every daemon."""

    def __init__(self, home: Home, *more: object, activated: Mapping[str, socket.socket] | None = None) -> None:
        self.home = home
        self.manager = Manager.at(home.folder / "notify")
        self.watchdog_usec: int | None = None
        self._command = home.command(*more)[home.command().index("serve") :]
        self._activated = dict(activated or {})
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.serve: Serve | None = None

    def start(self) -> Serve:
        """Start a daemon with everything that is kept; returns once it has said READY=1."""
        ready = len(self.manager.said("READY"))
        passed = [(name, each.fileno()) for name, each in self._activated.items()] + self.manager.store
        descriptors = [descriptor for _, descriptor in passed]
        environment = python_environment() | {"NOTIFY_SOCKET": self.manager.address}
        if passed:
            environment |= {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join(name for name, _ in passed)}
        if self.watchdog_usec is not None:
            environment["WATCHDOG_USEC"] = str(self.watchdog_usec)
        command = [sys.executable, "-c", _AS_A_UNIT, str(len(passed)), ",".join(map(str, descriptors)), *self._command]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            pass_fds=descriptors,
        )
        self.serve = Serve(process)
        self.wait_for(lambda: len(self.manager.said("READY")) > ready or process.poll() is not None)
        if process.poll() is not None:
            serve = self.serve
            raise NotStartedError(self.ended(), "".join(serve.lines))
        return self.serve

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Wait until something is so; it is looked at with each datagram, and twenty times a second."""
        deadline = time.monotonic() + SECONDS
        with self._changed:
            while not what():
                assert time.monotonic() < deadline
                self._changed.wait(0.05)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Serve:
        """End the daemon as `systemctl stop` does; what is kept is kept on."""
        ended = self.serve
        assert ended is not None
        ended.process.send_signal(number)
        code = self.ended()
        assert code == (0 if number is signal.SIGTERM else -number), "".join(ended.lines)
        return ended

    def ended(self) -> int:
        """Wait for the end of the daemon; returns its exit code."""
        assert self.serve is not None
        serve, self.serve = self.serve, None
        code = serve.wait()
        assert serve.process.stderr is not None
        serve.process.stderr.close()
        return code

    def kept(self) -> list[str]:
        """The names of what is kept."""
        return [name for name, _ in self.manager.store]

    def close(self) -> None:
        """End everything."""
        if self.serve is not None:
            self.serve.process.kill()
            self.ended()
        self.manager.datagrams.shutdown(socket.SHUT_RD)
        self._reader.join(SECONDS)
        self.manager.close()

    def _read(self) -> None:
        while True:
            news = self.manager.take()
            with self._changed:
                self._changed.notify_all()
            if not news.fields:
                return
