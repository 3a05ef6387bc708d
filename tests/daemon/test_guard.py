"""The daemon before guards' sockets: boots and writes, and what the toolstack behind the guard comes to hold."""

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from support.daemon import Machine, certcheck, updated, written
from support.fake_guard import GUARDS_ALERT, Server, Xapi, serving
from support.guards import Place, behind_guard, place
from support.peer import Refused, greeted
from support.storemaker import scene
from varstore_companion.daemon import attachments
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.config import Settings
from varstore_companion.daemon.main import opened
from varstore_companion.errors import ConfigurationError
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Attach, AttachAnswer, Durable, GetStoreAnswer, Mark, Outcome, Presence, Reason

__all__ = ["place"]

OK, AVAILABLE, ON_BOOT = CertificatesState


# Boots and writes


async def test_a_marked_vm_is_updated_at_boot(place: Place) -> None:
    old = scene("ms2011").blob
    machine, guard, _ = await place.machine(old, ON_BOOT)
    answer = await machine.boot()
    assert (answer.store, answer.outcome) == (updated(old), Outcome.UPDATED)
    assert (guard.model.store, guard.model.state, guard.model.updates) == (updated(old), OK, ["yes"])
    await place.daemon.stop()
    ((vm, alert),) = guard.model.alerts
    assert (vm, alert.name) == (machine.vm, GUARDS_ALERT)
    assert alert.body.startswith("VM_SECURE_BOOT_CERTIFICATES_UPDATED: ")
    assert str(machine.vm) in alert.body


async def test_a_first_boot(place: Place) -> None:
    machine, guard, _ = await place.machine(None, OK)
    answer = await machine.boot()
    assert (answer.presence, answer.outcome) == (Presence.ABSENT, Outcome.NOT_ASKED)
    assert guard.model.updates == []


@pytest.mark.parametrize(
    ("before", "state", "after", "update"),
    [
        ("ms2011", ON_BOOT, None, "no"),  # the keys are as they were
        ("ms2011", AVAILABLE, "all2023", "yes"),  # complete
        ("custom_keys", OK, "ms2011", "unspecified"),  # neither
        ("custom_keys", AVAILABLE, "ms2011", "no"),  # nothing to correct
    ],
)
async def test_a_write_reaches_the_guard_with_its_verdict(
    place: Place, before: str, state: CertificatesState, after: str | None, update: str
) -> None:
    machine, guard, _ = await place.machine(scene(before).blob, state)
    new = written(before, 1) if after is None else scene(after).blob
    answer = await machine.put(new)
    assert answer.durable is Durable.TOOLSTACK
    assert (guard.model.store, guard.model.updates) == (new, [update])
    assert guard.model.state is {"yes": OK, "no": state, "unspecified": certcheck(new)}[update]


async def test_a_write_of_the_same_keys_is_one_call(place: Place) -> None:
    machine, guard, server = await place.machine(scene("ms2011").blob, ON_BOOT)
    await machine.boot(Reason.TOOL)
    server.calls.clear()
    for number in range(3):
        await machine.put(written("ms2011", number))
    assert server.calls == ["VM.set_NVRAM_EFI_variables_v2"] * 3
    assert guard.model.state is ON_BOOT


async def test_behind_an_old_guard_nothing_is_updated_and_status_says_so(place: Place) -> None:
    old = scene("ms2011").blob
    machine, guard, _ = await place.machine(old, ON_BOOT, is_new=False)
    answer = await machine.boot()
    assert (answer.store, answer.outcome) == (old, Outcome.NOT_ASKED)
    status = await place.daemon.status(machine.vm)
    assert (status["field"], status["updates_at_boot"], status["report"]) == (None, False, "update_available")
    other, _, _ = await place.machine(old, AVAILABLE)
    assert {each["vm"]: each["updates_at_boot"] for each in place.daemon.listed()} == {
        str(machine.vm): False,
        str(other.vm): None,  # nobody has asked
    }
    assert (await place.daemon.status(None))["without_updates_at_boot"] == 1
    assert (await place.daemon.status(other.vm))["updates_at_boot"] is True
    assert (await place.daemon.status(None))["without_updates_at_boot"] == 1
    await machine.put(written("ms2011", 1))
    assert guard.model.updates == [None]


