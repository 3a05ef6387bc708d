"""Root's socket."""

import json
import os
import socket
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from support.daemon import NOW, Place, written
from support.peer import Refused, connect, greeted
from support.storemaker import scene
from varstore_companion.daemon import control as control_module
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.cold_boot import BootOutcome, LastUpdate
from varstore_companion.errors import ToolstackUnavailableError
from varstore_companion.trust.state import CertificatesState
from varstore_companion.unix_stream import UnixStream
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.limits import MAX_JSON, MAX_TEXT
from varstore_companion.wire.messages import (
    AnswerMessage,
    Attach,
    AttachAnswer,
    Detach,
    DetachAnswer,
    GetStore,
    List,
    ListAnswer,
    Mark,
    MarkAnswer,
    Ping,
    PingAnswer,
    Plan,
    PlanAnswer,
    PutStore,
    Reason,
    RequestMessage,
    SbFailure,
    Status,
    StatusAnswer,
)

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT


async def refused(place: Place, request: RequestMessage) -> Refused:
    async with greeted(place.control) as control:
        with pytest.raises(Refused) as caught:
            await control.call(request, AnswerMessage)
        # The connection lives.
        await control.call(Ping(), PingAnswer)
    return caught.value


async def listed(place: Place, limit: int | None = None) -> list[list[dict[str, object]]]:
    pages = []
    after = None
    async with greeted(place.control) as control:
        while True:
            answer = await control.call(List(after, limit), ListAnswer)
            pages.append(json.loads(answer.json)["attachments"])
            after = answer.next
            if after is None:
                return pages


async def test_the_kernel_says_who_it_is(place: Place) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.connect(os.fspath(place.control))
        assert control_module.peer_uid(UnixStream(connected)) == os.geteuid()


