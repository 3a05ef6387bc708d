"""Every message as a frozen value. protocol/README.md "Messages".

Each field is declared once, beside its type: its tag and its kind. A field with a default is optional. `codec` reads
and builds them all from these declarations.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Annotated, ClassVar
from uuid import UUID

from varstore_companion.wire.errors import StoreOverLimitError
from varstore_companion.wire.fields import U16, U64, Choice, Flag, Kind, Number, Octets, Path, Text, Uuid
from varstore_companion.wire.frames import ANSWER_BIT
from varstore_companion.wire.limits import (
    MAX_CURSOR,
    MAX_GID,
    MAX_JSON,
    MAX_LIST,
    MAX_MODE,
    MAX_NAME,
    MAX_PATH,
    MAX_PAYLOAD,
    MAX_PING,
    MAX_REQUESTS,
    MAX_REQUESTS_BOUND,
    MAX_STORE,
    MAX_TEXT,
    MIN_MAX_PAYLOAD,
    VERSION,
)


class Socket(Enum):
    """Where a request may be made: on a VM's own socket, or on root's control socket."""

    __hash__ = object.__hash__  # as the states'
    VM = "vm"
    CONTROL = "control"


class ClientKind(IntEnum):
    """Who says HELLO. For the log: nothing is granted by it."""

    VARSTORED = 1
    TOOL = 2
    OPERATOR = 3


class Reason(IntEnum):
    """Why the store is read. Only `BOOT`, a cold boot, may bring an update."""

    BOOT = 1
    RESUME = 2
    TOOL = 3


class Presence(IntEnum):
    """Whether there is a store. `ABSENT`: the toolstack said that the key is absent, this is the first boot."""

    ABSENT = 0
    PRESENT = 1


class Outcome(IntEnum):
    """What became of the update that was asked for. `NOTHING_TO_DO` ends the mark, `FAILED` keeps it."""

    NOT_ASKED = 0
    UPDATED = 1
    NOTHING_TO_DO = 2
    FAILED = 3


class Verdict(IntEnum):
    """The verdict on a write, as the toolstack was or will be told."""

    UNSPECIFIED = 0
    YES = 1
    NO = 2


class Durable(IntEnum):
    """What holds an acknowledged store: the toolstack, or the host's journal on the way there."""

    TOOLSTACK = 1
    JOURNAL = 2


@dataclass(frozen=True, slots=True)
class Message:
    """What all messages have in common. `TYPE` is the type in the frame's header."""

    TYPE: ClassVar[int]

    def flaw(self) -> str | None:
        """What is wrong between the fields, each of which is right by itself; None when nothing is."""
        return None


@dataclass(frozen=True, slots=True)
class RequestMessage(Message):
    """What a client sends. `SOCKETS`: where it may be sent."""

    SOCKETS: ClassVar[frozenset[Socket]]


@dataclass(frozen=True, slots=True)
class AnswerMessage(Message):
    """What a server sends for a request that it carried out."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A field's number on the wire and its kind of value."""

    number: int
    kind: Kind


_STORE = Octets(0, MAX_STORE, StoreOverLimitError)
_REASON = Text(0, MAX_TEXT)
_NAME = Text(0, MAX_NAME)
_JSON = Text(2, MAX_JSON)
_CURSOR = Octets(1, MAX_CURSOR)
_VERSION = Number(2, 1, 0xFFFF)

_VM_ONLY = frozenset({Socket.VM})
_CONTROL_ONLY = frozenset({Socket.CONTROL})
_BOTH = frozenset(Socket)


