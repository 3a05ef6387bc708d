"""No byte of a store, no key and no password in the log, the status, the list, the statistics, the plans or the histories.

Stores, certificates and logins with planted secrets are driven through boots, writes and failures on every socket, with the
log at its most talkative; then everything that an operator can see is searched for them in every form.
"""

import json
import logging
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha512
from pathlib import Path

import pytest
import trio

from support import stock
from support.daemon import VENDOR, Machine, Place
from support.peer import Refused, greeted
from support.stock import Failed, Varstored
from support.storemaker import Variable, make_store, scene
from support.xapi_calls import MARK, uefi
from support.xapi_host import certcheck, running, short_folder, xapi_client
from varstore_companion.cli import prometheus
from varstore_companion.daemon import log
from varstore_companion.errors import ToolstackError, ToolstackUnavailableError
from varstore_companion.toolstack.xapi_errors import failure
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import (
    AnswerMessage,
    Backups,
    BackupsAnswer,
    GetStoreAnswer,
    History,
    HistoryAnswer,
    List,
    ListAnswer,
    Plan,
    PlanAnswer,
    Restore,
    SbFailure,
    SbFailureAnswer,
    Status,
    StatusAnswer,
)
from varstore_companion.wire.observing import Stats, StatsAnswer

__all__ = ["certcheck"]

ON_BOOT, AVAILABLE = CertificatesState.UPDATE_ON_BOOT, CertificatesState.UPDATE_AVAILABLE

SECRET = sha512(b"planted").digest()
PASSWORD = "planted-password-7f3a"


def forms() -> Iterator[str]:
    """Every form in which a piece of the secret could be shown, wherever in it the piece begins."""
    twice = SECRET * 2
    for start in range(len(SECRET)):
        piece = twice[start : start + 12]
        yield piece[:9].hex()
        yield piece[:9].hex().upper()
        yield piece[:9].hex(" ")
        yield b64encode(piece).decode()
        yield repr(piece[:6])[2:-1]
        yield str(list(piece[:5]))[1:-1]
        yield piece[:6].decode("latin-1")


FORMS = [*forms(), PASSWORD]


def planted(name: str, count: int = 1) -> bytes:
    """A scene's store with the secret as the data, many times over."""
    secrets = [Variable(f"Secret{number}", VENDOR, SECRET * 20) for number in range(count)]
    return make_store([*secrets, *scene(name).variables])


