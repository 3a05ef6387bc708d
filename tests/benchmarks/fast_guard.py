"""Guards that cost next to nothing: they find what they need in a request's bytes, and answer one connection at a time."""

import os
import re
import select
import socket
import sys
from base64 import b64encode
from pathlib import Path

from benchmarks import stores
from varstore_companion.toolstack.xmlrpc import Success, Value, build_response

QUEUE = 64
"""A guard's own has two places, in which 200 clients of one thread would wait for each other's retries."""
_METHOD = re.compile(rb"<methodName>([^<]*)")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")
_DIGITS = re.compile(rb"[A-Za-z0-9+/=]{1000,}")


def _http(value: Value) -> bytes:
    body = build_response(Success(value))
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


_ANSWERS = {
    b"session.login_with_password": _http("DUMMYSESSION"),
    b"VM.get_by_uuid": _http("DUMMYVM"),
    b"VM.get_secureboot_certificates_state": _http("update_available"),
    b"VM.set_NVRAM_EFI_variables": _http(None),
    b"VM.set_NVRAM_EFI_variables_v2": _http(None),
    b"session.logout": _http(None),
}


def main(folder: Path, count: int) -> None:
    """Serve `count` guards' sockets."""
    held = [b64encode(stores.store())] * count
    listeners: dict[int, tuple[int, socket.socket]] = {}
    waiting = select.epoll()
    for number in range(count):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(folder / f"guard-{number}"))
        listener.listen(QUEUE)
        listeners[listener.fileno()] = number, listener
        waiting.register(listener, select.EPOLLIN)
    sys.stderr.write("ready\n")
    while True:
        for descriptor, _ in waiting.poll():
            number, listener = listeners[descriptor]
            with listener.accept()[0] as connection:
                held[number] = _serve(connection, held[number])


def _serve(connection: socket.socket, store: bytes) -> bytes:
    """Answer one request; returns the store after it."""
    request = b""
    wanted = 1
    while len(request) < wanted:
        data = connection.recv(262_144)
        if not data:
            return store
        request += data
        end = request.find(b"\r\n\r\n")
        length = _LENGTH.search(request, 0, max(end, 0) + 2)
        wanted = len(request) + 1 if end < 0 or length is None else end + 4 + int(length[1])
    method = _METHOD.search(request)
    assert method is not None
    if method[1] == b"VM.get_NVRAM":
        connection.sendall(_http({"EFI-variables": store.decode()}))
        return store
    connection.sendall(_ANSWERS[method[1]])
    written = _DIGITS.search(request) if b"set_NVRAM" in method[1] else None
    return store if written is None else written[0]
