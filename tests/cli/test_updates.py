"""`updates`: whether VMs are updated at boot, and whether anybody knows when they are not."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.commands import Run
from support.fake_daemon import answering, server
from varstore_companion.wire.messages import RequestMessage
from varstore_companion.wire.observing import Updates, UpdatesAction, UpdatesAnswer

PAUSED = {"at": 1_795_000_000.0, "reason": "5 VMs could not\nbe updated"}
TROUBLE = [{"vm": "v", "reason": "away"}]
HEAD = "paused since 2026-11-18 11:06 UTC: 5 VMs could not\ufffdbe updated\n"


@pytest.mark.parametrize(
    ("found", "code", "text"),
    [
        ({"paused": None, "in_trouble": []}, 0, "made at boot\n"),
        ({"paused": {**PAUSED, "told": True}, "in_trouble": TROUBLE}, 1, f"{HEAD}  v: away\n"),
        ({"paused": {**PAUSED, "told": False}, "in_trouble": []}, 1, f"{HEAD}  the alert of it is not delivered yet\n"),
        ({"paused": PAUSED}, 1, HEAD),  # a daemon from before it said
    ],
)
def test_what_is_in_force_is_shown(run: Run, tmp_path: Path, found: Mapping[str, object], code: int, text: str) -> None:
    asked: list[RequestMessage] = []
    path = tmp_path / "control.sock"
    with server(path, answering(lambda _: UpdatesAnswer(json.dumps(found)), asked)):
        done = run("updates", "--control", path)
    assert (done.code, done.text) == (code, text)
    assert asked[-1] == Updates(None, None)


def test_an_action_and_its_reason_are_passed_on(run: Run, tmp_path: Path) -> None:
    asked: list[RequestMessage] = []
    path = tmp_path / "control.sock"
    found = {"paused": {**PAUSED, "told": True}}
    with server(path, answering(lambda _: UpdatesAnswer(json.dumps(found)), asked)):
        done = run("updates", "pause", "--reason", "firmware", "--json", "--control", path)
    assert (done.code, done.json) == (1, found)
    assert asked[-1] == Updates(UpdatesAction.PAUSE, "firmware")
    run("updates", "resume", "--reason", "x", "--control", path).fails("--reason goes with pause")
