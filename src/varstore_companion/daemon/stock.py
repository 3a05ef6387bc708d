"""Calls of an unmodified varstored on its VM's socket: XML-RPC, answered as xapi-guard answers it.

What its client makes of an answer (varstored, xapidb-lib.c): it reads until the end of the stream, takes the HTTP status
after the first space and the document after the first empty line, and of the struct in it the first member as the status
and the second as the value. So each connection is one call, answered with its length and closed. A start ends with
"first boot" after `Success` without the key `EFI-variables`, and with nothing else: another HTTP status and any `Failure`
end it as a failure, so a store that cannot be had is a `Failure` (invariant 4). A store at its limit makes an answer of
175,000 bytes, well under the 256 KiB that its client keeps, and no answer repeats more than a line of what was sent.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from varstore_companion.daemon.alerts import SECURE_BOOT_FAILED_TEXT
from varstore_companion.daemon.boot_read import BootRead
from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.http_server import HttpSession
from varstore_companion.daemon.limits import Share
from varstore_companion.daemon.varstored_http import find_document, only_answer
from varstore_companion.daemon.vm import Vm
from varstore_companion.daemon.xapi_method import (
    LOGIN,
    LOGIN_OPTIONAL,
    LOGIN_PARAMETERS,
    LOGOUT,
    Method,
    answered,
    miscounted,
    unknown_method,
    uuid_invalid,
)
from varstore_companion.daemon.xapi_values import Arguments
from varstore_companion.efi.names import printable
from varstore_companion.errors import MalformedError, OverLimitError, ToolstackError, ToolstackRefusedError
from varstore_companion.toolstack import nvram, plain_xmlrpc
from varstore_companion.toolstack.plain_xmlrpc import Base64
from varstore_companion.toolstack.xmlrpc import MAX_DOCUMENT, Success, Value, build_response, parse_call
from varstore_companion.unix_stream import UnixStream
from varstore_companion.wire.fields import clip
from varstore_companion.wire.limits import MAX_TEXT

log = logging.getLogger(__name__)

SESSION = "DUMMYSESSION"
REFERENCE = "DUMMYVM"
"""Placeholders, as a guard's: the socket is the identity, and what a peer sends back of them is not looked at."""

GET_STATE = "VM.get_secureboot_certificates_state"
AT_ONCE_BYTES = 1_024
"""Of a request that may be answered at once: its reading must not hold up the sockets' other connections."""


