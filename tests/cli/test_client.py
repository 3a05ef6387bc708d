"""The client of the commands against servers that answer as they should not, or not at all."""

import socket
import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support.commands import Run
from support.fake_daemon import Handle, answering, server
from varstore_companion.cli.client import Client, ConnectError, RequestFailedError
from varstore_companion.wire import messages
from varstore_companion.wire.connection import Connection, Request
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import AnswerMessage, ClientKind, Hello, HelloAnswer, RequestMessage, Socket
from varstore_companion.wire.states import Role

VM = UUID("11111111-2222-3333-4444-555555555555")


def _sends(data: bytes, *, reads: bool = True) -> Handle:
    def handle(peer: socket.socket) -> None:
        if reads:
            peer.recv(65_536)
        peer.sendall(data)

    return handle


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


COMMANDS: list[list[str]] = [
    ["attach", "--vm", str(VM), "--socket", "/run/vm.sock"],
    ["detach", "--socket", "/run/vm.sock"],
    ["list"],
    ["status"],
    ["status", "--vm", str(VM)],
    ["plan", "--vm", str(VM)],
    ["backups"],
    ["restore", "--vm", str(VM)],
    ["history", "--vm", str(VM)],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_daemon(command: list[str], run: Run, path: Path, tmp_path: Path) -> None:
    run(*command, "--control", path).fails(f"varstore-companion {command[0]}: {path}: no daemon answers there: No such file")
    (tmp_path / "file").write_text("not a socket")
    run(*command, "--control", tmp_path / "file").fails("no daemon answers there: Connection refused")
    run(*command, "--control", tmp_path / ("x" * 120)).fails("no daemon answers there: AF_UNIX path too long")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    run(*command, "--json", "--control", path).fails(f"{path}: no daemon answers there: Connection refused")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("handle", "said"),
    [
        (_sends(b""), "the daemon closed the connection"),
        (_sends(b"", reads=False), "the daemon closed the connection"),
        (_sends(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "what answers there is no daemon of ours: BAD_FRAME"),
        (_sends(b"VSCP"), "what answers there is no daemon of ours: BAD_FRAME: the stream ended 4 bytes into a frame"),
        (_sends(bytes(100)), "what answers there is no daemon of ours: BAD_FRAME"),
    ],
    ids=["closes", "closes at once", "speaks HTTP", "stops", "sends zeros"],
)
def test_something_else_answers(handle: Handle, said: str, command: list[str], *, run: Run, path: Path) -> None:
    with server(path, handle):
        run(*command, "--control", path).fails(f"varstore-companion {command[0]}: {path}: {said}")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_daemon_says_no(command: list[str], run: Run, path: Path) -> None:
    with server(path, answering(lambda _: (ErrorCode.UNKNOWN_VM, f"there is no VM {VM}"))):
        run(*command, "--control", path).fails(f"UNKNOWN_VM: there is no VM {VM}")


def test_a_code_of_a_later_version(run: Run, path: Path) -> None:
    with server(path, answering(lambda _: (4711, "something new"))):
        run("list", "--control", path).fails("error 4711: something new")


def test_refused_at_hello(run: Run, path: Path) -> None:
    def handle(peer: socket.socket) -> None:
        connection = Connection(Role.SERVER, socket=Socket.CONTROL)
        peer.sendall(connection.fail(ErrorCode.BUSY, "too many connections"))

    with server(path, handle):
        run("status", "--control", path).fails("BUSY: too many connections")


def test_no_answer_in_time(path: Path) -> None:
    done = threading.Event()

    def handle(peer: socket.socket) -> None:
        peer.recv(65_536)
        done.wait()

    with server(path, handle):
        with pytest.raises(ConnectError, match=r"s: no answer within 0\.01 s"):
            Client(path, ClientKind.OPERATOR, seconds=0.01)
        done.set()


def test_the_socket_is_closed_whatever_happens(path: Path) -> None:
    with server(path, answering(lambda _: (ErrorCode.INTERNAL, "a bug"))):
        with Client(path, ClientKind.OPERATOR) as client, pytest.raises(RequestFailedError) as caught:
            client.call(messages.Status())
        assert (caught.value.code, caught.value.name, str(caught.value)) == (18, "INTERNAL", "INTERNAL: a bug")
        with pytest.raises(OSError, match="Bad file descriptor"):
            client.call(messages.Status())


def test_an_answer_in_pieces(path: Path) -> None:
    def handle(peer: socket.socket) -> None:
        connection = Connection(Role.SERVER, socket=Socket.CONTROL)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for answer in (HelloAnswer.of("test"), messages.StatusAnswer('{"a": 1}')):
            connection.receive_data(peer.recv(65_536))
            (event,) = connection.events()
            assert isinstance(event, Request)
            for byte in connection.answer(event.request_id, answer):
                peer.sendall(bytes([byte]))

    with server(path, handle), Client(path, ClientKind.OPERATOR) as client:
        assert client.call(messages.Status()) == messages.StatusAnswer('{"a": 1}')


def test_list_asks_until_there_is_no_more(run: Run, path: Path) -> None:
    entry = '{"vm": "%s", "path": "%s", "report": null, "field": "ok", "last_verdict": null, "connections": 0}'
    pages = {None: ("/a", b"/a"), b"/a": ("/b", b"/b"), b"/b": ("/c", None)}

    def answer(request: RequestMessage) -> AnswerMessage:
        assert isinstance(request, messages.List)
        shown, following = pages[request.after]
        return messages.ListAnswer(f'{{"attachments": [{entry % (VM, shown)}]}}', following)

    asked: list[RequestMessage] = []
    with server(path, answering(answer, asked)):
        done = run("list", "--control", path)
    assert [line.split("\t") for line in done.text.splitlines()] == [
        [str(VM), each, "-", "ok", "-", "0", "-", "-"] for each in ("/a", "/b", "/c")
    ]
    assert [each.after for each in asked if isinstance(each, messages.List)] == [None, b"/a", b"/b"]


def test_who_calls(run: Run, path: Path) -> None:
    asked: list[RequestMessage] = []
    with server(path, answering(lambda _: messages.StatusAnswer("{}"), asked)):
        assert run("status", "--vm", uuid4(), "--control", path).code == 0
    (hello, _) = asked
    assert isinstance(hello, Hello)
    assert (hello.kind, hello.vm) == (ClientKind.OPERATOR, None)
    assert hello.name is not None
    assert hello.name.startswith("varstore-companion ")
