"""Pure: who is logged in to the endpoint. Time is an argument, in seconds of any clock that does not jump."""

from uuid import uuid4

from varstore_companion.errors import ToolstackRefusedError

MAX_SESSIONS = 256
"""Sessions at once. One more ends the one that has been idle for longest, as in xapi."""
IDLE_SECONDS = 86_400.0
"""After which an unused session ends; xapi's own figure."""


class Sessions:
    """The sessions by reference, the one that has been idle for longest first."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._used)

    def login(self, now: float) -> str:
        """A new session's reference, which nobody can guess."""
        self._expire(now)
        if len(self._used) >= MAX_SESSIONS:
            del self._used[next(iter(self._used))]
        session = f"OpaqueRef:{uuid4()}"
        self._used[session] = now
        return session

    def use(self, session: object, now: float) -> str:
        """See that there is such a session. Raises `ToolstackRefusedError` with `SESSION_INVALID`."""
        self._expire(now)
        if not isinstance(session, str) or self._used.pop(session, None) is None:
            shown = session if isinstance(session, str) else ""
            raise ToolstackRefusedError("SESSION_INVALID", "there is no such session", (shown,))
        self._used[session] = now
        return session

    def logout(self, session: object, now: float) -> None:
        """End a session. Raises as `use`."""
        del self._used[self.use(session, now)]

    def _expire(self, now: float) -> None:
        while self._used:
            session, used = next(iter(self._used.items()))
            if now - used < IDLE_SECONDS:
                return
            del self._used[session]
