"""The daemon opens a toolstack's file from before the field's digest."""

import logging
from pathlib import Path
from uuid import uuid4

import pytest

from support.old_databases import make_version_1
from support.storemaker import scene
from support.vms import AVAILABLE, OK, ON_BOOT
from varstore_companion.daemon import main
from varstore_companion.daemon.config import Settings
from varstore_companion.toolstack.database import FILE_NAME, Database


async def test_fields_are_computed_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, complete = scene("ms2011").blob, scene("all2023").blob
    cases = [(old, OK, AVAILABLE), (old, ON_BOOT, ON_BOOT), (complete, AVAILABLE, OK), (None, OK, OK)]
    vms = [(uuid4(), store, before) for store, before, _ in cases]
    make_version_1(tmp_path / FILE_NAME, vms)
    settings = Settings(control=tmp_path / "control.sock", state_dir=tmp_path)
    with caplog.at_level(logging.INFO):
        async with main.opened(settings):
            assert [line for line in caplog.messages if "upgrade" in line] == [
                "upgrade of the toolstack's file: the field of 4 of 4 VMs is computed"
            ]
    with Database(tmp_path / FILE_NAME) as database:
        assert [database.read(vm).state for vm, _, _ in vms] == [after for _, _, after in cases]
