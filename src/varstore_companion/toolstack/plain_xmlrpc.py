"""Pure: the XML-RPC of every write, read without an XML parser: as varstored and xapi-guard write it, byte for byte.

A text is plain when each of its characters stands for itself in XML, as in base64. Documents of one form with plain texts in
it say to any parser what they say here; all others are left to `xmlrpc`, whose parser takes a tenth of a write's time.
"""

import re
from binascii import Error as Base64Error
from dataclasses import dataclass

from pybase64 import b64decode

_CHARACTERS = bytes(set(range(0x20, 0x7F)) - set(b"&<>"))
_CALL = re.compile(
    rb"<\?xml version='1\.0'\?><methodCall><methodName>([A-Za-z0-9_.]{1,64})</methodName><params><param><value><string>"
)
_NEXT = b"</string></value></param><param><value><string>"
_CALL_END = b"</string></value></param></params></methodCall>"
_MOST = 16
"""Parameters. varstored's own calls have six at most."""
LONG = 1_024
"""Characters of a text that is looked at only once. The smallest store that a VM has is longer."""

DONE = (
    b'<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value>'
    b"</member><member><name>Value</name><value><nil/></value></member></struct></value></param></params></methodResponse>"
)
"""A guard's answer to each call that only changes something."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain text as bytes, for a parameter that is only copied."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Base64:
    """A plain text that is strict base64, and the bytes that it says."""

    text: bytes
    data: bytes


def is_plain(text: bytes) -> bool:
    """Whether a text is plain."""
    # To see that nothing is left is an eighth of `isprintable`, a tenth of a search.
    return not text.translate(None, _CHARACTERS)


def read_call(document: bytes) -> tuple[str, tuple[str | Base64, ...]] | None:
    """The method and the parameters of a call as varstored writes it, all of them plain strings; None for any other.

    A parameter of `LONG` characters or more is base64, or the call is any other: that it can be decoded shows that it is plain.
    """
    begin = _CALL.match(document)
    if begin is None:
        return None
    parameters: list[str | Base64] = []
    at = begin.end()
    while len(parameters) < _MOST:
        # A plain text has none in it. To look for one byte is an eighth of looking for what follows.
        end = document.find(b"<", at)
        parameter = _parameter(document[at:end])
        if parameter is None:
            return None
        parameters.append(parameter)
        if document.startswith(_NEXT, end):
            at = end + len(_NEXT)
        elif document[end:] == _CALL_END:
            return begin[1].decode("ascii"), tuple(parameters)
        else:
            return None
    return None


def _parameter(text: bytes) -> str | Base64 | None:
    if len(text) >= LONG:
        try:
            return Base64(text, b64decode(text, validate=True))
        except Base64Error:
            return None
    return text.decode("ascii") if is_plain(text) else None
