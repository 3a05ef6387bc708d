"""Backups, restores and histories, asked for on the control socket."""

import errno
import json
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import NOW, Machine, Place, updated, written
from support.peer import Refused, connect, greeted
from support.storemaker import scene
from varstore_companion.daemon import recovery as recovery_module
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.errors import ToolstackConflictError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.journal import files
from varstore_companion.journal.backups import KEEP, Why
from varstore_companion.journal.history import What
from varstore_companion.toolstack.guard import GuardToolstack
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire import codec
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.limits import MAX_JSON
from varstore_companion.wire.messages import (
    Backups,
    BackupsAnswer,
    History,
    HistoryAnswer,
    Outcome,
    Ping,
    PingAnswer,
    RequestMessage,
    Restore,
    RestoreAnswer,
)

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT
OLD = scene("ms2011").blob


def digest(store: bytes) -> str:
    return sha256(store).hexdigest()


async def restored(place: Place, vm: UUID, backup: str | None = None) -> dict[str, Any]:
    async with greeted(place.control) as control:
        document: dict[str, Any] = json.loads((await control.call(Restore(vm, backup), RestoreAnswer)).json)
    return document


async def refused(place: Place, request: RequestMessage) -> Refused:
    async with greeted(place.control) as control:
        with pytest.raises(Refused) as caught:
            await control.call(request, RestoreAnswer)
        # The connection lives.
        await control.call(Ping(), PingAnswer)
    return caught.value


async def listed(place: Place, vm: UUID | None = None, limit: int | None = None) -> list[list[dict[str, Any]]]:
    pages: list[list[dict[str, Any]]] = []
    after = None
    async with greeted(place.control) as control:
        while True:
            answer = await control.call(Backups(vm, after, limit), BackupsAnswer)
            pages.append(json.loads(answer.json)["backups"])
            after = answer.next
            if after is None:
                return pages


async def events(place: Place, vm: UUID) -> list[dict[str, Any]]:
    async with greeted(place.control) as control:
        document = json.loads((await control.call(History(vm), HistoryAnswer)).json)
    assert document["unreadable"] == 0
    told: list[dict[str, Any]] = document["events"]
    return told


async def updated_and_down(place: Place) -> Machine:
    """A VM that was updated at boot, then shut down and detached."""
    machine = await place.machine(OLD, ON_BOOT)
    assert (await machine.boot()).outcome is Outcome.UPDATED
    assert await place.daemon.detach(machine.path)
    return machine


async def test_an_update_is_taken_back_and_the_taking_back_too(place: Place) -> None:
    machine = await updated_and_down(place)
    vm, new = machine.vm, updated(OLD)
    ((backup,),) = await listed(place, vm)
    assert (backup["why"], backup["state"], backup["bytes"], backup["sha256"], backup["at"], backup["problem"]) == (
        "update",
        "update_available",
        len(OLD),
        digest(OLD),
        NOW,
        None,
    )
    answer = await restored(place, vm)
    assert place.record(machine) == VmRecord(OLD, AVAILABLE, 2)
    assert place.toolstack.writes[-1].update is Update.UNSPECIFIED
    (_, second) = [entry for page in await listed(place, vm) for entry in page]
    assert answer == {
        "vm": str(vm),
        "restored": backup,
        "kept": second["id"],
        "changed": True,
        "report": "update_available",
        "field": "update_available",
        "generation": 2,
    }
    assert (second["why"], second["sha256"], second["state"]) == ("restore", digest(new), "ok")

    # Without an id it is the newest: what the restore replaced.
    answer = await restored(place, vm)
    assert (answer["restored"]["id"], answer["report"], answer["field"]) == (second["id"], "ok", "ok")
    assert place.record(machine) == VmRecord(new, OK, 3)
    # With one, that one.
    answer = await restored(place, vm, backup["id"])
    assert answer["restored"]["sha256"] == digest(OLD)
    assert place.record(machine) == VmRecord(OLD, AVAILABLE, 4)
    # The next marked boot updates again.
    await place.toolstack.mark(vm, mark=True)
    again = await place.attach(vm, "again.sock")
    boot = await again.boot()
    assert (boot.outcome, boot.store) == (Outcome.UPDATED, new)
    told = await events(place, vm)
    assert [(each["number"], each["what"]) for each in told] == [
        (1, "updated"),
        (2, "restored"),
        (3, "restored"),
        (4, "restored"),
        (5, "updated"),
    ]
    rules = place.host.rules.name
    assert told[1] == {
        "number": 2,
        "at": NOW,
        "what": "restored",
        "manifest": rules,
        "before": digest(new),
        "after": digest(OLD),
        "backup": second["id"],
        "detail": f"backup {backup['id']}",
    }
    assert (told[0]["before"], told[0]["after"], told[0]["backup"]) == (digest(OLD), digest(new), backup["id"])


