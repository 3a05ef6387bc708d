"""`vm create|show|mark|unmark`: the embedded toolstack's VMs, with and without a daemon on the same database."""

import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from support import own_rules
from support.commands import Run, base64_file, daemon, on_terminal, raw_file
from support.own_rules import Rules
from support.storemaker import HOSTILE, hostile, scene
from varstore_companion.cli.client import Client
from varstore_companion.efi.outline import FILE_LIMIT
from varstore_companion.toolstack.database import FILE_NAME, Database
from varstore_companion.wire import messages

VM = UUID("11111111-2222-3333-4444-555555555555")
KEYS = {
    *("uuid", "name", "kind", "firmware", "snapshot_of", "secureboot_certificates_state", "stale", "generation"),
    *("store_bytes", "nvram_keys", "refused"),
}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def _without(_folder: Path, _rules: Rules) -> Iterator[None]:
    yield


@contextmanager
def _beside(folder: Path, rules: Rules) -> Iterator[None]:
    with daemon(folder, *rules.options):
        yield


Beside = Callable[[Path, Rules], AbstractContextManager[None]]


@pytest.mark.parametrize("beside", [_without, _beside], ids=["alone", "beside a daemon"])
def test_from_creation_to_a_mark_and_back(beside: Beside, *, run: Run, rules: Rules, state: Path, tmp_path: Path) -> None:
    store = base64_file(tmp_path, own_rules.store())
    at = ("--state-dir", state, "--json")
    with beside(tmp_path, rules):
        done = run("vm", "create", "--uuid", VM, "--name", "web-1", "--store", store, "--manifest", rules.manifest, *at)
        assert (done.code, done.err) == (0, "")
        created = {
            "uuid": str(VM),
            "name": "web-1",
            "kind": "vm",
            "firmware": "uefi",
            "snapshot_of": None,
            "secureboot_certificates_state": "update_available",
            "stale": False,
            "generation": 0,
            "store_bytes": len(own_rules.store()),
            "nvram_keys": ["EFI-variables"],
            "refused": None,
        }
        assert done.json == created
        assert run("vm", "show", VM, *at).json == created
        for command, field in [("mark", "update_on_boot")] * 2 + [("unmark", "update_available")] * 2:
            done = run("vm", command, VM, *at)
            assert (done.code, done.json) == (0, created | {"secureboot_certificates_state": field})
        done = run("vm", "create", "--uuid", VM, "--name", "another", *at)
        done.fails("vm: DUPLICATE_VM: ", str(VM))
        assert run("vm", "show", VM, *at).json == created
    with Database(state / FILE_NAME) as database:
        assert database.read(VM).store == own_rules.store()


def test_a_marked_vm_is_updated_by_the_daemon(run: Run, rules: Rules, state: Path, tmp_path: Path) -> None:
    store, path = raw_file(tmp_path, own_rules.store()), tmp_path / "vm.sock"
    with daemon(tmp_path, *rules.options) as running:
        at = ("--state-dir", state, "--json")
        assert run("vm", "create", "--uuid", VM, "--store", store, "--manifest", rules.manifest, *at).code == 0
        assert run("attach", "--vm", VM, "--socket", path, "--control", running.control).code == 0
        assert run("vm", "mark", VM, *at).code == 0
        with Client(path, messages.ClientKind.VARSTORED, vm=VM) as varstored:
            answer = varstored.call(messages.GetStore(messages.Reason.BOOT))
        assert isinstance(answer, messages.GetStoreAnswer)
        assert answer.store == own_rules.store(updated=True)
        assert run("vm", "show", VM, *at).json["secureboot_certificates_state"] == "ok"


@pytest.mark.parametrize("command", ["mark", "unmark"])
def test_nothing_to_mark(command: str, run: Run, rules: Rules, state: Path, tmp_path: Path) -> None:
    store = raw_file(tmp_path, own_rules.store(updated=True))
    at = ("--state-dir", state)
    assert run("vm", "create", "--uuid", VM, "--store", store, "--manifest", rules.manifest, *at).code == 0
    run("vm", command, VM, *at).fails("vm: OPERATION_NOT_ALLOWED: ", str(VM), "its state is ok", code=1)
    done = run("vm", command, VM, *at, "--json")
    assert (done.code, done.err) == (1, "")
    assert set(done.json) == KEYS
    assert done.json["refused"].startswith("OPERATION_NOT_ALLOWED: ")
    assert done.json["secureboot_certificates_state"] == "ok"


