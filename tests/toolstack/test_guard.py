"""xapi-guard's client: which calls it makes, to guards of both generations, and what each kind of answer leads to."""

from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock

from support.fake_guard import GUARDS_ALERT, Guard, Server, VmModel, http, serving
from support.places import FIXTURES
from varstore_companion.errors import (
    ToolstackConflictError,
    ToolstackError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.guard import GuardToolstack
from varstore_companion.toolstack.interface import Alert, VmRecord
from varstore_companion.toolstack.remote import ASK_AGAIN_SECONDS
from varstore_companion.toolstack.xmlrpc import MAX_DOCUMENT, Failure, Success, Value, build_response
from varstore_companion.trust.state import CertificatesState, Update

OK, AVAILABLE, ON_BOOT = CertificatesState
UNAVAILABLE, REFUSED, UNCLEAR = ToolstackUnavailableError, ToolstackRefusedError, ToolstackUnclearError
READ_NEW = ["VM.get_NVRAM", "VM.get_secureboot_certificates_state"]
V2, PLAIN = "VM.set_NVRAM_EFI_variables_v2", "VM.set_NVRAM_EFI_variables"
VM = uuid4()


class Scene:
    """One VM behind a guard, and the adapter. The guard's `server.run` is the test's to start."""

    def __init__(self, folder: Path, *, is_new: bool = True) -> None:
        self.model = VmModel(VM, lambda _store: AVAILABLE)
        self.model.put(b"store", ON_BOOT)
        self.guard = Guard(self.model, is_new=is_new)
        self.server = Server(folder / "guard", self.guard.answer)
        self.toolstack = GuardToolstack(count(100))
        self.toolstack.set_upstream(VM, self.server.path)

    def took(self) -> list[str]:
        """The calls since the last look."""
        calls, self.server.calls = self.server.calls, []
        return calls

    async def read(self) -> VmRecord:
        return await self.toolstack.read(VM)

    async def write(self, store: bytes = b"new", update: Update = Update.NO, expected: int | None = None) -> int:
        return await self.toolstack.write(VM, store, update, expected=expected)

    async def alert(self) -> None:
        await self.toolstack.alert(VM, Alert("NAME", 5, "body"))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def old(tmp_path: Path) -> Scene:
    return Scene(tmp_path, is_new=False)


# Which calls


async def test_a_read_is_two_calls_and_a_write_is_one(scene: Scene) -> None:
    async with serving(scene.server):
        assert await scene.read() == VmRecord(b"store", ON_BOOT, 100)
        assert scene.took() == READ_NEW
        assert await scene.write() == 101
        assert scene.took() == [V2]
    assert scene.server.requests[0].parameters == ("DUMMYSESSION", "DUMMYVM")
    assert scene.server.requests[-1].parameters == ("DUMMYSESSION", "DUMMYVM", "bmV3", "no")


async def test_an_old_guard_has_no_field_and_is_asked_once(old: Scene) -> None:
    async with serving(old.server):
        assert await old.read() == VmRecord(b"store", None, 100)
        assert old.took() == READ_NEW
        assert (await old.read()).state is None
        assert old.took() == READ_NEW[:1]
        await old.write(update=Update.YES)
        assert old.took() == [V2, PLAIN]
        await old.write(update=Update.NO)
        assert old.took() == [PLAIN]
    assert old.model.updates == [None, None]


@pytest.mark.parametrize(
    "unknown",
    [
        Failure(("Internal_error", 'Xapi_idl.UnknownMethod("{}")')),
        Failure(("MESSAGE_METHOD_UNKNOWN", "{}")),
        Failure(("MESSAGE_PARAMETER_COUNT_MISMATCH", "{}", "3", "4")),
        Failure(("Internal_error", "Server_error(MESSAGE_PARAMETER_COUNT_MISMATCH, [ {}; 2; 3 ])")),
        Failure(()),
    ],
    ids=["guard", "xapi", "count", "old xapi behind a new guard", "nil"],
)
async def test_every_way_to_say_that_a_call_is_unknown(old: Scene, unknown: Failure) -> None:
    old.guard.unknown = unknown
    async with serving(old.server):
        await old.write(b"one")
        assert (await old.read()).state is None
        old.took()
        await old.write(b"two")
        assert old.took() == [PLAIN]
    assert old.model.store == b"two"


async def test_a_failure_without_a_reason_from_a_new_guard_is_no_old_guard(scene: Scene) -> None:
    """The plain call would erase the mark."""
    async with serving(scene.server):
        scene.server.next(http(build_response(Failure(()))), method=V2)
        with pytest.raises(UNCLEAR):
            await scene.write()
        assert scene.took() == [V2, READ_NEW[1]]
        await scene.write()
        assert scene.took() == [V2]
    assert scene.model.state is ON_BOOT


async def test_a_failure_without_a_reason_from_a_guard_that_then_says_no_more_is_unclear(scene: Scene) -> None:
    """It may have been carried out: an unavailable toolstack would have been one that certainly did nothing."""
    async with serving(scene.server):
        scene.server.next(http(build_response(Failure(()))), method=V2, carry_out=True)
        scene.server.next(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", method=READ_NEW[1])
        with pytest.raises(UNCLEAR, match="whether the guard has the call is not known"):
            await scene.write(b"made")
        assert scene.took() == [V2, READ_NEW[1]]
    assert scene.model.store == b"made"


async def test_an_upgrade_is_noticed_when_the_socket_is_made_anew(old: Scene) -> None:
    async with serving(old.server):
        await old.read()
        await old.write()
    old.guard.is_new = True
    old.took()
    async with serving(old.server):
        await old.write(b"complete", Update.YES)
        assert old.took() == [V2]
        assert (await old.read()).state is OK
    assert old.model.updates == [None, "yes"]


async def test_an_upgrade_behind_the_same_socket_is_noticed_after_an_hour(old: Scene, mock_clock: MockClock) -> None:
    async with serving(old.server):
        await old.read()
        await old.write()
        old.guard.is_new = True
        mock_clock.jump(ASK_AGAIN_SECONDS - 1)
        old.took()
        assert (await old.read()).state is None
        await old.write()
        assert old.took() == [READ_NEW[0], PLAIN]
        mock_clock.jump(1)
        await old.write()
        assert (await old.read()).state is AVAILABLE
        assert old.took() == [V2, *READ_NEW]


async def test_a_guard_that_becomes_old_is_spoken_to_as_one(scene: Scene) -> None:
    """A VM migrates to a host that was not upgraded yet."""
    async with serving(scene.server):
        await scene.write(b"one")
        scene.guard.is_new = False
        await scene.write(b"two")
        assert scene.took() == [V2, V2, PLAIN]
        assert await scene.read() == VmRecord(b"two", None, 102)


async def test_an_alert_stands_alone_though_the_guard_renames_it(scene: Scene) -> None:
    async with serving(scene.server):
        await scene.toolstack.alert(VM, Alert("VM_SECURE_BOOT_CERTIFICATES_UPDATED", 4, "VM x: updated"))
        await scene.toolstack.alert(VM, Alert(GUARDS_ALERT, 5, "it failed"))
    assert [(alert.name, alert.priority, alert.body) for _, alert in scene.model.alerts] == [
        (GUARDS_ALERT, 4, "VM_SECURE_BOOT_CERTIFICATES_UPDATED: VM x: updated"),
        (GUARDS_ALERT, 5, "it failed"),
    ]


@pytest.mark.parametrize("mark", [True, False])
async def test_a_mark_is_refused(scene: Scene, *, mark: bool) -> None:
    with pytest.raises(REFUSED, match=r"VM\.update_secureboot_certificates_on_boot") as refused:
        await scene.toolstack.mark(VM, mark=mark)
    assert refused.value.code == "NOT_IMPLEMENTED"


# Which socket, and what was seen there


async def test_a_vm_without_a_socket_is_unknown(scene: Scene) -> None:
    async with serving(scene.server):
        await scene.read()
        scene.toolstack.set_upstream(VM, None)
        scene.toolstack.set_upstream(VM, None)
        with pytest.raises(REFUSED) as refused:
            await scene.read()
        assert refused.value.code == "HANDLE_INVALID"
        scene.toolstack.set_upstream(VM, scene.server.path)
        assert (await scene.read()).generation == 101  # never one that somebody may remember


async def test_another_socket_for_the_same_vm_keeps_the_generation(scene: Scene, tmp_path: Path) -> None:
    other = Server(tmp_path / "other", Guard(scene.model, is_new=False).answer)
    async with serving(scene.server, other):
        before = await scene.read()
        scene.toolstack.set_upstream(VM, other.path)
        after = await scene.read()
    assert (after.store, after.state, after.generation) == (before.store, None, before.generation)
    assert other.calls == READ_NEW


async def test_what_another_one_wrote_is_seen_at_the_next_read(scene: Scene) -> None:
    async with serving(scene.server):
        base = (await scene.read()).generation
        assert (await scene.read()).generation == base
        scene.model.put(b"from elsewhere", OK)
        assert (await scene.read()).generation > base
        with pytest.raises(ToolstackConflictError):
            await scene.write(expected=base)
        scene.model.put(None, OK)
        gone = await scene.read()
        assert gone.store is None
        await scene.write(expected=gone.generation)
    assert scene.model.updates == ["no"]


async def test_no_store_is_kept(scene: Scene) -> None:
    store = bytes(range(256)) * 300
    async with serving(scene.server):
        await scene.write(store)
        assert (await scene.read()).store == store
    seen = scene.toolstack._guards[VM].seen
    assert len(seen._digest or b"") == 32


# Answers that are none


DAMAGED: dict[str, bytes] = {
    "closed": b"",
    "half": http(build_response(Success("x" * 100)))[:-20],
    "cut document": http(build_response(Success("x" * 100))[:-20]),
    "oversized": http(build_response(Success("x" * MAX_DOCUMENT))),
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "not XML": http(b"<html>It works!</html>"),
    "a call": http(b"<methodCall><methodName>x</methodName></methodCall>"),
    "entities": http(b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "a">]><methodResponse/>'),
    "no body": http(b""),
    "204": http(b"", b"204 No Content"),
    "500": http(b"why", b"500 Internal Server Error"),
    "502": http(b"why", b"502 Bad Gateway"),
}
CALLS: dict[str, Callable[[Scene], Awaitable[object]]] = {"read": Scene.read, "write": Scene.write, "alert": Scene.alert}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", DAMAGED)
async def test_a_lost_answer(scene: Scene, call: str, name: str) -> None:
    async with serving(scene.server):
        scene.server.next(DAMAGED[name])
        with pytest.raises(UNAVAILABLE if call == "read" else UNCLEAR):
            await CALLS[call](scene)
        assert len(scene.took()) == 1
        await CALLS[call](scene)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (b"503 Busy", UNAVAILABLE),
        (b"429 Slow", UNAVAILABLE),
        (b"405 No", REFUSED),
        (b"404 No", REFUSED),
        (b"302 There", REFUSED),
    ],
)
async def test_an_http_status(scene: Scene, call: str, status: bytes, error: type[ToolstackError]) -> None:
    async with serving(scene.server):
        scene.server.next(http(b"", status))
        with pytest.raises(error, match=status[:3].decode()):
            await CALLS[call](scene)