async def test_another_user_is_refused_whatever_the_files_mode(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    monkeypatch.setattr(control_module, "peer_uid", lambda _stream: 65_543)
    async with await connect(place.control) as peer:
        with pytest.raises(Refused) as caught:
            await peer.hello()
        assert caught.value.code is ErrorCode.NOT_ALLOWED
        assert await peer.rest() == []
    assert place.record(machine).state is AVAILABLE


async def test_a_greeting_with_a_vm_does_not_belong_here(place: Place) -> None:
    async with await connect(place.control, uuid4()) as peer:
        with pytest.raises(Refused) as caught:
            await peer.hello()
        assert caught.value.code is ErrorCode.BAD_MESSAGE


@pytest.mark.parametrize("request_", [GetStore(Reason.BOOT), PutStore(b""), SbFailure()], ids=["get", "put", "failure"])
async def test_stores_are_not_read_or_written_here(place: Place, request_: RequestMessage) -> None:
    assert (await refused(place, request_)).code is ErrorCode.NOT_HERE


async def test_attach_and_detach_say_what_was_there(place: Place) -> None:
    path = bytes(place.folder / "vm.sock")
    vm = uuid4()
    async with greeted(place.control) as control:
        for already in (False, True, True):
            assert (await control.call(Attach(vm, path), AttachAnswer)).already is already
        for already in (False, True):
            assert (await control.call(Detach(path), DetachAnswer)).already is already


@pytest.mark.parametrize("change", ["vm", "gid", "mode", "resume"])
async def test_another_attachment_at_the_path_is_a_conflict(place: Place, change: str) -> None:
    path, vm = bytes(place.folder / "vm.sock"), uuid4()
    async with greeted(place.control) as control:
        await control.call(Attach(vm, path), AttachAnswer)
    other = {
        "vm": Attach(uuid4(), path),
        "gid": Attach(vm, path, gid=0),
        "mode": Attach(vm, path, mode=0o600),
        "resume": Attach(vm, path, resume=True),
    }[change]
    answer = await refused(place, other)
    assert answer.code is ErrorCode.CONFLICT
    assert answer.text.endswith(f"vm.sock: attached otherwise: vm {vm}, mode 0660, resume False, interpose False")
    assert len(place.daemon.listed()) == 1


async def test_a_refusal_is_logged_with_its_vm(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    vm = uuid4()
    async with greeted(place.control) as control:
        for request in (Mark(vm, mark=True), GetStore(Reason.TOOL)):
            with pytest.raises(Refused):
                await control.call(request, AnswerMessage)
    about_vm, about_none = caplog.messages[-2:]
    assert f" vm={vm} Mark failed: UNKNOWN_VM" in about_vm
    assert " vm=" not in about_none


async def test_what_cannot_be_attached_is_named(place: Place) -> None:
    missing = place.folder / "missing" / "vm.sock"
    answer = await refused(place, Attach(uuid4(), bytes(missing)))
    assert answer.code is ErrorCode.INVALID_ARGUMENT
    assert str(missing.parent) in answer.text
    upstream = Attach(uuid4(), bytes(place.folder / "vm.sock"), upstream=b"/run/guard.sock")
    assert (await refused(place, upstream)).code is ErrorCode.INVALID_ARGUMENT
    assert place.daemon.listed() == []


@pytest.mark.parametrize("name", [b"vm-\xff\xfe.sock", "vm-ä.sock".encode(), b"vm\n.sock", b"a b'\".sock"])
async def test_a_path_is_bytes(place: Place, name: bytes) -> None:
    path = os.path.join(bytes(place.folder), name)  # noqa: PTH118  bytes
    vm = uuid4()
    async with greeted(place.control) as control:
        assert not (await control.call(Attach(vm, path), AttachAnswer)).already
        assert (await control.call(Attach(vm, path), AttachAnswer)).already
        assert [os.fsencode(each.name) for each in place.folder.iterdir()].count(name) == 1
        assert len((await listed(place))[0]) == 1
        assert not (await control.call(Detach(path), DetachAnswer)).already
    assert name not in [os.fsencode(each.name) for each in place.folder.iterdir()]


@pytest.mark.parametrize("limit", [None, 1, 3, 7, 20, 21, 1000])
async def test_pages_have_every_attachment_once_in_order(place: Place, limit: int | None) -> None:
    names = [f"{number:02}.sock" for number in range(20)]
    for name in reversed(names):
        await place.machine(None, name=name)
    pages = await listed(place, limit)
    assert all(len(page) <= (limit or 1000) for page in pages)
    assert [Path(str(entry["path"])).name for page in pages for entry in page] == names
    assert len(pages) == -(-20 // (limit or 1000))


async def test_a_page_ends_where_its_json_would_not_fit(place: Place) -> None:
    machines = [await place.machine(None, name=f"{number:02}.sock") for number in range(60)]
    for machine in machines:
        place.daemon.vm(machine.vm)._cold_boot.last_update = LastUpdate(NOW, BootOutcome.FAILED, "ü" * (MAX_TEXT - 1))
    pages = await listed(place)
    assert len(pages) > 1
    assert sum(map(len, pages)) == 60
    assert all(len(json.dumps(page)) <= MAX_JSON for page in pages)


async def test_the_cursor_may_be_of_one_that_is_gone(place: Place) -> None:
    for number in range(6):
        await place.machine(None, name=f"{number}.sock")
    async with greeted(place.control) as control:
        first = await control.call(List(None, 3), ListAnswer)
        assert await place.daemon.detach(place.folder / "2.sock")
        rest = await control.call(List(first.next, 3), ListAnswer)
    assert [Path(entry["path"]).name for entry in json.loads(rest.json)["attachments"]] == ["3.sock", "4.sock", "5.sock"]
    assert rest.next is None


async def test_status_of_the_daemon(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    await machine.boot()
    await machine.put(written("all2023", 1))
    async with greeted(place.control) as control:
        status = json.loads((await control.call(Status(), StatusAnswer)).json)
    assert (status["toolstack"], status["attached"], status["boots"], status["updates"]) == ("memory", 1, 1, 1)
    assert status["writes"]["yes"] + status["writes"]["no"] == status["certcheck_saved"] == 2
    assert status["connections"] == 1


async def test_status_of_a_vm(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with greeted(place.control) as control:

        async def status() -> dict[str, object]:
            return dict(json.loads((await control.call(Status(machine.vm), StatusAnswer)).json))

        seen = await status()
        assert (seen["report"], seen["field"], seen["sockets"]) == ("update_available", "update_on_boot", [str(machine.path)])
        assert place.toolstack.writes == []
        await machine.boot()
        seen = await status()
        assert (seen["report"], seen["field"], seen["last_verdict"]) == ("ok", "ok", "yes")
        assert seen["last_update"] == {"at": NOW, "outcome": "updated", "detail": None}
        place.toolstack.fail_next("read", ToolstackUnavailableError("xapi restarts"))
        assert (await status())["error"] == "xapi restarts"
    assert (await refused(place, Status(uuid4()))).code is ErrorCode.UNKNOWN_VM


async def test_the_list_does_not_show_a_mark_that_a_write_has_erased(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    async with greeted(place.control) as control:
        await control.call(Status(machine.vm), StatusAnswer)
    await machine.put(scene("custom_keys").blob)
    assert place.record(machine).state is OK
    ((entry,),) = await listed(place)
    assert entry["field"] is None


async def test_mark_and_plan_work_for_a_vm_that_is_not_attached(place: Place) -> None:
    vm = place.new_vm(scene("ms2011").blob, AVAILABLE).uuid
    async with greeted(place.control) as control:
        for mark, state in ((True, ON_BOOT), (True, ON_BOOT), (False, AVAILABLE), (True, ON_BOOT)):
            assert (await control.call(Mark(vm, mark), MarkAnswer)).state == state
        planned = json.loads((await control.call(Plan(vm), PlanAnswer)).json)
    assert (planned["state_before"], planned["state_after"], planned["refused"]) == ("update_available", "ok", None)
    assert place.toolstack.vms[vm].store == scene("ms2011").blob
    complete = place.new_vm(scene("all2023").blob, OK).uuid
    assert (await refused(place, Mark(complete, mark=True))).code is ErrorCode.NOT_ALLOWED
    assert (await refused(place, Mark(uuid4(), mark=True))).code is ErrorCode.UNKNOWN_VM
    assert (await refused(place, Plan(place.new_vm(None, OK).uuid))).code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("call", ["read", "mark"])
async def test_a_bug_ends_its_own_request(place: Place, call: str, caplog: pytest.LogCaptureFixture) -> None:
    vm = place.new_vm(scene("ms2011").blob, AVAILABLE).uuid
    place.toolstack.fail_next("read" if call == "read" else "mark", RuntimeError("a bug"))
    answer = await refused(place, Plan(vm) if call == "read" else Mark(vm, mark=True))
    # INTERNAL says that nothing was changed.
    assert answer.code is (ErrorCode.INTERNAL if call == "read" else ErrorCode.UNCLEAR)
    assert "a bug" not in answer.text
    assert f"control uid={os.geteuid()} vm={vm} {'Plan' if call == 'read' else 'Mark'} met a bug" in caplog.messages


async def test_attachments_by_two_operators_at_once(place: Place) -> None:
    vm = uuid4()
    results: list[bool] = []

    async def attach() -> None:
        async with greeted(place.control) as control:
            answer = await control.call(Attach(vm, bytes(place.folder / "vm.sock")), AttachAnswer)
            results.append(answer.already)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(attach)
    assert sorted(results) == [False] + [True] * 7
    assert [entry["path"] for entry in place.daemon.listed()] == [str(place.folder / "vm.sock")]
    path = place.folder / "vm.sock"
    assert place.daemon._sockets.served[path][0] == Attachment(vm, path, None, 0o660, resume=False)
