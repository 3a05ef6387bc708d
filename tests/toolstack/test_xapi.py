"""xapi's client: the session, references, both generations, and a host that is not the master."""

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.fake_guard import Server, VmModel, Xapi, http, serving
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.toolstack.remote import ASK_AGAIN_SECONDS
from varstore_companion.toolstack.xapi import XapiToolstack
from varstore_companion.toolstack.xmlrpc import Failure, Success, build_response
from varstore_companion.trust.state import CertificatesState, Update

OK, AVAILABLE, ON_BOOT = CertificatesState
UNAVAILABLE, REFUSED, UNCLEAR = ToolstackUnavailableError, ToolstackRefusedError, ToolstackUnclearError
LOGIN, BY_UUID, NVRAM = "session.login_with_password", "VM.get_by_uuid", "VM.get_NVRAM"
STATE, SET, MARK = (
    "VM.get_secureboot_certificates_state",
    "VM.set_NVRAM_EFI_variables",
    "VM.update_secureboot_certificates_on_boot",
)
VM = uuid4()


class Scene:
    def __init__(self, folder: Path) -> None:
        self.xapi = Xapi(lambda _store: AVAILABLE)
        self.model: VmModel = self.xapi.create(VM, b"store", ON_BOOT)
        self.server = Server(folder / "xapi", self.xapi.answer)
        self.toolstack = XapiToolstack(self.server.path, count(100))

    def took(self) -> list[str]:
        calls, self.server.calls = self.server.calls, []
        return calls

    async def read(self) -> VmRecord:
        return await self.toolstack.read(VM)

    async def write(self) -> int:
        return await self.toolstack.write(VM, b"new", Update.NO)

    async def mark(self) -> CertificatesState:
        return await self.toolstack.mark(VM, mark=True)

    async def alert(self) -> None:
        await self.toolstack.alert(VM, Alert("NAME", 5, "body"))


CALLS: dict[str, Callable[[Scene], Awaitable[object]]] = {
    "read": Scene.read,
    "write": Scene.write,
    "mark": Scene.mark,
    "alert": Scene.alert,
}


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    async with serving(scene.server):
        yield scene


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_write_that_waited_for_something_else_until_its_deadline_was_not_sent(
    scene: Scene, mock_clock: MockClock, is_known: bool
) -> None:
    """xapi takes connections and says nothing, as while it starts; what waits for one login waits in a row."""
    other = uuid4()
    scene.xapi.create(other, b"store", ON_BOOT)
    if is_known:
        await scene.toolstack.read(VM)
        scene.toolstack._session = None
    login = scene.server.next(held=True, method=LOGIN)
    failed: list[Exception] = []

    async def write(vm: UUID, held: trio.Event) -> None:
        await held.wait()
        with pytest.raises((UNAVAILABLE, UNCLEAR)) as error:
            await scene.toolstack.write(vm, b"new", Update.NO, deadline=trio.current_time() + 5)
        failed.append(error.value)

    now = trio.Event()
    now.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, VM, now)
        nursery.start_soon(write, other, login.reached)
        nursery.start_soon(write, VM, login.reached)
        await login.reached.wait()
        await wait_all_tasks_blocked()
        mock_clock.jump(5)
    assert [type(each) for each in failed] == [UNAVAILABLE] * 3
    assert (scene.model.store, SET in scene.took()) == (b"store", False)
    # One that is with xapi may still be carried out.
    call = scene.server.next(held=True, method=SET)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, VM, now)
        await call.reached.wait()
        mock_clock.jump(5)
    assert type(failed[-1]) is UNCLEAR


async def test_one_login_and_one_look_for_the_vm(scene: Scene) -> None:
    assert await scene.read() == VmRecord(b"store", ON_BOOT, 100)
    assert scene.took() == [LOGIN, BY_UUID, NVRAM, STATE]
    assert await scene.write() == 101
    await scene.read()
    await scene.alert()
    assert scene.took() == [SET, NVRAM, STATE, "message.create"]
    await scene.toolstack.aclose()
    assert scene.took() == ["session.logout"]
    assert scene.xapi.sessions == set()
    with pytest.raises(UNAVAILABLE):
        await scene.alert()


