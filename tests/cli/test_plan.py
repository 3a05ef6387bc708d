"""`plan FILE`: what an update would do, and why not."""

from hashlib import sha256
from pathlib import Path

import pytest

from support import own_rules
from support.certificates import FINGERPRINTS
from support.commands import FIXTURE_STORES, Run, base64_file, fixture_file, on_terminal, process, raw_file
from support.fixtures import index
from support.own_rules import Rules
from support.storebytes import GLOBAL, TOTAL_LIMIT, Variable
from support.storemaker import HOSTILE, SCENES, hostile, scene

KEYS = {
    "state_before",
    "state_after",
    "changes",
    "bytes_before",
    "bytes_after",
    "headroom",
    "pcr7_changes",
    "refused",
}
"""What design's "What a person runs" names."""
REFUSED = {"nearly_full", "room_without_headroom", "db_nearly_full", "oversized_dbx", "version3"}
REOWNED = {"wrong_owner_2023", "wrong_owner_virt_firmware"}
VM = "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize("name", SCENES)
def test_every_scene(name: str, run: Run, tmp_path: Path) -> None:
    expected = scene(name)
    path = base64_file(tmp_path, expected.blob)
    before = path.read_bytes()
    done = run("plan", "--json", path)
    document = done.json
    assert set(document) >= KEYS
    assert document["state_before"] == expected.report
    for change in document["changes"]:
        assert {"variable", "action", "sha256", "name", "bytes"} <= set(change)
        assert FINGERPRINTS[change["name"]] == change["sha256"]
    added = [(each["variable"], each["name"]) for each in document["changes"] if each["action"] == "add"]
    if expected.report not in ("damaged", "unknown"):
        assert sorted(added) == sorted((variable, each) for variable, names in expected.missing.items() for each in names)
    assert bool({each["action"] for each in document["changes"]} - {"add"}) == (name in REOWNED)
    assert (document["refused"] is not None) == (name in REFUSED)
    assert document["bytes_before"] == len(expected.blob)
    grows = 0 if name in REFUSED else sum(each["bytes"] for each in document["changes"])
    assert document["bytes_after"] == document["bytes_before"] + grows
    assert document["pcr7_changes"] == bool(document["changes"] and name not in REFUSED)
    if name in REFUSED:
        assert document["state_after"] == document["state_before"]
    else:
        assert document["state_after"] in ("ok", "custom", "setup_mode")
    unusable = expected.report in ("damaged", "unknown")
    assert done.code == (2 if unusable else 1 if document["changes"] or document["refused"] else 0)
    assert path.read_bytes() == before
    assert run("plan", path).code == done.code


@pytest.mark.parametrize("name", FIXTURE_STORES)
def test_every_fixture(name: str, run: Run) -> None:
    expected = index()[name]
    document = run("plan", "--json", fixture_file(name)).json
    missing: dict[str, list[str]] = {}
    for change in document["changes"]:
        if change["action"] == "add":
            missing.setdefault(change["variable"], []).append(change["name"])
    assert missing == ({} if name == "oversized_dbx" else expected["missing"])


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_store_is_changed_unless_varstored_loads_it(name: str, run: Run, tmp_path: Path) -> None:
    expected = hostile(name)
    done = run("plan", "--json", base64_file(tmp_path, expected.blob))
    assert done.code in (0, 2)
    assert done.json["changes"] == []
    if not expected.loads:
        assert done.code == 2
        assert done.json["refused"]


def test_a_refusal_has_its_numbers(run: Run, tmp_path: Path) -> None:
    path = base64_file(tmp_path, scene("room_without_headroom").blob)
    done = run("plan", path)
    assert done.code == 1
    assert "refused: the update needs 5,999 bytes and would leave" in done.text
    assert "of the 21,292 that the guest's next append to dbx needs" in done.text
    assert f"of {TOTAL_LIMIT:,} bytes would be used" in done.text
    assert run("plan", "--headroom", 1000, "--json", path).json["refused"] is None