@dataclass(frozen=True, slots=True)
class Hello(RequestMessage):
    """The first frame. `vm`: the VM that the client belongs to; required on a VM's socket, absent on the other."""

    TYPE: ClassVar = 0x0001
    SOCKETS: ClassVar = _BOTH
    min_version: Annotated[int, Tag(1, _VERSION)]
    max_version: Annotated[int, Tag(2, _VERSION)]
    features: Annotated[int, Tag(3, U64)]
    kind: Annotated[ClientKind, Tag(4, Choice(ClientKind))]
    vm: Annotated[UUID | None, Tag(5, Uuid())] = None
    name: Annotated[str | None, Tag(6, _NAME)] = None

    @classmethod
    def of(cls, kind: ClientKind, *, vm: UUID | None, name: str) -> "Hello":
        """The greeting of a client that speaks this version only."""
        return cls(VERSION, VERSION, 0, kind, vm, name)

    def flaw(self) -> str | None:
        """What is wrong between the fields."""
        if self.min_version > self.max_version:
            return f"min_version {self.min_version} above max_version {self.max_version}"
        return None


@dataclass(frozen=True, slots=True)
class HelloAnswer(AnswerMessage):
    """What is in force from here on. `max_payload`: of a request, in bytes; `max_requests`: not yet answered."""

    TYPE: ClassVar = Hello.TYPE | ANSWER_BIT
    version: Annotated[int, Tag(1, _VERSION)]
    features: Annotated[int, Tag(2, U64)]
    max_payload: Annotated[int, Tag(3, Number(4, MIN_MAX_PAYLOAD, MAX_PAYLOAD))]
    max_requests: Annotated[int, Tag(4, Number(4, 1, MAX_REQUESTS_BOUND))]
    name: Annotated[str | None, Tag(5, _NAME)] = None

    @classmethod
    def of(cls, name: str) -> "HelloAnswer":
        """The answer of this version with the usual limits."""
        return cls(VERSION, 0, MAX_PAYLOAD, MAX_REQUESTS, name)


@dataclass(frozen=True, slots=True)
class Ping(RequestMessage):
    """Whether the server is there."""

    TYPE: ClassVar = 0x0002
    SOCKETS: ClassVar = _BOTH
    data: Annotated[bytes | None, Tag(1, Octets(0, MAX_PING))] = None


@dataclass(frozen=True, slots=True)
class PingAnswer(AnswerMessage):
    """It is; `data` as it was sent."""

    TYPE: ClassVar = Ping.TYPE | ANSWER_BIT
    data: Annotated[bytes | None, Tag(1, Octets(0, MAX_PING))] = None


@dataclass(frozen=True, slots=True)
class GetStore(RequestMessage):
    """Read the VM's store."""

    TYPE: ClassVar = 0x0010
    SOCKETS: ClassVar = _VM_ONLY
    reason: Annotated[Reason, Tag(1, Choice(Reason))]


@dataclass(frozen=True, slots=True)
class GetStoreAnswer(AnswerMessage):
    """The store to run with, byte for byte. `detail`: why an update failed, for the log."""

    TYPE: ClassVar = GetStore.TYPE | ANSWER_BIT
    presence: Annotated[Presence, Tag(1, Choice(Presence))]
    generation: Annotated[int, Tag(2, U64)]
    outcome: Annotated[Outcome, Tag(3, Choice(Outcome))]
    store: Annotated[bytes | None, Tag(4, _STORE)] = None
    detail: Annotated[str | None, Tag(5, _REASON)] = None

    def flaw(self) -> str | None:
        """What is wrong between the fields."""
        if (self.presence is Presence.PRESENT) != (self.store is not None):
            return f"presence {self.presence.name.lower()} and {'no' if self.store is None else 'a'} store"
        if self.detail is not None and self.outcome is not Outcome.FAILED:
            return f"a detail with outcome {self.outcome.name.lower()}"
        return None


@dataclass(frozen=True, slots=True)
class PutStore(RequestMessage):
    """Replace the VM's store."""

    TYPE: ClassVar = 0x0011
    SOCKETS: ClassVar = _VM_ONLY
    store: Annotated[bytes, Tag(1, _STORE)]


@dataclass(frozen=True, slots=True)
class PutStoreAnswer(AnswerMessage):
    """The store is durable."""

    TYPE: ClassVar = PutStore.TYPE | ANSWER_BIT
    verdict: Annotated[Verdict, Tag(1, Choice(Verdict))]
    durable: Annotated[Durable, Tag(2, Choice(Durable))]
    generation: Annotated[int, Tag(3, U64)]


