"""An unmodified varstored on the attached socket: its requests byte for byte, and its guest's writes with their verdicts."""

import logging
from base64 import b64decode, b64encode
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
import trio

from support import fixtures, stock
from support import storebytes as sb
from support.certificates import identity, microsoft
from support.daemon import Machine, Place, written
from support.stock import GET, GET_BY_UUID, GET_STATE, LOGIN, LOGOUT, MESSAGE, SET, SET_V2, WIRE_VM, Failed, S, V, Varstored
from support.storemaker import TENANT_KEK, TENANT_PK, efi_time, make_store, scene, x509_list
from support.varstored_model import SetRefused, VarstoredModel, sign_update
from varstore_companion.daemon.alerts import SECURE_BOOT_FAILED
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.wire.messages import Outcome, Reason

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT
APPEND = sb.ATTRIBUTES_KEYS | sb.APPEND_WRITE
LATER = efi_time(2026, 1, 20, hour=10, minute=35, second=9)
"""One second after the time of the scenes' key variables."""


def varstored(machine: Machine) -> Varstored:
    return Varstored(machine.path, machine.vm)


async def wire_vm(place: Place, record: VmRecord) -> Machine:
    place.toolstack.vms[WIRE_VM] = record
    return await place.attach(WIRE_VM, "vm.sock")


# Byte for byte


def test_the_tests_own_requests_are_the_recorded_ones() -> None:
    written_text = stock.recorded("06-VM.set_NVRAM_EFI_variables.http").split(b"<string>")[3].partition(b"<")[0].decode()
    made = {
        "01-session.login_with_password": stock.login(),
        "02-VM.get_by_uuid": stock.request(GET_BY_UUID, S, str(WIRE_VM)),
        "03-VM.get_NVRAM": stock.request(GET, S, V),
        "04-session.logout": stock.request(LOGOUT, S),
        "05-session.login_with_password": stock.login(),
        "06-VM.set_NVRAM_EFI_variables": stock.request(SET, S, V, written_text),
        "07-session.logout": stock.request(LOGOUT, S),
    }
    assert {name: stock.recorded(f"{name}.http") for name in made} == made


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "a byte at a time"])
@pytest.mark.parametrize("source", ["recorded", "made"])
async def test_a_read_and_a_write_are_replayed(place: Place, source: str, *, bytewise: bool) -> None:
    if source == "recorded":
        names = ("02-VM.get_by_uuid", "03-VM.get_NVRAM", "06-VM.set_NVRAM_EFI_variables", "07-session.logout")
        log_in = stock.recorded("01-session.login_with_password.http")
        look_up, read, write, log_out = (stock.recorded(f"{name}.http") for name in names)
    else:
        log_in, look_up = stock.login(), stock.request(GET_BY_UUID, S, str(WIRE_VM))
        read, log_out = stock.request(GET, S, V), stock.request(LOGOUT, S)
        write = stock.request(SET, S, V, b64encode(make_store([sb.Variable("Lang", sb.GLOBAL, b"eng\0")])).decode())
    blob = b64decode(write.split(b"<string>")[3].partition(b"<")[0], validate=True)
    machine = await wire_vm(place, VmRecord(blob, AVAILABLE, 0))

    async def value(sent: bytes, path: str = "./member[2]/value") -> str | None:
        return stock.text_of(stock.understand(await stock.exchange(machine.path, sent, bytewise=bytewise)), path)

    named = "./member/value/struct/member[name='EFI-variables']/value"
    assert await value(log_in) == S
    assert await value(look_up) == V
    assert await value(read, named) == b64encode(blob).decode()
    assert await value(log_out) == ""
    assert await value(log_in) == S
    assert await value(write) == ""
    assert await value(log_out) == ""
    assert place.record(machine).store == blob
    assert place.toolstack.writes[-1].update is Update.NO


