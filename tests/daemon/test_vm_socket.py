"""The socket is the identity (invariant 8)."""

from uuid import uuid4

import pytest

from support.daemon import Place, written
from support.peer import Refused, connect
from support.storemaker import scene
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire import codec
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.frames import build_frame
from varstore_companion.wire.messages import (
    AnswerMessage,
    Attach,
    ClientKind,
    Detach,
    Hello,
    List,
    Mark,
    Plan,
    PutStore,
    RequestMessage,
    Status,
)

ON_BOOT = CertificatesState.UPDATE_ON_BOOT


async def test_another_vms_uuid_ends_the_connection_and_touches_nothing(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    other = await place.machine(scene("ms2011").blob, ON_BOOT, name="other.sock")
    for claimed in (other.vm, uuid4()):
        async with await connect(machine.path) as peer:
            with pytest.raises(Refused) as refused:
                await peer.hello(claimed)
            assert refused.value.code is ErrorCode.WRONG_VM
            assert await peer.rest() == []
    assert not place.toolstack.calls


async def test_what_follows_a_wrong_hello_is_not_looked_at(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    other = await place.machine(scene("ms2011").blob, ON_BOOT, name="other.sock")
    hello = Hello.of(ClientKind.VARSTORED, vm=other.vm, name="liar")
    put = PutStore(written("ms2011", 1))
    async with await connect(machine.path) as peer:
        await peer.raw.send_all(build_frame(hello.TYPE, 1, codec.encode(hello)) + build_frame(put.TYPE, 2, codec.encode(put)))
        (answer,) = await peer.rest()
    assert (answer.request_id, answer.error.code) == (1, ErrorCode.WRONG_VM)
    assert not place.toolstack.calls


async def test_each_socket_reads_and_writes_its_own_vm(place: Place) -> None:
    one = await place.machine(scene("ms2011").blob, ON_BOOT)
    two = await place.machine(scene("custom_keys").blob, CertificatesState.OK, name="two.sock")
    assert (await two.boot()).store == scene("custom_keys").blob
    await one.put(written("ms2011", 1))
    assert place.record(two).store == scene("custom_keys").blob
    assert place.record(one).store == written("ms2011", 1)


@pytest.mark.parametrize("request_", ["attach", "detach", "list", "status", "mark", "plan"])
async def test_a_vm_cannot_do_what_roots_socket_does(place: Place, request_: str) -> None:
    machine = await place.machine(scene("ms2011").blob, CertificatesState.UPDATE_AVAILABLE)
    asked: dict[str, RequestMessage] = {
        "attach": Attach(uuid4(), b"/tmp/stolen.sock"),
        "detach": Detach(bytes(machine.path)),
        "list": List(),
        "status": Status(),
        "mark": Mark(machine.vm, mark=True),
        "plan": Plan(machine.vm),
    }
    async with machine.peer() as peer:
        with pytest.raises(Refused) as refused:
            await peer.call(asked[request_], AnswerMessage)
        assert refused.value.code is ErrorCode.NOT_HERE
        # The connection lives, and the socket is still there.
        assert (await peer.get()).store == scene("ms2011").blob
    assert place.record(machine).state is CertificatesState.UPDATE_AVAILABLE