@dataclass(frozen=True, slots=True)
class SbFailure(RequestMessage):
    """The VM failed Secure Boot verification: tell the operator."""

    TYPE: ClassVar = 0x0012
    SOCKETS: ClassVar = _VM_ONLY
    detail: Annotated[str | None, Tag(1, _REASON)] = None


@dataclass(frozen=True, slots=True)
class SbFailureAnswer(AnswerMessage):
    """It was taken up."""

    TYPE: ClassVar = SbFailure.TYPE | ANSWER_BIT


@dataclass(frozen=True, slots=True)
class Attach(RequestMessage):
    """Make the VM's socket `path` and serve it.

    `gid`: the socket's group; `mode`: its permission bits, 0660 when absent; `upstream`: the guard's socket of this
    VM; `resume`: the VM is being resumed or migrated, so that no read through this socket counts as a cold boot;
    `interpose`: `path` is the guard's socket, which is taken over in its place, with its owner, group and mode.
    """

    TYPE: ClassVar = 0x0100
    SOCKETS: ClassVar = _CONTROL_ONLY
    vm: Annotated[UUID, Tag(1, Uuid())]
    path: Annotated[bytes, Tag(2, Path(MAX_PATH))]
    gid: Annotated[int | None, Tag(3, Number(4, 0, MAX_GID))] = None
    mode: Annotated[int | None, Tag(4, Number(4, 0, MAX_MODE))] = None
    upstream: Annotated[bytes | None, Tag(5, Path(MAX_PATH))] = None
    resume: Annotated[bool | None, Tag(6, Flag())] = None
    interpose: Annotated[bool | None, Tag(7, Flag())] = None

    def flaw(self) -> str | None:
        """What is wrong between the fields."""
        given = [name for name in ("gid", "mode", "upstream") if getattr(self, name) is not None]
        return f"interpose and {given[0]}" if self.interpose and given else None


@dataclass(frozen=True, slots=True)
class AttachAnswer(AnswerMessage):
    """The socket listens. `already`: the very same attachment was there before."""

    TYPE: ClassVar = Attach.TYPE | ANSWER_BIT
    already: Annotated[bool, Tag(1, Flag())]


@dataclass(frozen=True, slots=True)
class Detach(RequestMessage):
    """Stop serving the socket and remove it; one that was interposed is given back to its guard."""

    TYPE: ClassVar = 0x0101
    SOCKETS: ClassVar = _CONTROL_ONLY
    path: Annotated[bytes, Tag(1, Path(MAX_PATH))]


@dataclass(frozen=True, slots=True)
class DetachAnswer(AnswerMessage):
    """The socket is gone, or the guard's again. `already`: it was not attached."""

    TYPE: ClassVar = Detach.TYPE | ANSWER_BIT
    already: Annotated[bool, Tag(1, Flag())]


@dataclass(frozen=True, slots=True)
class List(RequestMessage):
    """One page of the attachments. `after`: the `next` of the page before; `limit`: attachments on a page."""

    TYPE: ClassVar = 0x0102
    SOCKETS: ClassVar = _CONTROL_ONLY
    after: Annotated[bytes | None, Tag(1, _CURSOR)] = None
    limit: Annotated[int | None, Tag(2, Number(4, 1, MAX_LIST))] = None


@dataclass(frozen=True, slots=True)
class ListAnswer(AnswerMessage):
    """One page as JSON. `next`: absent on the last page."""

    TYPE: ClassVar = List.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]
    next: Annotated[bytes | None, Tag(2, _CURSOR)] = None


@dataclass(frozen=True, slots=True)
class Status(RequestMessage):
    """The daemon's totals, or what it knows of one VM."""

    TYPE: ClassVar = 0x0103
    SOCKETS: ClassVar = _CONTROL_ONLY
    vm: Annotated[UUID | None, Tag(1, Uuid())] = None


