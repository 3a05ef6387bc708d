"""The names of variables: those that hold Secure Boot keys, and any name for people to read."""

import re
from enum import Enum
from uuid import UUID

from varstore_companion.efi import guid

_SHOWN = 128
"""Bytes."""


class KeyVariable(Enum):
    """The variables that hold signature lists (UEFI 2.10, section 32.3), by varstored's names."""

    PK = ("PK", guid.EFI_GLOBAL_VARIABLE)
    KEK = ("KEK", guid.EFI_GLOBAL_VARIABLE)
    DB = ("db", guid.EFI_IMAGE_SECURITY_DATABASE)
    DBX = ("dbx", guid.EFI_IMAGE_SECURITY_DATABASE)
    DBT = ("dbt", guid.EFI_IMAGE_SECURITY_DATABASE)

    def __init__(self, text: str, vendor: UUID) -> None:
        self.text = text
        self.key = (text.encode("utf-16-le"), vendor.bytes_le)

    def __str__(self) -> str:
        return self.text


def readable(name: bytes) -> str:
    """A variable's name for people: what is not printable UTF-16 shows as U+FFFD, as a guest chooses its names."""
    return printable(name.decode("utf-16-le", errors="replace"))


def readable_start(name: bytes) -> str:
    """The start of a name, for messages: a guest chooses its names, and they may be long."""
    return readable(name[:_SHOWN])


def printable(text: str) -> str:
    """Text that a guest chose, safe for a log or a terminal: what does not print shows as U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


_RUN = re.compile(r"[A-Za-z0-9+/=]{97,}")
"""What may be base64 or hexadecimal digits of a store or a key. A digest, a UUID and nearly any path are shorter."""


def without_data(text: str) -> str:
    """Text of another program's, with how long they are in place of runs of what may be a store's or a key's digits."""
    return _RUN.sub(lambda run: f"[{len(run[0]):,} characters]", text)
