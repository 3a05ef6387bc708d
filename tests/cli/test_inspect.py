"""`inspect`: the report, as a script and as a person read it."""

import json
import re
from base64 import b64encode, encodebytes
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from support import own_rules
from support.certificates import FINGERPRINTS
from support.commands import (
    FIXTURE_STORES,
    Run,
    base64_file,
    fixture_file,
    on_terminal,
    process,
    raw_file,
)
from support.fixtures import index
from support.own_rules import Rules
from support.storebytes import DATA_LIMIT, GLOBAL, OWNER_TENANT, Variable, db_variable, make_store, x509_list
from support.storemaker import HOSTILE, SCENES, hostile, scene

KEYS = {
    "state": str,
    "certcheck": str,
    "missing": list,
    "findings": list,
    "variables": list,
    "size": int,
}
"""What design's "What a person runs" names."""
EXIT = {"ok": 0, "custom": 0, "setup_mode": 0, "update_available": 1, "damaged": 2, "unknown": 2}


def _missing(document: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in document["missing"]:
        assert {"variable", "sha256", "name"} <= set(each)
        assert FINGERPRINTS[each["name"]] == each["sha256"]
        found.setdefault(each["variable"], []).append(each["name"])
    return found


@pytest.mark.parametrize("name", SCENES)
def test_every_scene(name: str, run: Run, tmp_path: Path) -> None:
    expected = scene(name)
    done = run("inspect", "--json", base64_file(tmp_path, expected.blob))
    document = done.json
    assert {key: type(document[key]) for key in KEYS} == KEYS
    assert document["state"] == expected.report
    assert document["certcheck"] == expected.certcheck
    assert _missing(document) == {key: list(value) for key, value in expected.missing.items()}
    assert document["size"] == len(expected.blob)
    assert done.code == EXIT[expected.report]
    assert done.err == ""
    for finding in document["findings"]:
        assert {"code", "detail"} <= set(finding)
    readable = () if expected.report == "unknown" else expected.variables
    shown = [(each["name"], each["guid"], each["attributes"], each["bytes"]) for each in document["variables"]]
    assert shown == [(each.name, str(each.guid), each.attributes, len(each.data)) for each in readable]


@pytest.mark.parametrize("name", FIXTURE_STORES)
def test_every_fixture(name: str, run: Run) -> None:
    expected = index()[name]
    done = run("inspect", "--json", fixture_file(name))
    document = done.json
    assert document["certcheck"] == expected["certcheck"]
    assert document["size"] == expected["bytes"]
    assert [each["name"] for each in document["variables"]] == expected["variables"]
    assert _missing(document) == expected["missing"]
    states = {"setup_mode": "setup_mode", "all2023": "ok", "wrong_owner_2023": "ok", "custom_keys": "custom"}
    assert document["state"] == states.get(name, "damaged" if name == "oversized_dbx" else "update_available")
    assert done.code == EXIT[document["state"]]


def test_raw_bytes_and_every_way_to_write_base64_are_one_store(run: Run, rules: Rules, tmp_path: Path) -> None:
    blob = own_rules.store()
    text = b64encode(blob)
    path = tmp_path / "store"
    documents = set()
    for content in (blob, text, text + b"\n", text + b"\r\n", encodebytes(blob), b"\n \t" + text):
        path.write_bytes(content)
        done = run("inspect", "--manifest", rules.manifest, "--json", path)
        assert done.code == 1
        documents.add(done.out)
    assert len(documents) == 1


def test_standard_input(run: Run, rules: Rules, standard_input: Callable[[bytes], None]) -> None:
    standard_input(b64encode(own_rules.store(updated=True)))
    done = run("inspect", "--manifest", rules.manifest, "-")
    assert done.code == 0
    assert done.text.startswith("-: ok (certcheck: update_ok)")


def test_the_operators_rules_and_no_others(run: Run, rules: Rules, tmp_path: Path) -> None:
    path = raw_file(tmp_path, own_rules.store())
    document = run("inspect", "--manifest", rules.manifest, "--json", path).json
    fingerprint = sha256(own_rules.certificate(own_rules.NEW)).hexdigest()
    assert [(each["variable"], each["sha256"], each["name"]) for each in document["missing"]] == [("db", fingerprint, "new")]
    assert document["manifest"] == "own 3"
    assert run("inspect", "--json", path).json["state"] == "custom"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_store_is_reported_and_never_called_healthy(name: str, run: Run, tmp_path: Path) -> None:
    expected = hostile(name)
    if not expected.blob.startswith(b"VARS") and expected.blob:
        run("inspect", raw_file(tmp_path, expected.blob)).fails("nvram.bin", "VARS", "offset")
    path = base64_file(tmp_path, expected.blob)
    done = run("inspect", "--json", path)
    document = done.json
    assert document["state"] != "ok"
    assert done.err == ""
    if not expected.loads:
        assert document["state"] in ("damaged", "unknown")
        assert document["findings"], expected.wrong
    assert done.code == EXIT[document["state"]]
    shown = run("inspect", path).text
    assert shown.startswith(f"{path}: {document['state']} (certcheck: {document['certcheck']})")
    assert all(character.isprintable() or character in "\t\n" for character in shown)


@pytest.mark.parametrize("step", [0, 1])
def test_a_store_cut_anywhere_says_where(step: int, run: Run, tmp_path: Path) -> None:
    blob = own_rules.store()
    for end in sorted({*range(40), *range(280, 300), *range(40 + step, len(blob), 61), len(blob) - 1}):
        done = run("inspect", "--json", base64_file(tmp_path, blob[:end]))
        document = done.json
        assert (done.code, document["state"]) == (2, "damaged"), end
        (offset,) = {int(found) for found in re.findall(r"at offset (\d+)", json.dumps(document["findings"][0]))}
        assert offset <= end
        assert "expected" in document["findings"][0]["detail"]


def test_what_varstored_refuses_is_said_with_its_numbers(run: Run, tmp_path: Path) -> None:
    done = run("inspect", base64_file(tmp_path, hostile("data_over_limit").blob))
    assert done.code == 2
    assert "57,345 bytes, at most 57,344" in done.text


def test_in_a_pipe_there_are_tabs_and_no_colour(rules: Rules, tmp_path: Path) -> None:
    path = base64_file(tmp_path, own_rules.store())
    done = process("inspect", "--manifest", rules.manifest, path)
    assert (done.code, done.err) == (1, "")
    assert "\x1b" not in done.text
    rows = [line.split("\t") for line in done.text.splitlines() if "\t" in line]
    assert rows[0][:3] == ["BootOrder", "6", "0x7"]
    assert {len(row) for row in rows} == {5}
    assert f"  missing in db: {own_rules.NEW}" in done.text.splitlines()


def test_on_a_terminal_there_are_colours_headings_and_columns(rules: Rules, tmp_path: Path) -> None:
    path = base64_file(tmp_path, own_rules.store())
    code, shown = on_terminal("inspect", "--manifest", rules.manifest, path)
    lines = shown.splitlines()
    assert code == 1
    assert lines[0].startswith(f"{path}: \x1b[33mupdate_available\x1b[0m (certcheck: update_required)")
    heading = next(number for number, line in enumerate(lines) if "vendor GUID" in line)
    assert lines[heading].startswith("  \x1b[2mvariable")
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in lines[heading:]]
    assert "\t" not in "".join(plain)
    for title in ("bytes", "attributes", "time", "vendor GUID"):
        column = plain[0].index(title)
        assert all(line[column - 2 : column] == "  " and line[column] != " " for line in plain)


def test_a_guests_names_cannot_write_on_a_terminal(run: Run, tmp_path: Path) -> None:
    names = ["\x1b[2J", "new\nline", "tab\tulator", "\u202egnihtyreve", "\x9b31m"]
    held = [Variable(name, GLOBAL, b"data") for name in names]
    path = raw_file(tmp_path, make_store(held))
    done = run("inspect", path)
    assert all(character.isprintable() or character in "\t\n" for character in done.text)
    assert [line.split("\t")[0] for line in done.text.splitlines()[-5:]] == [
        "\ufffd[2J",
        "new\ufffdline",
        "tab\ufffdulator",
        "\ufffdgnihtyreve",
        "\ufffd31m",
    ]


def test_a_store_of_a_thousand_faults_does_not_make_a_thousand_lines(run: Run, tmp_path: Path) -> None:
    broken = x509_list(b"this is no certificate", OWNER_TENANT)
    blob = make_store([db_variable(broken * (DATA_LIMIT // len(broken)))])
    document = run("inspect", "--json", base64_file(tmp_path, blob)).json
    assert 1 < len(document["findings"]) < 60
    assert any("more" in each["detail"] for each in document["findings"])