async def test_the_report_and_the_plan_lie_beside_the_store(place: Place) -> None:
    machine = await updated_and_down(place)
    answer = await restored(place, machine.vm)
    for name, state, changes in ((answer["restored"]["id"], "update_available", 4), (answer["kept"], "ok", 0)):
        about = json.loads((place.folder / "backups" / str(machine.vm) / f"{name}.json").read_text())
        assert about["report"]["state"] == state
        assert len(about["plan"]["changes"]) == changes
        assert "variables" not in about["report"]


async def test_a_vm_without_a_store_gets_one(place: Place) -> None:
    machine = await updated_and_down(place)
    place.toolstack.vms[machine.vm] = VmRecord(None, OK, 7)
    answer = await restored(place, machine.vm)
    assert (answer["kept"], answer["changed"], answer["field"]) == (None, True, "update_available")
    assert place.record(machine) == VmRecord(OLD, AVAILABLE, 8)
    assert [each["before"] for each in await events(place, machine.vm)][1:] == [None]


async def test_what_is_there_already_has_its_field_derived_anew(place: Place) -> None:
    machine = await updated_and_down(place)
    place.toolstack.vms[machine.vm] = VmRecord(OLD, OK, 7)
    answer = await restored(place, machine.vm)
    assert (answer["changed"], answer["field"], answer["kept"]) == (False, "update_available", answer["restored"]["id"])
    assert len((await listed(place, machine.vm))[0]) == 1


# What may be running


async def test_a_vm_that_may_be_running_is_refused(place: Place) -> None:
    machine = await place.machine(OLD, ON_BOOT)
    await machine.boot()
    other = await place.attach(machine.vm, "other.sock")
    writes = len(place.toolstack.writes)
    for attached in ((machine.path, other.path), (other.path,)):
        answer = await refused(place, Restore(machine.vm))
        assert answer.code is ErrorCode.NOT_ALLOWED
        shown = ", ".join(map(str, attached))
        assert answer.text == f"VM {machine.vm} may be running: {shown} is attached: shut the VM down and detach it"
        assert await place.daemon.detach(attached[0])
    assert len(place.toolstack.writes) == writes
    assert (await restored(place, machine.vm))["changed"]


async def test_a_last_request_of_a_detached_socket_is_in_the_way(place: Place) -> None:
    machine = await updated_and_down(place)
    again = await place.attach(machine.vm, "again.sock")
    hang = place.toolstack.hang_next("read")
    async with again.peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.get)
        await hang.reached.wait()
        assert await place.daemon.detach(again.path)
        answer = await refused(place, Restore(machine.vm))
        assert (answer.code, "still being carried out" in answer.text) == (ErrorCode.NOT_ALLOWED, True)
        hang.release.set()
    await wait_all_tasks_blocked()
    assert (await restored(place, machine.vm))["changed"]


async def test_so_is_one_whose_socket_was_made_again(place: Place) -> None:
    machine = await updated_and_down(place)
    again = await place.attach(machine.vm, "again.sock")
    hang = place.toolstack.hang_next("read")
    async with again.peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.get)
        await hang.reached.wait()
        again.path.unlink()
        assert not await place.daemon.attach(Attachment(machine.vm, again.path, None, 0o660, resume=False))
        assert await place.daemon.detach(again.path)
        assert (await refused(place, Restore(machine.vm))).code is ErrorCode.NOT_ALLOWED
        hang.release.set()


