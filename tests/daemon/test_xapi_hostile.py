"""What peers of the endpoint's socket cannot do to it."""

import socket
from functools import partial
from uuid import uuid4

import pytest
import trio

from support.descriptors import needs_descriptors
from support.xapi_host import Api, Host, certcheck, host, xapi_client
from varstore_companion.daemon.listen import BACKLOG
from varstore_companion.daemon.main import XAPI_CONNECTIONS
from varstore_companion.daemon.xapi_values import reference
from varstore_companion.toolstack.xmlrpc import MAX_DOCUMENT, build_call

__all__ = ["certcheck", "host"]


def connect(host: Host) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(str(host.xapi))
    peer.settimeout(30)
    return peer


def http(body: bytes, length: int | None = None) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def status_of(peer: socket.socket) -> int:
    answer = peer.recv(4096)
    return int(answer.split()[1]) if answer else 0


def still_works(api: Api) -> bool:
    return bool(api.VM.get_all() == [])


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (http(b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + build_call("VM.get_all", ["s"])), 400),
        (http(b"<?xml-stylesheet href='a'?>" + build_call("VM.get_all", ["s"])), 400),
        (http(b"not a call"), 400),
        (http(b""), 400),
        (http(build_call("VM.get_all", ["s"])[:-9]), 400),
        (http(b"", MAX_DOCUMENT + 1), 413),
        (http(b"x" * (MAX_DOCUMENT + 1)), 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000, 431),
    ],
)
async def test_what_is_not_a_call_ends_its_connection(host: Host, request_: bytes, status: int) -> None:
    def run() -> int:
        with connect(host) as peer:
            peer.sendall(request_)
            return status_of(peer)

    assert await trio.to_thread.run_sync(run) == status
    assert await host.ask(still_works)


async def test_requests_that_are_cut_anywhere_are_not_carried_out(host: Host) -> None:
    vm = uuid4()
    with host.operations() as operations:
        operations.create_vm(vm, "web")

    def run() -> None:
        with xapi_client(host.xapi) as session:
            whole = http(build_call("VM.destroy", [session.handle, reference(vm)]))
            for end in (1, 10, 40, len(whole) // 2, len(whole) - 1):
                with connect(host) as peer:
                    peer.sendall(whole[:end])
                    peer.shutdown(socket.SHUT_WR)
                    assert status_of(peer) in (0, 400)
            assert session.xenapi.VM.get_all() == [reference(vm)]
            with connect(host) as peer:
                peer.sendall(whole)
                assert status_of(peer) == 200
            assert session.xenapi.VM.get_all() == []

    await trio.to_thread.run_sync(run)


async def test_pipelined_calls_are_carried_out_in_their_order(host: Host) -> None:
    def run() -> list[str]:
        with xapi_client(host.xapi) as session:
            names = [f"vm {number}" for number in range(100)]
            calls = [build_call("VM.create", [session.handle, {"name_label": name}]) for name in names]
            with connect(host) as peer:
                peer.sendall(b"".join(map(http, calls)))
                peer.shutdown(socket.SHUT_WR)
                answers = b""
                while data := peer.recv(65_536):
                    answers += data
            assert answers.count(b"HTTP/1.1 200 OK") == 100
            made = [part.split(b"<")[0].decode() for part in answers.split(b"OpaqueRef:")[1:]]
            return [session.xenapi.VM.get_name_label(f"OpaqueRef:{uuid}") for uuid in made]

    assert await trio.to_thread.run_sync(run) == [f"vm {number}" for number in range(100)]


@needs_descriptors(2_500)
async def test_a_thousand_connections_take_places_and_nothing_else(host: Host) -> None:
    def run() -> tuple[int, int]:
        with xapi_client(host.xapi) as session:
            peers = []
            try:
                for _ in range(1_000):
                    peers.append(connect(host))  # noqa: PERF401  closed also when one cannot be made
                refused = 0
                for peer in peers:
                    peer.settimeout(0)
                    try:
                        refused += status_of(peer) == 503
                    except BlockingIOError:
                        continue
                # Who has a place keeps it.
                assert session.xenapi.VM.get_all() == []
            finally:
                for peer in peers:
                    peer.close()
        return len(peers), refused

    made, refused = await trio.to_thread.run_sync(run)
    assert made == 1_000
    # All but those with a place, and those that have not been looked at yet: the system queues one more than it is asked to.
    assert refused >= 1_000 - XAPI_CONNECTIONS - (BACKLOG + 1)
    with trio.fail_after(10):
        while host.daemon.connections:
            await trio.lowlevel.checkpoint()
    assert await host.ask(still_works)


async def test_a_daemon_that_stops_ends_idle_connections(host: Host) -> None:
    def run() -> socket.socket:
        peer = connect(host)
        peer.sendall(http(build_call("VM.get_all", ["no session"])))
        assert status_of(peer) == 200
        return peer

    with await trio.to_thread.run_sync(run) as peer:
        await host.daemon.stop()
        assert host.daemon.connections == 0
        # What is left of the answer, and then the end; a connection that were still open would time out here.
        assert len(list(iter(partial(peer.recv, 4096), b""))) <= 1
