"""The socket on which the embedded toolstack answers xapi's clients: sessions, methods, and xapi's names for errors."""

import logging
from collections.abc import Sequence
from functools import partial

import trio

from varstore_companion.daemon.control import peer_uid
from varstore_companion.daemon.http_server import HttpSession
from varstore_companion.daemon.xapi_calls import Calls
from varstore_companion.daemon.xapi_sessions import Sessions
from varstore_companion.daemon.xapi_values import Arguments
from varstore_companion.efi.names import printable
from varstore_companion.errors import ToolstackError, ToolstackRefusedError
from varstore_companion.toolstack.xmlrpc import MAX_DOCUMENT, Call, Failure, Success, Value, build_response, parse_call

log = logging.getLogger(__name__)

LOGIN = "session.login_with_password"
_LOGIN_PARAMETERS = ("uname", "pwd", "version", "originator")
"""The last two, which xapi's clients add, may be left out."""
LOGOUT = "session.logout"


class XapiEndpoint:
    """Answers calls. `owners`: the users that may log in: the kernel says who a peer is, a password says nothing."""

    def __init__(self, calls: Calls, owners: frozenset[int]) -> None:
        self._methods = calls.methods
        self._owners = owners
        self._sessions = Sessions()

    def session(self, stream: trio.SocketStream) -> HttpSession:
        """The session of one connection."""
        uid = peer_uid(stream)
        return HttpSession(stream, f"xapi socket uid={uid}", partial(self.answer, uid), limit=MAX_DOCUMENT)

    async def answer(self, uid: int, document: bytes) -> bytes:
        """Carry out a call of user `uid`'s and write its answer. Raises `MalformedError` for what is no call."""
        call = parse_call(document)
        who = f"xapi socket uid={uid} {call.method}"
        try:
            result = await self._carry_out(uid, call)
        except ToolstackRefusedError as error:
            log.info("%s refused: %s", who, printable(str(error)))
            return build_response(Failure((error.code, *error.parameters)))
        except ToolstackError as error:
            log.warning("%s failed: %s", who, error)
            return build_response(Failure(("INTERNAL_ERROR", str(error))))
        except Exception:
            log.exception("%s met a bug", who)
            return build_response(Failure(("INTERNAL_ERROR", "an error inside the daemon: see its log")))
        return result if isinstance(result, bytes) else build_response(Success(result))

    async def _carry_out(self, uid: int, call: Call) -> Value | bytes:
        now = trio.current_time()
        if call.method == LOGIN:
            return self._login(uid, call.parameters, now)
        session, *values = call.parameters or (None,)
        if call.method == LOGOUT:
            if len(call.parameters) != 1:
                raise _miscounted(call, expected=0, found=len(values))
            self._sessions.logout(session, now)
            return None
        method = self._methods.get(call.method)
        if method is None:
            raise ToolstackRefusedError("MESSAGE_METHOD_UNKNOWN", f"{call.method} is not a call", (call.method,))
        if not call.parameters or not method.takes(len(values)):
            raise _miscounted(call, expected=len(method.names) - method.optional, found=len(values))
        self._sessions.use(session, now)
        given = Arguments(method.names, values)
        try:
            result = await method.run(given)
        except ToolstackRefusedError as error:
            raise given.by_reference(error) from None
        # Clients may look as often as they like; what they change is worth a line.
        level = logging.DEBUG if ".get_" in call.method else logging.INFO
        log.log(level, "xapi socket uid=%d %s %s", uid, call.method, " ".join(f"vm={vm}" for vm in given.vms))
        return result

    def _login(self, uid: int, parameters: Sequence[Value], now: float) -> str:
        if not 2 <= len(parameters) <= len(_LOGIN_PARAMETERS):
            raise _miscounted(Call(LOGIN, ()), expected=2, found=len(parameters))
        given = Arguments(_LOGIN_PARAMETERS, parameters)
        name = given.text()
        while given:
            given.text()
        if uid not in self._owners:
            why = f"user id {uid} may not use this socket"
            raise ToolstackRefusedError("SESSION_AUTHENTICATION_FAILED", why, (name, why))
        return self._sessions.login(now)


def _miscounted(call: Call, *, expected: int, found: int) -> ToolstackRefusedError:
    # As xapi counts: what has to be there, and what was there, both without the session.
    why = f"{call.method} takes {expected} parameters, not {found}"
    return ToolstackRefusedError("MESSAGE_PARAMETER_COUNT_MISMATCH", why, (call.method, str(expected), str(found)))
