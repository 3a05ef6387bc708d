"""A daemon that has answered a great many requests holds no more than one that has answered a few.

`make nightly` makes 100,000 requests and 1,000 rounds of attaching and detaching, every run of the tests 1,500 and 40.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support.daemon import written
from support.mutated import NIGHTLY
from support.serve import Home, varstored
from support.stock import GET, S, V, request
from varstore_companion.cli.client import Client, RequestFailedError
from varstore_companion.cli.client import control as control_client
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Attach, Detach, GetStore, Ping, PutStore, Reason, Status, StatusAnswer
from varstore_companion.wire.observing import Stats, StatsAnswer

IS_NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == NIGHTLY
REQUESTS, ROUNDS = (100_000, 1_000) if IS_NIGHTLY else (1_500, 40)
WARM = 1_500, 20
"""Requests and rounds after which every cache is as full as it gets."""
A_CONNECTION = 50
"""Requests on each; of them one is a write."""
MOST_MIB = 2.0
"""By which the daemon may have grown: what the allocator has in hand. Of 100,000 requests it would be 20 bytes each."""
SECONDS = 10.0

_COUNTS_TASKS = """
import trio
from varstore_companion.daemon import main
describe = main.metrics.describe
main.metrics.describe = lambda *of: [*describe(*of), {"tasks": trio.lowlevel.current_statistics().tasks_living}]
"""
"""The real daemon, which says in its metrics how many tasks it has."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process has in hand."""

    descriptors: int
    tasks: int
    mib: float


def held(pid: int, control: Client) -> Held:
    """Looked at once all connections but this one are gone: the daemon ends one after its peer has."""
    deadline = time.monotonic() + SECONDS
    while connections(control) > 1:
        assert time.monotonic() < deadline
    answer = control.call(Stats())
    assert isinstance(answer, StatsAnswer)
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Held(descriptors, json.loads(answer.json)["metrics"][-1]["tasks"], resident / 2**20)


def connections(control: Client) -> int:
    answer = control.call(Status())
    assert isinstance(answer, StatusAnswer)
    return int(json.loads(answer.json)["connections"])


def ask(path: Path, vm: UUID, requests: int) -> None:
    """Requests of every kind that a VM makes, in the framed protocol and in varstored's own."""
    for turn in range(requests // A_CONNECTION):
        with varstored(path, vm) as client:
            client.call(PutStore(written("custom_keys", turn)))
            for _ in range((A_CONNECTION - 2) // 2):
                client.call(GetStore(Reason.TOOL))
                client.call(Ping(b"there?"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stock:
            stock.settimeout(SECONDS)
            stock.connect(str(path))
            stock.sendall(request(GET, S, V))
            answer = b"".join(iter(lambda: stock.recv(65_536), b""))
            assert b"EFI-variables" in answer


def come_and_go(folder: Path, control: Client, rounds: int) -> None:
    """A VM that nobody has heard of is attached, asks, and is detached; each time another one."""
    for turn in range(rounds):
        vm, path = uuid4(), folder / f"passing-{turn % 7}"
        control.call(Attach(vm, bytes(path)))
        with varstored(path, vm) as client:
            client.call(Ping(b"there?"))
            with pytest.raises(RequestFailedError) as caught:
                client.call(GetStore(Reason.BOOT))
            assert caught.value.code == ErrorCode.UNKNOWN_VM
        control.call(Detach(bytes(path)))


def test_descriptors_tasks_and_memory_stay_as_they_are(tmp_path: Path) -> None:
    home = Home(tmp_path)
    settings = tmp_path / "config.toml"
    # A VM's ordinary limit would have the test wait.
    settings.write_text("write_burst = 0\n")
    with home.serve("--config", settings, before=_COUNTS_TASKS) as serve:
        vm = home.create(written("custom_keys", 0), CertificatesState.OK)
        path = home.attach(vm)
        with control_client(home.control) as control:
            ask(path, vm, WARM[0])
            come_and_go(tmp_path, control, WARM[1])
            before = held(serve.process.pid, control)
            ask(path, vm, REQUESTS)
            come_and_go(tmp_path, control, ROUNDS)
            after = held(serve.process.pid, control)
            deadline = time.monotonic() + SECONDS
            # A socket that was detached last may still be on its way out, at either look.
            while (after.descriptors > before.descriptors or after.tasks > before.tasks) and time.monotonic() < deadline:
                after = held(serve.process.pid, control)
    print(f"{REQUESTS:,} requests and {ROUNDS:,} rounds: {before} before, {after} after")
    assert after.descriptors <= before.descriptors
    assert after.tasks <= before.tasks
    assert after.mib - before.mib < MOST_MIB
