"""A call by xapi's names: how many parameters it takes, and how its result or its failure is answered."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from varstore_companion.errors import ToolstackError, ToolstackRefusedError
from varstore_companion.toolstack.xmlrpc import Failure, Success, Value, build_response

log = logging.getLogger(__name__)

LOGIN = "session.login_with_password"
LOGIN_PARAMETERS = ("uname", "pwd", "version", "originator")
LOGIN_OPTIONAL = 2
"""The last ones, which xapi's clients add, may be left out."""
LOGOUT = "session.logout"
_SHOWN = 64

R = TypeVar("R", bound=Callable[..., Awaitable[Value | bytes]])


@dataclass(frozen=True, slots=True)
class Method(Generic[R]):
    """A call. `names`: its parameters besides the session, of which the last `optional` may be left out.

    `run` raises `ToolstackError`. Where it gives bytes, they are the whole answer.
    """

    names: tuple[str, ...]
    run: R
    optional: int = 0

    def takes(self, count: int) -> bool:
        """Whether it can be called with so many parameters."""
        return len(self.names) - self.optional <= count <= len(self.names)


async def answered(result: Awaitable[Value | bytes], who: str, refused: Callable[[ToolstackError], None]) -> bytes:
    """The answer with a call's result, or with its error, of which `refused` is told. `who` begins the log line of a bug."""
    try:
        value = await result
    except ToolstackRefusedError as error:
        refused(error)
        return build_response(Failure((error.code, *error.parameters)))
    except ToolstackError as error:
        refused(error)
        return build_response(Failure(("INTERNAL_ERROR", str(error))))
    except Exception:
        log.exception("%s met a bug", who)
        return build_response(Failure(("INTERNAL_ERROR", "an error inside the daemon: see its log")))
    return value if isinstance(value, bytes) else build_response(Success(value))


def unknown_method(name: str) -> ToolstackRefusedError:
    """The error for a call that is none of those here, as xapi spells it."""
    return ToolstackRefusedError("MESSAGE_METHOD_UNKNOWN", f"{name} is not a call", (name,))


def miscounted(name: str, *, expected: int, found: int) -> ToolstackRefusedError:
    """The error for another number of parameters; as xapi counts both, without the session."""
    why = f"{name} takes {expected} parameters, not {found}"
    return ToolstackRefusedError("MESSAGE_PARAMETER_COUNT_MISMATCH", why, (name, str(expected), str(found)))


def uuid_invalid(kind: str, given: str) -> ToolstackRefusedError:
    """The error for a uuid of nothing that is there, as xapi spells it."""
    shown = given[:_SHOWN]
    return ToolstackRefusedError("UUID_INVALID", f"there is no {kind} {shown}", (kind, shown))