async def test_a_vm_that_is_attached_meanwhile_boots_with_what_was_restored(place: Place) -> None:
    machine = await updated_and_down(place)
    hang = place.toolstack.hang_next("write")
    boots: list[bytes | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restored, place, machine.vm)
        await hang.reached.wait()
        again = await place.attach(machine.vm, "again.sock")

        async def boot() -> None:
            boots.append((await again.boot()).store)

        nursery.start_soon(boot)
        await wait_all_tasks_blocked()
        assert boots == []
        hang.release.set()
    assert boots == [OLD]


async def test_a_restore_that_its_operator_gave_up_is_left_undone(place: Place) -> None:  # invariant 9
    """The VM may have been started meanwhile, on another host."""
    machine = await updated_and_down(place)
    before = place.record(machine)
    gone = await connect(place.control)
    await gone.hello()
    # Both before the daemon has a turn.
    os.write(gone.raw.socket.fileno(), build_frame(Restore.TYPE, 2, codec.encode(Restore(machine.vm))))
    gone.raw.socket.close()
    await wait_all_tasks_blocked()
    assert place.record(machine) == before


async def test_a_vm_that_is_attached_before_the_store_is_written_is_refused(place: Place) -> None:
    machine = await updated_and_down(place)
    hang = place.toolstack.hang_next("read")
    before = place.record(machine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, place, Restore(machine.vm))
        await hang.reached.wait()
        await place.attach(machine.vm, "again.sock")
        hang.release.set()
    assert place.record(machine) == before


async def test_nor_is_one_that_is_attached_while_its_store_is_backed_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await updated_and_down(place)
    before = place.record(machine)
    keep = place.backups.keep

    async def attach_and_keep(*arguments: Any, **named: Any) -> str:  # noqa: ANN401  whatever is asked for
        await place.attach(machine.vm, "again.sock")
        return await keep(*arguments, **named)

    monkeypatch.setattr(place.backups, "keep", attach_and_keep)
    answer = await refused(place, Restore(machine.vm))
    assert (answer.code, "again.sock is attached" in answer.text) == (ErrorCode.NOT_ALLOWED, True)
    assert place.record(machine) == before


# Backups that are not given out


@pytest.mark.parametrize("name", ["x", "../../etc/passwd", "20260624T010203Z-0123456789ab", "\x1b[31m"])
async def test_a_backup_that_is_not_there(place: Place, name: str) -> None:
    machine = await updated_and_down(place)
    answer = await refused(place, Restore(machine.vm, name))
    assert (answer.code, "has no backup of that name" in answer.text) == (ErrorCode.INVALID_ARGUMENT, True)
    never = place.new_vm(OLD, AVAILABLE)
    assert (await refused(place, Restore(never.uuid))).code is ErrorCode.INVALID_ARGUMENT
    assert len(place.toolstack.writes) == 1


async def test_a_vm_that_the_toolstack_does_not_know(place: Place) -> None:
    machine = await updated_and_down(place)
    del place.toolstack.vms[machine.vm]
    assert (await refused(place, Restore(machine.vm))).code is ErrorCode.UNKNOWN_VM
    assert len((await listed(place, machine.vm))[0]) == 1


