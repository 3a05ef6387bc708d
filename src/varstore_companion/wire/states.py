"""What each side may send and receive, and when. protocol/README.md "States".

A pair that is not in a table is a protocol error: of the caller's in `SEND`, of the peer's in `RECEIVE`.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class _Member(Enum):
    """A member is one object, and hashed as one: Enum's own hash is a call of Python for every key of every look-up."""

    __hash__ = object.__hash__


class Role(_Member):
    """Which side a connection is on."""

    CLIENT = "client"
    SERVER = "server"


class State(_Member):
    """Where a connection stands, as one side sees it."""

    NEW = "new"
    """Nothing was said."""
    GREETED = "greeted"
    """HELLO is under way or waits for its answer."""
    OPEN = "open"
    """Requests and answers."""
    DRAINING = "draining"
    """The client has ended its side; the server may still answer what it owes."""
    CLOSED = "closed"
    """Nothing more is sent or read."""


class Signal(_Member):
    """What passes over a connection, as far as the states are concerned."""

    HELLO = "HELLO"
    WELCOME = "HELLO's answer"
    REQUEST = "request"
    ANSWER = "answer"
    ERROR = "error"
    LAST_ERROR = "last error"
    """An error after which the server closes: request id 0, an ending code, or in answer to HELLO."""
    END = "end of stream"


Table = Mapping[tuple[State, Signal], State]

_SERVER_RECEIVES: Final[Table] = {
    (State.NEW, Signal.HELLO): State.GREETED,
    (State.NEW, Signal.END): State.CLOSED,
    (State.OPEN, Signal.REQUEST): State.OPEN,
    (State.OPEN, Signal.END): State.DRAINING,
}
_SERVER_SENDS: Final[Table] = {
    (State.NEW, Signal.LAST_ERROR): State.CLOSED,
    (State.GREETED, Signal.WELCOME): State.OPEN,
    (State.GREETED, Signal.LAST_ERROR): State.CLOSED,
    (State.OPEN, Signal.ANSWER): State.OPEN,
    (State.OPEN, Signal.ERROR): State.OPEN,
    (State.OPEN, Signal.LAST_ERROR): State.CLOSED,
    (State.DRAINING, Signal.ANSWER): State.DRAINING,
    (State.DRAINING, Signal.ERROR): State.DRAINING,
    (State.DRAINING, Signal.LAST_ERROR): State.CLOSED,
}
_CLIENT_SENDS: Final[Table] = {
    (State.NEW, Signal.HELLO): State.GREETED,
    (State.OPEN, Signal.REQUEST): State.OPEN,
}
_CLIENT_RECEIVES: Final[Table] = {
    (State.NEW, Signal.LAST_ERROR): State.CLOSED,
    (State.NEW, Signal.END): State.CLOSED,
    (State.GREETED, Signal.WELCOME): State.OPEN,
    (State.GREETED, Signal.LAST_ERROR): State.CLOSED,
    (State.GREETED, Signal.END): State.CLOSED,
    (State.OPEN, Signal.ANSWER): State.OPEN,
    (State.OPEN, Signal.ERROR): State.OPEN,
    (State.OPEN, Signal.LAST_ERROR): State.CLOSED,
    (State.OPEN, Signal.END): State.CLOSED,
}

RECEIVE: Final = MappingProxyType({Role.SERVER: _SERVER_RECEIVES, Role.CLIENT: _CLIENT_RECEIVES})
SEND: Final = MappingProxyType({Role.SERVER: _SERVER_SENDS, Role.CLIENT: _CLIENT_SENDS})

READING: Final = MappingProxyType({role: frozenset(state for state, _ in table) for role, table in RECEIVE.items()})
"""The states in which a side reads at all: a server leaves what follows HELLO where it is until it has answered."""