@pytest.mark.parametrize("name", ["setup_mode", "ms2011", "all2023", "custom_keys", "windows_only2011", "wrong_owner_2023"])
def test_the_field_is_what_certcheck_leads_to(name: str, run: Run, state: Path, tmp_path: Path) -> None:
    made = scene(name)
    done = run("vm", "create", "--store", base64_file(tmp_path, made.blob), "--state-dir", state, "--json")
    expected = "update_available" if made.certcheck == "update_required" else "ok"
    assert done.json["secureboot_certificates_state"] == expected


def test_before_the_first_boot_there_is_no_store(run: Run, state: Path) -> None:
    done = run("vm", "create", "--state-dir", state, "--json")
    assert done.code == 0
    assert UUID(done.json["uuid"]).version == 4
    assert done.json["store_bytes"] is None
    assert run("vm", "create", "--state-dir", state, "--json").json["uuid"] != done.json["uuid"]
    assert stat.S_IMODE((state / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "version_huge"])
def test_what_varstored_would_not_load_makes_no_vm(name: str, run: Run, state: Path, tmp_path: Path) -> None:
    made = hostile(name)
    path = base64_file(tmp_path, made.blob)
    done = run("vm", "create", "--uuid", VM, "--store", path, "--state-dir", state)
    if made.loads:
        assert done.code == 0
    else:
        done.fails(f"varstore-companion vm: {path}: ")
        assert any(character.isdigit() for character in done.err.rpartition(": ")[2])
        assert not state.exists()


def test_over_a_limit_with_the_numbers(run: Run, state: Path, tmp_path: Path) -> None:
    path = base64_file(tmp_path, hostile("data_over_limit").blob)
    done = run("vm", "create", "--store", path, "--state-dir", state)
    done.fails(f"{path}: over varstored's limits: ", "57,345 bytes, at most 57,344")


def test_a_store_of_a_later_version_is_kept_unread(run: Run, rules: Rules, state: Path, tmp_path: Path) -> None:
    later = own_rules.store()[:4] + b"\x03" + own_rules.store()[5:]
    path = base64_file(tmp_path, later)
    done = run("vm", "create", "--uuid", VM, "--store", path, "--manifest", rules.manifest, "--state-dir", state, "--json")
    assert done.code == 0
    assert done.err == (
        f"varstore-companion vm: {path}: kept unread: store header at offset 4: expected version 0 to 2, found 3\n"
    )
    assert done.json["secureboot_certificates_state"] == "ok"
    with Database(state / FILE_NAME) as database:
        assert database.read(VM).store == later
    too_large = base64_file(tmp_path, later + bytes(FILE_LIMIT), "large")
    run("vm", "create", "--store", too_large, "--state-dir", state).fails(f"{too_large}: ", "at most 131,072")


@pytest.mark.parametrize("command", ["show", "mark", "unmark"])
def test_a_vm_that_is_not_there(command: str, run: Run, state: Path) -> None:
    run("vm", command, VM, "--state-dir", state).fails(f"vm: {state / FILE_NAME}: there is no embedded toolstack")
    assert not state.exists()
    assert run("vm", "create", "--state-dir", state).code == 0
    run("vm", command, VM, "--state-dir", state).fails("vm: HANDLE_INVALID: ", str(VM))


def test_a_database_of_something_else(run: Run, state: Path) -> None:
    state.mkdir()
    (state / FILE_NAME).write_bytes(b"this is no database" * 100)
    for arguments in (["show", VM], ["create"]):
        run("vm", *arguments, "--state-dir", state).fails(str(state / FILE_NAME))


def test_a_state_folder_that_is_a_file(run: Run, state: Path) -> None:
    state.write_text("")
    run("vm", "create", "--state-dir", state).fails(str(state))
    run("vm", "show", VM, "--state-dir", state).fails(str(state))


def test_for_people(run: Run, state: Path) -> None:
    done = run("vm", "create", "--uuid", VM, "--name", "a\tb\n\x1b[31m", "--state-dir", state)
    assert done.text == (
        f"uuid\t{VM}\nname\ta\ufffdb\ufffd\ufffd[31m\nkind\tvm\nfirmware\tuefi\nsnapshot of\t-\n"
        "secureboot certificates state\tok\nstale\tno\ngeneration\t0\nstore bytes\t-\nnvram keys\t-\n"
    )
    code, shown = on_terminal("vm", "show", VM, "--state-dir", state)
    assert code == 0
    assert shown.splitlines()[0] == f"uuid                           {VM}"
    assert run("vm", "create", "--uuid", uuid4(), "--name", "\udcff", "--state-dir", state).code == 0