@pytest.mark.parametrize("call", CALLS)
async def test_nobody_is_there(scene: Scene, call: str) -> None:
    with pytest.raises(UNAVAILABLE):
        await CALLS[call](scene)
    async with serving(scene.server):
        await CALLS[call](scene)
    with pytest.raises(UNAVAILABLE):
        await CALLS[call](scene)


@pytest.mark.parametrize(("call", "error"), [("read", UNAVAILABLE), ("write", UNCLEAR), ("alert", UNCLEAR)])
@pytest.mark.parametrize("raw", [b"", DAMAGED["half"]], ids=["silent", "half"])
async def test_a_guard_that_hangs(
    scene: Scene, call: str, error: type[ToolstackError], raw: bytes, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with serving(scene.server):
        hang = scene.server.next(raw, held=True)
        with pytest.raises(error, match=r"no answer within \d+ s"):
            await CALLS[call](scene)
        assert hang.reached.is_set()
        assert await scene.read()


async def test_a_lost_answer_to_a_write_that_was_made_shows_at_the_next_read(scene: Scene) -> None:
    async with serving(scene.server):
        base = (await scene.read()).generation
        scene.server.next(method=V2, carry_out=True)
        with pytest.raises(UNCLEAR):
            await scene.write(b"made", expected=base)
        assert scene.took() == [*READ_NEW, V2]
        back = await scene.read()
    assert back.store == b"made"
    assert back.generation > base


async def test_a_cancelled_call_frees_the_vm(scene: Scene) -> None:
    async with serving(scene.server):
        hang = scene.server.next(held=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.write)
            await hang.reached.wait()
            nursery.cancel_scope.cancel()
        assert (await scene.read()).store == b"store"


async def test_calls_for_one_vm_are_made_one_at_a_time(scene: Scene) -> None:
    async with serving(scene.server):
        hang = scene.server.next(held=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.write)
            await hang.reached.wait()
            nursery.start_soon(scene.read)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert scene.took() == [V2]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, UNAVAILABLE),
        ("", UNAVAILABLE),
        ([], UNAVAILABLE),
        ({"EFI-variables": None}, UNAVAILABLE),
        ({"EFI-variables": "****"}, REFUSED),
        ({"EFI-variables": "QQ"}, REFUSED),
        ({"EFI-variables": "A" * 262_145}, REFUSED),
    ],
)
async def test_an_nvram_that_is_none_is_never_a_first_boot(scene: Scene, value: Value, error: type[ToolstackError]) -> None:
    async with serving(scene.server):
        scene.server.next(http(build_response(Success(value))))
        with pytest.raises(error):
            await scene.read()


