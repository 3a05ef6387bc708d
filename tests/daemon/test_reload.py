"""Reading settings, manifest and certificates again: all of it or nothing, and never under a decision that is being made."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from support import own_rules
from support.daemon import NOW, Place, updated
from support.own_rules import Rules as OwnRules
from support.peer import greeted
from support.storemaker import scene
from varstore_companion.daemon import rules
from varstore_companion.daemon.config import Blame, Settings, Source
from varstore_companion.daemon.reload import READ_SECONDS, SHOWN, Reloader
from varstore_companion.trust.check import State
from varstore_companion.trust.state import CertificatesState
from varstore_companion.wire.messages import GetStoreAnswer, Outcome, Status, StatusAnswer
from varstore_companion.wire.observing import Reload, ReloadAnswer

ON_BOOT, AVAILABLE, OK = CertificatesState.UPDATE_ON_BOOT, CertificatesState.UPDATE_AVAILABLE, CertificatesState.OK


class Files:
    """A settings file that names own rules, and a reloader of a daemon that was started with it."""

    def __init__(self, folder: Path, place: Place) -> None:
        self.rules: OwnRules = own_rules.write(folder)
        self.path = folder / "config.toml"
        self.lines = {
            "manifest": f'"{self.rules.manifest}"',
            "certificates": f'"{self.rules.certificates}"',
            "auth_dir": f'"{folder / "none"}"',
        }
        self.write()
        source = Source(self.path)
        self.place = place
        settings = source.read()
        place.host.rules = rules.load(settings)
        self.reloader = Reloader(place.host, source, settings)
        self.reloader.followers += place.reloader.followers
        place.daemon.reloader = self.reloader

    def write(self, **lines: str) -> None:
        """Change keys of the settings."""
        self.lines |= lines
        self.path.write_text("".join(f"{key} = {value}\n" for key, value in self.lines.items()))

    def change_manifest(self, before: str, after: str) -> None:
        text = self.rules.manifest.read_text()
        assert before in text
        self.rules.manifest.write_text(text.replace(before, after))


@pytest.fixture
def files(tmp_path: Path, place: Place) -> Files:
    return Files(tmp_path, place)


async def test_what_changed_is_in_force(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    files.change_manifest("revision = 3", "revision = 4")
    files.write(headroom="77")
    with caplog.at_level(logging.INFO):
        reloaded = await files.reloader.reload()
    assert (reloaded.error, reloaded.manifest, reloaded.needs_restart, reloaded.warnings) == (None, "own 4", (), ())
    assert (files.place.host.rules.manifest.revision, files.place.host.rules.headroom) == (4, 77)
    assert caplog.messages == ["reloaded: manifest own 4, 1 of 1 certificates, headroom 77"]
    assert files.place.host.stats.reloads == 1
    assert files.reloader.describe() == {"rules_loaded_at": NOW, "reload_failed": None, "needs_restart": []}


def no_settings(files: Files) -> str:
    files.path.unlink()
    return f"{files.path}: No such file or directory"


def broken_settings(files: Files) -> str:
    files.write(headroom="-1")
    return f"{files.path}: headroom: expected a whole number from 0 to 57,344, found '-1' (at line 4)"


def unknown_key(files: Files) -> str:
    files.write(headrom="1")
    return f"{files.path}: headrom: unknown key: expected one of control"


def settings_at_odds(files: Files) -> str:
    files.write(toolstack='"guard"', xapi_socket='"/run/x"')
    return "xapi_socket: only the embedded toolstack"


def broken_manifest(files: Files) -> str:
    files.change_manifest("format = 1", "format = 9")
    return "format: expected 1"


def no_manifest(files: Files) -> str:
    files.rules.manifest.unlink()
    return f"{files.rules.manifest}: No such file"


def no_certificates(files: Files) -> str:
    files.write(certificates='"/nowhere"')
    return "/nowhere: expected a folder with certificates"


def cut_certificate(files: Files) -> str:
    (path,) = files.rules.certificates.iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    return f"no source has the body of Its successor any more, which came from {path}"


BAD = [
    no_settings,
    broken_settings,
    unknown_key,
    settings_at_odds,
    broken_manifest,
    no_manifest,
    no_certificates,
    cut_certificate,
]


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
async def test_a_bad_file_leaves_everything_as_it_was(
    files: Files, damage: Callable[[Files], str], caplog: pytest.LogCaptureFixture
) -> None:
    before = files.place.host.rules
    machine = await files.place.machine(own_rules.store(), ON_BOOT)
    expected = damage(files)
    with caplog.at_level(logging.INFO):
        reloaded = await files.reloader.reload()
    assert reloaded.error is not None
    assert expected in reloaded.error
    assert files.place.host.rules is before
    (line,) = caplog.messages
    assert line == f"reload refused, everything stays as it was: {reloaded.error}"
    assert files.place.host.stats.reloads_refused == 1
    async with greeted(files.place.control) as control:
        status = json.loads((await control.call(Status(), StatusAnswer)).json)
    assert status["reload_failed"] == {"at": NOW, "error": reloaded.error}
    assert (status["manifest"], status["reloads_refused"]) == ("own 3", 1)
    assert (await machine.boot()).store == own_rules.store(updated=True)


async def test_the_next_good_one_ends_the_error(files: Files) -> None:
    files.write(headroom="-1")
    await files.reloader.reload()
    files.write(headroom="5")
    assert (await files.reloader.reload()).error is None
    assert files.reloader.describe()["reload_failed"] is None
    assert files.place.host.rules.headroom == 5


async def test_keys_that_need_a_restart_are_named_and_the_rest_is_in_force(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(headroom="5", control='"/run/other.sock"', toolstack='"xapi"')
    reloaded = await files.reloader.reload()
    assert reloaded.needs_restart == ("control", "toolstack")
    assert files.place.host.rules.headroom == 5
    assert any("only after a restart: control, toolstack" in line for line in caplog.messages)
    files.write(control=f'"{Settings().control}"', toolstack='"embedded"')
    assert (await files.reloader.reload()).needs_restart == ()


async def test_options_still_go_before_the_file(files: Files) -> None:
    source = Source(files.path, {"headroom": 9})
    reloader = Reloader(files.place.host, source, source.read())
    files.write(headroom="5")
    await reloader.reload()
    assert files.place.host.rules.headroom == 9


async def test_a_certificate_that_was_missing_may_come(files: Files) -> None:
    (path,) = files.rules.certificates.iterdir()
    body = path.read_bytes()
    path.unlink()
    files.place.host.rules = rules.load(Source(files.path).read())
    reloaded = await files.reloader.reload()
    assert reloaded.error is None
    assert reloaded.warnings == ("no source has the body of Its successor: updates that need it are refused",)
    path.write_bytes(body)
    assert (await files.reloader.reload()).warnings == ()
    machine = await files.place.machine(own_rules.store(), ON_BOOT)
    assert (await machine.boot()).outcome is Outcome.UPDATED


async def test_the_answer_stays_small_whatever_lies_among_the_certificates(files: Files) -> None:
    for number in range(200):
        (files.rules.certificates / f"{number:03}{'x' * 200}.pem").write_text("no certificate")
    async with greeted(files.place.control) as control:
        answer = json.loads((await control.call(Reload(), ReloadAnswer)).json)
    assert (answer["error"], len(answer["warnings"])) == (None, SHOWN)


async def test_a_boot_under_way_stores_what_it_planned(files: Files) -> None:
    """The rules change between the plan and the write: the store is what the plan made, whole."""
    machine = await files.place.machine(own_rules.store(), ON_BOOT)
    hang = files.place.toolstack.hang_next("write")
    answers: list[GetStoreAnswer] = []

    async def boot() -> None:
        answers.append(await machine.boot())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(boot)
        await hang.reached.wait()
        files.change_manifest(sha256(own_rules.certificate(own_rules.NEW)).hexdigest(), "5a" * 32)
        files.change_manifest("revision = 3", "revision = 4")
        assert (await files.reloader.reload()).error is None
        hang.release.set()
    assert (answers[0].outcome, answers[0].store) == (Outcome.UPDATED, own_rules.store(updated=True))
    lines, _ = await files.place.host.history.read(machine.vm)
    assert [(line.event.what, line.event.manifest) for line in lines] == [("updated", "own 3")]
    # The next one is planned with what is in force now: a certificate that nobody has.
    other = await files.place.machine(own_rules.store(), ON_BOOT, name="other.sock")
    assert (await other.boot()).outcome is Outcome.FAILED
    lines, _ = await files.place.host.history.read(other.vm)
    assert [(line.event.what, line.event.manifest) for line in lines] == [("update_failed", "own 4")]


async def test_reports_made_with_other_rules_are_not_shown(files: Files) -> None:
    machine = await files.place.machine(own_rules.store(), AVAILABLE)
    await machine.boot()
    vm = files.place.daemon.vm(machine.vm)
    assert vm.report is State.UPDATE_AVAILABLE
    # Keeps the VM known, as its connection would.
    assert [entry["report"] for entry in files.place.daemon.listed()] == ["update_available"]
    await files.reloader.reload()
    assert [entry["report"] for entry in files.place.daemon.listed()] == [None]
    await machine.boot()
    assert [entry["report"] for entry in files.place.daemon.listed()] == ["update_available"]


async def test_two_at_once_come_one_after_the_other(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = most = 0
    load = rules.load

    def counted(settings: Settings, blame: Blame) -> rules.Rules:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return load(settings, blame)
        finally:
            inside -= 1

    monkeypatch.setattr(rules, "load", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(files.reloader.reload)
    assert (most, files.place.host.stats.reloads) == (1, 6)


async def test_signals_in_a_row_are_answered_by_one_reload_after_them(files: Files) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(files.reloader.reload_soon)
    # The one that was being carried out, and one that began after the last signal.
    assert 1 <= files.place.host.stats.reloads <= 3


async def test_a_file_that_hangs_is_given_up(files: Files, mock_clock: MockClock) -> None:
    """A named pipe that nobody writes to stands for a file system that hangs."""
    pipe = files.path.with_name("pipe")
    os.mkfifo(pipe)
    files.write(manifest=f'"{pipe}"')
    before = files.place.host.rules
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(files.reloader.reload)
        for _ in range(2):
            await wait_all_tasks_blocked()
            mock_clock.jump(READ_SECONDS)
    assert files.place.host.stats.reloads_refused == 2
    assert files.place.host.rules is before
    failed = files.reloader.describe()["reload_failed"]
    assert failed == {"at": NOW, "error": "the files were not read within 30 s"}
    # The threads that were left end once somebody opens the pipe; what they read is not used.
    with pipe.open("w"):
        pass


async def test_a_system_without_threads_is_a_refusal(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_given: object, **_named: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    error = (await files.reloader.reload()).error
    assert error is not None
    assert "the files cannot be read" in error
    assert "can't start new thread" in error


async def test_a_bug_is_a_refusal(files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_settings: Settings) -> rules.Rules:
        raise KeyError("a bug")

    monkeypatch.setattr(rules, "load", broken)
    reloaded = await files.reloader.reload()
    assert reloaded.error == "an error inside the daemon: see its log"
    assert any(record.exc_info for record in caplog.records)


async def test_without_a_settings_file_the_defaults_are_read_again(place: Place) -> None:
    settings = Settings(auth_dir=place.folder / "none", headroom=3)
    place.host.rules = replace(place.host.rules, headroom=None)
    assert (await Reloader(place.host, Source.fixed(settings), settings).reload()).error is None
    assert place.host.rules.headroom == 3
    machine = await place.machine(scene("ms2011").blob, ON_BOOT)
    assert (await machine.boot()).store == updated(scene("ms2011").blob)


async def test_a_place_that_the_next_start_could_not_use_is_refused(files: Files) -> None:
    files.write(state_dir='"/dev/null/x"')
    done = await files.reloader.reload()
    assert done.error == f"{files.path}, line 4: state_dir: /dev/null: exists and is not a folder"
    files.write(state_dir=f'"{files.path.parent / "other"}"')
    done = await files.reloader.reload()
    assert (done.error, done.needs_restart) == (None, ("state_dir",))
    files.write(manifest='"/nowhere"')
    done = await files.reloader.reload()
    assert done.error == f"{files.path}, line 1: manifest: /nowhere: No such file or directory"