def test_a_headroom_of_the_operators_own(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, own_rules.store())
    assert run("plan", *rules.options, "--json", path).json["refused"] is None
    refused = run("plan", *rules.options, "--headroom", TOTAL_LIMIT, "--json", path)
    assert refused.code == 1
    assert f"of the {TOTAL_LIMIT:,} that" in refused.json["refused"]


def test_a_certificate_that_no_source_has(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, own_rules.store())
    digest = sha256(own_rules.certificate(own_rules.NEW)).hexdigest()
    done = run("plan", "--manifest", rules.manifest, path)
    assert done.code == 1
    assert f"refused: no certificate source has the body of {own_rules.NEW} ({digest})" in done.text
    broken = rules.certificates / "successor.pem"
    broken.write_bytes(broken.read_bytes()[:300])
    done = run("plan", *rules.options, path)
    assert done.code == 1
    assert done.err.startswith(f"varstore-companion plan: {broken}: not used: PEM at offset 0")
    assert done.err.count("\n") == 1


def test_nothing_is_said_of_broken_files_that_are_not_needed(run: Run, rules: Rules, tmp_path: Path) -> None:
    (rules.certificates / "other.der").write_bytes(b"this is none")
    done = run("plan", *rules.options, raw_file(tmp_path, own_rules.store()))
    assert (done.code, done.err) == (1, "")
    assert "update_available to ok" in done.text


def test_a_signed_update_as_the_host_ships_it_is_a_source(run: Run, rules: Rules, tmp_path: Path) -> None:
    folder = tmp_path / "auth"
    folder.mkdir()
    head = bytes(16) + (24).to_bytes(4, "little") + bytes.fromhex("0002f10e9dd2af4adf68ee498aa9347d375665a7")
    (folder / "db.auth").write_bytes(head + own_rules.added())
    path = raw_file(tmp_path, own_rules.store())
    done = run("plan", "--manifest", rules.manifest, "--auth-dir", folder, "--json", path)
    assert done.json["refused"] is None


def test_for_people(rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, own_rules.store())
    size = len(own_rules.added())
    before = len(own_rules.store())
    done = process("plan", *rules.options, path)
    assert done.text.splitlines()[:2] == [
        f"{path}: update_available to ok, {before:,} to {before + size:,} bytes",
        f"  add in db: {own_rules.NEW} (+{size:,} bytes)",
    ]
    assert "PCR 7 changes" in done.text
    nothing = process("plan", *rules.options, raw_file(tmp_path, own_rules.store(updated=True)))
    assert nothing.code == 0
    assert nothing.text.startswith(f"{path}: ok, nothing to do\n")
    assert "PCR 7" not in nothing.text
    code, shown = on_terminal("plan", *rules.options, "--headroom", TOTAL_LIMIT, raw_file(tmp_path, own_rules.store()))
    assert code == 1
    assert "\x1b[31mrefused\x1b[0m: the update needs" in shown


def test_the_headroom_is_what_dbx_may_still_grow(run: Run, rules: Rules, tmp_path: Path) -> None:
    filler = tuple(Variable(f"Filler{number}", GLOBAL, bytes(40_000)) for number in range(3))
    path = raw_file(tmp_path, own_rules.store(more=filler))
    document = run("plan", *rules.options, "--json", path).json
    assert 0 < document["headroom"] < 10_000
    used = run("inspect", "--json", path).json["findings"]
    assert [each["code"] for each in used if each["code"] == "space"] == ["space"]


@pytest.mark.parametrize("arguments", [(), ("a", "--vm", VM), ("a", "b")])
def test_file_or_vm(arguments: tuple[str, ...], run: Run) -> None:
    run("plan", *arguments).fails("see varstore-companion plan --help")


@pytest.mark.parametrize("option", ["--manifest", "--certificates", "--auth-dir"])
def test_the_daemon_has_rules_of_its_own(option: str, run: Run) -> None:
    run("plan", "--vm", VM, option, "/somewhere").fails("its own rules")
    run("plan", "--vm", VM, "--headroom", 0).fails("its own rules")
