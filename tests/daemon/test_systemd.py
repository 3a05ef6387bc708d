"""What systemd is told, what it passes, and that neither can hurt the daemon."""

import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock

from support.notify import Manager
from support.processes import python
from varstore_companion.daemon.systemd import SEND_SECONDS, Service


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager.at(tmp_path / "notify" if request.param == "path" else f"@varstore-companion-{uuid4()}")
    yield made
    made.close()


def service(manager: Manager, **more: str) -> Service:
    return Service.from_environment({"NOTIFY_SOCKET": manager.address, **more})


async def test_what_is_told(manager: Manager) -> None:
    told = service(manager)
    await told.ready("two\nlines")
    await told.status("fine")
    await told.alive()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    async with told.reloading():
        reload = [manager.take() for _ in range(4)][-1].fields
    await told.stopping("ends")
    assert [manager.take().fields for _ in range(2)] == [{"READY": "1"}, {"STOPPING": "1", "STATUS": "ends"}]
    assert [news.fields for news in manager.news[:3]] == [
        {"READY": "1", "STATUS": "two lines"},
        {"STATUS": "fine"},
        {"WATCHDOG": "1"},
    ]
    assert reload["RELOADING"] == "1"
    assert before <= int(reload["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000


async def test_a_reload_that_fails_or_is_cancelled_has_its_end(manager: Manager) -> None:
    told = service(manager)
    with pytest.raises(ValueError, match="bad file"):
        async with told.reloading():
            raise ValueError("bad file")
    with trio.CancelScope() as scope:
        async with told.reloading():
            scope.cancel()
            await trio.sleep_forever()
    assert [next(iter(manager.take().fields)) for _ in range(4)] == ["RELOADING", "READY"] * 2


async def test_a_socket_goes_to_the_store_and_comes_out_again(manager: Manager, tmp_path: Path) -> None:
    told = service(manager)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a.sock"))
        listener.listen()
        await told.store("a-name", listener)
    news = manager.take()
    assert news.fields == {"FDSTORE": "1", "FDNAME": "a-name"}
    ((name, descriptor),) = manager.store
    assert name == "a-name"
    # The one that is kept listens, though its maker has closed its own.
    with socket.socket(fileno=os.dup(descriptor)) as kept, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "a.sock"))
        kept.accept()[0].close()
    await told.remove("a-name")
    assert manager.take().fields == {"FDSTOREREMOVE": "1", "FDNAME": "a-name"}
    assert manager.store == []


async def test_nobody_is_told_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    alone = Service.from_environment({})
    assert not alone.has_manager
    await alone.ready("fine")
    async with alone.reloading():
        pass
    assert caplog.messages == []


@pytest.mark.parametrize("address", ["/nonexistent/notify", "/" + "x" * 200, "@nobody"])
async def test_what_cannot_be_sent_is_logged_and_no_more(address: str, caplog: pytest.LogCaptureFixture) -> None:
    await Service.from_environment({"NOTIFY_SOCKET": address}).ready("fine")
    (line,) = caplog.messages
    assert "READY=1" in line
    assert address in line


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative"])
def test_other_kinds_of_addresses_are_refused(address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not Service.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}).has_manager
    assert address in caplog.text


async def test_a_manager_that_takes_nothing_is_not_waited_for_long(
    manager: Manager, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        # Full when one that has sent nothing yet cannot: a sender's own buffer may be full before.
        sent = 1
        while sent:
            filler = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            filler.settimeout(0)
            filler.connect(manager.datagrams.getsockname())
            sent = next(number for number in itertools.count() if _full(filler))
        begun = autojump_clock.current_time()
        await service(manager).ready("fine")
        assert autojump_clock.current_time() == pytest.approx(begun + SEND_SECONDS)
    assert any("takes nothing" in line for line in caplog.messages)


def _full(filler: socket.socket) -> bool:
    try:
        filler.send(b"X=1")
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_ours_alone(environment: dict[str, str], seconds: float | None) -> None:
    given = {"NOTIFY_SOCKET": "/run/notify", "KEPT": "x", **environment}
    assert Service.from_environment(given).watchdog == seconds
    assert given == {"KEPT": "x"}
    assert Service.from_environment({"WATCHDOG_USEC": "30000000"}).watchdog is None


PASSED = """
import os, sys
from varstore_companion.daemon import systemd
environment = dict(os.environ, LISTEN_PID=str(os.getpid()) if sys.argv[1] == "self" else sys.argv[1])
taken = systemd.passed(environment)
for each in taken:
    print(repr(each.name), each.socket.fileno(), os.get_inheritable(each.socket.fileno()), end="; ")
print([name for name in environment if name.startswith("LISTEN")])
for descriptor in range(3, 7):
    try:
        os.fstat(descriptor)
        print(descriptor, end=" ")
    except OSError:
        pass
"""


def take(monkeypatch: pytest.MonkeyPatch, pid: str, count: str, names: str | None) -> list[str]:
    """What a process makes of a socket, a file and a socket."""
    a, b = socket.socketpair()
    with a, b, Path(os.devnull).open("rb") as file:
        shift = f"import os\nfor at, each in enumerate(({a.fileno()}, {file.fileno()}, {b.fileno()})): os.dup2(each, 60 + at)\n"
        shift += "for at in range(3): os.dup2(60 + at, 3 + at)\nos.closerange(6, 100)\n"
        for each in (a, b, file):
            os.set_inheritable(each.fileno(), True)  # noqa: FBT003  the system's own function
        monkeypatch.setenv("LISTEN_FDS", count)
        if names is not None:
            monkeypatch.setenv("LISTEN_FDNAMES", names)
        with python(shift + PASSED, pid, close_fds=False) as (_, _, said):
            return said.read().splitlines()


def test_what_is_passed_is_taken_and_what_is_no_socket_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take(monkeypatch, "self", "3", "one:two:three") == ["'one' 3 False; 'three' 5 False; []", "3 5 "]


def test_without_names_they_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take(monkeypatch, "self", "3", None) == ["'' 3 False; '' 5 False; []", "3 5 "]
    assert take(monkeypatch, "self", "3", "one:two") == ["'' 3 False; '' 5 False; []", "3 5 "]


@pytest.mark.parametrize(("pid", "count"), [("1", "3"), ("", "3"), ("self", ""), ("self", "-1"), ("self", "x"), ("self", "0")])
def test_what_is_another_process_s_is_left(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    assert take(monkeypatch, pid, count, "one:two:three") == ["[]", "3 4 5 "]
