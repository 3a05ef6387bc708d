"""A VM that moves: between two hosts, each with its daemon and toolstack, and between two varstoreds on one host."""

from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import trio

from support.storemaker import scene
from support.xapi_calls import MARK, uefi
from support.xapi_host import Api, Host, Varstored, certcheck, counted, host, running, short_folder
from varstore_companion.toolstack.nvram import Nvram
from varstore_companion.toolstack.records import VmMetadata
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import GetStore, GetStoreAnswer, Outcome, PutStore, PutStoreAnswer, Reason, Verdict

__all__ = ["certcheck", "host"]


class Hosts(NamedTuple):
    """Where a VM comes from, and where it goes."""

    source: Host
    target: Host


@pytest.fixture
async def hosts(certcheck: None) -> AsyncIterator[Hosts]:
    with short_folder() as one, short_folder() as other:
        async with running(one) as source, running(other) as target:
            yield Hosts(source, target)


def exported(host: Host, vm: str) -> VmMetadata:
    with host.operations() as operations:
        (uuid,) = [each for each in operations.uuids() if vm == f"OpaqueRef:{each}"]
        return operations.export_vm(uuid)


def imported(host: Host, metadata: VmMetadata) -> None:
    with host.operations() as operations:
        operations.import_vm(metadata)


async def seen(host: Host, vm: str) -> tuple[dict[str, str], str]:
    def calls(api: Api) -> tuple[dict[str, str], str]:
        return api.VM.get_NVRAM(vm), api.VM.get_secureboot_certificates_state(vm)

    return await host.ask(calls)


FIRST_WRITES = [
    # The store before, the first one that is written on the new host, the verdict on that, the field after it.
    ("ms2011", counted("ms2011", 2), Verdict.NO, "update_available"),
    ("ms2011", scene("db_done").blob, Verdict.NO, "update_available"),
    ("ms2011", scene("all2023").blob, Verdict.YES, "ok"),
    ("ms2011", scene("custom_keys").blob, Verdict.UNSPECIFIED, "ok"),
    ("all2023", counted("all2023", 2), Verdict.NO, "ok"),
    ("all2023", scene("ms2011").blob, Verdict.UNSPECIFIED, "update_available"),
]


@pytest.mark.parametrize(("before", "first", "verdict", "after"), FIRST_WRITES)
async def test_from_an_old_host_that_has_no_field(
    hosts: Hosts, before: str, first: bytes, verdict: Verdict, after: str
) -> None:
    """The sender's varstored wrote without a verdict, and its export has no field: it is computed where it arrives."""
    blob = counted(before, 1)
    text = b64encode(blob).decode()

    def write(api: Api) -> str:
        vm: str = api.VM.create(uefi(before))
        api.VM.set_NVRAM_EFI_variables(vm, text)
        return vm

    vm = await hosts.source.ask(write)
    imported(hosts.target, replace(exported(hosts.source, vm), state=None))
    expected = "ok" if before == "all2023" else "update_available"
    assert await seen(hosts.target, vm) == ({"EFI-variables": text}, expected)

    arrived = await hosts.target.attach(vm, resume=True)
    for reason in (Reason.RESUME, Reason.BOOT):
        answer = await arrived.get(reason)
        assert (answer.store, answer.outcome) == (blob, Outcome.NOT_ASKED)
    assert await seen(hosts.target, vm) == ({"EFI-variables": text}, expected)
    assert (await arrived.put(first)).verdict is verdict
    assert await seen(hosts.target, vm) == ({"EFI-variables": b64encode(first).decode()}, after)


@pytest.mark.parametrize(("before", "first", "verdict", "after"), FIRST_WRITES)
async def test_from_a_new_host(hosts: Hosts, before: str, first: bytes, verdict: Verdict, after: str) -> None:
    vm = await hosts.source.ask(lambda api: str(api.VM.create(uefi(before))))
    leaving = await hosts.source.attach(vm)
    assert (await leaving.get()).outcome is Outcome.NOT_ASKED
    blob = counted(before, 1)
    assert (await leaving.put(blob)).verdict is Verdict.NO
    sent = await seen(hosts.source, vm)
    imported(hosts.target, exported(hosts.source, vm))
    assert await seen(hosts.target, vm) == sent

    arrived = await hosts.target.attach(vm, resume=True)
    answer = await arrived.get(Reason.RESUME)
    assert (answer.store, answer.outcome) == (blob, Outcome.NOT_ASKED)
    assert await seen(hosts.target, vm) == sent
    assert (await arrived.put(first)).verdict is verdict
    assert await seen(hosts.target, vm) == ({"EFI-variables": b64encode(first).decode()}, after)


