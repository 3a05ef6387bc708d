"""What tests of the endpoint ask xapi's client for."""

from base64 import b64encode
from collections.abc import Callable
from uuid import UUID

import pytest
import XenAPI

from support.storemaker import scene
from varstore_companion.toolstack.xmlrpc import Value

UNKNOWN = UUID("00000000-0000-4000-8000-000000000000")
MARK = ON = True


def base64(name: str) -> str:
    return b64encode(scene(name).blob).decode()


def uefi(name: str = "ms2011", /, **fields: Value) -> dict[str, Value]:
    """A record for VM.create."""
    nvram: Value = {"EFI-variables": base64(name)}
    return {"name_label": "web", "HVM_boot_params": {"firmware": "uefi", "order": "cdn"}, "NVRAM": nvram, **fields}


def failure(call: Callable[..., object], *arguments: object) -> list[str]:
    """xapi's name of an error and what comes with it."""
    with pytest.raises(XenAPI.Failure) as failed:
        call(*arguments)
    return [str(each) for each in failed.value.details]
