"""The messages with which an operator looks at the daemon and has it read its files again. protocol/README.md "Messages"."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar

from varstore_companion.wire.fields import Choice, Text
from varstore_companion.wire.frames import ANSWER_BIT
from varstore_companion.wire.limits import MAX_JSON, MAX_NAME, MAX_TEXT
from varstore_companion.wire.messages import AnswerMessage, RequestMessage, Socket, Tag

_CONTROL_ONLY = frozenset({Socket.CONTROL})
_JSON = Text(2, MAX_JSON)


class LogLevel(IntEnum):
    """From which level on log lines are written. `INHERIT`: as the logger above says."""

    DEBUG = 1
    INFO = 2
    WARNING = 3
    ERROR = 4
    INHERIT = 5


@dataclass(frozen=True, slots=True)
class Stats(RequestMessage):
    """What the daemon has counted and timed."""

    TYPE: ClassVar = 0x0110
    SOCKETS: ClassVar = _CONTROL_ONLY


@dataclass(frozen=True, slots=True)
class StatsAnswer(AnswerMessage):
    """The metrics as JSON."""

    TYPE: ClassVar = Stats.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]


@dataclass(frozen=True, slots=True)
class Log(RequestMessage):
    """Change what is logged until the daemon ends. `level`: None only asks; `logger`: None for the whole log."""

    TYPE: ClassVar = 0x0111
    SOCKETS: ClassVar = _CONTROL_ONLY
    level: Annotated[LogLevel | None, Tag(1, Choice(LogLevel))] = None
    logger: Annotated[str | None, Tag(2, Text(0, MAX_NAME))] = None


@dataclass(frozen=True, slots=True)
class LogAnswer(AnswerMessage):
    """The levels that are in force after it, as JSON."""

    TYPE: ClassVar = Log.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]


@dataclass(frozen=True, slots=True)
class Reload(RequestMessage):
    """Read settings, manifest and certificates again."""

    TYPE: ClassVar = 0x0112
    SOCKETS: ClassVar = _CONTROL_ONLY


@dataclass(frozen=True, slots=True)
class ReloadAnswer(AnswerMessage):
    """What came of it, as JSON; also when everything stays as it was."""

    TYPE: ClassVar = Reload.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]


class UpdatesAction(IntEnum):
    """What is to become of updates at boot on this host."""

    PAUSE = 1
    RESUME = 2


@dataclass(frozen=True, slots=True)
class Updates(RequestMessage):
    """Pause updates at boot on this host, or resume them. `action`: None only asks; `reason`: of a pause, for those who ask."""

    TYPE: ClassVar = 0x0113
    SOCKETS: ClassVar = _CONTROL_ONLY
    action: Annotated[UpdatesAction | None, Tag(1, Choice(UpdatesAction))] = None
    reason: Annotated[str | None, Tag(2, Text(1, MAX_TEXT))] = None


@dataclass(frozen=True, slots=True)
class UpdatesAnswer(AnswerMessage):
    """What is in force after it, as JSON."""

    TYPE: ClassVar = Updates.TYPE | ANSWER_BIT
    json: Annotated[str, Tag(1, _JSON)]
