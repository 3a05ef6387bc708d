"""A guard's socket of one VM, and xapi's, on real Unix sockets: what they answer, old and new.

`VmModel` is the toolstack behind them. What a test wants otherwise is prepared with `Server.next`.
"""

import os
import socket
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import trio

from varstore_companion.toolstack.interface import Alert
from varstore_companion.toolstack.xmlrpc import Call, Failure, Response, Success, build_response, parse_call
from varstore_companion.trust.state import CertificatesState, Update

GUARDS_ALERT = "VM_SECURE_BOOT_FAILED"
SET_CALLS = ("VM.set_NVRAM_EFI_variables", "VM.set_NVRAM_EFI_variables_v2")


@dataclass
class VmModel:
    """What xapi holds of one VM; `updates`: the `update` of every write, None for a call without it."""

    uuid: UUID
    check: Callable[[bytes], CertificatesState]
    nvram: dict[str, str] = field(default_factory=dict)
    state: CertificatesState = CertificatesState.OK
    updates: list[str | None] = field(default_factory=list)
    alerts: list[tuple[UUID, Alert]] = field(default_factory=list)

    @property
    def store(self) -> bytes | None:
        text = self.nvram.get("EFI-variables")
        return None if text is None else b64decode(text, validate=True)

    def put(self, store: bytes | None, state: CertificatesState) -> None:
        """As somebody else changes it."""
        self.nvram = {} if store is None else {"EFI-variables": b64encode(store).decode()}
        self.state = state

    def write(self, text: str, update: str | None) -> None:
        self.updates.append(update)
        self.nvram["EFI-variables"] = text
        if update == Update.YES:
            self.state = CertificatesState.OK
        elif update != Update.NO:
            self.state = self.check(b64decode(text, validate=True))


