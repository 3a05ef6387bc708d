"""A VM's NVRAM: a map of texts in xapi, whose key `EFI-variables` is the store. Base64 is spoken here and nowhere else."""

import re
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass, field

from pybase64 import b64decode, b64encode

from varstore_companion.efi.outline import FILE_LIMIT, admit
from varstore_companion.errors import MalformedError, OverLimitError, ToolstackRefusedError, UnknownVersionError
from varstore_companion.toolstack.plain_xmlrpc import Base64, Plain

EFI_VARIABLES = "EFI-variables"
"""The key of the store, as in xapi."""

FIELD = "NVRAM"

STORE_TEXT_LIMIT = 262_144
"""Characters of a store as base64: what varstored itself takes of an answer."""

KEYS = 64
"""Keys of one VM's NVRAM besides the store: xapi and its clients use one or two."""
KEY_LIMIT = 255
"""Characters of a key."""
VALUE_LIMIT = 4_096
"""Characters of a value besides the store."""

_BLANKS = b" \t\r\n"
_SHOWN = 64
# XML 1.0, Char: what an answer to an XML-RPC client cannot carry.
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Nvram:
    """`store`: the bytes behind `EFI-variables`, None before the first boot; `others`: the texts of all other keys."""

    store: bytes | None = None
    others: Mapping[str, str] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """As xapi answers `VM.get_NVRAM`: the store as canonical base64, its key absent before the first boot."""
        return dict(self.others) if self.store is None else {**self.others, EFI_VARIABLES: text_of(self.store)}


def nvram_of(texts: Mapping[str, str]) -> Nvram:
    """Read what a client of xapi's gives for a whole NVRAM.

    Raises `ToolstackRefusedError` as `store_of` and `check_entry` do.
    """
    others = {key: value for key, value in texts.items() if key != EFI_VARIABLES}
    check_count(len(others))
    for key, value in others.items():
        check_entry(key, value)
    return Nvram(store_of(texts[EFI_VARIABLES]) if EFI_VARIABLES in texts else None, others)


def store_of(text: str) -> bytes:
    """The store behind the text of `EFI-variables`. Raises `ToolstackRefusedError` as `bytes_of` and `check_store` do."""
    store = bytes_of(text)
    check_store(store)
    return store


def bytes_of(text: str | Base64) -> bytes:
    """The bytes behind the text of `EFI-variables`, unread; blanks and line ends in it do not count.

    Raises `ToolstackRefusedError`: `INVALID_VALUE` for what is not base64 text, `VALUE_NOT_SUPPORTED` for too much of it.
    """
    where = f"{FIELD}:{EFI_VARIABLES}"
    size = len(text.text if isinstance(text, Base64) else text)
    if size > STORE_TEXT_LIMIT:
        raise _not_supported(where, f"{size:,} characters", f"at most {STORE_TEXT_LIMIT:,}")
    if isinstance(text, Base64):
        return text.data
    try:
        digits = text.encode("ascii")
        # Nearly always there are none, and to look for them is quicker than to take them out.
        if any(blank in digits for blank in _BLANKS):
            digits = digits.translate(None, delete=_BLANKS)
        return b64decode(digits, validate=True)
    except (UnicodeEncodeError, Base64Error) as error:
        raise _invalid(where, text[:_SHOWN], f"not base64 text: {error}") from None


def check_store(store: bytes) -> None:
    """See that varstored will load the store; one of a newer version is let through, as for a guest's own write.

    Raises `ToolstackRefusedError`: as `refusal` gives it.
    """
    try:
        admit(store)
    except UnknownVersionError:
        if len(store) > FILE_LIMIT:
            raise refusal(store, OverLimitError(f"at most {FILE_LIMIT:,}")) from None
    except (MalformedError, OverLimitError) as error:
        raise refusal(store, error) from None


def refusal(store: bytes, error: MalformedError | OverLimitError) -> ToolstackRefusedError:
    """How xapi's clients are told: `INVALID_VALUE` for what is no store, `VALUE_NOT_SUPPORTED` for one over a limit."""
    where = f"{FIELD}:{EFI_VARIABLES}"
    if isinstance(error, MalformedError):
        return _invalid(where, store[:_SHOWN].hex(), f"not a store: {error}")
    return _not_supported(where, f"{len(store):,} bytes", str(error))


def text_of(store: bytes) -> str:
    """The text of `EFI-variables` for a store: canonical base64."""
    return b64encode(store).decode("ascii")


def plain_text_of(store: bytes) -> Plain:
    """The same for a call."""
    return Plain(b64encode(store))


def check_count(keys: int) -> None:
    """See that a VM may have so many keys besides the store's. Raises `ToolstackRefusedError` (`VALUE_NOT_SUPPORTED`)."""
    if keys > KEYS:
        raise _not_supported(FIELD, f"{keys:,} keys", f"at most {KEYS}")


def check_entry(key: str, value: str) -> None:
    """See that a key other than the store's can be kept and answered with.

    Raises `ToolstackRefusedError`: `INVALID_VALUE` for characters that no answer can carry, `VALUE_NOT_SUPPORTED` for a
    size over `KEY_LIMIT` or `VALUE_LIMIT`.
    """
    for what, text, least, most in (("key", key, 1, KEY_LIMIT), ("value", value, 0, VALUE_LIMIT)):
        if not least <= len(text) <= most:
            raise _not_supported(FIELD, f"a {what} of {len(text):,} characters", f"{least} to {most:,}")
        if _NOT_IN_XML.search(text):
            raise _invalid(FIELD, ascii(text[:_SHOWN]), f"the {what} has characters that XML cannot carry")


def _invalid(where: str, value: str, why: str) -> ToolstackRefusedError:
    return ToolstackRefusedError("INVALID_VALUE", f"{where}: {why}", (where, value))


def _not_supported(where: str, value: str, why: str) -> ToolstackRefusedError:
    return ToolstackRefusedError("VALUE_NOT_SUPPORTED", f"{where}: {value}: {why}", (where, value, why))
