"""An unmodified varstored as its socket's other end sees it: its very bytes, and what it makes of an answer."""

import re
from base64 import b64decode, b64encode
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree

import pytest
import trio

from support.places import FIXTURES
from support.varstored_model import VarstoredModel

ANSWER_BYTES = 256 * 1024
"""What it keeps of an answer; the rest is cut."""
WIRE_VM = UUID("11111111-2222-3333-4444-555555555555")
"""The VM of the recorded requests."""
TEXT = "The VM failed to pass Secure Boot verification."

LOGIN = "session.login_with_password"
LOGOUT = "session.logout"
GET_BY_UUID = "VM.get_by_uuid"
GET = "VM.get_NVRAM"
SET = "VM.set_NVRAM_EFI_variables"
SET_V2 = "VM.set_NVRAM_EFI_variables_v2"
GET_STATE = "VM.get_secureboot_certificates_state"
MESSAGE = "message.create"

S, V = "DUMMYSESSION", "DUMMYVM"


class Failed(Exception):  # noqa: N818 - named after what happened, as the tests that expect it read
    """A call that varstored takes for failed. `errors`: xapi's name and its arguments, if there are any."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(status, *errors)
        self.status = status
        self.errors = errors


def http(document: bytes, length: int | None = None) -> bytes:
    """A request as varstored sends it, header for header."""
    return (
        b"POST / HTTP/1.1\r\n"
        b"Host: _var_lib_xcp_xapi\r\n"
        b"Accept-Encoding: identity\r\n"
        b"User-Agent: varstored/0.1\r\n"
        b"Connection: close\r\n"
        b"Content-Type: text/xml\r\n"
        b"Content-Length: %d\r\n"
        b"\r\n" % (len(document) if length is None else length)
    ) + document


def request(method: str, *parameters: str | int) -> bytes:
    """A call as varstored sends it."""
    values = [f"<int>{each}</int>" if isinstance(each, int) else f"<string>{each}</string>" for each in parameters]
    params = "".join(f"<param><value>{each}</value></param>" for each in values)
    return http(
        f"<?xml version='1.0'?><methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>".encode()
    )


def login() -> bytes:
    return request(LOGIN, "root", "", "", "")


def recorded(name: str) -> bytes:
    """A recorded request; the calling test is skipped where it is absent."""
    path = FIXTURES / "wire" / name
    if not path.exists():
        pytest.skip(f"the recorded requests are not at {path.parent}")
    return path.read_bytes()


def guards_request(method: str) -> bytes:
    """A document as the toolstack's own clients write it; the calling test is skipped where it is absent."""
    path = FIXTURES / "xapi-guard" / "requests" / f"{method}.request.0"
    if not path.exists():
        pytest.skip(f"the guard's requests are not at {path.parent}")
    return path.read_bytes()


def understand(answer: bytes) -> ElementTree.Element:
    """The struct of an answer, read as varstored does. Raises `Failed`."""
    answer = answer[: ANSWER_BYTES - 1]
    head, _, body = answer.partition(b"\r\n\r\n")
    number = re.match(rb" *\d+", head.partition(b" ")[2])
    status = int(number[0]) if number else 0
    if status != 200:
        raise Failed(status)
    struct = ElementTree.fromstring(body).find("./params/param/value/struct")
    assert struct is not None
    if text_of(struct, "./member[1]/value") != "Success":
        raise Failed(status, *(each.text or "" for each in struct.findall("./member[2]/value/array/data/value")))
    return struct


def text_of(struct: ElementTree.Element, path: str) -> str | None:
    """All text inside, as xmlNodeGetContent gives it; None where there is no such element."""
    element = struct.find(path)
    return None if element is None else "".join(element.itertext())


async def exchange(path: Path, sent: bytes, *, bytewise: bool = False) -> bytes:
    """One connection: send, then read to the end of the stream."""
    async with await trio.open_unix_socket(str(path)) as stream:
        for piece in [sent[at : at + 1] for at in range(len(sent))] if bytewise else [sent]:
            await stream.send_all(piece)
            if bytewise:
                await trio.lowlevel.checkpoint()
        answer = b""
        async for data in stream:
            answer += data
        return answer


class Varstored:
    """One varstored, or a tool of its, on one socket."""

    def __init__(self, path: Path, vm: UUID) -> None:
        self.path = path
        self.vm = vm
        self._knows_its_vm = False

    async def call(self, method: str, *parameters: str | int) -> str | None:
        """Make a call; its value's text. Raises `Failed`."""
        return text_of(understand(await exchange(self.path, request(method, *parameters))), "./member[2]/value")

    async def read(self) -> bytes | None:
        """Read the store as at the start; None is a first boot. Raises `Failed`."""
        session = understand(await exchange(self.path, login()))
        assert text_of(session, "./member[2]/value") == S
        assert await self.call(GET_BY_UUID, S, str(self.vm)) == V
        self._knows_its_vm = True
        struct = understand(await exchange(self.path, request(GET, S, V)))
        text = text_of(struct, "./member/value/struct/member[name='EFI-variables']/value")
        await self.call(LOGOUT, S)
        return None if text is None else b64decode(text, validate=True)

    async def start(self) -> VarstoredModel:
        """Start with the store that is there. Raises `Failed`."""
        store = await self.read()
        assert store is not None
        return VarstoredModel.load(store)

    async def write(self, store: bytes) -> None:
        """Write the store as after SetVariable. Raises `Failed`."""
        await exchange(self.path, login())
        if not self._knows_its_vm:
            await self.call(GET_BY_UUID, S, str(self.vm))
            self._knows_its_vm = True
        await self.call(SET, S, V, b64encode(store).decode())
        await self.call(LOGOUT, S)

    async def notify(self) -> None:
        """Say that the guest failed Secure Boot. Raises `Failed`."""
        await exchange(self.path, login())
        await self.call(MESSAGE, S, "VM_SECURE_BOOT_FAILED", 5, "VM", str(self.vm), TEXT)
        await self.call(LOGOUT, S)
