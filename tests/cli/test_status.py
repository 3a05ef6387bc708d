"""`status`: plain words and one clock for what the daemon says in JSON."""

import json
from pathlib import Path

from support.commands import Run
from support.fake_daemon import answering, server
from varstore_companion.wire.messages import AnswerMessage, List, ListAnswer, RequestMessage, StatusAnswer

AT = 1_795_000_000.0
TOTALS = {
    "started_at": AT,
    "journal": {"stores": 2, "oldest_at": AT, "unattached": ["v", "w"]},
    "updates_at_boot": {
        "paused": {"at": AT, "reason": "5 VMs could not be updated", "told": True},
        "in_trouble": [{"vm": "v", "reason": "away"}, {"vm": "w", "reason": "no room"}],
        "at_once": 16,
    },
}


def test_nothing_is_shown_as_a_program_has_it(run: Run, tmp_path: Path) -> None:
    def answer(message: RequestMessage) -> AnswerMessage:
        return ListAnswer('{"attachments": []}', None) if isinstance(message, List) else StatusAnswer(json.dumps(TOTALS))

    with server(tmp_path / "control.sock", answering(answer)):
        done = run("status", "--control", tmp_path / "control.sock")
    assert [line.split("\t") for line in done.text.splitlines()] == [
        ["started at", "2026-11-18 11:06:40Z"],
        ["journal stores", "2"],
        ["journal oldest at", "2026-11-18 11:06:40Z"],
        ["journal unattached", "v, w"],
        ["updates at boot paused at", "2026-11-18 11:06:40Z"],
        ["updates at boot paused reason", "5 VMs could not be updated"],
        ["updates at boot paused told", "True"],
        ["updates at boot in trouble", "v: away"],
        ["updates at boot in trouble", "w: no room"],
        ["updates at boot at once", "16"],
    ]
