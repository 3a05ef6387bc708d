"""Pure: what to do about a failure that xapi or a guard answers with, by its name.

xapi answers with its own names (datamodel_errors). A guard answers with xenopsd's (Xenops_interface), and what its own call to
xapi met is a text inside `Internal_error`, as OCaml prints an exception: `Server_error(HANDLE_INVALID, [ VM; OpaqueRef:1 ])`.
"""

import re
from collections.abc import Sequence

from varstore_companion.efi.names import printable, without_data
from varstore_companion.errors import (
    ToolstackError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)

SHOWN = 400
"""Characters of an error's text that are kept."""

NOT_NOW = frozenset(
    {
        # xapi's
        "HOST_STILL_BOOTING",
        "HOST_OFFLINE",
        "HOST_NOT_LIVE",
        "OTHER_OPERATION_IN_PROGRESS",
        "TOO_BUSY",
        "TOO_MANY_PENDING_TASKS",
        "CANNOT_CONTACT_HOST",
        "CONNECT_FAILED",
        # xenopsd's
        "Failed_to_contact_remote_service",
        "Not_enough_memory",
        "Cannot_free_this_much_memory",
        "Vms_failed_to_cooperate",
        "Ballooning_timeout_before_migration",
    }
)
"""Nothing was done, and it passes."""

NOT_KNOWN = frozenset(
    {
        "",  # no description at all
        # xapi's
        "INTERNAL_ERROR",
        "TASK_CANCELLED",
        # xenopsd's
        "Internal_error",
        "Unknown_error",
        "IO_error",
        "Cancelled",
        "Storage_backend_error",
        "Hook_failed",
        "Failed_to_run_script",
    }
)
"""Something went wrong at a point that nobody names: a change may have been made before it."""

SEARCHED = 4_096
"""Characters of a guard's text that are looked through for xapi's error."""

_LOCATION = re.compile(
    rb"https?://(?:[^/?#@]*@)?((?:[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?)(?:[/?#][^@]*)?", re.IGNORECASE
)
"""A redirect's address. With an @ after its host, what seems to be the host may be part of a user's name or password."""

_CODE = re.compile(r'Server_error\( ?"?([A-Z][A-Z0-9_]{0,63})"? ?, ?\[([^\]]{0,1024})\]')
_NOT_CONNECTED = re.compile(r"(?:ECONNREFUSED|ENOENT)[^A-Za-z]{1,8}connect\b")


class UnknownCallError(ToolstackRefusedError):
    """The peer has no such call, or not with so many parameters: it is of another generation. Nothing was done.

    `is_guess`: it gave no reason at all, which an old guard may do.
    """

    def __init__(self, code: str, text: str, *, is_guess: bool = False) -> None:
        super().__init__(code, text)
        self.is_guess = is_guess


class SessionInvalidError(ToolstackUnavailableError):
    """The session has ended, as when xapi was restarted. Nothing was done; a new login helps."""


def failure(method: str, description: Sequence[str], *, changes: bool, may_be_missing: bool = False) -> ToolstackError:
    """The error for a `Failure` with this description.

    `changes`: whether the call changes anything when it succeeds; `may_be_missing`: whether peers of an older generation
    lack it, so that a failure without any reason is taken for that.
    """
    code, parameters = _unwrapped(description)
    # xapi repeats what it was given where it does not like it: a whole store.
    text = f"{method}: {printable(without_data(' '.join(parameters)))[:SHOWN]}" if parameters else method
    if not code and may_be_missing:
        return UnknownCallError("MESSAGE_METHOD_UNKNOWN", f"{method}: a failure without a reason", is_guess=True)
    if code in ("MESSAGE_METHOD_UNKNOWN", "MESSAGE_PARAMETER_COUNT_MISMATCH"):
        return UnknownCallError(code, text)
    if code in ("Internal_error", "INTERNAL_ERROR"):
        if "UnknownMethod" in text:
            return UnknownCallError("MESSAGE_METHOD_UNKNOWN", text)
        if _NOT_CONNECTED.search(text):
            return ToolstackUnavailableError(f"{code}: {text}")
    if code == "HOST_IS_SLAVE":
        master = printable(parameters[0])[:SHOWN] if parameters else "an address that it does not give"
        return ToolstackRefusedError(code, not_the_master(method, master), parameters)
    if code == "SESSION_INVALID":
        return SessionInvalidError(f"{code}: {text}")
    if code in ("UUID_INVALID", "HANDLE_INVALID"):
        # xapi names what it was given; for a caller that names VMs by their uuid both say the same.
        return ToolstackRefusedError("HANDLE_INVALID", text, parameters)
    if code in NOT_NOW or (code in NOT_KNOWN and not changes):
        return ToolstackUnavailableError(f"{code}: {text}")
    if code in NOT_KNOWN:
        return ToolstackUnclearError(f"{code}: {text}")
    return ToolstackRefusedError(printable(without_data(code))[:SHOWN], text, parameters)


def not_the_master(method: str, master: str) -> str:
    """What an operator is told where xapi sends a call elsewhere. `master`: an address to show."""
    text = f"this host is not its pool's master: {method} has to go to {master}"
    return f'{text} (toolstack "xapi" is for the master only, "guard" for every host)'


def host_in(location: bytes) -> str | None:
    """The host, with its port, that a redirect names, to be shown; None where it names none. No user, password or path."""
    match = _LOCATION.fullmatch(location)
    return match[1].decode("ascii") if match else None


def _unwrapped(description: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The name and arguments of an error; of xapi's own where a guard has only put it into its text."""
    code, *parameters = description or ("",)
    if code == "Internal_error" and (found := _CODE.search(" ".join(parameters)[:SEARCHED])):
        inner, arguments = found.groups()
        return inner, tuple(each.strip(' "') for each in arguments.split(";") if each.strip())
    return code, tuple(parameters)
