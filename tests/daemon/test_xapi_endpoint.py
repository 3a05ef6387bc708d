"""Who may call the endpoint, and the toolstack's own requests made to it."""

import pytest
import trio

from support.places import FIXTURES
from support.xapi_calls import base64, uefi
from support.xapi_host import Host, certcheck, host, xapi_client
from varstore_companion.daemon.xapi_values import NULL
from varstore_companion.toolstack.xmlrpc import Failure, Response, Success, Value, build_call, parse_call, parse_response

__all__ = ["certcheck", "host"]


async def test_the_client_logs_in_and_out(host: Host) -> None:
    def run() -> None:
        with xapi_client(host.xapi, login=False) as session:
            for given in [("root", ""), ("root", "", "1.0"), ("anybody", "secret", "1.0", "me")]:
                session.login_with_password(*given)
                first = session.handle
                assert first.startswith("OpaqueRef:")
                assert session.xenapi.VM.get_all() == []
                session.logout()
                with xapi_client(host.xapi) as other:
                    assert other.handle != first
            raw = session.session
            counts: list[tuple[str, ...]] = [(), ("root",), ("root", "", "", "", "")]
            for given in counts:
                description = ["MESSAGE_PARAMETER_COUNT_MISMATCH", "session.login_with_password", "2", str(len(given))]
                assert raw.login_with_password(*given) == {"Status": "Failure", "ErrorDescription": description}
            wrong = raw.login_with_password("root", 1)
            assert wrong == {"Status": "Failure", "ErrorDescription": ["FIELD_TYPE_ERROR", "pwd"]}

    await trio.to_thread.run_sync(run)


async def test_the_client_logs_in_again_when_its_session_has_ended(host: Host) -> None:
    def run() -> None:
        with xapi_client(host.xapi) as session:
            first = session.handle
            assert session.session.logout(first) == {"Status": "Success", "Value": None}
            assert session.xenapi.VM.get_all() == []
            assert session.handle != first

    await trio.to_thread.run_sync(run)


async def test_nothing_is_done_without_a_session(host: Host) -> None:
    def run() -> None:
        with xapi_client(host.xapi, login=False) as session:
            no_sessions: list[Value] = ["", NULL, None, 1, []]
            for given in no_sessions:
                shown = given if isinstance(given, str) else ""
                answer = {"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", shown]}
                assert session.VM.get_all(given) == answer
                assert session.VM.create(given, {}) == answer
                assert session.session.logout(given) == answer
            # As in xapi, what is not a call at all is said first.
            assert session.VM.get_all()["ErrorDescription"][0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"
            assert session.VM.foo()["ErrorDescription"] == ["MESSAGE_METHOD_UNKNOWN", "VM.foo"]
            assert session.session.logout()["ErrorDescription"][0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"

    await trio.to_thread.run_sync(run)
    with host.operations() as operations:
        assert operations.uuids() == []


async def test_only_the_daemons_user_and_root_may_log_in(host: Host) -> None:
    assert host.xapi.stat().st_mode & 0o777 == 0o600
    assert host.daemon._xapi is not None
    endpoint = host.daemon._xapi[1]
    login = build_call("session.login_with_password", ["root", ""])
    refused = parse_response(await endpoint.answer(12345, login))
    assert isinstance(refused, Failure)
    assert refused.description[:2] == ("SESSION_AUTHENTICATION_FAILED", "root")
    assert isinstance(parse_response(await endpoint.answer(0, login)), Success)


@pytest.mark.skipif(not (FIXTURES / "xapi-guard").is_dir(), reason="the toolstack's own requests are absent")
async def test_every_request_of_a_guards_client_is_a_call_here(host: Host) -> None:
    expected = {
        "VM.get_NVRAM": ["HANDLE_INVALID", "VM", "string"],
        "VM.get_by_uuid": ["UUID_INVALID", "VM", "string"],
        "VM.get_secureboot_certificates_state": ["HANDLE_INVALID", "VM", "string"],
        "VM.set_NVRAM_EFI_variables": ["HANDLE_INVALID", "VM", "string"],
        "VM.set_NVRAM_EFI_variables_v2": ["HANDLE_INVALID", "VM", "string"],
        "message.create": ["INVALID_VALUE", "cls", "string"],
    }
    assert host.daemon._xapi is not None
    answer = host.daemon._xapi[1].answer
    login = parse_response(await answer(0, build_call("session.login_with_password", ["root", ""])))
    assert isinstance(login, Success)
    for path in sorted((FIXTURES / "xapi-guard" / "requests").iterdir()):
        call = parse_call(path.read_bytes())
        parameters = call.parameters if "login" in call.method else (login.value, *call.parameters[1:])
        response = parse_response(await answer(0, build_call(call.method, parameters)))
        if call.method in expected:
            assert response == Failure(tuple(expected[call.method]))
        else:
            assert isinstance(response, Success)
            kind = parse_response((FIXTURES / "xapi-guard" / "responses" / f"{call.method}.response.0").read_bytes())
            assert isinstance(kind, Success)
            assert type(response.value) is type(kind.value)
            if call.method == "session.logout":
                login = parse_response(await answer(0, build_call("session.login_with_password", ["root", ""])))
                assert isinstance(login, Success)


@pytest.mark.skipif(not (FIXTURES / "xapi-guard").is_dir(), reason="the toolstack's own answers are absent")
async def test_answers_have_the_shape_of_a_guards(host: Host) -> None:
    """Of each call that the toolstack has recorded as a success: the same types in the same places."""
    assert host.daemon._xapi is not None
    answer = host.daemon._xapi[1].answer

    async def call(method: str, *parameters: Value) -> Response:
        return parse_response(await answer(0, build_call(method, parameters)))

    async def succeed(method: str, *parameters: Value) -> Value:
        response = await call(method, *parameters)
        assert isinstance(response, Success)
        recorded = FIXTURES / "xapi-guard" / "responses" / f"{method}.response.0"
        if recorded.exists():
            guards = parse_response(recorded.read_bytes())
            assert isinstance(guards, Success)
            assert type(response.value) is type(guards.value)
        return response.value

    session = await succeed("session.login_with_password", "root", "", "", "")
    vm = await succeed("VM.create", session, uefi())
    assert isinstance(vm, str)
    assert await succeed("VM.get_by_uuid", session, vm.removeprefix("OpaqueRef:")) == vm
    await succeed("VM.get_NVRAM", session, vm)
    await succeed("VM.get_secureboot_certificates_state", session, vm)
    await succeed("VM.set_NVRAM_EFI_variables", session, vm, base64("ms2011"))
    await succeed("VM.set_NVRAM_EFI_variables_v2", session, vm, base64("ms2011"), "no")
    await succeed("session.logout", session)