async def test_the_guard_is_upgraded_under_the_daemon(place: Place) -> None:
    machine, guard, server = await place.machine(scene("ms2011").blob, OK, is_new=False)
    await machine.boot()
    await machine.put(written("ms2011", 1))
    server.stop()
    guard.is_new = True
    guard.model.state = ON_BOOT
    await place.nursery.start(server.run)
    answer = await machine.boot()
    assert answer.outcome is Outcome.UPDATED
    assert guard.model.updates == [None, "yes"]
    assert (await place.daemon.status(machine.vm))["updates_at_boot"] is True


async def test_a_boot_waits_for_a_guard_that_restarts(place: Place) -> None:
    machine, guard, server = await place.machine(scene("ms2011").blob, ON_BOOT)
    server.next()
    answer = await machine.boot()
    assert answer.outcome is Outcome.UPDATED
    assert server.calls[0] == server.calls[1] == "VM.get_NVRAM"
    assert guard.model.state is OK


async def test_a_lost_answer_to_the_update_is_read_back(place: Place) -> None:
    old = scene("ms2011").blob
    machine, guard, server = await place.machine(old, ON_BOOT)
    server.next(method="VM.set_NVRAM_EFI_variables_v2", carry_out=True)
    answer = await machine.boot()
    assert (answer.store, answer.outcome) == (updated(old), Outcome.UPDATED)
    assert guard.model.updates == ["yes"]


async def test_a_lost_update_that_was_not_made_boots_the_old_store(place: Place) -> None:
    old = scene("ms2011").blob
    machine, guard, server = await place.machine(old, ON_BOOT)
    server.next(method="VM.set_NVRAM_EFI_variables_v2")
    answer = await machine.boot()
    assert (answer.store, answer.outcome) == (old, Outcome.FAILED)
    assert (guard.model.store, guard.model.state) == (old, ON_BOOT)


async def test_a_write_while_the_guard_is_away_is_acknowledged_and_delivered(place: Place) -> None:
    machine, guard, server = await place.machine(scene("ms2011").blob, ON_BOOT)
    await machine.boot(Reason.TOOL)
    server.stop()
    await trio.testing.wait_all_tasks_blocked()
    assert (await machine.put(written("ms2011", 1))).durable is Durable.JOURNAL
    await place.nursery.start(server.run)
    vm = place.daemon.vm(machine.vm)
    with trio.fail_after(10):
        await vm.flush()
    assert vm.is_direct
    assert (guard.model.store, guard.model.state) == (written("ms2011", 1), ON_BOOT)


async def test_a_resumed_vm_is_never_updated(place: Place) -> None:
    machine, guard, _ = await place.machine(scene("ms2011").blob, ON_BOOT, resume=True)
    assert (await machine.boot()).outcome is Outcome.NOT_ASKED
    assert guard.model.updates == []


async def test_a_mark_is_refused_with_where_to_go(place: Place) -> None:
    machine, _, _ = await place.machine(scene("ms2011").blob, AVAILABLE)
    async with greeted(place.control) as control:
        with pytest.raises(Refused, match=r"VM\.update_secureboot_certificates_on_boot"):
            await control.call(Mark(machine.vm, mark=True), AttachAnswer)


async def test_each_vm_has_its_own_guard(place: Place) -> None:
    stores = [scene("ms2011").blob, scene("all2023").blob, written("ms2011", 7)]
    made = [await place.machine(store, OK) for store in stores]
    answers: list[GetStoreAnswer | None] = [None] * len(made)

    async def get(number: int) -> None:
        answers[number] = await made[number][0].boot(Reason.TOOL)

    async with trio.open_nursery() as nursery:
        for number in range(len(made)):
            nursery.start_soon(get, number)
    assert [answer and answer.store for answer in answers] == stores


# Attaching


async def test_an_upstream_is_required_and_kept(place: Place) -> None:
    guard, server = place.guard(scene("all2023").blob, OK)
    vm, path = guard.model.uuid, place.folder / "vm"
    async with greeted(place.control) as control:
        with pytest.raises(Refused, match="upstream: the guard toolstack needs") as refused:
            await control.call(Attach(vm, bytes(path)), AttachAnswer)
        assert refused.value.code is ErrorCode.INVALID_ARGUMENT
        assert not path.exists()
        request = Attach(vm, bytes(path), upstream=bytes(server.path))
        assert not (await control.call(request, AttachAnswer)).already
        assert (await control.call(request, AttachAnswer)).already
        with pytest.raises(Refused) as refused:
            await control.call(Attach(vm, bytes(path), upstream=b"/run/another"), AttachAnswer)
        assert refused.value.code is ErrorCode.CONFLICT
    (listed,) = place.daemon.listed()
    assert listed["upstream"] == str(server.path)
    assert [each.upstream for each in attachments.load(place.saved)] == [server.path]