async def test_an_answer_is_what_its_client_can_read(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    answer = await stock.exchange(machine.path, stock.request(GET, S, V))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert first == "HTTP/1.1 200 OK"
    assert headers["content-length"] == str(len(body))
    assert headers["connection"] == "close"
    assert "transfer-encoding" not in headers
    struct = stock.understand(answer)
    assert [stock.text_of(member, "name") for member in struct] == ["Status", "Value"]


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
async def test_a_connection_is_one_call_whatever_its_peer_asks_for(place: Place, connection: bytes) -> None:
    machine = await place.machine(None)
    sent = stock.login().replace(b"Connection: close", b"Connection: " + connection)
    with trio.fail_after(5):
        answer = await stock.exchange(machine.path, sent)
    assert answer.lower().count(b"connection: close\r\n") == 1


async def test_the_largest_store_is_written_and_read_uncut(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    held = list(scene("ms2011").variables)
    for number in range(3):
        room = sb.FILE_LIMIT - len(make_store(held)) - sb.VARIABLE_FIXED_SIZE - 2 * len("Big0") - 6_000 * (number < 2)
        held.append(sb.Variable(f"Big{number}", sb.IMAGE_SECURITY, bytes(min(room, 40_000))))
    largest = make_store(held)
    assert len(largest) > 120_000
    await varstored(machine).write(largest)
    assert await varstored(machine).read() == largest


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (LOGIN, S),
        (LOGOUT, ""),
        (GET, ""),
        (GET_STATE, "ok"),
        (GET_BY_UUID, "UUID_INVALID"),
        (MESSAGE, "UUID_INVALID"),
        (SET, "INVALID_VALUE"),
        (SET_V2, "INVALID_VALUE"),
    ],
)
async def test_requests_as_the_toolstacks_own_clients_write_them_are_understood(place: Place, method: str, answer: str) -> None:
    """Their values are all the word "string", without a tag."""
    machine = await place.machine(None)
    sent = stock.http(stock.guards_request(method))
    try:
        found = stock.text_of(stock.understand(await stock.exchange(machine.path, sent)), "./member[2]/value")
    except Failed as failed:
        found = failed.errors[0]
    assert found == answer


# A first boot is a fact (invariant 4)


async def test_a_first_boot_is_an_answer_without_the_key(place: Place) -> None:
    machine = await place.machine(None)
    assert await varstored(machine).read() is None
    answer = await stock.exchange(machine.path, stock.request(GET, S, V))
    assert answer.endswith(b"<value>Success</value></member><member><name>Value</name><value><struct></struct></value></member>"
                           b"</struct></value></param></params></methodResponse>")  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [ToolstackRefusedError("HANDLE_INVALID", "gone"), ToolstackUnclearError("lost"), LookupError("a bug")],
    ids=["refused", "unclear", "bug"],
)
async def test_a_store_that_cannot_be_had_is_never_a_first_boot(place: Place, error: Exception) -> None:
    machine = await place.machine(None)
    place.toolstack.fail_next("read", error)
    with pytest.raises(Failed) as failed:
        await varstored(machine).read()
    assert failed.value.status == 200
    assert failed.value.errors[0] in ("HANDLE_INVALID", "INTERNAL_ERROR")
    assert await varstored(machine).read() is None


async def test_a_store_that_varstored_cannot_take_is_a_failure(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob + bytes(sb.FILE_LIMIT), AVAILABLE)
    for _ in range(2):
        with pytest.raises(Failed) as failed:
            await varstored(machine).read()
        assert failed.value.errors[0] == "INTERNAL_ERROR"


# The guest's writes, and what the toolstack hears


def signed(name: str, guid: UUID, payload: bytes, signer: str, attributes: int = APPEND) -> bytes:
    who = identity(signer)
    return sign_update(name, guid, attributes, LATER, payload, key=who.key, cert=who.certificate)


