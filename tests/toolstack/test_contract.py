"""The embedded toolstack and the tests' own one keep the contract."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from contracts.toolstack import Subject, ToolstackContract, check
from support.memory_toolstack import MemoryToolstack
from varstore_companion.toolstack.certcheck import Certcheck
from varstore_companion.toolstack.database import Database
from varstore_companion.toolstack.embedded import EmbeddedToolstack
from varstore_companion.toolstack.operations import Operations
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