class Stock:
    """The calls on one VM. `boots` says which of its reads is the boot; `complaints` takes what its peers do wrong."""

    __slots__ = ("_boots", "_complaints", "_share", "_vm")

    def __init__(self, vm: Vm, boots: BootRead, complaints: Complaints, share: Share) -> None:
        self._share = share
        self._vm = vm
        self._boots = boots
        self._complaints = complaints

    def session(self, stream: UnixStream) -> HttpSession:
        """The session of one connection, which is one call."""
        answer = partial(self.answer, stream)
        return HttpSession(stream, self._complaints, answer, limit=MAX_DOCUMENT, single=True, share=self._share)

    async def answer(self, stream: UnixStream, document: bytes) -> bytes:
        """Carry out a call and write its answer. Raises `MalformedError` for what is no call."""
        plain: tuple[str, Sequence[Value | Base64]] | None = plain_xmlrpc.read_call(document)
        if plain is None:
            # No varstored writes such a document, and it can be made to take the parser 10 ms, in which nobody else is served.
            await self._vm.spend_read()
            # It may have been given up meanwhile, and something newer have been sent.
            stream.confirm_peer()
            call = parse_call(document)
            plain = call.method, call.parameters
        method, parameters = plain

        def complain(error: ToolstackError) -> None:
            self._complaints.add(f"{method} failed: {printable(str(error))}")

        return await answered(self._carry_out(method, parameters), f"{self._complaints.who} {method}", complain)

    async def _carry_out(self, name: str, parameters: Sequence[Value | Base64]) -> Value | bytes:
        method = _METHODS.get(name)
        if method is None:
            raise unknown_method(name)
        # All but the login begin with the session.
        values = parameters if name == LOGIN else parameters[1:]
        if not method.takes(len(values)) or not parameters:
            raise miscounted(name, expected=len(method.names) - method.optional, found=len(values))
        return await method.run(self, Arguments(method.names, values))

    # Sessions and references

    async def login(self, _given: Arguments) -> Value:
        """A session, which is nobody's in particular."""
        return SESSION

    async def logout(self, _given: Arguments) -> Value:
        """Its end."""
        return None

    async def get_by_uuid(self, given: Arguments) -> Value:
        """A reference to this VM; another VM's uuid is refused (invariant 8)."""
        self._confirm(given.text())
        return REFERENCE

    def _confirm(self, uuid: str) -> None:
        """See that a peer that names a VM means this one (invariant 8)."""
        if uuid.lower() != str(self._vm.uuid):
            raise uuid_invalid("VM", uuid)

    # The store and the field

    async def get_nvram(self, given: Arguments) -> Value:
        """The store under its key, or no key at a first boot, which only the toolstack can say (invariant 4)."""
        given.text()
        try:
            store = await self._boots.read()
        except OverLimitError as error:
            raise ToolstackRefusedError("INTERNAL_ERROR", str(error)) from None
        return {} if store is None else {nvram.EFI_VARIABLES: nvram.text_of(store)}

    async def set_efi_variables(self, given: Arguments) -> Value:
        """Write the store. Upstream goes the verdict of `Vm.put`; a client's own word is for the log."""
        given.text()
        store = nvram.bytes_of(given.encoded())
        if given:
            log.debug("vm=%s its varstored says update=%s", self._vm.uuid, printable(clip(given.text(), MAX_TEXT)))
        self._boots.runs()
        try:
            await self._vm.put(store)
        except (MalformedError, OverLimitError) as error:
            raise nvram.refusal(store, error) from None
        return None

    async def get_state(self, given: Arguments) -> Value:
        """The field; an unknown call where the toolstack has none, as with a guard from before it."""
        given.text()
        state = (await self._vm.read_for_peer()).state
        if state is None:
            raise unknown_method(GET_STATE)
        return state.value

    # Alerts

    async def create_message(self, given: Arguments) -> Value:
        """Have the operator told that the guest failed Secure Boot: as with a guard, whatever the message's name."""
        for take in (given.text, given.integer, given.text):  # name, priority, class
            take()
        self._confirm(given.text())
        detail = given.text().removeprefix(SECURE_BOOT_FAILED_TEXT).strip()
        await self._vm.secure_boot_failed(clip(detail, MAX_TEXT) or None)
        return None


def answer_at_once(begun: bytes) -> bytes | None:
    """The answer to a connection that begins so, when that is all of a login or logout as varstored writes it; else None.

    Two of a write's three connections are these, which wait for nothing and change nothing: they need no task.
    """
    place = find_document(begun)
    if place is None or place[1] > min(len(begun), AT_ONCE_BYTES):
        return None
    call = plain_xmlrpc.read_call(begun[place[0] : place[1]])
    return None if call is None else _AT_ONCE.get((call[0], len(call[1])))


_AT_ONCE = {
    **dict.fromkeys(
        ((LOGIN, len(LOGIN_PARAMETERS) - left_out) for left_out in range(LOGIN_OPTIONAL + 1)),
        only_answer(build_response(Success(SESSION))),
    ),
    (LOGOUT, 1): only_answer(build_response(Success(None))),
}
"""By method and number of parameters."""

_METHODS: Mapping[str, Method[Callable[[Stock, Arguments], Awaitable[Value]]]] = {
    LOGIN: Method(LOGIN_PARAMETERS, Stock.login, optional=LOGIN_OPTIONAL),
    LOGOUT: Method((), Stock.logout),
    "VM.get_by_uuid": Method(("uuid",), Stock.get_by_uuid),
    "VM.get_NVRAM": Method(("self",), Stock.get_nvram),
    "VM.set_NVRAM_EFI_variables": Method(("self", "value", "update"), Stock.set_efi_variables, optional=1),
    "VM.set_NVRAM_EFI_variables_v2": Method(("self", "value", "update"), Stock.set_efi_variables),
    GET_STATE: Method(("self",), Stock.get_state),
    "message.create": Method(("name", "priority", "cls", "obj_uuid", "body"), Stock.create_message),
}
