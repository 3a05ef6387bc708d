"""What each failure means for the caller: made here by its name, and every answer that the guard's authors recorded."""

from pathlib import Path

import pytest

from support.places import FIXTURES
from varstore_companion.errors import (
    ToolstackError,
    ToolstackRefusedError,
    ToolstackUnavailableError,
    ToolstackUnclearError,
)
from varstore_companion.toolstack.xapi_errors import (
    NOT_KNOWN,
    NOT_NOW,
    SessionInvalidError,
    UnknownCallError,
    failure,
    host_in,
)
from varstore_companion.toolstack.xmlrpc import Failure, Success, build_response, parse_response

UNAVAILABLE, REFUSED, UNCLEAR = ToolstackUnavailableError, ToolstackRefusedError, ToolstackUnclearError

UNKNOWN_METHOD = 'Idl.IdM.UnknownMethod("VM.x")'
TABLE: list[tuple[tuple[str, ...], type[ToolstackError], type[ToolstackError]]] = [
    # description, class for a read, class for a change
    *[((name,), UNAVAILABLE, UNAVAILABLE) for name in sorted(NOT_NOW)],
    *[((name, "error"), UNAVAILABLE, UNCLEAR) for name in sorted(NOT_KNOWN)],
    ((), UNAVAILABLE, UNCLEAR),
    (("SESSION_INVALID", "OpaqueRef:1"), SessionInvalidError, SessionInvalidError),
    (("MESSAGE_METHOD_UNKNOWN", "VM.x"), UnknownCallError, UnknownCallError),
    (("MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.x", "2", "3"), UnknownCallError, UnknownCallError),
    (("Internal_error", UNKNOWN_METHOD), UnknownCallError, UnknownCallError),
    (("Internal_error", "Server_error(MESSAGE_METHOD_UNKNOWN, [ VM.x ])"), UnknownCallError, UnknownCallError),
    (("Internal_error", "Server_error(HANDLE_INVALID, [ VM; OpaqueRef:1 ])"), REFUSED, REFUSED),
    (("Internal_error", 'Api_errors.Server_error("PERMISSION_DENIED", [])'), REFUSED, REFUSED),
    (("Internal_error", "Server_error(HOST_STILL_BOOTING, [])"), UNAVAILABLE, UNAVAILABLE),
    (("Internal_error", "Server_error(SESSION_INVALID, [ OpaqueRef:1 ])"), UNAVAILABLE, UNAVAILABLE),
    (("Internal_error", "Server_error(INTERNAL_ERROR, [ x ])"), UNAVAILABLE, UNCLEAR),
    (("Internal_error", 'Unix.Unix_error(Unix.ECONNREFUSED, "connect", "")'), UNAVAILABLE, UNAVAILABLE),
    (("Internal_error", "(Unix.Unix_error \"No such file\" ENOENT connect '')"), UNAVAILABLE, UNAVAILABLE),
    (("Internal_error", 'Unix.Unix_error(Unix.ECONNRESET, "read", "")'), UNAVAILABLE, UNCLEAR),
    (("Internal_error", "Lwt_unix.Timeout"), UNAVAILABLE, UNCLEAR),
    (("Internal_error", "Server_error(" * 50_000), UNAVAILABLE, UNCLEAR),
    (("Internal_error", "Server_error(A,[" * 20_000), UNAVAILABLE, UNCLEAR),
    (("Internal_error", ("Server_error(A,[" + " " * 1_000) * 200), UNAVAILABLE, UNCLEAR),
    (("HOST_IS_SLAVE", "10.0.0.1"), REFUSED, REFUSED),
    (("HANDLE_INVALID", "VM", "OpaqueRef:1"), REFUSED, REFUSED),
    (("OPERATION_NOT_ALLOWED", "why"), REFUSED, REFUSED),
    (("A_CODE_OF_ANOTHER_YEAR",), REFUSED, REFUSED),
    (("a text that is no code\n" * 1_000,), REFUSED, REFUSED),
    *[((name,), REFUSED, REFUSED) for name in ("Does_not_exist", "Already_exists", "Unimplemented", "Bad_power_state")],
]


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize(("description", "reading", "changing"), TABLE, ids=[" ".join(row[0])[:60] for row in TABLE])
def test_each_failure_has_its_class(
    description: tuple[str, ...], reading: type[ToolstackError], changing: type[ToolstackError], *, changes: bool
) -> None:
    answered = parse_response(build_response(Failure(description)), limit=1_000_000)
    assert isinstance(answered, Failure)
    error = failure("VM.x", answered.description, changes=changes)
    wanted = changing if changes else reading
    assert isinstance(error, wanted)
    if wanted in (UNAVAILABLE, REFUSED):
        assert not isinstance(error, UnknownCallError)
    assert "VM.x" in str(error)
    assert len(str(error)) < 2_000


