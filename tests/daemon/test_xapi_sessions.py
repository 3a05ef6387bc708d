"""Sessions of xapi's clients: theirs alone, bounded in number and in time."""

import pytest

from varstore_companion.daemon.xapi_sessions import IDLE_SECONDS, MAX_SESSIONS, Sessions
from varstore_companion.errors import ToolstackRefusedError


def assert_invalid(sessions: Sessions, session: object, now: float, shown: str) -> None:
    with pytest.raises(ToolstackRefusedError) as refused:
        sessions.use(session, now)
    assert (refused.value.code, refused.value.parameters) == ("SESSION_INVALID", (shown,))


def test_a_session_is_used_until_it_is_ended() -> None:
    sessions = Sessions()
    one, other = sessions.login(0), sessions.login(0)
    assert one != other
    assert one.startswith("OpaqueRef:")
    assert sessions.use(one, 1) == one
    sessions.logout(one, 2)
    assert_invalid(sessions, one, 2, one)
    with pytest.raises(ToolstackRefusedError):
        sessions.logout(one, 2)
    assert sessions.use(other, 2) == other


@pytest.mark.parametrize(("given", "shown"), [("OpaqueRef:NULL", "OpaqueRef:NULL"), ("", ""), (None, ""), ([], ""), ({}, "")])
def test_what_is_no_session_is_invalid(given: object, shown: str) -> None:
    sessions = Sessions()
    sessions.login(0)
    assert_invalid(sessions, given, 0, shown)
    assert len(sessions) == 1


def test_an_unused_session_ends() -> None:
    sessions = Sessions()
    one = sessions.login(0)
    sessions.use(one, IDLE_SECONDS - 1)
    sessions.use(one, 2 * IDLE_SECONDS - 2)
    other = sessions.login(2 * IDLE_SECONDS - 2)
    assert_invalid(sessions, one, 3 * IDLE_SECONDS - 2, one)
    assert_invalid(sessions, other, 3 * IDLE_SECONDS - 2, other)
    assert len(sessions) == 0


def test_one_too_many_ends_the_one_that_was_idle_for_longest() -> None:
    sessions = Sessions()
    all_ = [sessions.login(number) for number in range(MAX_SESSIONS)]
    sessions.use(all_[0], MAX_SESSIONS)
    new = sessions.login(MAX_SESSIONS)
    assert len(sessions) == MAX_SESSIONS
    assert_invalid(sessions, all_[1], MAX_SESSIONS, all_[1])
    for session in (all_[0], *all_[2:], new):
        sessions.use(session, MAX_SESSIONS)