async def test_many_vms_at_once_log_in_once(scene: Scene) -> None:
    vms = [uuid4() for _ in range(30)]
    for vm in vms:
        scene.xapi.create(vm, b"x", OK)
    async with trio.open_nursery() as nursery:
        for vm in vms:
            nursery.start_soon(scene.toolstack.read, vm)
    assert scene.took().count(LOGIN) == 1
    scene.xapi.sessions.clear()
    async with trio.open_nursery() as nursery:
        for vm in vms:
            nursery.start_soon(scene.toolstack.read, vm)
    assert scene.took().count(LOGIN) == 1


@pytest.mark.parametrize("call", CALLS)
async def test_a_session_that_has_ended_is_renewed_once_a_call(scene: Scene, call: str) -> None:
    await scene.read()
    scene.xapi.sessions.clear()
    scene.took()
    await CALLS[call](scene)
    assert scene.took().count(LOGIN) == 1
    method = {"read": NVRAM, "write": SET, "mark": MARK, "alert": "message.create"}[call]
    scene.xapi.failing[method] = Failure(("SESSION_INVALID", "x"))
    with pytest.raises(UNAVAILABLE, match="SESSION_INVALID"):
        await CALLS[call](scene)
    assert [each for each in scene.took() if each in (LOGIN, method)] == [method, LOGIN, method]


async def test_a_reference_is_dropped_when_it_is_invalid(scene: Scene) -> None:
    await scene.read()
    scene.xapi.move(VM)
    scene.took()
    assert await scene.write() == 101
    assert scene.took() == [SET, BY_UUID, SET]
    await scene.write()
    assert scene.took() == [SET]


async def test_a_vm_that_is_gone_is_looked_for_once(scene: Scene) -> None:
    await scene.read()
    scene.xapi.vms.clear()
    scene.took()
    with pytest.raises(REFUSED) as refused:
        await scene.read()
    assert refused.value.code == "HANDLE_INVALID"
    assert scene.took() == [NVRAM, BY_UUID]
    scene.xapi.create(VM, b"store", OK)
    assert (await scene.read()).generation == 101  # never one that somebody may remember


async def test_handles_that_are_never_valid_end(scene: Scene) -> None:
    await scene.read()
    scene.xapi.failing[NVRAM] = Failure(("HANDLE_INVALID", "VM", "x"))
    scene.took()
    with pytest.raises(REFUSED):
        await scene.read()
    assert scene.took() == [NVRAM, BY_UUID, NVRAM]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("method", [LOGIN, "later"])
async def test_a_slave_names_the_master(scene: Scene, call: str, method: str) -> None:
    later = {"read": NVRAM, "write": SET, "mark": MARK, "alert": "message.create"}[call]
    scene.xapi.failing[LOGIN if method == LOGIN else later] = Failure(("HOST_IS_SLAVE", "192.0.2.7"))
    with pytest.raises(REFUSED, match=r"not its pool's master: .* 192\.0\.2\.7") as refused:
        await CALLS[call](scene)
    assert refused.value.code == "HOST_IS_SLAVE"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [b"301 Moved Permanently", b"302 Found", b"307 Temporary", b"308 Permanent"])
async def test_a_redirect_names_the_master(scene: Scene, call: str, status: bytes) -> None:
    await scene.read()
    where = b"https://operator:secret@192.0.2.7:8443/jsonrpc?session_id=OpaqueRef:1"
    scene.server.next(http(b"", status + b"\r\nLocation: " + where))
    with pytest.raises(REFUSED, match=r"not its pool's master: .* has to go to 192\.0\.2\.7:8443 .*\"guard\"") as refused:
        await CALLS[call](scene)
    assert refused.value.code == f"HTTP_{status[:3].decode()}"
    assert not any(each in str(refused.value) for each in ("operator", "secret", "OpaqueRef", "jsonrpc"))


