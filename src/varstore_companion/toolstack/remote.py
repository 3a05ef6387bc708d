"""What the adapters that call a toolstack over a Unix socket share: one call with its failures sorted, and generations."""

import logging
from collections.abc import Callable, Iterator
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

import trio

from varstore_companion.efi.names import printable
from varstore_companion.errors import (
    MalformedError,
    ToolstackConflictError,
    ToolstackError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack import nvram
from varstore_companion.toolstack.http_unix import ANSWER_SECONDS, HttpAnswer, NoAnswerError, NotSentError, post
from varstore_companion.toolstack.plain_xmlrpc import Plain
from varstore_companion.toolstack.xapi_errors import failure, host_in, not_the_master
from varstore_companion.toolstack.xmlrpc import Failure, Fault, Success, Value, build_call, parse_response
from varstore_companion.trust.state import CertificatesState

log = logging.getLogger(__name__)

CHANGE_SECONDS = 25.0
"""For a call that changes something: a busy host takes seconds for certcheck, and a guest's write may take 30 in all."""
ASK_AGAIN_SECONDS = 3_600.0
"""After which a peer is asked again for a call that it did not have: hosts are upgraded under running daemons."""

_PASSING_STATUS = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
)
_REDIRECTS = frozenset(
    {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT}
)
"""Of xapi on a host that is not its pool's master: they lead to it. Never followed: the master has other sockets."""


async def call(
    path: Path,
    method: str,
    *parameters: Value | Plain,
    changes: bool = False,
    may_be_missing: bool = False,
    meanwhile: Callable[[], object] | None = None,
    deadline: float = float("inf"),
) -> Value:
    """Make one call and return its value.

    `changes`, `may_be_missing`: as for `xapi_errors.failure`; `meanwhile`: as for `post`; `deadline`: trio's clock, where that
    is before the time that any call has.

    Raises `ToolstackUnavailableError`, `ToolstackRefusedError` and, only for a call that changes something,
    `ToolstackUnclearError`.
    """
    document = build_call(method, parameters)
    try:
        seconds = min(CHANGE_SECONDS if changes else ANSWER_SECONDS, deadline - trio.current_time())
        answer = await post(path, document, seconds=seconds, meanwhile=meanwhile)
        if answer.status != HTTPStatus.OK:
            raise _status_error(path, method, answer, changes=changes)
        response = parse_response(answer.body)
    except NotSentError as error:
        raise ToolstackUnavailableError(f"{method}: {error}") from None
    except (NoAnswerError, MalformedError) as error:
        raise lost(f"{method}: {error}", changes=changes) from None
    match response:
        case Success(value):
            return value
        case Failure(description):
            raise failure(method, description, changes=changes, may_be_missing=may_be_missing)
        case Fault(_, text):
            raise failure(method, ("INTERNAL_ERROR", text), changes=changes, may_be_missing=may_be_missing)


def lost(text: str, *, changes: bool) -> ToolstackError:
    """The error for a request that went out and whose answer cannot be had."""
    return ToolstackUnclearError(text) if changes else ToolstackUnavailableError(text)


def _status_error(path: Path, method: str, answer: HttpAnswer, *, changes: bool) -> ToolstackError:
    status = answer.status
    text = f"{method}: {path}: HTTP status {status}"
    master = host_in(answer.location or b"") if status in _REDIRECTS else None
    if master is not None:
        text = f"{text}: {not_the_master(method, master)}"
    if status in _PASSING_STATUS:
        return ToolstackUnavailableError(text)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return ToolstackRefusedError(f"HTTP_{status}", text)
    return lost(text, changes=changes)


def store_in(value: Value) -> bytes | None:
    """The store in the answer to `VM.get_NVRAM`, None when its key is absent.

    Raises `ToolstackUnavailableError` for what is no NVRAM, `ToolstackRefusedError` (`INVALID_VALUE`) for what is not base64.
    """
    if not isinstance(value, dict):
        raise ToolstackUnavailableError("VM.get_NVRAM: an answer that is not a struct")
    text = value.get(nvram.EFI_VARIABLES)
    if text is None and nvram.EFI_VARIABLES not in value:
        return None
    if not isinstance(text, str):
        raise ToolstackUnavailableError(f"VM.get_NVRAM: {nvram.EFI_VARIABLES} is not a text")
    return nvram.bytes_of(text)


def state_in(value: Value) -> CertificatesState | None:
    """The field in the answer to `VM.get_secureboot_certificates_state`.

    A state of a later generation is None, as no field is: the VM must boot, and nothing is updated on a guess. Raises
    `ToolstackUnavailableError` for what is no text.
    """
    if not isinstance(value, str):
        raise ToolstackUnavailableError("VM.get_secureboot_certificates_state: an answer that is not a text")
    if value not in list(CertificatesState):
        log.warning("the toolstack has a secureboot_certificates_state that is not known here: %s", printable(value[:64]))
        return None
    return CertificatesState(value)


class MissingCalls:
    """The calls that a peer turned out not to have, for as long as that is believed. Times are trio's."""

    __slots__ = ("_calls", "_peer", "_until")

    def __init__(self) -> None:
        self._peer: object = None
        self._calls: frozenset[str] = frozenset()
        self._until = 0.0

    def __contains__(self, name: str) -> bool:
        return name in self._calls

    def look(self, peer: object) -> None:
        """Forget them when this is another peer than the last one, or when it has been an hour."""
        if peer != self._peer or (self._calls and trio.current_time() >= self._until):
            self._peer = peer
            self._calls = frozenset()

    def add(self, name: str) -> None:
        """Remember that the peer does not have this call."""
        if not self._calls:
            self._until = trio.current_time() + ASK_AGAIN_SECONDS
        self._calls |= {name}


class Digest:
    """The digest of a store, taken when it is first asked for."""

    __slots__ = ("_store", "_taken")

    def __init__(self, store: bytes) -> None:
        self._store = store
        self._taken: bytes | None = None

    def __call__(self) -> bytes:
        """The digest."""
        if self._taken is None:
            self._taken = _digest(self._store)
        return self._taken


class Seen:
    """The generation of one VM's store where the toolstack keeps none: a number, and the digest of the store last seen.

    `numbers` are shared by all VMs of an adapter, so no number ever comes twice, also when a VM is forgotten and comes back.
    """

    __slots__ = ("_digest", "_numbers", "generation")

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._digest: bytes | None = None
        self.generation = next(numbers)

    def read(self, store: bytes | None) -> int:
        """The generation after a look: another one when the store is not the last one seen or written."""
        digest = _digest(store)
        if self._digest is not None and digest != self._digest:
            self.generation = next(self._numbers)
        self._digest = digest
        return self.generation

    def wrote(self, digest: Digest) -> int:
        """The generation after a write of the store with this digest."""
        self._digest = digest()
        self.generation = next(self._numbers)
        return self.generation

    def confirm(self, expected: int | None) -> None:
        """Raise `ToolstackConflictError` unless this is the generation."""
        if expected is not None and expected != self.generation:
            raise ToolstackConflictError(f"the store has generation {self.generation}, not {expected}")


def _digest(store: bytes | None) -> bytes:
    return b"" if store is None else sha256(store).digest()
