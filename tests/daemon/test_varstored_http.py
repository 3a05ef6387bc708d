"""varstored's own head is read as h11 reads it, any other is left to h11, and a login needs no session."""

import logging
import socket

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from fuzz.targets.http import server
from support import stock
from support.daemon import Place
from support.stock import GET_BY_UUID, LOGIN, LOGOUT, SET, S, V
from varstore_companion.daemon.stock import AT_ONCE_BYTES, answer_at_once
from varstore_companion.daemon.varstored_http import find_document
from varstore_companion.daemon.vm_socket import VmSocket
from varstore_companion.unix_stream import UnixStream

LOGIN_CALL, LOGOUT_CALL = stock.login(), stock.request(LOGOUT, S)
WRITE_CALL = stock.request(SET, S, V, "VkFS" * 30_000)
LINES = LOGIN_CALL.partition(b"\r\n\r\n")[0].split(b"\r\n")


def read_by_h11(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Method, target and body; None for what h11 refuses, or what has not come whole."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(data)
    head, body = None, b""
    try:
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    return None if head is None else (head.method, head.target, body)


@pytest.mark.parametrize("sent", [LOGIN_CALL, LOGOUT_CALL, WRITE_CALL, WRITE_CALL + LOGOUT_CALL, stock.http(b"")])
def test_a_request_of_varstoreds_is_read(sent: bytes) -> None:
    place = find_document(sent)
    assert place is not None
    assert (b"POST", b"/", sent[slice(*place)]) == read_by_h11(sent)


@pytest.mark.parametrize("number", range(1, 8))
def test_a_recorded_one_is_read(number: int) -> None:
    names = {1: LOGIN, 2: GET_BY_UUID, 3: stock.GET, 4: LOGOUT, 5: LOGIN, 6: SET, 7: LOGOUT}
    sent = stock.recorded(f"{number:02}-{names[number]}.http")
    place = find_document(sent)
    assert place is not None
    assert place[1] == len(sent)
    assert (b"POST", b"/", sent[slice(*place)]) == read_by_h11(sent)


_LINE = st.sampled_from(
    [
        *LINES,
        *(
            b"Content-Length: %b" % value
            for value in (b"0", b"4", b" 4", b"4 ", b"+4", b"4,4", b"0004", b"4\r\n 5", b"9999999", b"")
        ),
        *(b"Host: ", b"Host: a b", b"Host: \xe4", b"Host:x", b"host: x", b"User-Agent: varstored/9", b"User-Agent: XenAPI"),
        *(
            b"Transfer-Encoding: chunked",
            b"Expect: 100-continue",
            b"Connection: keep-alive",
            b"POST /RPC2 HTTP/1.1",
            b"POST / HTTP/1.0",
        ),
    ]
)


@given(st.lists(st.tuples(st.integers(0, 7), _LINE, st.booleans()), max_size=3), st.sampled_from([b"", b"body", b"body more"]))
@example([(6, b"Content-Length: 4", False)], b"body")
def test_whatever_is_read_is_what_h11_reads(changes: list[tuple[int, bytes, bool]], body: bytes) -> None:
    lines = list(LINES)
    lines[6] = b"Content-Length: 4"
    for at, line, is_new in changes:
        lines[at : at + (not is_new)] = [line]
    sent = b"\r\n".join(lines) + b"\r\n\r\n" + body
    place = find_document(sent)
    if place is not None and place[1] <= len(sent):
        assert read_by_h11(sent) == (b"POST", b"/", sent[slice(*place)])
    # The same in one session, which answers once: whole, and cut.
    server(b"\3" + sent)


@pytest.mark.parametrize("count", range(6))
def test_a_login_is_answered_at_once(count: int) -> None:
    answer = answer_at_once(stock.request(LOGIN, *["x"] * count)) if count else answer_at_once(stock.http(b""))
    if 2 <= count <= 4:
        assert answer is not None
        assert stock.text_of(stock.understand(answer), "./member[2]/value") == S
    else:
        assert answer is None


LEFT = {
    "logout without a session": stock.http(b"<methodCall><methodName>session.logout</methodName></methodCall>"),
    "logout of two": stock.request(LOGOUT, S, S),
    "another call": stock.request(GET_BY_UUID, S, "11111111-2222-3333-4444-555555555555"),
    "another head": LOGIN_CALL.replace(b"varstored/", b"curl/"),
    "a number": stock.request(LOGOUT, 5),
    "not whole": LOGIN_CALL[:-1],
    "long": stock.request(LOGIN, "root", "x" * AT_ONCE_BYTES),
    "a write": WRITE_CALL,
    "nothing": b"",
}


@pytest.mark.parametrize("name", LEFT)
def test_any_other_is_left_to_a_session(name: str) -> None:
    assert answer_at_once(LEFT[name]) is None


@pytest.mark.parametrize("sent", [LOGIN_CALL, LOGOUT_CALL, stock.request(LOGIN, "root", "")])
async def test_the_answer_is_the_sessions_byte_for_byte(place: Place, sent: bytes) -> None:
    machine = await place.machine(None)
    assert (
        answer_at_once(sent)
        == await stock.exchange(machine.path, sent)
        == await stock.exchange(machine.path, sent, bytewise=True)
    )
    assert place.host.in_flight.total == 0
    assert place.daemon.connections == 0


async def test_a_peer_that_does_not_wait_for_its_login_costs_nobody_anything(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    machine = await place.machine(None)
    caplog.set_level(logging.DEBUG)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(machine.path))
        peer.sendall(LOGIN_CALL)
    await wait_all_tasks_blocked()
    assert "the peer went away" in caplog.text
    assert await stock.exchange(machine.path, LOGIN_CALL)


async def test_a_bug_in_the_first_look_ends_that_connection_only(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await place.machine(None)
    with monkeypatch.context() as patched:

        def look(_socket: VmSocket, _stream: UnixStream) -> bytes:
            raise ZeroDivisionError

        patched.setattr(VmSocket, "session", look)
        other = await place.machine(None, name="other.sock")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(other.path))
            await wait_all_tasks_blocked()
            assert peer.recv(1) == b""
    assert "a connection ended in a bug" in caplog.text
    assert await stock.exchange(machine.path, LOGIN_CALL)
    assert place.daemon.connections == 0
