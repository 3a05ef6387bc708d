"""Whose fault it was, and what is to be sent. protocol/README.md "Errors".

Nothing else leaves this package: any other exception is a bug.
"""

from enum import IntEnum
from typing import Final

from varstore_companion.errors import CompanionError, MalformedError


class ErrorCode(IntEnum):
    """The stable numbers of an ERROR frame. A peer may send others: its `try_again` says what to do then."""

    BAD_FRAME = 1
    UNSUPPORTED_VERSION = 2
    HELLO_REQUIRED = 3
    WRONG_VM = 4
    UNKNOWN_TYPE = 5
    BAD_MESSAGE = 6
    UNSUPPORTED_FIELD = 7
    BUSY = 8
    NOT_A_STORE = 9
    STORE_OVER_LIMIT = 10
    TOOLSTACK_UNAVAILABLE = 11
    TOOLSTACK_REFUSED = 12
    UNCLEAR = 13
    UNKNOWN_VM = 14
    NOT_ALLOWED = 15
    NOT_HERE = 16
    SHUTTING_DOWN = 17
    INTERNAL = 18
    INVALID_ARGUMENT = 19
    CONFLICT = 20
    TIMED_OUT = 21

    @property
    def ends(self) -> bool:
        """Whether the server closes the connection after this error. Any error in answer to HELLO does so too."""
        return self in ENDING

    @property
    def try_again(self) -> bool:
        """Whether the same request may succeed later as it is."""
        return self in PASSING


ENDING: Final = frozenset(
    {
        ErrorCode.BAD_FRAME,
        ErrorCode.UNSUPPORTED_VERSION,
        ErrorCode.HELLO_REQUIRED,
        ErrorCode.WRONG_VM,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.TIMED_OUT,
    }
)
"""The codes with `ends`."""

PASSING: Final = frozenset({ErrorCode.BUSY, ErrorCode.TOOLSTACK_UNAVAILABLE, ErrorCode.SHUTTING_DOWN})
"""The codes with `try_again`."""


class ProtocolError(CompanionError):
    """The framed protocol was broken, by one side or the other."""


class LocalProtocolError(ProtocolError):
    """The caller's fault: it asked for something that the protocol does not allow now. Nothing was changed."""


class RemoteProtocolError(ProtocolError):
    """The peer's fault, and the connection is over. The reaction: send `reply` if it is not empty, then close.

    `code` says what was wrong; `reply` is a server's whole ERROR frame, and empty for a client.
    """

    def __init__(self, code: ErrorCode, text: str, *, reply: bytes = b"") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.reply = reply

    def __str__(self) -> str:
        return f"{self.code.name}: {self.text}"


class HeaderError(MalformedError):
    """A frame's header that cannot be followed: where the next frame begins is not known. The reaction: close.

    `offset` counts from the frame's first byte.
    """

    code = ErrorCode.BAD_FRAME


class HeaderVersionError(HeaderError):
    """A frame of a version that is not in force on this connection. The reaction: close."""

    code = ErrorCode.UNSUPPORTED_VERSION


class PayloadError(MalformedError):
    """A payload that its message cannot be read from; the frame around it is whole. The reaction: refuse, go on.

    `offset` counts from the payload's first byte; `code` is the error to answer.
    """

    code = ErrorCode.BAD_MESSAGE


class UnsupportedFieldError(PayloadError):
    """A field that must be understood and is not known here."""

    code = ErrorCode.UNSUPPORTED_FIELD


class StoreOverLimitError(PayloadError):
    """A store larger than `MAX_STORE`."""

    code = ErrorCode.STORE_OVER_LIMIT