@pytest.fixture
def written(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The log as the daemon writes it, and each message before it is made into a line."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(log.OneLine().format(record))
            lines.append(record.getMessage())

    handler = Kept()
    logging.getLogger(log.ROOT).addHandler(handler)
    with caplog.at_level(logging.DEBUG, log.ROOT):
        yield lines
    logging.getLogger(log.ROOT).removeHandler(handler)


def confirm_nothing_shows(*texts: str) -> None:
    found = [(form, text[:300]) for text in texts for form in FORMS if form in text]
    assert found == []


async def seen(control_path: Path, machines: list[Machine]) -> list[str]:
    """Everything that an operator can ask for."""
    async with greeted(control_path) as control:
        texts = [(await control.call(Status(), StatusAnswer)).json, (await control.call(List(), ListAnswer)).json]
        stats = (await control.call(Stats(), StatsAnswer)).json
        texts += [stats, prometheus.text(json.loads(stats)["metrics"])]
        for machine in machines:
            texts.append((await control.call(Status(machine.vm), StatusAnswer)).json)
            texts.append((await control.call(Backups(machine.vm), BackupsAnswer)).json)
            texts.append((await control.call(History(machine.vm), HistoryAnswer)).json)
            for request in (Plan(machine.vm), Restore(machine.vm)):
                try:
                    answer = await control.call(request, AnswerMessage)
                    assert isinstance(answer, PlanAnswer)
                    texts.append(answer.json)
                except Refused as refused:
                    texts.append(refused.text)
    return texts


def upstream(name: str) -> ToolstackError:
    """What xapi's or a guard's answer becomes that repeats what it was given."""
    text = b64encode(SECRET * 200).decode()
    description = ["INVALID_VALUE", "EFI-variables", text] if name == "xapi" else ["Internal_error", f"<value>{text}</value>"]
    return failure("VM.set_NVRAM_EFI_variables", description, changes=True)


@pytest.mark.usefixtures("autojump_clock")
async def test_on_a_vms_socket(place: Place, written: list[str]) -> None:
    machines = [
        await place.machine(planted("ms2011"), ON_BOOT),
        await place.machine(scene("nearly_full").blob, ON_BOOT, name="full.sock"),
        await place.machine(planted("ms2011")[:-40], ON_BOOT, name="cut.sock"),
        await place.machine(planted("all2023"), AVAILABLE, name="stale.sock"),
        await place.machine(planted("ms2011"), ON_BOOT, name="away.sock"),
    ]
    refused: list[str] = []

    async def put(machine: Machine, store: bytes) -> None:
        try:
            await machine.put(store)
        except Refused as error:
            refused.append(error.text)

    first = machines[0]
    # With a journal that takes nothing, a write that the toolstack does not take fails.
    place.host.journal._total = 0
    place.toolstack.fail_next("read", ToolstackUnavailableError("xapi restarts"))
    boots: list[GetStoreAnswer] = [await machine.boot() for machine in machines[:4]]
    place.toolstack.fail_next("write", upstream("xapi"))
    boots.append(await machines[4].boot())
    await put(first, planted("ms2011", 2))
    await put(first, planted("custom_keys", 2))
    for error in (upstream("xapi"), upstream("guard"), ToolstackUnavailableError("away"), RuntimeError("a bug")):
        place.toolstack.fail_next("write", error)
        await put(first, planted("ms2011", 3))
    for hostile in (
        SECRET * 100,
        b"VARS" + SECRET * 100,
        planted("ms2011")[:-7],
        planted("ms2011", 80),
        b"VARS\x09\0\0\0" + SECRET,
    ):
        await put(first, hostile)
    async with first.peer() as peer:
        await peer.call(SbFailure("dbx"), SbFailureAnswer)
        await peer.raw.send_all(SECRET * 10)
        await peer.rest()
    async with first.peer() as peer:
        await peer.raw.send_all(b"VSCP\x01\x00\x11\x00\x07\x00\x00\x00" + (len(SECRET)).to_bytes(4, "little") + SECRET)
        await peer.raw.send_eof()
        (frame,) = await peer.rest()
        refused.append(frame.error.text)
    texts = await seen(place.control, machines)
    assert len(written) > 40
    assert {boot.outcome.name for boot in boots} == {"UPDATED", "FAILED", "NOT_ASKED"}
    # What the toolstack could not take is in the journal by now, and no refusal.
    assert len(refused) >= 4
    details = [boot.detail or "" for boot in boots]
    alerts = [alert.body for _, alert in place.toolstack.alerts]
    confirm_nothing_shows(*written, *texts, *refused, *details, *alerts)
    assert any("INVALID_VALUE" in line and "characters]" in line for line in written)


async def test_from_an_unmodified_varstored(place: Place, written: list[str]) -> None:
    machine = await place.machine(planted("ms2011"), ON_BOOT)
    varstored = Varstored(machine.path, machine.vm)
    await varstored.start()
    await varstored.write(planted("ms2011", 2))
    refused = []
    text = b64encode(SECRET * 50).decode()
    for method, *parameters in (
        (stock.SET, stock.S, stock.V, text),
        (stock.SET, stock.S, stock.V, f"*{text}"),
        (stock.SET_V2, stock.S, stock.V, b64encode(planted("ms2011")[:-9]).decode(), "yes"),
        (stock.LOGIN, "root", PASSWORD, "", ""),
        (stock.LOGIN, PASSWORD, PASSWORD, PASSWORD, PASSWORD, PASSWORD),
        (f"VM.{text}", stock.S),
        (stock.MESSAGE, stock.S, "VM_SECURE_BOOT_FAILED", text, "VM", str(machine.vm), "x"),
    ):
        try:
            await varstored.call(method, *parameters)
        except Failed as error:
            refused.append(error)
    place.toolstack.fail_next("write", upstream("xapi"), upstream("guard"))
    with pytest.raises(Failed):
        await varstored.write(planted("ms2011", 3))
    await varstored.write(planted("ms2011", 3))  # into the journal
    for hostile in (stock.http(SECRET * 100), stock.request(text, text), b"POST / HTTP/1.1\r\nX: " + SECRET + b"\r\n\r\n"):
        await stock.exchange(machine.path, hostile)
    assert len(refused) >= 6
    lines = [line for line in written if not line.startswith("vm=")]
    confirm_nothing_shows(*lines, *await seen(place.control, [machine]))
    assert any("INVALID_VALUE" in line for line in lines)


@pytest.mark.usefixtures("certcheck")
async def test_from_xapis_clients(written: list[str]) -> None:
    with short_folder() as folder:
        async with running(folder) as host:

            def ask() -> str:
                record = uefi()
                with xapi_client(folder / "xapi", login=False) as client:
                    client.login_with_password("operator", PASSWORD, "1.0", PASSWORD)
                    record["NVRAM"] = {"EFI-variables": b64encode(planted("ms2011")).decode()}
                    vm = client.xenapi.VM.create(record)
                    for wrong in (f"*{b64encode(SECRET * 9).decode()}", b64encode(SECRET * 9).decode()):
                        with pytest.raises(Exception, match="INVALID_VALUE"):
                            client.xenapi.VM.set_NVRAM_EFI_variables(vm, wrong)
                    client.xenapi.VM.set_NVRAM_EFI_variables(vm, b64encode(planted("ms2011", 2)).decode())
                    client.xenapi.VM.update_secureboot_certificates_on_boot(vm, MARK)
                    return str(vm)

            vm = await trio.to_thread.run_sync(ask)
            varstored = await host.attach(vm)
            assert (await varstored.get()).outcome.name == "UPDATED"
            texts = await seen(folder / "control", [Machine(varstored.vm, varstored.path)])
    assert len(written) > 10
    confirm_nothing_shows(*written, *texts)


def test_the_search_finds_what_it_has_to() -> None:
    blob = planted("ms2011")
    for text in (b64encode(blob).decode(), blob.hex(), repr(blob), str(list(blob)), f"x{PASSWORD}"):
        with pytest.raises(AssertionError):
            confirm_nothing_shows(text)
    confirm_nothing_shows("vm=11111111-2222-3333-4444-555555555555 wrote 6,645 bytes")
