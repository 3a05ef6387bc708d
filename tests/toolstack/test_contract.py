"""Every adapter, and the tests' own toolstack, keeps the contract."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import trio

from contracts.toolstack import Subject, ToolstackContract, check
from support.fake_guard import GUARDS_ALERT, Guard, Server, VmModel, Xapi, serving
from support.memory_toolstack import MemoryToolstack
from varstore_companion.toolstack.certcheck import Certcheck
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.embedded import EmbeddedToolstack
from varstore_companion.toolstack.guard import GuardToolstack
from varstore_companion.toolstack.interface import Alert
from varstore_companion.toolstack.operations import Operations
from varstore_companion.toolstack.xapi import XapiToolstack
from varstore_companion.trust.state import CertificatesState

# The suite's `check` as a program.
CHECKER = """#!/bin/sh
base64 -d "$1" | grep -q "needs the update" && echo update_required || echo update_ok
"""


@pytest.mark.parametrize("opened", [Database, partial(Operations, derive=check)], ids=["plain", "with rules"])
class TestEmbedded(ToolstackContract):
    @pytest.fixture
    async def subject(self, tmp_path: Path, opened: Callable[[Path], Database]) -> AsyncIterator[Subject]:
        checker = tmp_path / "checker"
        checker.write_text(CHECKER)
        checker.chmod(0o700)
        path = tmp_path / "toolstack.db"
        toolstack = EmbeddedToolstack(opened(path), Certcheck([str(checker)]))
        with Database(path) as operator:

            def create(vm: UUID, store: bytes | None, state: CertificatesState) -> None:
                operator.create(vm, "a name", store, state)

            yield Subject(toolstack, create, lambda: [(kept.vm, kept.alert) for kept in operator.alerts()])
        await toolstack.aclose()


class TestMemory(ToolstackContract):
    @pytest.fixture
    def subject(self) -> Subject:
        toolstack = MemoryToolstack(check)
        return Subject(toolstack, toolstack.create, lambda: toolstack.alerts)


class TestGuard(ToolstackContract):
    """A new guard: an old one has no field."""

    @pytest.fixture
    async def subject(self, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Subject]:
        toolstack = GuardToolstack()
        alerts: list[tuple[UUID, Alert]] = []

        def create(vm: UUID, store: bytes | None, state: CertificatesState) -> None:
            model = VmModel(vm, check, alerts=alerts)
            model.put(store, state)
            server = Server(tmp_path / str(vm)[:8], Guard(model).answer)
            server.listen()
            nursery.start_soon(server.run)
            toolstack.set_upstream(vm, server.path)

        def original(alert: Alert) -> Alert:
            assert alert.name == GUARDS_ALERT
            name, _, body = alert.body.partition(": ")
            return Alert(name, alert.priority, body)

        yield Subject(toolstack, create, lambda: [(vm, original(alert)) for vm, alert in alerts], marks=False)
        nursery.cancel_scope.cancel()


class TestXapi(ToolstackContract):
    @pytest.fixture
    async def subject(self, tmp_path: Path) -> AsyncIterator[Subject]:
        xapi = Xapi(check)
        server = Server(tmp_path / "xapi", xapi.answer)

        def create(vm: UUID, store: bytes | None, state: CertificatesState) -> None:
            xapi.create(vm, store, state)

        async with serving(server):
            yield Subject(XapiToolstack(server.path), create, lambda: xapi.alerts)