async def test_line_ends_in_base64_do_not_count(scene: Scene) -> None:
    scene.model.nvram = {"EFI-variables": "c3Rv\r\ncmU=\n", "another": "key"}
    async with serving(scene.server):
        assert (await scene.read()).store == b"store"


async def test_a_state_of_a_later_generation_is_no_field(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(scene.server):
        scene.server.next(http(build_response(Success("revoked"))), method=READ_NEW[1])
        assert (await scene.read()).state is None
        assert "revoked" in caplog.text
        scene.server.next(http(build_response(Success(None))), method=READ_NEW[1])
        with pytest.raises(UNAVAILABLE):
            await scene.read()
        assert (await scene.read()).state is ON_BOOT


# The recorded answers, as they are


RESPONSES = FIXTURES / "xapi-guard" / "responses"


@pytest.mark.skipif(not RESPONSES.is_dir(), reason=f"the recorded answers are not at {RESPONSES}")
@pytest.mark.parametrize("number", range(48))
async def test_recorded_answers_are_read_as_they_are(scene: Scene, number: int) -> None:
    def recorded(method: str) -> bytes:
        return http((RESPONSES / f"{method}.response.{number}").read_bytes())

    async with serving(scene.server):
        if number == 0:
            scene.server.next(http((RESPONSES / f"{V2}.response.0").read_bytes()))
            await scene.write()
            scene.server.next(recorded("message.create"))
            await scene.alert()
            scene.server.next(recorded("VM.get_NVRAM"))
            scene.server.next(recorded("VM.get_secureboot_certificates_state"))
            assert await scene.read() == VmRecord(None, None, 102)
            return
        scene.server.next(recorded("VM.get_NVRAM"))
        with pytest.raises((UNAVAILABLE, REFUSED)):
            await scene.read()
        scene.server.next(recorded(PLAIN))
        with pytest.raises((UNAVAILABLE, REFUSED, UNCLEAR)):
            await scene.write()
        scene.server.next(recorded("message.create"))
        with pytest.raises((UNAVAILABLE, REFUSED, UNCLEAR)):
            await scene.alert()
        assert scene.took() == ["VM.get_NVRAM", V2, "message.create"]
        assert scene.model.updates == []
