"""A guard that is a process of its own, as xapi-guard is: it hands calls on to the toolstack, and dies with them."""

import subprocess
import sys
from pathlib import Path

CODE = r"""
import os, select, signal, socket, struct, sys, threading
path, for_daemon, for_varstored = sys.argv[1:]
parent = os.getppid()

def end(*_):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    os._exit(0)

def toolstack_for(client):
    peer = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    toolstack = socket.socket(socket.AF_UNIX)
    toolstack.connect(for_varstored if peer == parent else for_daemon)
    return toolstack

def hand_on(client, toolstack):
    begin = client.recv(1)
    if begin != b"P":
        return
    toolstack.sendall(begin)
    other = {client: toolstack, toolstack: client}
    while True:
        for each in select.select([client, toolstack], [], [])[0]:
            data = each.recv(65536)
            if not data:
                return
            other[each].sendall(data)

def serve(client, toolstack):
    with client, toolstack:
        try:
            hand_on(client, toolstack)
        except OSError:
            pass

def watch():
    sys.stdin.buffer.read()
    os._exit(1)

signal.signal(signal.SIGTERM, end)
threading.Thread(target=watch, daemon=True).start()
try:
    os.unlink(path)
except FileNotFoundError:
    pass
try:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(5)
    os.chmod(path, 0o660)
except FileNotFoundError:
    os._exit(0)
while True:
    client = listener.accept()[0]
    try:
        toolstack = toolstack_for(client)
    except OSError:
        client.close()
        continue
    threading.Thread(target=serve, args=(client, toolstack), daemon=True).start()
"""
"""It removes what is at its path, listens there, and then gives it its mode. What the daemon asks goes to one socket of the
toolstack, what the process that started it asks, whose the varstoreds are, to another one, each in the order in which it came.
It speaks nothing but HTTP, and ends with the process that started it."""


class GuardProcess:
    """A guard that serves `path` from soon on. It hands on to the sockets `for_daemon` and `for_varstored`."""

    def __init__(self, path: Path, for_daemon: Path, for_varstored: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CODE, path, for_daemon, for_varstored],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def kill(self) -> None:
        """Its socket stays, and nobody listens there."""
        self._process.kill()
        self._gone()

    def end(self) -> None:
        """It removes what is at its path, whosever that is, as at the end of its VM."""
        self._process.terminate()
        self._gone()

    def _gone(self) -> None:
        assert self._process.stdin is not None
        self._process.wait()
        self._process.stdin.close()
