"""NVRAM and field never disagree: writers through the daemon and through the endpoint at once, and readers meanwhile."""

from base64 import b64decode, b64encode
from functools import partial

import trio
import XenAPI

from support.shipped import shipped
from support.xapi_calls import MARK, uefi
from support.xapi_host import Api, Host, Varstored, certcheck, counted, host, xapi_client
from varstore_companion.cli.client import RequestFailedError
from varstore_companion.trust.check import derived_state
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import PutStore

__all__ = ["certcheck", "host"]

WRITES = 24


def agree(record: dict[str, object]) -> bool:
    """Whether the field is what the store in the same record says."""
    nvram = record["NVRAM"]
    assert isinstance(nvram, dict)
    derived = derived_state(b64decode(nvram["EFI-variables"]), shipped())
    field = record["secureboot_certificates_state"]
    return field == "ok" if derived is CertificatesState.OK else field in ("update_available", "update_on_boot")


def store(number: int) -> bytes:
    return counted("all2023" if number % 2 else "ms2011", number)


async def test_writers_through_daemon_and_endpoint(host: Host) -> None:
    vm = await host.ask(lambda api: str(api.VM.create(uefi("ms2011"))))
    varstored = await host.attach(vm)
    left = 2
    tried: list[bytes] = []

    def guest(varstored: Varstored) -> None:
        for number in range(WRITES):
            try:
                varstored.call(PutStore(store(1_000 + number)))
            except RequestFailedError as error:
                # The others kept changing the store: this write was not made, and the guest is told so.
                assert error.code == ErrorCode.TOOLSTACK_UNAVAILABLE  # noqa: PT017  either outcome is right
            tried.append(store(1_000 + number))

    def operator() -> None:
        with xapi_client(host.xapi) as session:
            api: Api = session.xenapi
            for number in range(WRITES):
                text = b64encode(store(2_000 + number)).decode()
                tried.append(store(2_000 + number))
                if number % 8 == 0:
                    api.VM.set_NVRAM_EFI_variables(vm, text)
                else:
                    api.VM.set_NVRAM(vm, {"EFI-variables": text})
                if number % 2 == 0 and api.VM.get_secureboot_certificates_state(vm) != "ok":
                    try_to_mark(api)

    def try_to_mark(api: Api) -> None:
        # Refused when the guest has brought itself up to date between the two calls.
        try:
            api.VM.update_secureboot_certificates_on_boot(vm, MARK)
        except XenAPI.Failure as error:
            assert error.details[0] == "OPERATION_NOT_ALLOWED"  # noqa: PT017  either outcome is right

    async def run(work: "partial[None]") -> None:
        nonlocal left
        await trio.to_thread.run_sync(work)
        left -= 1

    def watch() -> int:
        looks = 0
        with xapi_client(host.xapi) as session:
            while left:
                record = session.xenapi.VM.get_record(vm)
                assert agree(record), record["secureboot_certificates_state"]
                looks += 1
        return looks

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, partial(guest, varstored))
        nursery.start_soon(run, partial(operator))
        assert await trio.to_thread.run_sync(watch) > 10
    record = await host.ask(lambda api: dict(api.VM.get_record(vm)))
    assert agree(record)
    assert b64decode(record["NVRAM"]["EFI-variables"]) in tried
    with host.operations() as operations:
        (summary,) = operations.summaries()
    assert not summary.stale
    assert (await varstored.get()).store == b64decode(record["NVRAM"]["EFI-variables"])
