"""An overload slows the VM that makes it, and no other."""

import socket
from base64 import b64encode
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support.daemon import Machine, Place, written
from support.peer import Peer, Refused
from support.stock import GET, GET_STATE, LOGOUT, SET, Failed, S, V, Varstored, exchange, request
from support.storemaker import scene
from varstore_companion.daemon import vm as vm_module
from varstore_companion.daemon.limits import FREE_BYTES, VM_BYTES, Credits, Gate, InFlight, Limits, Share
from varstore_companion.daemon.reading import READ_SECONDS
from varstore_companion.daemon.sockets import VM_CONNECTIONS
from varstore_companion.daemon.vm_socket import FIRST_BYTES
from varstore_companion.errors import MalformedError, ToolstackUnavailableError
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Outcome, Reason

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT


def limit(place: Place, **limits: int) -> None:
    place.host.rules = replace(place.host.rules, limits=replace(place.host.rules.limits, **limits))


# Writes


async def test_a_vm_writes_its_credit_at_once_and_as_it_regains_it_then(autojump_clock: MockClock) -> None:
    credit, limits = Credits(), Limits()
    for _ in range(100):
        await credit.spend(limits)
    assert trio.current_time() == autojump_clock.current_time() == 0
    for number in range(1, 11):
        await credit.spend(limits)
        assert trio.current_time() == pytest.approx(number / 2)
    await trio.sleep(20)
    begun = trio.current_time()
    for _ in range(40):
        await credit.spend(limits)
    assert trio.current_time() == begun
    await credit.spend(limits)
    assert trio.current_time() == pytest.approx(begun + 0.5)
    await trio.sleep(10_000)
    begun = trio.current_time()
    for _ in range(101):
        await credit.spend(limits)
    assert trio.current_time() == pytest.approx(begun + 0.5)


@pytest.mark.parametrize("limits", [Limits(write_burst=0), Limits(writes_per_second=0)])
async def test_no_limit(limits: Limits, autojump_clock: MockClock) -> None:
    credit = Credits()
    for _ in range(1_000):
        await credit.spend(limits)
    assert trio.current_time() == 0


async def test_one_vm_that_writes_too_fast_waits_and_another_does_not(place: Place, autojump_clock: MockClock) -> None:
    limit(place, write_burst=3, writes_per_second=1)
    noisy = await place.machine(scene("ms2011").blob, ON_BOOT)
    quiet = await place.machine(scene("ms2011").blob, ON_BOOT, name="quiet.sock")
    ended: list[float] = []

    async def write() -> None:
        async with noisy.peer() as peer:
            for number in range(8):
                await peer.put(written("ms2011", number))
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.sleep(1.5)
        begun = trio.current_time()
        await quiet.put(written("ms2011", 1))
        # Nor is the VM's own boot held up for longer than its write.
        await noisy.boot()
        assert trio.current_time() - begun <= 1
    assert ended == [pytest.approx(5)]
    assert place.record(noisy).store == written("ms2011", 7)


@pytest.mark.parametrize("stock", [False, True])
async def test_writes_that_are_refused_spend_credit_as_others_do(
    place: Place, autojump_clock: MockClock, *, stock: bool
) -> None:
    noisy = await place.machine(scene("ms2011").blob, OK)
    quiet = await place.machine(scene("ms2011").blob, OK, name="quiet.sock")
    cut = scene("ms2011").blob[:-5]

    async def refused(peer: Peer) -> None:
        if stock:
            with pytest.raises(Failed):
                await Varstored(noisy.path, noisy.vm).call(SET, S, V, b64encode(cut).decode())
            return
        with pytest.raises(Refused) as caught:
            await peer.put(cut)
        assert caught.value.code is ErrorCode.NOT_A_STORE

    async with noisy.peer() as peer:
        for _ in range(100):
            await refused(peer)
        assert trio.current_time() == 0
        for number in range(1, 4):
            await refused(peer)
            assert trio.current_time() == pytest.approx(number / 2)
        assert place.host.stats.refused == 103
        # Nobody else waits, nor does the VM itself for a boot or a read.
        begun = trio.current_time()
        await quiet.put(written("ms2011", 1))
        assert (await noisy.boot()).store == scene("ms2011").blob
        await peer.get(Reason.TOOL)
        assert trio.current_time() == begun
        await peer.put(written("ms2011", 1))
        assert trio.current_time() == pytest.approx(begun + 0.5)
    assert place.record(noisy).store == written("ms2011", 1)