async def test_a_vm_on_two_sockets_speaks_to_the_newer_guard(place: Place) -> None:
    """As while it migrates on its host; the older socket is detached later, or the newer one when that fails."""
    guard, older = place.guard(scene("all2023").blob, OK)
    newer = Server(place.folder / "newer", guard.answer)
    newer.listen()
    place.nursery.start_soon(newer.run)
    vm = guard.model.uuid
    first = place.attachment(vm, older.path)
    second = replace(place.attachment(vm, newer.path, name="next"), resume=True)
    await place.daemon.attach(first)
    await place.daemon.attach(second)
    await Machine(vm, second.path).boot()
    assert (bool(older.calls), bool(newer.calls)) == (False, True)
    newer.calls.clear()
    await place.daemon.detach(second.path)
    await Machine(vm, first.path).boot()
    assert (bool(older.calls), bool(newer.calls)) == (True, False)
    older.calls.clear()
    await place.daemon.attach(second)
    await place.daemon.detach(first.path)
    await Machine(vm, second.path).boot()
    assert (bool(older.calls), bool(newer.calls)) == (False, True)
    await place.daemon.detach(second.path)
    assert place.toolstack._guards == {}


async def test_sockets_come_back_with_their_guards(tmp_path: Path, nursery: trio.Nursery) -> None:
    guard, server = (place := Place(tmp_path, nursery)).guard(scene("all2023").blob, OK)
    kept, without = place.attachment(guard.model.uuid, server.path), place.attachment(uuid4(), None)
    attachments.save(place.saved, [without, kept])
    await nursery.start(place.daemon.run)
    assert [each["path"] for each in place.daemon.listed()] == [str(kept.path)]
    assert (await Machine(kept.vm, kept.path).boot()).store == scene("all2023").blob
    nursery.cancel_scope.cancel()


# Composed from settings


def settings(folder: Path, toolstack: str) -> Settings:
    return Settings(
        control=folder / "control",
        state_dir=folder / "state",
        toolstack=toolstack,
        auth_dir=folder / "absent",
        xapi=folder / "xapi",
    )


async def test_a_daemon_on_guards_from_its_settings(tmp_path: Path, nursery: trio.Nursery) -> None:
    guard, server = behind_guard(tmp_path, nursery, scene("ms2011").blob, ON_BOOT)
    async with opened(settings(tmp_path, "guard")) as daemon:
        await nursery.start(daemon.run)
        path = tmp_path / "vm"
        await daemon.attach(Attachment(guard.model.uuid, path, None, 0o660, resume=False, upstream=server.path))
        assert (await Machine(guard.model.uuid, path).boot()).outcome is Outcome.UPDATED
        assert (await daemon.status(None))["toolstack"] == "guard"
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "state" / "toolstack.db").exists()


async def test_a_daemon_on_xapi_from_its_settings(tmp_path: Path, nursery: trio.Nursery) -> None:
    xapi = Xapi(certcheck)
    model = xapi.create(uuid4(), scene("ms2011").blob, AVAILABLE)
    async with serving(Server(tmp_path / "xapi", xapi.answer)), opened(settings(tmp_path, "xapi")) as daemon:
        await nursery.start(daemon.run)
        path = tmp_path / "vm"
        with pytest.raises(ConfigurationError, match="the xapi toolstack has no socket for each VM"):
            await daemon.attach(Attachment(model.uuid, path, None, 0o660, resume=False, upstream=tmp_path / "guard"))
        await daemon.attach(Attachment(model.uuid, path, None, 0o660, resume=False))
        assert await daemon.vm(model.uuid).mark(mark=True) is ON_BOOT
        assert (await Machine(model.uuid, path).boot()).outcome is Outcome.UPDATED
        await daemon.stop()
        nursery.cancel_scope.cancel()
    assert (model.state, model.updates) == (OK, ["yes"])
    assert [alert.name for _, alert in xapi.alerts] == ["VM_SECURE_BOOT_CERTIFICATES_UPDATED"]
    assert xapi.sessions == set()


@pytest.mark.parametrize("toolstack", ["guard", "xapi"])
async def test_only_the_embedded_toolstack_answers_xapis_clients(tmp_path: Path, toolstack: str) -> None:
    with pytest.raises(ConfigurationError, match=f"xapi_socket: .* not {toolstack}"):
        async with opened(replace(settings(tmp_path, toolstack), xapi_socket=tmp_path / "clients")):
            pass
