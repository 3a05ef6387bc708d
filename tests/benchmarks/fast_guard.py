"""Guards that do what any guard must, and nothing more: one connection at a time, with no library but those of C.

They read the head for the length, parse the document with expat, decode the store that a write brings, and keep it. A
real one goes on from there: it asks xapi, which writes its database.
"""

import os
import re
import select
import socket
import sys
from binascii import a2b_base64, b2a_base64
from pathlib import Path
from xml.parsers import expat

from benchmarks import stores
from varstore_companion.toolstack.xmlrpc import Success, Value, build_response

QUEUE = 64
"""A guard's own has two places, in which 200 clients of one thread would wait for each other's retries."""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")


def _http(value: Value) -> bytes:
    body = build_response(Success(value))
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


_ANSWERS = {
    "session.login_with_password": _http("DUMMYSESSION"),
    "VM.get_by_uuid": _http("DUMMYVM"),
    "VM.get_secureboot_certificates_state": _http("update_available"),
    "VM.set_NVRAM_EFI_variables": _http(None),
    "VM.set_NVRAM_EFI_variables_v2": _http(None),
    "session.logout": _http(None),
}


def main(folder: Path, count: int) -> None:
    """Serve `count` guards' sockets."""
    held = [stores.store()] * count
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
    method, *values = _texts(request[request.index(b"\r\n\r\n") + 4 :])
    if method == "VM.get_NVRAM":
        connection.sendall(_http({"EFI-variables": b2a_base64(store, newline=False).decode()}))
    elif method.startswith("VM.set_NVRAM"):
        store = a2b_base64(values[2])
        connection.sendall(_ANSWERS[method])
    else:
        connection.sendall(_ANSWERS[method])
    return store


def _texts(document: bytes) -> list[str]:
    """The method's name, then the texts of its parameters."""
    texts: list[str] = []
    parts: list[str] = []

    def end(_tag: str) -> None:
        if parts:
            texts.append("".join(parts))
            parts.clear()

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.CharacterDataHandler = parts.append
    parser.EndElementHandler = end
    parser.Parse(document, True)  # noqa: FBT003  expat takes it by position only
    return texts
