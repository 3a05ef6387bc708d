"""The socket on which the embedded toolstack answers xapi's clients: sessions, methods, and xapi's names for errors."""

import logging
from collections.abc import Sequence
from functools import partial

import trio

from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.control import peer_uid
from varstore_companion.daemon.http_server import HttpSession
from varstore_companion.daemon.xapi_calls import Calls
from varstore_companion.daemon.xapi_method import (
    LOGIN,
    LOGIN_OPTIONAL,
    LOGIN_PARAMETERS,
    LOGOUT,
    answered,
    miscounted,
    unknown_method,
)
from varstore_companion.daemon.xapi_sessions import Sessions
from varstore_companion.daemon.xapi_values import Arguments
from varstore_companion.efi.names import printable
from varstore_companion.errors import ToolstackError, ToolstackRefusedError
from varstore_companion.toolstack.xmlrpc import MAX_DOCUMENT, Call, Value, parse_call
from varstore_companion.unix_stream import UnixStream

log = logging.getLogger(__name__)


class XapiEndpoint:
    """Answers calls. `owners`: the users that may log in: the kernel says who a peer is, a password says nothing."""

    def __init__(self, calls: Calls, owners: frozenset[int]) -> None:
        self._methods = calls.methods
        self._owners = owners
        self._sessions = Sessions()

    def session(self, stream: UnixStream) -> HttpSession:
        """The session of one connection."""
        uid = peer_uid(stream)
        return HttpSession(stream, Complaints(f"xapi socket uid={uid}", log), partial(self.answer, uid), limit=MAX_DOCUMENT)

    async def answer(self, uid: int, document: bytes) -> bytes:
        """Carry out a call of user `uid`'s and write its answer. Raises `MalformedError` for what is no call."""
        call = parse_call(document)
        who = f"xapi socket uid={uid} {call.method}"

        def refused(error: ToolstackError) -> None:
            level = logging.INFO if isinstance(error, ToolstackRefusedError) else logging.WARNING
            log.log(level, "%s failed: %s", who, printable(str(error)))

        return await answered(self._carry_out(uid, call), who, refused)

    async def _carry_out(self, uid: int, call: Call) -> Value | bytes:
        now = trio.current_time()
        if call.method == LOGIN:
            return self._login(uid, call.parameters, now)
        session, *values = call.parameters or (None,)
        if call.method == LOGOUT:
            if len(call.parameters) != 1:
                raise miscounted(call.method, expected=0, found=len(values))
            self._sessions.logout(session, now)
            return None
        method = self._methods.get(call.method)
        if method is None:
            raise unknown_method(call.method)
        if not call.parameters or not method.takes(len(values)):
            raise miscounted(call.method, expected=len(method.names) - method.optional, found=len(values))
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
        if not len(LOGIN_PARAMETERS) - LOGIN_OPTIONAL <= len(parameters) <= len(LOGIN_PARAMETERS):
            raise miscounted(LOGIN, expected=2, found=len(parameters))
        given = Arguments(LOGIN_PARAMETERS, parameters)
        name = given.text()
        while given:
            given.text()
        if uid not in self._owners:
            why = f"user id {uid} may not use this socket"
            raise ToolstackRefusedError("SESSION_AUTHENTICATION_FAILED", why, (name, why))
        return self._sessions.login(now)