@pytest.mark.parametrize(
    ("location", "host"),
    [
        (b"https://192.0.2.7/", "192.0.2.7"),
        (b"http://master.example:80", "master.example:80"),
        (b"HTTPS://[2001:db8::7]:443?x", "[2001:db8::7]:443"),
        (b"https://user:password@192.0.2.7/", "192.0.2.7"),
        # What a person wrote unescaped must not show a part of it.
        (b"https://user:pass/word@192.0.2.7/", None),
        (b"https://token?@192.0.2.7/", None),
        (b"https://a@b@192.0.2.7/", None),
        (b"/elsewhere", None),
        (b"//192.0.2.7/", None),
        (b"ftp://192.0.2.7/", None),
        (b"https:///", None),
        (b"", None),
        (b"https://" + b"x" * 254, None),
        (b"https://m\xc3\xa4ster/", None),
        (b"https://a\x1b[2Jb/", None),
        (b"https://192.0.2.7:123456/", None),
        (b"https://" + b"@" * 16_000, None),
    ],
)
def test_where_a_redirect_leads(location: bytes, host: str | None) -> None:
    assert host_in(location) == host


def test_the_texts_name_what_a_person_needs() -> None:
    slave = failure("VM.x", ("HOST_IS_SLAVE", "10.0.0.1"), changes=False)
    assert "10.0.0.1" in str(slave)
    assert "master" in str(slave)
    inner = failure("VM.x", ("Internal_error", "Server_error(HANDLE_INVALID, [ VM; OpaqueRef:1 ])"), changes=True)
    assert isinstance(inner, ToolstackRefusedError)
    assert (inner.code, inner.parameters) == ("HANDLE_INVALID", ("VM", "OpaqueRef:1"))
    uuid = failure("VM.x", ("UUID_INVALID", "VM", "1"), changes=True)
    assert isinstance(uuid, ToolstackRefusedError)
    assert uuid.code == "HANDLE_INVALID"


def test_no_description_is_another_generation_only_where_that_can_be() -> None:
    guess = failure("VM.x", (), changes=True, may_be_missing=True)
    assert isinstance(guess, UnknownCallError)
    assert guess.is_guess
    named = failure("VM.x", ("Internal_error", UNKNOWN_METHOD), changes=True, may_be_missing=True)
    assert isinstance(named, UnknownCallError)
    assert not named.is_guess


RESPONSES = FIXTURES / "xapi-guard" / "responses"
RECORDED = sorted(RESPONSES.iterdir()) if RESPONSES.is_dir() else []
OF_THE_GUARD = {
    **dict.fromkeys(
        (
            *("Already_exists", "Bad_power_state", "Bootloader_error", "Device_detach_rejected", "Device_is_connected"),
            *("Device_not_connected", "Does_not_exist", "Domain_not_built", "Failed_to_acknowledge_shutdown_request"),
            *("Failed_to_shutdown", "Failed_to_start_emulator", "Invalid_vcpus", "Media_not_ejectable", "Media_not_present"),
            *("Media_present", "No_bootable_device", "PCIBack_not_loaded", "Unimplemented"),
        ),
        (REFUSED, REFUSED),
    ),
    **dict.fromkeys(
        (
            *("Ballooning_timeout_before_migration", "Cannot_free_this_much_memory", "Failed_to_contact_remote_service"),
            *("Not_enough_memory", "Vms_failed_to_cooperate"),
        ),
        (UNAVAILABLE, UNAVAILABLE),
    ),
    **dict.fromkeys(
        (
            *("Cancelled", "Failed_to_run_script", "Hook_failed", "IO_error", "Internal_error", "Storage_backend_error"),
            "Unknown_error",
        ),
        (UNAVAILABLE, UNCLEAR),
    ),
}
"""The class of each of the guard's errors, for a read and for a change."""


@pytest.mark.skipif(not RECORDED, reason=f"the recorded answers are not at {RESPONSES}")
@pytest.mark.parametrize("path", RECORDED, ids=[path.name for path in RECORDED])
def test_each_recorded_answer_has_its_class(path: Path) -> None:
    answer = parse_response(path.read_bytes())
    if path.name.endswith(".response.0"):
        assert isinstance(answer, Success)
        return
    assert isinstance(answer, Failure)
    method, _, _ = path.name.partition(".response.")
    reading, changing = OF_THE_GUARD[answer.description[0]]
    assert type(failure(method, answer.description, changes=False)) is reading
    assert type(failure(method, answer.description, changes=True)) is changing