@pytest.mark.parametrize("suffix", [".vars", ".json"])
async def test_a_damaged_backup(place: Place, suffix: str) -> None:
    machine = await updated_and_down(place)
    before = place.record(machine)
    (path,) = (place.folder / "backups" / str(machine.vm)).glob(f"*{suffix}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if suffix == ".vars" else 0] ^= 1
    path.write_bytes(data)
    answer = await refused(place, Restore(machine.vm))
    assert (answer.code, f"backup {path.stem} is damaged" in answer.text) == (ErrorCode.INVALID_ARGUMENT, True)
    assert place.record(machine) == before
    assert len((await listed(place, machine.vm))[0]) == 1


@pytest.mark.parametrize(
    ("store", "code"),
    [
        (scene("oversized_dbx").blob, ErrorCode.STORE_OVER_LIMIT),
        (scene("version3").blob, ErrorCode.NOT_A_STORE),
        (OLD[:-1], ErrorCode.NOT_A_STORE),
        (b"", ErrorCode.NOT_A_STORE),
        (OLD + b"\0" * 131_072, ErrorCode.STORE_OVER_LIMIT),
    ],
    ids=["over a limit", "newer version", "cut", "empty", "huge"],
)
async def test_never_a_store_that_varstored_would_refuse(place: Place, store: bytes, code: ErrorCode) -> None:  # invariant 2
    """A restore keeps whatever it replaces; that is not brought back."""
    machine = await updated_and_down(place)
    place.toolstack.vms[machine.vm] = VmRecord(store, OK, 7)
    kept = (await restored(place, machine.vm))["kept"]
    before = place.record(machine)
    assert before.store == OLD
    assert (place.folder / "backups" / str(machine.vm) / f"{kept}.vars").read_bytes() == store
    answer = await refused(place, Restore(machine.vm))
    assert (answer.code, kept in answer.text) == (code, True)
    assert place.record(machine) == before


async def test_the_backup_that_is_brought_back_does_not_make_room_for_the_one_that_is_taken(place: Place) -> None:
    machine = await updated_and_down(place)
    ((oldest,),) = await listed(place, machine.vm)
    for number in range(KEEP - 1):
        await place.backups.keep(machine.vm, written("ms2011", number), Why.RESTORE, NOW, dict)
    place.toolstack.fail_next("write", ToolstackUnavailableError("xapi restarts"))
    assert (await refused(place, Restore(machine.vm, oldest["id"]))).code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert (await restored(place, machine.vm, oldest["id"]))["restored"] == oldest
    assert place.record(machine).store == OLD


# What fails


async def test_no_restore_without_a_backup_of_what_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await updated_and_down(place)
    before = place.record(machine)

    def fail(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write", fail)
    answer = await refused(place, Restore(machine.vm))
    assert (answer.code, "cannot be backed up, and stays" in answer.text) == (ErrorCode.INTERNAL, True)
    assert place.record(machine) == before
    monkeypatch.undo()
    assert (await restored(place, machine.vm))["changed"]


async def test_a_store_that_somebody_else_writes_meanwhile_is_not_written_over(place: Place) -> None:
    machine = await updated_and_down(place)
    hang = place.toolstack.hang_next("write")
    theirs = written("all2023", 5)
    async with trio.open_nursery() as nursery:

        async def restore() -> None:
            assert (await refused(place, Restore(machine.vm))).code is ErrorCode.CONFLICT

        nursery.start_soon(restore)
        await hang.reached.wait()
        place.write_elsewhere(machine, theirs)
        hang.release.set()
    assert place.record(machine).store == theirs
    assert [each["what"] for each in await events(place, machine.vm)] == ["updated", "restore_failed"]


async def test_a_lost_answer_is_read_back(place: Place) -> None:
    machine = await updated_and_down(place)
    place.toolstack.fail_next("write", ToolstackUnclearError("lost"), when="after")
    assert (await restored(place, machine.vm))["field"] == "update_available"
    assert place.record(machine) == VmRecord(OLD, AVAILABLE, 2)


async def test_what_stays_unclear_is_said(place: Place) -> None:
    machine = await updated_and_down(place)
    unclear = ToolstackUnclearError("lost")
    place.toolstack.fail_next("write", unclear)
    hang = place.toolstack.hang_next("read")
    async with trio.open_nursery() as nursery:

        async def restore() -> None:
            assert (await refused(place, Restore(machine.vm))).code is ErrorCode.UNCLEAR

        nursery.start_soon(restore)
        await hang.reached.wait()
        place.toolstack.fail_next("read", ToolstackUnavailableError("xapi restarts"))
        hang.release.set()
    told = await events(place, machine.vm)
    assert (told[-1]["what"], "lost" in told[-1]["detail"]) == ("restore_failed", True)
    assert told[-1]["backup"] == (await listed(place, machine.vm))[0][-1]["id"]


async def test_a_field_that_cannot_be_read_afterwards_is_no_failure(place: Place) -> None:
    machine = await updated_and_down(place)
    hang = place.toolstack.hang_next("write")
    answers: list[dict[str, Any]] = []
    async with trio.open_nursery() as nursery:

        async def restore() -> None:
            answers.append(await restored(place, machine.vm))

        nursery.start_soon(restore)
        await hang.reached.wait()
        place.toolstack.fail_next("read", ToolstackUnavailableError("xapi restarts"))
        hang.release.set()
    assert (answers[0]["changed"], answers[0]["field"], answers[0]["generation"]) == (True, None, 2)


async def test_nor_is_one_that_nobody_tells(place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await updated_and_down(place)
    place.toolstack.fail_next("write", ToolstackUnclearError("lost"), when="after")
    read = place.toolstack.read
    reads = []

    async def hang_third(vm: UUID) -> VmRecord:
        reads.append(vm)
        if len(reads) == 3:
            await trio.sleep_forever()
        return await read(vm)

    monkeypatch.setattr(place.toolstack, "read", hang_third)
    answer = await restored(place, machine.vm)
    assert (answer["changed"], answer["field"]) == (True, None)
    assert autojump_clock.current_time() < 10


@pytest.mark.parametrize("call", ["read", "write"])
async def test_a_toolstack_that_hangs(place: Place, call: Literal["read", "write"], autojump_clock: MockClock) -> None:
    machine = await updated_and_down(place)
    before = place.record(machine)
    place.toolstack.hang_next(call)
    assert (await refused(place, Restore(machine.vm))).code is ErrorCode.TOOLSTACK_UNAVAILABLE
    assert 20 < autojump_clock.current_time() < 60
    assert place.record(machine) == before
    assert (await restored(place, machine.vm, (await listed(place, machine.vm))[0][0]["id"]))["changed"]


async def test_a_guard_cannot_be_restored_through(place: Place) -> None:
    machine = await updated_and_down(place)
    place.host.upstreams = GuardToolstack()
    answer = await refused(place, Restore(machine.vm))
    assert (answer.code, "with xapi" in answer.text) == (ErrorCode.NOT_ALLOWED, True)
    assert len((await listed(place, machine.vm))[0]) == 1


async def test_a_bug_is_unclear(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = await updated_and_down(place)

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(recovery_module, "check", fail)
    assert (await refused(place, Restore(machine.vm))).code is ErrorCode.UNCLEAR


async def test_a_disk_that_hangs_holds_up_no_connection_for_ever(
    place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    for owner, name in ((place.backups, "page"), (place.backups, "load"), (place.history, "read")):
        monkeypatch.setattr(owner, name, hang)
    vm = uuid4()
    for request in (Backups(), Restore(vm), History(vm)):
        answer = await refused(place, request)
        assert (answer.code, "the disk did not answer" in answer.text) == (ErrorCode.INTERNAL, True)
    assert autojump_clock.current_time() < 120


# Pages


@pytest.mark.parametrize("limit", [None, 1, 4, 6, 7, 1000])
async def test_pages_have_every_backup_once_in_order(place: Place, limit: int | None) -> None:
    expected = [
        (str(vm), await place.backups.keep(vm, b"%d" % number, Why.UPDATE, NOW + number, dict))
        for vm in sorted((uuid4() for _ in range(3)), key=str)
        for number in range(4)
    ]
    pages = await listed(place, limit=limit)
    assert [(each["vm"], each["id"]) for page in pages for each in page] == expected
    assert all(len(page) <= (limit or 1000) for page in pages)
    assert len(pages) == -(-12 // (limit or 1000))
    assert [each["id"] for each in (await listed(place, UUID(expected[4][0])))[0]] == [name for _, name in expected[4:8]]
    assert await listed(place, uuid4()) == [[]]


async def test_any_cursor_gives_a_page(place: Place) -> None:
    vm = uuid4()
    await place.backups.keep(vm, b"store", Why.UPDATE, NOW, dict)
    async with greeted(place.control) as control:
        for after in (b"\xff\xfe", b"/", b"~" * 256, b"\0"):
            answer = await control.call(Backups(None, after), BackupsAnswer)
            assert len(json.loads(answer.json)["backups"]) == (1 if after[0] < 0x30 else 0)
    for after in (b"-1", b"x", b"1" * 33, "٣".encode()):
        assert (await refused(place, History(vm, after))).code is ErrorCode.INVALID_ARGUMENT


async def test_a_page_of_a_history_ends_where_its_json_would_not_fit(place: Place) -> None:
    vm = uuid4()
    for _ in range(200):
        place.host.note(vm, What.UPDATE_FAILED, OLD, detail="ü" * 1024)
    told: list[int] = []
    after: bytes | None = None
    pages = 0
    async with greeted(place.control) as control:
        while pages == 0 or after is not None:
            answer = await control.call(History(vm, after), HistoryAnswer)
            assert len(answer.json) <= MAX_JSON
            told += [each["number"] for each in json.loads(answer.json)["events"]]
            after = answer.next
            pages += 1
        assert pages > 1
        few = json.loads((await control.call(History(vm, b"17", 3), HistoryAnswer)).json)
    assert told == list(range(1, 201))
    assert [each["number"] for each in few["events"]] == [18, 19, 20]


# The history


async def test_what_a_boot_does_is_in_the_history(place: Place) -> None:
    full = scene("nearly_full").blob
    refusing = await place.machine(full, ON_BOOT, name="full.sock")
    assert (await refusing.boot()).outcome is Outcome.FAILED
    (told,) = await events(place, refusing.vm)
    assert (told["what"], told["before"], told["after"], told["backup"]) == ("update_failed", digest(full), None, None)
    assert "would leave" in told["detail"] or "limit" in told["detail"]

    complete = await place.machine(scene("all2023").blob, AVAILABLE, name="complete.sock")
    place.toolstack.vms[complete.vm] = replace(place.record(complete), state=ON_BOOT)
    assert (await complete.boot()).outcome is Outcome.NOTHING_TO_DO
    (told,) = await events(place, complete.vm)
    assert (told["what"], told["before"], told["after"]) == ("nothing_to_do", digest(scene("all2023").blob), None)

    unmarked = await place.machine(OLD, AVAILABLE, name="unmarked.sock")
    await unmarked.boot()
    assert await events(place, unmarked.vm) == []


async def test_a_history_that_cannot_be_written_holds_up_no_boot(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (place.folder / "history").write_text("in the way")
    machine = await place.machine(OLD, ON_BOOT)
    assert (await machine.boot()).outcome is Outcome.UPDATED
    await wait_all_tasks_blocked()
    assert f"vm={machine.vm} updated is not in its history: " in caplog.text
    assert (await refused(place, History(machine.vm))).code is ErrorCode.INTERNAL


async def test_neither_list_nor_history_has_a_store_or_a_key(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    machine = await updated_and_down(place)
    await restored(place, machine.vm)
    async with greeted(place.control) as control:
        shown = (await control.call(Backups(), BackupsAnswer)).json + (
            await control.call(History(machine.vm), HistoryAnswer)
        ).json
    for text in (shown, caplog.text):
        assert OLD[:24].hex() not in text
        assert "VkFSU" not in text
    assert all(
        len(str(value)) < 400 for each in json.loads(shown.split("}]}")[0] + "}]}")["backups"] for value in each.values()
    )


async def test_a_conflict_that_the_toolstack_sees_is_one(place: Place) -> None:
    machine = await updated_and_down(place)
    place.toolstack.fail_next("write", ToolstackConflictError("somebody wrote"))
    assert (await refused(place, Restore(machine.vm))).code is ErrorCode.CONFLICT