@pytest.mark.parametrize("field", [AVAILABLE, ON_BOOT])
async def test_microsofts_signed_updates_are_heard_as_the_table_says(place: Place, field: CertificatesState) -> None:
    """KEK has its new certificate; the guest applies Microsoft's three updates of db, the last of which completes it."""
    machine = await place.machine(scene("kek_done").blob, AVAILABLE)
    guest = await varstored(machine).start()
    place.toolstack.vms[machine.vm] = replace(place.record(machine), state=field)
    for file in fixtures.DB_UPDATES:
        assert guest.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update(file))
        await varstored(machine).write(guest.save())
    assert [write.update for write in place.toolstack.writes] == [Update.NO, Update.NO, Update.YES]
    assert place.record(machine).state is OK
    assert VarstoredModel.load(place.record(machine).store or b"").save() == make_store(guest.list()[::-1], 2)


async def test_a_guests_own_signed_updates_are_heard_as_the_table_says(place: Place) -> None:
    """Of any signer: `no` while something is missing and the mark lives, `yes` once it is complete."""
    machine = await place.machine(scene("db_done").blob, AVAILABLE)
    guest = await varstored(machine).start()
    place.toolstack.vms[machine.vm] = replace(place.record(machine), state=ON_BOOT)
    tenants = x509_list(identity("A tenant's next").der, sb.OWNER_TENANT)
    assert guest.set_variable("KEK", sb.GLOBAL, APPEND, signed("KEK", sb.GLOBAL, tenants, TENANT_PK))
    await varstored(machine).write(guest.save())
    assert place.record(machine).state is ON_BOOT
    assert guest.set_variable("BootOrder", sb.GLOBAL, sb.ATTRIBUTES_PLAIN, b"\2\0")
    await varstored(machine).write(guest.save())
    assert place.record(machine).state is ON_BOOT
    microsofts = x509_list(microsoft("ms-kek-2023"))
    assert guest.set_variable("KEK", sb.GLOBAL, APPEND, signed("KEK", sb.GLOBAL, microsofts, TENANT_PK))
    await varstored(machine).write(guest.save())
    assert [write.update for write in place.toolstack.writes] == [Update.NO, Update.NO, Update.YES]
    assert place.record(machine).state is OK


async def test_a_change_of_keys_that_no_rule_knows_is_unspecified(place: Place) -> None:
    machine = await place.machine(scene("custom_keys").blob, OK)
    guest = await varstored(machine).start()
    tenants = x509_list(identity("A tenant's next").der, sb.OWNER_TENANT)
    assert guest.set_variable("db", sb.IMAGE_SECURITY, APPEND, signed("db", sb.IMAGE_SECURITY, tenants, TENANT_KEK))
    await varstored(machine).write(guest.save())
    assert [write.update for write in place.toolstack.writes] == [Update.UNSPECIFIED]
    assert place.record(machine).store == guest.save()