async def test_a_mark_travels_and_waits_for_a_cold_boot(hosts: Hosts) -> None:
    def marked(api: Api) -> str:
        vm: str = api.VM.create(uefi("ms2011"))
        api.VM.update_secureboot_certificates_on_boot(vm, MARK)
        return vm

    vm = await hosts.source.ask(marked)
    sent = await seen(hosts.source, vm)
    assert sent[1] == "update_on_boot"
    metadata = exported(hosts.source, vm)
    assert metadata.state is CertificatesState.UPDATE_ON_BOOT
    imported(hosts.target, metadata)

    arrived = await hosts.target.attach(vm, resume=True)
    for reason in (Reason.RESUME, Reason.BOOT, Reason.TOOL):
        assert (await arrived.get(reason)).outcome is Outcome.NOT_ASKED
    assert await seen(hosts.target, vm) == sent
    assert (await arrived.put(counted("ms2011", 1))).verdict is Verdict.NO
    assert (await seen(hosts.target, vm))[1] == "update_on_boot"
    booted = await hosts.target.attach(vm, "booted")
    assert (await booted.get()).outcome is Outcome.UPDATED
    assert (await seen(hosts.target, vm))[1] == "ok"


async def test_two_varstoreds_of_one_vm_at_once(host: Host) -> None:
    """A localhost migration: whichever writes, what is read next is at least as new, and the newest stays."""
    vm = await host.ask(lambda api: str(api.VM.create(uefi("ms2011"))))
    old, new = await host.attach(vm, "old"), await host.attach(vm, "new", resume=True)
    acknowledged: dict[int, bytes] = {}

    def write(varstored: Varstored, first: int) -> None:
        for number in range(first, first + 20):
            blob = counted("all2023" if number % 3 == 0 else "ms2011", number)
            put, got = varstored.call(PutStore(blob), GetStore(Reason.RESUME))
            assert isinstance(put, PutStoreAnswer)
            assert isinstance(got, GetStoreAnswer)
            assert put.generation not in acknowledged
            acknowledged[put.generation] = blob
            assert got.generation >= put.generation
            if got.generation == put.generation:
                assert got.store == blob

    async with trio.open_nursery() as nursery:
        for varstored, first in ((old, 100), (new, 200)):
            nursery.start_soon(partial(trio.to_thread.run_sync, write, varstored, first))
    newest = max(acknowledged)
    assert len(acknowledged) == 40
    assert newest == 40
    for varstored in (old, new):
        answer = await varstored.get(Reason.RESUME)
        assert (answer.generation, answer.store) == (newest, acknowledged[newest])
    assert (await seen(host, vm))[0] == {"EFI-variables": b64encode(acknowledged[newest]).decode()}


async def test_a_varstored_that_has_moved_on_cannot_bring_its_store_back(host: Host) -> None:
    """The old one leaves in the middle of its write: all of it or nothing, and never over what the new one wrote since."""
    vm = await host.ask(lambda api: str(api.VM.create(uefi("ms2011"))))
    old = await host.attach(vm, "old")
    new = await host.attach(vm, "new", resume=True)
    before = await new.get(Reason.RESUME)
    await trio.to_thread.run_sync(old.cut, PutStore(counted("ms2011", 1)))
    assert await new.get(Reason.RESUME) == before
    written = await new.put(counted("ms2011", 2))
    assert written.generation == before.generation + 1
    after = await new.get(Reason.RESUME)
    assert (after.generation, after.store) == (written.generation, counted("ms2011", 2))


async def test_a_vm_that_comes_back_is_judged_against_what_it_brought(host: Host) -> None:
    """It left and came back under its uuid while the daemon served its socket, with other keys than the daemon remembers."""
    vm = await host.ask(lambda api: str(api.VM.create(uefi("all2023"))))
    varstored = await host.attach(vm)
    assert (await varstored.get()).outcome is Outcome.NOT_ASKED
    left = exported(host, vm)
    with host.operations() as operations:
        operations.destroy(left.uuid)
        operations.import_vm(replace(left, nvram=Nvram(scene("ms2011").blob)))
    assert (await seen(host, vm))[1] == "update_available"
    assert (await varstored.put(counted("all2023", 1))).verdict is Verdict.YES
    assert (await seen(host, vm))[1] == "ok"
