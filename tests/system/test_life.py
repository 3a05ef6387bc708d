"""A VM's Secure Boot certificates over its whole life: daemon, embedded toolstack and xapi's own client, over sockets."""

from base64 import b64decode, b64encode

import trio

from support.shipped import microsoft_bodies, shipped
from support.storemaker import scene
from support.xapi_calls import MARK, uefi
from support.xapi_host import Api, Host, certcheck, counted, host, running, short_folder
from varstore_companion.trust.check import State, check
from varstore_companion.trust.plan import plan
from varstore_companion.wire.messages import Outcome, Reason, Verdict

__all__ = ["certcheck", "host"]


async def field(host: Host, vm: str) -> str:
    return await host.ask(lambda api: str(api.VM.get_secureboot_certificates_state(vm)))


async def store(host: Host, vm: str) -> bytes:
    return await host.ask(lambda api: b64decode(api.VM.get_NVRAM(vm)["EFI-variables"]))


def updated(blob: bytes, headroom: int | None = None) -> bytes:
    """The store after its update; what that is, the tests of the plan prove."""
    return plan(blob, shipped(), microsoft_bodies(), headroom=headroom).store


async def test_from_ok_over_a_mark_and_a_boot_to_ok(host: Host) -> None:
    old = scene("ms2011").blob

    def calls(api: Api) -> tuple[str, str, list[str]]:
        vm = api.VM.create(uefi("all2023"))
        states = [api.VM.get_secureboot_certificates_state(vm)]
        api.VM.set_NVRAM(vm, {"EFI-variables": b64encode(old).decode()})
        states.append(api.VM.get_secureboot_certificates_state(vm))
        api.VM.update_secureboot_certificates_on_boot(vm, MARK)
        states.append(api.VM.get_secureboot_certificates_state(vm))
        return vm, api.VM.get_uuid(vm), states

    vm, uuid, states = await host.ask(calls)
    assert states == ["ok", "update_available", "update_on_boot"]
    varstored = await host.attach(uuid)

    boot = await varstored.get()
    assert boot.outcome is Outcome.UPDATED
    assert boot.store == updated(old)
    assert check(boot.store, shipped()).state is State.OK
    assert await field(host, vm) == "ok"
    assert await store(host, vm) == boot.store
    # The toolstack was told `yes`: it had no need to look for itself.
    assert host.counters() == {"certcheck_runs": 0, "writes_yes": 1, "writes_no": 0, "writes_unspecified": 0}

    # What the firmware writes on its way, and the next boot, change nothing of it.
    assert (await varstored.put(counted("all2023", 1))).verdict is Verdict.NO
    again = await varstored.get()
    assert (again.outcome, again.store) == (Outcome.NOT_ASKED, counted("all2023", 1))
    assert await field(host, vm) == "ok"


async def test_a_reboot_without_a_mark_sends_no_and_leaves_the_field(host: Host) -> None:
    vm = await host.ask(lambda api: str(api.VM.create(uefi("ms2011"))))
    varstored = await host.attach(vm)
    for number in range(3):
        boot = await varstored.get()
        assert boot.outcome is Outcome.NOT_ASKED
        assert boot.store == (counted("ms2011", number) if number else scene("ms2011").blob)
        assert (await varstored.put(counted("ms2011", number + 1))).verdict is Verdict.NO
        assert await field(host, vm) == "update_available"
    assert host.counters() == {"certcheck_runs": 0, "writes_yes": 0, "writes_no": 3, "writes_unspecified": 0}


async def test_a_failed_update_leaves_the_mark_and_the_boot_alone(certcheck: None) -> None:
    name = "room_without_headroom"
    old = scene(name).blob
    with short_folder() as folder:
        async with running(folder) as host:

            def calls(api: Api) -> str:
                vm: str = api.VM.create(uefi(name))
                api.VM.update_secureboot_certificates_on_boot(vm, MARK)
                return vm

            vm = await host.ask(calls)
            varstored = await host.attach(vm)
            boot = await varstored.get()
            assert (boot.outcome, boot.store) == (Outcome.FAILED, old)
            assert boot.detail
            assert await field(host, vm) == "update_on_boot"
            assert (await varstored.put(counted(name, 1))).verdict is Verdict.NO
            assert await field(host, vm) == "update_on_boot"
            names: list[str] = []
            with trio.fail_after(10):
                while not names:
                    messages = await host.ask(lambda api: api.message.get_all_records())
                    names = [each["name"] for each in messages.values() if f"OpaqueRef:{each['obj_uuid']}" == vm]
            assert names == ["VM_SECURE_BOOT_CERTIFICATES_UPDATE_FAILED"]
        # The operator lets the update take more room: the next boot makes it.
        async with running(folder, headroom=1_000) as host:
            boot = await varstored.get()
            assert (boot.outcome, boot.store) == (Outcome.UPDATED, updated(counted(name, 1), headroom=1_000))
            assert await field(host, vm) == "ok"


async def test_a_guest_that_brings_itself_up_to_date_ends_the_mark(host: Host) -> None:
    def calls(api: Api) -> str:
        vm: str = api.VM.create(uefi("ms2011"))
        api.VM.update_secureboot_certificates_on_boot(vm, MARK)
        return vm

    vm = await host.ask(calls)
    varstored = await host.attach(vm)
    assert (await varstored.get(Reason.TOOL)).outcome is Outcome.NOT_ASKED
    assert (await varstored.put(scene("db_done").blob)).verdict is Verdict.NO
    assert await field(host, vm) == "update_on_boot"
    assert (await varstored.put(scene("all2023").blob)).verdict is Verdict.YES
    assert await field(host, vm) == "ok"


async def test_a_revert_tells_the_truth_and_the_daemon_sees_it(host: Host) -> None:
    def calls(api: Api) -> tuple[str, str]:
        vm = api.VM.create(uefi("ms2011"))
        return vm, api.VM.snapshot(vm, "before")

    vm, snapshot = await host.ask(calls)
    varstored = await host.attach(vm)
    assert (await varstored.put(scene("all2023").blob)).verdict is Verdict.YES
    assert await field(host, vm) == "ok"
    await host.ask(lambda api: api.VM.revert(snapshot))
    assert await field(host, vm) == "update_available"
    # The daemon has written the newer store itself, and yet judges against what the toolstack holds now.
    assert (await varstored.put(counted("ms2011", 1))).verdict is Verdict.NO
    assert await field(host, vm) == "update_available"
    assert (await varstored.put(counted("all2023", 1))).verdict is Verdict.YES
    assert await field(host, vm) == "ok"