def http(body: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer as the guard's HTTP server frames it."""
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body


@dataclass
class Prepared:
    """What happens instead of an answer: `raw` is sent as it is, then the connection is closed, unless it is `held`.

    `carry_out`: the call is carried out all the same. `reached` is set when the request has come; nothing is sent `until`.
    """

    raw: bytes = b""
    carry_out: bool = False
    held: bool = False
    until: trio.Event | None = None
    reached: trio.Event = field(default_factory=trio.Event)


class Server:
    """An XML-RPC server on a Unix socket, one call a connection. `calls` has the names of those that came."""

    def __init__(self, path: Path, answer: Callable[[Call], Response]) -> None:
        self.path = path
        self.answer = answer
        self.calls: list[str] = []
        self.requests: list[Call] = []
        self._prepared: deque[tuple[str | None, Prepared]] = deque()
        self._listener: socket.socket | None = None
        self._scope: trio.CancelScope | None = None

    def next(
        self,
        raw: bytes = b"",
        *,
        method: str | None = None,
        carry_out: bool = False,
        held: bool = False,
        until: trio.Event | None = None,
    ) -> Prepared:
        """Have the next call, or the next one of that method, meet something else than an answer."""
        prepared = Prepared(raw, carry_out, held, until)
        self._prepared.append((method, prepared))
        return prepared

    def listen(self) -> None:
        """Make the socket anew, as a guard does at its start; its queue is the guard's."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen(2)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        if self._listener is None:
            self.listen()
        assert self._listener is not None
        listener, self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener)), None
        with trio.CancelScope() as self._scope:
            task_status.started()
            await trio.serve_listeners(self._serve, [listener])

    def stop(self) -> None:
        """Close the listener, as when the process ends; its file stays."""
        assert self._scope is not None
        self._scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with stream:
                await self._one(stream)

    async def _one(self, stream: trio.SocketStream) -> None:
        call = await self._receive(stream)
        if call is None:
            return
        if self._prepared and self._prepared[0][0] in (None, call.method):
            prepared = self._prepared.popleft()[1]
            if prepared.carry_out:
                self.answer(call)
            await self._meet(stream, prepared)
        else:
            await stream.send_all(http(build_response(self.answer(call))))

    async def _receive(self, stream: trio.SocketStream) -> Call | None:
        """The call of a connection; None when it ends before it is whole."""
        received = await receive_call(stream)
        if received is None:
            return None
        call, head = received
        assert head[0] == "post / http/1.1"
        assert "connection: close" in head
        self.calls.append(call.method)
        self.requests.append(call)
        return call

    async def _meet(self, stream: trio.SocketStream, prepared: Prepared) -> None:
        prepared.reached.set()
        if prepared.until is not None:
            await prepared.until.wait()
        if prepared.raw:
            await stream.send_all(prepared.raw)
        if prepared.held:
            await trio.sleep_forever()


async def receive_call(stream: trio.SocketStream) -> tuple[Call, list[str]] | None:
    """The call of a connection, and its head's lines in small letters; None when it ends before it is whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += (chunk := bytes(await stream.receive_some(65_536)))
        if not chunk:
            return None
    start, _, body = data.partition(b"\r\n\r\n")
    head = start.decode().lower().split("\r\n")
    (length,) = [int(line.removeprefix("content-length: ")) for line in head if line.startswith("content-length: ")]
    while len(body) < length:
        body += (chunk := bytes(await stream.receive_some(65_536)))
        if not chunk:
            return None
    return parse_call(body), head


@asynccontextmanager
async def serving(*servers: Server) -> AsyncIterator[None]:
    """The servers as long as this is entered."""
    async with trio.open_nursery() as nursery:
        for server in servers:
            await nursery.start(server.run)
        yield
        nursery.cancel_scope.cancel()


def texts(call: Call, count: int) -> tuple[str, ...]:
    """The call's parameters, which must be so many texts: a guard's are nothing else."""
    assert len(call.parameters) == count, call
    assert all(isinstance(each, str) for each in call.parameters)
    return tuple(str(each) for each in call.parameters)


class Guard:
    """xapi-guard for one VM. `is_new`: whether it has the versioned call and the field."""

    def __init__(self, model: VmModel, *, is_new: bool = True) -> None:
        self.model = model
        self.is_new = is_new
        self.unknown = Failure(("Internal_error", 'Xapi_idl.UnknownMethod("{}")'))

    def answer(self, call: Call) -> Response:
        model = self.model
        match call.method:
            case "session.login_with_password":
                return Success("DUMMYSESSION")
            case "VM.get_by_uuid":
                return Success("DUMMYVM")
            case "session.logout":
                return Success(None)
            case "VM.get_NVRAM":
                texts(call, 2)
                return Success(dict(model.nvram))
            case "VM.set_NVRAM_EFI_variables":
                model.write(texts(call, 3)[2], None)
                return Success(None)
            case "VM.set_NVRAM_EFI_variables_v2" if self.is_new:
                model.write(*texts(call, 4)[2:])
                return Success(None)
            case "VM.get_secureboot_certificates_state" if self.is_new:
                texts(call, 2)
                return Success(model.state.value)
            case "message.create":
                _, _, priority, _, _, body = texts(call, 6)
                model.alerts.append((model.uuid, Alert(GUARDS_ALERT, int(priority), body)))
                return Success(None)
        return Failure(tuple(part.format(call.method) for part in self.unknown.description))


class Xapi:
    """xapi. `is_new`: whether it takes `update` and has the field; `failing`: answers instead, by method."""

    def __init__(self, check: Callable[[bytes], CertificatesState], *, is_new: bool = True) -> None:
        self.check = check
        self.is_new = is_new
        self.vms: dict[str, VmModel] = {}
        self.sessions: set[str] = set()
        self.alerts: list[tuple[UUID, Alert]] = []
        self.failing: dict[str, Failure] = {}

    def create(self, vm: UUID, store: bytes | None, state: CertificatesState) -> VmModel:
        """Add a VM under a new reference."""
        model = VmModel(vm, self.check)
        model.put(store, state)
        self.vms[f"OpaqueRef:{uuid4()}"] = model
        return model

    def move(self, vm: UUID) -> None:
        """Give a VM another reference."""
        (old,) = [each for each, model in self.vms.items() if model.uuid == vm]
        self.vms[f"OpaqueRef:{uuid4()}"] = self.vms.pop(old)

    def answer(self, call: Call) -> Response:
        if call.method in self.failing:
            return self.failing[call.method]
        if call.method == "session.login_with_password":
            assert call.parameters == ("root", "", "1.0", "varstore-companion")
            session = f"OpaqueRef:{uuid4()}"
            self.sessions.add(session)
            return Success(session)
        session, *rest = map(str, call.parameters)
        if session not in self.sessions:
            return Failure(("SESSION_INVALID", session))
        return self._in_session(call, session, rest)

    def _in_session(self, call: Call, session: str, rest: list[str]) -> Response:
        match call.method:
            case "session.logout":
                self.sessions.remove(session)
                return Success("")
            case "VM.get_by_uuid":
                found = [reference for reference, model in self.vms.items() if str(model.uuid) == rest[0]]
                return Success(found[0]) if found else Failure(("UUID_INVALID", "VM", rest[0]))
            case "message.create":
                name, priority, cls, uuid, body = rest
                assert cls == "VM"
                if all(str(model.uuid) != uuid for model in self.vms.values()):
                    return Failure(("UUID_INVALID", cls, uuid))
                self.alerts.append((UUID(uuid), Alert(name, int(priority), body)))
                return Success(f"OpaqueRef:{uuid4()}")
        model = self.vms.get(rest[0])
        if model is None:
            return Failure(("HANDLE_INVALID", "VM", rest[0]))
        match call.method:
            case "VM.get_NVRAM":
                return Success(dict(model.nvram))
            case "VM.get_secureboot_certificates_state" if self.is_new:
                return Success(model.state.value)
            case "VM.set_NVRAM_EFI_variables":
                if len(rest) > 2 and not self.is_new:
                    return Failure(("MESSAGE_PARAMETER_COUNT_MISMATCH", call.method, "2", str(len(rest))))
                model.write(rest[1], rest[2] if len(rest) > 2 else None)
                return Success("")
            case "VM.update_secureboot_certificates_on_boot" if self.is_new:
                if model.state is CertificatesState.OK:
                    return Failure(("OPERATION_NOT_ALLOWED", "there is no update"))
                assert isinstance(call.parameters[2], bool)
                marked = CertificatesState.UPDATE_ON_BOOT, CertificatesState.UPDATE_AVAILABLE
                model.state = marked[0] if call.parameters[2] else marked[1]
                return Success("")
        return Failure(("MESSAGE_METHOD_UNKNOWN", call.method))