async def test_a_location_that_is_no_redirect_says_nothing(scene: Scene) -> None:
    await scene.read()
    scene.server.next(http(b"", b"404 Not Found\r\nLocation: https://192.0.2.7/"))
    with pytest.raises(REFUSED, match=r"HTTP status 404$"):
        await scene.read()


async def test_an_xapi_from_before_the_field(scene: Scene, mock_clock: MockClock) -> None:
    scene.xapi.is_new = False
    assert (await scene.read()).state is None
    await scene.toolstack.write(VM, b"one", Update.YES)
    assert scene.took() == [LOGIN, BY_UUID, NVRAM, STATE, SET, SET]
    await scene.toolstack.write(VM, b"two", Update.YES)
    await scene.read()
    assert scene.took() == [SET, NVRAM]
    assert scene.model.updates == [None, None]
    with pytest.raises(REFUSED) as refused:
        await scene.mark()
    assert refused.value.code == "MESSAGE_METHOD_UNKNOWN"
    scene.xapi.is_new = True
    mock_clock.jump(ASK_AGAIN_SECONDS)
    await scene.toolstack.write(VM, b"three", Update.YES)
    assert (await scene.read()).state is OK
    assert scene.model.updates[2:] == ["yes"]


async def test_an_upgrade_is_noticed_when_xapi_was_restarted(scene: Scene) -> None:
    scene.xapi.is_new = False
    await scene.read()
    await scene.write()
    scene.xapi.is_new = True
    scene.xapi.sessions.clear()
    assert (await scene.read()).store == b"new"
    assert (await scene.read()).state is AVAILABLE
    await scene.write()
    assert scene.model.updates == [None, "no"]


@pytest.mark.parametrize("call", CALLS)
async def test_a_lost_answer(scene: Scene, call: str) -> None:
    await scene.read()
    method = {"read": NVRAM, "write": SET, "mark": MARK, "alert": "message.create"}[call]
    scene.server.next(method=method)
    with pytest.raises(UNAVAILABLE if call == "read" else UNCLEAR):
        await CALLS[call](scene)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("method", [LOGIN, BY_UUID])
async def test_before_the_change_itself_nothing_is_unclear(scene: Scene, call: str, method: str) -> None:
    if call == "alert" and method == BY_UUID:
        scene.server.next(http(build_response(Success(None))), method=LOGIN)  # an alert names the VM by its uuid
    else:
        scene.server.next(method=method)
    with pytest.raises(UNAVAILABLE):
        await CALLS[call](scene)
    assert scene.model.updates == []


@pytest.mark.parametrize("method", [LOGIN, BY_UUID])
async def test_a_reference_that_is_no_text(scene: Scene, method: str) -> None:
    scene.server.next(http(build_response(Success(None))), method=method)
    with pytest.raises(UNAVAILABLE, match=method):
        await scene.read()
    assert (await scene.read()).store == b"store"


async def test_a_mark_whose_state_cannot_be_read_back_is_unclear(scene: Scene) -> None:
    await scene.read()
    scene.server.next(method=STATE)
    with pytest.raises(UNCLEAR, match="was carried out"):
        await scene.mark()
    assert await scene.mark() is ON_BOOT


async def test_nobody_is_there(tmp_path: Path) -> None:
    toolstack = XapiToolstack(tmp_path / "absent")
    with pytest.raises(UNAVAILABLE):
        await toolstack.read(VM)
    await toolstack.aclose()


async def test_an_xapi_that_hangs_does_not_keep_the_end(scene: Scene, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    await scene.read()
    scene.server.next(held=True)
    begun = trio.current_time()
    await scene.toolstack.aclose()
    assert trio.current_time() - begun <= 1.0