@dataclass(frozen=True, slots=True)
class StatusAnswer(AnswerMessage):
    """The same as JSON."""

    TYPE: ClassVar = Status.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]


@dataclass(frozen=True, slots=True)
class Mark(RequestMessage):
    """Mark the VM for an update at its next boot, or take the mark back."""

    TYPE: ClassVar = 0x0104
    SOCKETS: ClassVar = _CONTROL_ONLY
    vm: Annotated[UUID, Tag(1, Uuid())]
    mark: Annotated[bool, Tag(2, Flag())]


@dataclass(frozen=True, slots=True)
class MarkAnswer(AnswerMessage):
    """The toolstack's field after it, as `update_on_boot`."""

    TYPE: ClassVar = Mark.TYPE | ANSWER_BIT
    state: Annotated[str, Tag(1, Text(1, MAX_NAME))]


@dataclass(frozen=True, slots=True)
class Plan(RequestMessage):
    """What an update of the VM would do now; nothing is changed."""

    TYPE: ClassVar = 0x0105
    SOCKETS: ClassVar = _CONTROL_ONLY
    vm: Annotated[UUID, Tag(1, Uuid())]


@dataclass(frozen=True, slots=True)
class PlanAnswer(AnswerMessage):
    """The plan as JSON."""

    TYPE: ClassVar = Plan.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]


@dataclass(frozen=True, slots=True)
class Restore(RequestMessage):
    """Bring back a store of a VM that does not run. `backup`: the id of one, the newest when absent."""

    TYPE: ClassVar = 0x0106
    SOCKETS: ClassVar = _CONTROL_ONLY
    vm: Annotated[UUID, Tag(1, Uuid())]
    backup: Annotated[str | None, Tag(2, Text(1, MAX_NAME))] = None


@dataclass(frozen=True, slots=True)
class RestoreAnswer(AnswerMessage):
    """The store is durable. What was brought back and what was kept, as JSON."""

    TYPE: ClassVar = Restore.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]


@dataclass(frozen=True, slots=True)
class Backups(RequestMessage):
    """One page of the backups, of one VM or of all. `after`, `limit`: as for `List`."""

    TYPE: ClassVar = 0x0107
    SOCKETS: ClassVar = _CONTROL_ONLY
    vm: Annotated[UUID | None, Tag(1, Uuid())] = None
    after: Annotated[bytes | None, Tag(2, _CURSOR)] = None
    limit: Annotated[int | None, Tag(3, Number(4, 1, MAX_LIST))] = None


@dataclass(frozen=True, slots=True)
class BackupsAnswer(AnswerMessage):
    """One page as JSON. `next`: absent on the last page."""

    TYPE: ClassVar = Backups.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]
    next: Annotated[bytes | None, Tag(2, _CURSOR)] = None


@dataclass(frozen=True, slots=True)
class History(RequestMessage):
    """One page of what was done to a VM's store. `after`, `limit`: as for `List`."""

    TYPE: ClassVar = 0x0108
    SOCKETS: ClassVar = _CONTROL_ONLY
    vm: Annotated[UUID, Tag(1, Uuid())]
    after: Annotated[bytes | None, Tag(2, _CURSOR)] = None
    limit: Annotated[int | None, Tag(3, Number(4, 1, MAX_LIST))] = None


@dataclass(frozen=True, slots=True)
class HistoryAnswer(AnswerMessage):
    """One page as JSON. `next`: absent on the last page."""

    TYPE: ClassVar = History.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]
    next: Annotated[bytes | None, Tag(2, _CURSOR)] = None


@dataclass(frozen=True, slots=True)
class ErrorAnswer(Message):
    """A request that was not carried out, or, with request id 0, the end of the connection.

    `code`: an `ErrorCode`, or a number from a later list; `text` is for the log.
    """

    TYPE: ClassVar = 0xFFFF
    code: Annotated[int, Tag(1, U16)]
    try_again: Annotated[bool, Tag(2, Flag())]
    text: Annotated[str, Tag(3, _REASON)]
