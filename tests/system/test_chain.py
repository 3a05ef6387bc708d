"""Two daemons in a row: one on the embedded toolstack answers xapi's clients, and the other has it for its xapi."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio

from support.daemon import Machine, updated
from support.storemaker import scene
from support.xapi_host import certcheck, counted, running, short_folder
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.config import Settings
from varstore_companion.daemon.main import opened
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack.interface import Alert
from varstore_companion.toolstack.xapi import XapiToolstack
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import Outcome

__all__ = ["certcheck"]

OK, AVAILABLE, ON_BOOT = CertificatesState


@pytest.mark.usefixtures("certcheck")
async def test_a_vm_is_marked_updated_and_written_through_both(tmp_path: Path, nursery: trio.Nursery) -> None:
    old, vm = scene("ms2011").blob, uuid4()
    with short_folder() as folder:
        async with running(folder) as host:
            with host.operations() as operations:
                operations.create(vm, "a name", old, AVAILABLE)
            behind = Settings(
                control=tmp_path / "control",
                state_dir=tmp_path / "state",
                toolstack="xapi",
                xapi=host.xapi,
                auth_dir=tmp_path / "absent",
            )
            async with opened(behind) as daemon:
                await nursery.start(daemon.run)
                machine = Machine(vm, tmp_path / "vm")
                await daemon.attach(Attachment(vm, machine.path, None, 0o660, resume=False))
                assert await daemon.vm(vm).mark(mark=True) is ON_BOOT
                answer = await machine.boot()
                assert (answer.outcome, answer.store) == (Outcome.UPDATED, updated(old))
                await machine.put(scene("all2023").blob)
                await machine.put(counted("all2023", 1))
                await daemon.stop()
                nursery.cancel_scope.cancel()
            with host.operations() as operations:
                record = operations.read(vm)
                names = [kept.alert.name for kept in operations.alerts()]
            counters = host.counters()
    assert (record.store, record.state) == (counted("all2023", 1), OK)
    assert counters.get("certcheck_runs", 0) == 0
    assert names == ["VM_SECURE_BOOT_CERTIFICATES_UPDATED"]


@pytest.mark.usefixtures("certcheck")
async def test_an_unknown_vm_is_refused_by_the_names_that_xapi_has() -> None:
    unknown = UUID(int=7)
    with short_folder() as folder:
        async with running(folder) as host:
            toolstack = XapiToolstack(host.xapi)
            for call in (
                lambda: toolstack.read(unknown),
                lambda: toolstack.mark(unknown, mark=True),
                lambda: toolstack.alert(unknown, Alert("NAME", 5, "body")),
            ):
                with pytest.raises(ToolstackRefusedError) as refused:
                    await call()
                assert refused.value.code == "HANDLE_INVALID"
            await toolstack.aclose()