async def test_a_store_beyond_the_credit_is_not_looked_at_before_its_time(
    place: Place, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(place, write_burst=3, writes_per_second=1)
    noisy = await place.machine(scene("ms2011").blob, OK)
    looked: list[float] = []

    def admitted(*_: object) -> None:
        looked.append(trio.current_time())
        raise MalformedError("it", offset=0, expected="a store")

    monkeypatch.setattr(vm_module, "admitted", admitted)

    async def write() -> None:
        with pytest.raises(Refused):
            await noisy.put(b"")

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(write)
    assert looked == [pytest.approx(at) for at in (0, 0, 0, 1, 2, 3, 4, 5)]


# Reads


async def test_a_vm_reads_its_credit_at_once_and_as_it_regains_it_then(place: Place, autojump_clock: MockClock) -> None:
    limit(place, write_burst=10)
    noisy = await place.machine(scene("ms2011").blob, ON_BOOT)
    quiet = await place.machine(scene("ms2011").blob, OK, name="quiet.sock")
    async with noisy.peer() as peer:
        for _ in range(5):
            await peer.get(Reason.TOOL)
            await peer.get(Reason.RESUME)
        assert trio.current_time() == 0
        await peer.get(Reason.TOOL)
        assert trio.current_time() == pytest.approx(0.5)
        # As an unmodified varstored's tools read, too; the same credit.
        for number, method in enumerate((GET, GET_STATE), 2):
            assert await Varstored(noisy.path, noisy.vm).call(method, S, V)
            assert trio.current_time() == pytest.approx(number / 2)
        # Nobody else waits, nor the operator, nor the VM itself for a boot or a write.
        begun = trio.current_time()
        await quiet.boot(Reason.TOOL)
        await place.daemon.status(noisy.vm)
        assert (await noisy.boot()).outcome is Outcome.UPDATED
        await peer.put(written("ms2011", 1))
        assert trio.current_time() == begun


async def test_the_boot_of_an_unmodified_varstored_spends_no_credit(place: Place, autojump_clock: MockClock) -> None:
    limit(place, write_burst=1)
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    for at in (0, 0, 0.5):
        assert await Varstored(machine.path, machine.vm).call(GET, S, V)
        assert trio.current_time() == pytest.approx(at)
    assert place.host.stats.updates == 1


async def test_a_vm_boots_its_credit_at_once_and_as_it_regains_it_then(place: Place, autojump_clock: MockClock) -> None:
    limit(place, write_burst=3)
    noisy = await place.machine(scene("ms2011").blob, ON_BOOT)
    quiet = await place.machine(scene("ms2011").blob, ON_BOOT, name="quiet.sock")
    async with noisy.peer() as peer:
        for at in (0, 0, 0, 0.5, 1):
            await peer.get(Reason.BOOT)
            assert trio.current_time() == pytest.approx(at)
        # Nobody else waits, nor the VM itself for a read or a write.
        begun = trio.current_time()
        assert (await quiet.boot()).outcome is Outcome.UPDATED
        await peer.get(Reason.TOOL)
        await peer.put(written("ms2011", 1))
        assert trio.current_time() == begun


async def test_a_boot_that_gets_no_credit_in_time_is_an_error(place: Place, autojump_clock: MockClock) -> None:
    limit(place, write_burst=1)
    machine = await place.machine(scene("ms2011").blob)
    vm = vm_module.Vm(machine.vm, place.host)
    refused: list[float] = []

    async def boot() -> None:
        try:
            await vm.boot()
        except ToolstackUnavailableError:
            refused.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(boot)
    assert 50 - len(refused) == pytest.approx(2 * vm_module.BOOT_SECONDS, abs=1)
    assert set(refused) == {vm_module.BOOT_SECONDS}
    # What nobody waited for to the end is not owed.
    await vm.boot()
    assert trio.current_time() <= vm_module.BOOT_SECONDS + 1


async def test_what_no_varstored_writes_is_parsed_as_fast_as_credit_lets_it(place: Place, autojump_clock: MockClock) -> None:
    limit(place, write_burst=1)
    machine = await place.machine(scene("ms2011").blob)
    plain = request(LOGOUT, S, V)
    for _ in range(10):
        await exchange(machine.path, plain)
    assert trio.current_time() == 0
    for at in (0, 0.5, 1):
        assert b"MESSAGE_PARAMETER_COUNT_MISMATCH" in await exchange(machine.path, plain.replace(b"'1.0'", b'"1.0"'))
        assert trio.current_time() == pytest.approx(at)


async def test_what_waits_for_credit_and_is_given_up_comes_after_nothing(
    place: Place, mock_clock: MockClock
) -> None:  # invariant 9
    limit(place, write_burst=1)
    machine = await place.machine(scene("ms2011").blob)
    odd = request(SET, S, V, b64encode(written("ms2011", 1)).decode()).replace(b"'1.0'", b'"1.0"')
    await exchange(machine.path, request(LOGOUT, S).replace(b"'1.0'", b'"1.0"'))
    async with await trio.open_unix_socket(str(machine.path)) as stream:
        await stream.send_all(odd)
        await wait_all_tasks_blocked()
    await Varstored(machine.path, machine.vm).call(SET, S, V, b64encode(written("ms2011", 2)).decode())
    mock_clock.jump(1)
    await wait_all_tasks_blocked()
    assert place.toolstack.writes
    assert place.record(machine).store == written("ms2011", 2)


async def test_reads_that_come_together_are_answered_within_their_time(place: Place, autojump_clock: MockClock) -> None:
    limit(place, write_burst=1, writes_per_second=1)
    vm = place.new_vm(scene("ms2011").blob, OK)
    ended: list[float] = []

    async def read() -> None:
        with suppress(ToolstackUnavailableError):
            assert (await vm.read_for_peer()).store == scene("ms2011").blob
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(read)
    assert max(ended) == READ_SECONDS
    assert sorted(ended)[:20] == [pytest.approx(at) for at in range(20)]


async def test_who_asks_and_leaves_owes_nothing_for_it(autojump_clock: MockClock) -> None:
    credit, limits = Credits(), Limits(write_burst=1, writes_per_second=1)
    await credit.spend(limits)
    for _ in range(1_000):
        with trio.move_on_after(0):
            await credit.spend(limits)
        await credit.spend(limits, deadline=0)
    await credit.spend(limits)
    assert trio.current_time() == pytest.approx(1)


# So many at once


async def test_a_gate_lets_in_so_many_first_come_first_served() -> None:
    gate, inside, order, go = Gate(lambda: 2), [0], [], trio.Event()

    async def pass_through(number: int) -> None:
        async with gate:
            order.append(number)
            inside[0] += 1
            assert inside[0] <= 2
            await go.wait()
            await trio.lowlevel.checkpoint()
            inside[0] -= 1

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(pass_through, number)
            await wait_all_tasks_blocked()
        assert sorted(order) == [0, 1]
        go.set()
    assert sorted(order) == list(range(10))
    assert all(abs(place - number) <= 1 for place, number in enumerate(order))


async def test_one_that_gives_up_at_the_gate_keeps_no_place() -> None:
    gate = Gate(lambda: 1)
    async with gate:
        with trio.move_on_after(0):
            await gate.enter()
            raise AssertionError
    with trio.fail_after(1):
        async with gate:
            pass
        async with gate:
            pass


async def test_a_gate_that_is_widened_lets_in_more() -> None:
    most = [1]
    gate = Gate(lambda: most[0])
    entered: list[int] = []

    async def enter(number: int) -> None:
        await gate.enter()
        entered.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(enter, number)
            await wait_all_tasks_blocked()
        assert entered == [0]
        most[0] = 3
        gate.leave()
        await wait_all_tasks_blocked()
        assert sorted(entered) == [0, 1, 2, 3]


async def test_boots_beyond_the_limit_wait_for_their_turn(place: Place) -> None:
    limit(place, boots_at_once=2)
    machines = [await place.machine(scene("ms2011").blob, AVAILABLE, name=f"{number}.sock") for number in range(5)]
    hangs = [place.toolstack.hang_next("read") for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for machine in machines:
            nursery.start_soon(machine.boot)
        await wait_all_tasks_blocked()
        assert [hang.reached.is_set() for hang in hangs] == [True, True, False, False, False]
        for hang in hangs:
            hang.release.set()


# Bytes in flight


async def test_small_requests_always_come_through_and_one_of_each_vm_gets_on() -> None:
    everything = InFlight(1_000_000)
    share, other = Share(everything, 300_000), Share(everything, 300_000)
    for name, size in (("first", 200_000), ("second", 150_000)):
        share.holds(name, size)
    assert everything.total == 350_000
    with trio.fail_after(1):
        await share.room("first")  # it has begun first
        await share.room("third")  # it holds next to nothing
        await other.room("theirs")
    with trio.move_on_after(0.01) as scope:
        await share.room("second")
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(share.room, "second")
        await wait_all_tasks_blocked()
        share.holds("first", 0)
    share.holds("second", 0)
    assert everything.total == 0


async def test_when_all_vms_together_hold_too_much_each_gets_on_with_one() -> None:
    everything = InFlight(500_000)
    shares = [Share(everything) for _ in range(3)]
    for share in shares:
        share.holds("first", 100_000)
        share.holds("second", 90_000)
    for share in shares:
        with trio.fail_after(1):
            await share.room("first")
        with trio.move_on_after(0.01) as scope:
            await share.room("second")
        assert scope.cancelled_caught


async def test_a_marked_boot_that_has_no_turn_in_time_boots_as_it_is(place: Place, autojump_clock: MockClock) -> None:
    limit(place, updates_at_once=1)
    first = await place.machine(scene("ms2011").blob, ON_BOOT)
    second = await place.machine(scene("ms2011").blob, ON_BOOT, name="second.sock")
    outcomes: dict[str, Outcome] = {}
    hang = place.toolstack.hang_next("write")

    async def boot(name: str, machine: Machine) -> None:
        outcomes[name] = (await machine.boot()).outcome

    async with trio.open_nursery() as nursery:
        nursery.start_soon(boot, "first", first)
        await hang.reached.wait()
        await trio.sleep(0.1)
        await boot("second", second)
        # Its record tells why, and nobody is alarmed: its turn comes with the next boot.
        detail = place.daemon.vm(second.vm).last_update
        assert detail is not None
        assert "at once" in (detail.detail or "")
        assert place.record(second).state is ON_BOOT
    assert outcomes == {"first": Outcome.FAILED, "second": Outcome.FAILED}
    assert place.host.stats.updates_held_back == 1
    assert (await second.boot()).outcome is Outcome.UPDATED


async def test_requests_that_never_end_hold_no_more_than_the_limit_and_what_is_free(place: Place) -> None:
    machine = await place.machine(scene("ms2011").blob)
    with ExitStack() as open_:
        for _ in range(VM_CONNECTIONS):
            stream = open_.enter_context(socket.socket(socket.AF_UNIX))
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * FIRST_BYTES)
            # All of it is there by the time that the connection is taken.
            stream.connect(str(machine.path))
            stream.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 250000\r\n\r\n".ljust(FIRST_BYTES))
            await wait_all_tasks_blocked()
        most = VM_BYTES + (VM_CONNECTIONS - VM_BYTES // FIRST_BYTES) * FREE_BYTES
        assert VM_BYTES < place.host.in_flight.total <= most
    await wait_all_tasks_blocked()
    assert place.host.in_flight.total == 0
