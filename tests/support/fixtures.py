"""Stores and updates that were not made here; the calling test is skipped, with the reason, where they are absent."""

import base64
import hashlib
import json
from functools import cache
from typing import Any

import pytest

from support.places import FIXTURES

STORES = (
    "setup_mode",
    "ms2011",
    "ms2011_dbx",
    "windows_updated_db_windows",
    "all2023",
    "windows_only2011",
    "custom_keys",
    "ms2011_v1",
    "wrong_owner_2023",
    "oversized_dbx",
    "large",
)
"""The fixture stores; each has the name of the scene that is made like it."""

DB_UPDATES = {
    "DBUpdate2024": "windows-2023",
    "DBUpdate3P2023": "ms-uefi-2023",
    "DBUpdateOROM2023": "ms-uefi-rom-2023",
}
"""Microsoft's signed appends to db, and the certificate in each."""


@cache
def index() -> dict[str, Any]:
    """What is true of each fixture store."""
    path = FIXTURES / "stores" / "index.json"
    if not path.exists():
        pytest.skip(f"the fixture stores are not at {path}")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def store_text(name: str) -> bytes:
    """A fixture store as the toolstack keeps it: base64."""
    index()
    return (FIXTURES / "stores" / f"{name}.b64").read_bytes()


def store(name: str) -> bytes:
    """A fixture store."""
    blob = base64.b64decode(store_text(name), validate=True)
    assert hashlib.sha256(blob).hexdigest() == index()[name]["sha256"]
    return blob


def update(name: str) -> bytes:
    """One of Microsoft's signed updates."""
    path = FIXTURES / "microsoft" / f"{name}.bin"
    if not path.exists():
        pytest.skip(f"Microsoft's signed updates are not at {path.parent}")
    return path.read_bytes()
