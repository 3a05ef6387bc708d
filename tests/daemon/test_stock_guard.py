"""An unmodified varstored before the daemon, a guard behind it, of either generation: what is read, written and heard."""

from base64 import b64decode, b64encode

import pytest

from support import fixtures, stock
from support import storebytes as sb
from support.daemon import certcheck
from support.fake_guard import Guard, Server, VmModel
from support.guards import Place, place
from support.stock import WIRE_VM, Varstored
from support.storemaker import make_store, scene
from varstore_companion.daemon.attachments import interposed
from varstore_companion.trust.state import CertificatesState

__all__ = ["place"]

OK, AVAILABLE, ON_BOOT = CertificatesState
APPEND = sb.ATTRIBUTES_KEYS | sb.APPEND_WRITE


async def interpose_for(place: Place, store: bytes, state: CertificatesState, *, is_new: bool) -> tuple[Guard, Server]:
    """The VM of the recorded requests behind its guard, whose socket is taken over."""
    guard = Guard(VmModel(WIRE_VM, certcheck), is_new=is_new)
    guard.model.put(store, state)
    server = Server(place.folder / "vm", guard.answer)
    await place.nursery.start(server.run)
    assert not await place.daemon.attach(interposed(WIRE_VM, server.path, resume=False))
    return guard, server


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "a byte at a time"])
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "old"])
@pytest.mark.parametrize("source", ["recorded", "made"])
async def test_a_read_and_a_write_are_replayed_through_to_the_guard(
    place: Place, source: str, *, is_new: bool, bytewise: bool
) -> None:
    """Before the daemon the very bytes of a real varstored, and behind it those answers that a guard gives."""
    names = {
        "01-session.login_with_password": stock.login(),
        "02-VM.get_by_uuid": stock.request(stock.GET_BY_UUID, stock.S, str(WIRE_VM)),
        "03-VM.get_NVRAM": stock.request(stock.GET, stock.S, stock.V),
        "04-session.logout": stock.request(stock.LOGOUT, stock.S),
        "05-session.login_with_password": stock.login(),
        "06-VM.set_NVRAM_EFI_variables": stock.request(
            stock.SET, stock.S, stock.V, b64encode(make_store([sb.Variable("Lang", sb.GLOBAL, b"eng\0")])).decode()
        ),
        "07-session.logout": stock.request(stock.LOGOUT, stock.S),
    }
    if source == "recorded":
        names = {name: stock.recorded(f"{name}.http") for name in names}
    written = b64decode(names["06-VM.set_NVRAM_EFI_variables"].split(b"<string>")[3].partition(b"<")[0], validate=True)
    guard, server = await interpose_for(place, scene("setup_mode").blob, OK, is_new=is_new)
    texts = {}
    for name, sent in names.items():
        answer = stock.understand(await stock.exchange(server.path, sent, bytewise=bytewise))
        texts[name[3:]] = stock.text_of(answer, "./member[2]/value")
        if name.startswith("03"):
            assert b64encode(scene("setup_mode").blob).decode() in (texts["VM.get_NVRAM"] or "")
    assert texts["VM.set_NVRAM_EFI_variables"] == ""
    assert guard.model.store == written
    # The guard is called for what only it can say.
    assert [call for call in server.calls if "session" in call or "uuid" in call] == []
    sets = [call for call in server.calls if "set_NVRAM" in call]
    expected = "VM.set_NVRAM_EFI_variables_v2" if is_new else "VM.set_NVRAM_EFI_variables"
    assert sets[-1] == expected
    assert len(guard.model.updates) == 1
    assert (guard.model.updates[0] is None) is not is_new


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "old"])
async def test_microsofts_signed_updates_are_heard_by_the_guard_as_the_table_says(place: Place, *, is_new: bool) -> None:
    """KEK has its new certificate; the guest applies Microsoft's three updates of db, the last of which completes it."""
    guard, server = await interpose_for(place, scene("kek_done").blob, AVAILABLE, is_new=is_new)
    varstored = Varstored(server.path, WIRE_VM)
    guest = await varstored.start()
    for name in fixtures.DB_UPDATES:
        assert guest.set_variable("db", sb.IMAGE_SECURITY, APPEND, fixtures.update(name))
        await varstored.write(guest.save())
    assert guest.set_variable("BootOrder", sb.GLOBAL, sb.ATTRIBUTES_PLAIN, b"\2\0")
    await varstored.write(guest.save())
    assert guard.model.updates == (["no", "no", "yes", "no"] if is_new else [None] * 4)
    assert guard.model.store == guest.save()
    assert guard.model.state is OK


@pytest.mark.parametrize(
    ("before", "state", "after", "update"),
    [("ms2011", AVAILABLE, "all2023", "yes"), ("custom_keys", OK, "ms2011", "unspecified")],
)
async def test_the_other_two_verdicts(place: Place, before: str, state: CertificatesState, after: str, update: str) -> None:
    guard, server = await interpose_for(place, scene(before).blob, state, is_new=True)
    varstored = Varstored(server.path, WIRE_VM)
    await varstored.read()
    await varstored.write(scene(after).blob)
    assert guard.model.updates == [update]
    assert guard.model.store == scene(after).blob