async def test_a_guest_lists_sets_and_removes_variables(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    tool = varstored(machine)
    guest = await tool.start()
    assert guest.set_variable("Mine", sb.IMAGE_SECURITY, sb.ATTRIBUTES_PLAIN, b"x")
    await tool.write(guest.save())
    guest = await varstored(machine).start()
    assert "Mine" in guest.names
    assert guest.set_variable("Mine", sb.IMAGE_SECURITY, sb.ATTRIBUTES_PLAIN, b"")
    await varstored(machine).write(guest.save())
    guest = await varstored(machine).start()
    assert "Mine" not in guest.names
    with pytest.raises(SetRefused):
        guest.set_variable("db", sb.IMAGE_SECURITY, APPEND, signed("db", sb.IMAGE_SECURITY, b"", "A stranger"))
    assert {write.update for write in place.toolstack.writes} == {Update.NO}


@pytest.mark.parametrize("method", [SET, SET_V2])
@pytest.mark.parametrize("word", ["yes", "unspecified", "no", "anything"])
async def test_a_clients_own_word_is_only_logged(
    place: Place, caplog: pytest.LogCaptureFixture, method: str, word: str
) -> None:
    caplog.set_level(logging.DEBUG)
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    await varstored(machine).call(method, S, V, b64encode(written("ms2011", 1)).decode(), word)
    assert [write.update for write in place.toolstack.writes] == [Update.NO]
    assert place.record(machine).state is ON_BOOT
    (record,) = [each for each in caplog.records if f"update={word}" in each.getMessage() and "says" in each.getMessage()]
    assert record.levelno == logging.DEBUG


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize("error", [ToolstackUnavailableError("away"), ToolstackRefusedError("VM_BAD_POWER_STATE", "no")])
async def test_a_write_that_fails_is_a_failure_to_the_guest(place: Place, call: str, error: Exception) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    if call == "write" and isinstance(error, ToolstackUnavailableError):
        # Only a journal that does not take it either lets the write fail.
        place.host.journal._total = 0
    place.toolstack.fail_next("read" if call == "read" else "write", error)
    with pytest.raises(Failed) as failed:
        await varstored(machine).write(written("ms2011", 1))
    assert failed.value.errors[0] in ("INTERNAL_ERROR", "VM_BAD_POWER_STATE")
    assert place.record(machine).store == scene("ms2011").blob
    await varstored(machine).write(written("ms2011", 1))
    assert place.record(machine).store == written("ms2011", 1)


# The field and alerts


@pytest.mark.parametrize("state", list(CertificatesState))
async def test_the_field_is_told_and_nothing_is_changed(place: Place, state: CertificatesState) -> None:
    machine = await place.machine(scene("ms2011").blob, state)
    assert await varstored(machine).call(GET_STATE, S, V) == state
    assert not place.toolstack.writes


async def test_without_a_field_the_call_is_as_unknown_as_to_an_old_guard(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, None)
    with pytest.raises(Failed) as failed:
        await varstored(machine).call(GET_STATE, S, V)
    assert failed.value.errors == ("MESSAGE_METHOD_UNKNOWN", GET_STATE)


async def test_a_guest_that_failed_secure_boot_is_alerted_in_words_that_stand_alone(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, OK)
    await varstored(machine).notify()
    ((vm, alert),) = place.toolstack.alerts
    assert (vm, alert.name, alert.priority, alert.body) == (machine.vm, SECURE_BOOT_FAILED, 5, stock.TEXT)


@pytest.mark.parametrize(
    ("text", "body"), [("a tool's words", f"{stock.TEXT} a tool's words"), ("x" * 9_000, f"{stock.TEXT} {'x' * 1_024}")]
)
async def test_any_message_is_that_alert_as_with_a_guard(place: Place, text: str, body: str) -> None:
    machine = await place.machine(scene("ms2011").blob, OK)
    await varstored(machine).call(MESSAGE, S, "OTHER_NAME", 1, "VM", str(machine.vm), text)
    ((_, alert),) = place.toolstack.alerts
    assert alert.name == SECURE_BOOT_FAILED
    assert alert.body.startswith(body[:1_000])
    assert len(alert.body) <= len(body)


# The socket is the identity (invariant 8)


@pytest.mark.parametrize("known", [True, False])
async def test_another_vms_uuid_is_refused_and_logged(place: Place, caplog: pytest.LogCaptureFixture, *, known: bool) -> None:
    machine = await place.machine(scene("ms2011").blob, OK)
    other = (await place.machine(scene("ms2011").blob, OK, name="other.sock")).vm if known else uuid4()
    for method, parameters in {GET_BY_UUID: (S, str(other)), MESSAGE: (S, "a", 5, "VM", str(other), "b")}.items():
        with pytest.raises(Failed) as failed:
            await varstored(machine).call(method, *parameters)
        assert failed.value.errors == ("UUID_INVALID", "VM", str(other))
    assert not place.toolstack.calls
    assert f"vm={machine.vm} {GET_BY_UUID} failed: UUID_INVALID" in caplog.text


async def test_references_mean_nothing(place: Place) -> None:
    one = await place.machine(scene("ms2011").blob, OK)
    two = await place.machine(scene("custom_keys").blob, OK, name="two.sock")
    await varstored(one).call(SET, "any session", f"OpaqueRef:{two.vm}", b64encode(written("ms2011", 1)).decode())
    assert place.record(two).store == scene("custom_keys").blob
    assert place.record(one).store == written("ms2011", 1)


# What is no call of varstored's


@pytest.mark.parametrize(
    ("method", "parameters", "errors"),
    [
        ("VM.destroy", (S, V), ("MESSAGE_METHOD_UNKNOWN", "VM.destroy")),
        ("VM.set_NVRAM", (S, V, "x"), ("MESSAGE_METHOD_UNKNOWN", "VM.set_NVRAM")),
        (LOGIN, ("root",), ("MESSAGE_PARAMETER_COUNT_MISMATCH", LOGIN, "2", "1")),
        (LOGIN, ("root", "", "", "", ""), ("MESSAGE_PARAMETER_COUNT_MISMATCH", LOGIN, "2", "5")),
        (LOGOUT, (), ("MESSAGE_PARAMETER_COUNT_MISMATCH", LOGOUT, "0", "0")),
        (LOGOUT, (S, S), ("MESSAGE_PARAMETER_COUNT_MISMATCH", LOGOUT, "0", "1")),
        (GET, (S,), ("MESSAGE_PARAMETER_COUNT_MISMATCH", GET, "1", "0")),
        (GET, (S, V, V), ("MESSAGE_PARAMETER_COUNT_MISMATCH", GET, "1", "2")),
        (SET, (S, V), ("MESSAGE_PARAMETER_COUNT_MISMATCH", SET, "2", "1")),
        (SET, (S, V, "", "", ""), ("MESSAGE_PARAMETER_COUNT_MISMATCH", SET, "2", "4")),
        (SET_V2, (S, V, ""), ("MESSAGE_PARAMETER_COUNT_MISMATCH", SET_V2, "3", "2")),
        (MESSAGE, (S, "a", 5, "VM"), ("MESSAGE_PARAMETER_COUNT_MISMATCH", MESSAGE, "5", "3")),
        (GET, (S, 7), ("FIELD_TYPE_ERROR", "self")),
        (SET, (S, V, 7), ("FIELD_TYPE_ERROR", "value")),
        (SET, (S, V, "", 7), ("FIELD_TYPE_ERROR", "update")),
        (MESSAGE, (S, "a", "five", "VM", "u", "b"), ("FIELD_TYPE_ERROR", "priority")),
    ],
)
async def test_what_is_none_of_its_calls_is_refused_in_xapis_words(
    place: Place, method: str, parameters: tuple[str | int, ...], errors: tuple[str, ...]
) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    with pytest.raises(Failed) as failed:
        await varstored(machine).call(method, *parameters)
    assert (failed.value.status, failed.value.errors) == (200, errors)
    assert not place.toolstack.calls


# Together


async def test_both_protocols_on_one_socket_at_once(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, AVAILABLE)
    async with machine.peer() as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.put, written("ms2011", 11))
            for number in range(1, 6):
                nursery.start_soon(varstored(machine).write, written("ms2011", number))
        assert place.record(machine).generation == 6
        await varstored(machine).write(written("ms2011", 20))
        assert (await peer.get(Reason.TOOL)).store == written("ms2011", 20)
        await peer.put(written("ms2011", 21))
        assert await varstored(machine).read() == written("ms2011", 21)
        assert (await peer.get(Reason.TOOL)).outcome is Outcome.NOT_ASKED


async def test_two_hundred_vms_write_without_an_error(place: Place) -> None:
    machines = [await place.machine(scene("ms2011").blob, AVAILABLE, name=f"{number}.sock") for number in range(200)]
    for number in range(1, 4):
        async with trio.open_nursery() as nursery:
            for machine in machines:
                nursery.start_soon(varstored(machine).write, written("ms2011", number))
        assert {place.record(machine).store for machine in machines} == {written("ms2011", number)}
    assert {write.update for write in place.toolstack.writes} == {Update.NO}
