"""Pure: the HTTP of an unmodified varstored, whose requests all have one head and a connection each (varstored, xapidb-lib.c).

A request that has come whole under that head is read without h11, whose state machine takes longer than all else that is done
for a login. Any other is h11's.
"""

import re

_HEAD = re.compile(
    rb"POST / HTTP/1\.1\r\nHost: [!-~]{1,255}\r\nAccept-Encoding: identity\r\nUser-Agent: varstored/[!-~]{1,64}\r\n"
    rb"Connection: close\r\nContent-Type: text/xml\r\nContent-Length: ([0-9]{1,6})\r\n\r\n"
)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


def find_document(begun: bytes) -> tuple[int, int] | None:
    """Where in a connection's bytes its document begins and ends, as far as it has come or not; None for any other head."""
    head = _HEAD.match(begun)
    return None if head is None else (head.end(), head.end() + int(head[1]))


def only_answer(document: bytes) -> bytes:
    """The answer after which the connection ends."""
    return _ANSWER % len(document) + document
