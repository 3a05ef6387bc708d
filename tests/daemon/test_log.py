"""Log lines: one line each for the journal and for people, without what may be part of a store; levels changed at run time."""

import io
import logging
import os
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.daemon import Place
from support.peer import Refused, greeted
from support.processes import python_command, python_environment
from varstore_companion.daemon import log
from varstore_companion.errors import ConfigurationError
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.observing import Log, LogAnswer, LogLevel

FORGED = "a\nERROR vm=0 forged\r<0>\x1b[31m\u2028red"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The program's logger; what a test changes of it and those below is taken back."""
    before = {name: logger.level for name, logger in log.known().items()}
    yield logging.getLogger(log.ROOT)
    for name, logger in log.known().items():
        logger.setLevel(before.get(name, logging.NOTSET))


def record(level: int, text: str, error: BaseException | None = None) -> logging.LogRecord:
    exc = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("varstore_companion.daemon.vm", level, "file", 1, "vm=%s %s", ("1234", text), exc)


def raised(text: str) -> ValueError:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
        (logging.INFO + 5, 6),
        (5, 7),
    ],
)
def test_the_journal_gets_a_priority_and_no_level(level: int, priority: int) -> None:
    assert log.ForJournal().format(record(level, "text")) == f"<{priority}>vm=1234 text"


def test_people_get_the_level() -> None:
    assert log.OneLine().format(record(logging.WARNING, "text")) == "WARNING vm=1234 text"


@pytest.mark.parametrize("formatter", [log.OneLine(), log.ForJournal()], ids=["people", "journal"])
def test_a_record_is_one_line_whatever_it_says(formatter: logging.Formatter) -> None:
    line = formatter.format(record(logging.INFO, FORGED))
    assert line.isprintable()
    assert line.count("forged") == 1


def test_no_line_of_a_traceback_can_be_taken_for_another_record() -> None:
    error = raised(FORGED)
    lines = log.OneLine().format(record(logging.ERROR, "met a bug", error)).split("\n")
    assert lines[0] == "ERROR vm=1234 met a bug"
    assert len(lines) > 3
    assert all(line.startswith("| ") and line.isprintable() for line in lines[1:])
    lines = log.ForJournal().format(record(logging.ERROR, "met a bug", error)).split("\n")
    assert lines[0] == "<3>vm=1234 met a bug"
    assert all(line.startswith("<3>| ") and line.isprintable() for line in lines[1:])


@pytest.mark.parametrize("text", [b64encode(bytes(range(256)) * 300).decode(), bytes(range(256)).hex(), "A" * 97])
def test_what_may_be_a_store_or_a_key_is_left_out(text: str) -> None:
    for shown in (
        log.OneLine().format(record(logging.INFO, f"xapi said: INVALID_VALUE {text} end")),
        log.OneLine().format(record(logging.ERROR, "met a bug", raised(f"<value>{text}</value>"))),
    ):
        assert text[:40] not in shown
        assert f"[{len(text):,} characters]" in shown


def test_digests_uuids_and_paths_stay() -> None:
    text = f"{'0f' * 32} 11111111-2222-3333-4444-555555555555 /var/run/xen/varstored-root-7/{'vm' * 30}.sock {'sha512' * 16}"
    assert log.clean(text) == text


def test_a_line_has_an_end() -> None:
    assert len(log.clean("word " * 100_000)) == log.LINE


@pytest.mark.parametrize("journal", [True, False])
def test_the_journal_is_told_by_its_device_and_inode(journal: bool, tmp_path: Path) -> None:
    path = tmp_path / "stderr"
    code = "import logging, sys\nfrom varstore_companion.daemon import log\nlog.begin(sys.stderr)\nlogging.info('vm=1 text')\n"
    with path.open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        stream = f"{status.st_dev}:{status.st_ino}" if journal else f"{status.st_dev}:{status.st_ino + 1}"
        subprocess.run(
            python_command(code), stderr=stderr, env={**python_environment(), "JOURNAL_STREAM": stream}, check=True, timeout=60
        )
    assert path.read_text() == ("<6>vm=1 text\n" if journal else "INFO vm=1 text\n")


def test_no_variable_or_no_descriptor_is_no_journal() -> None:
    assert not log.is_journal(sys.stderr, {})
    assert not log.is_journal(sys.__stderr__ or sys.stderr, {"JOURNAL_STREAM": "nonsense"})
    assert not log.is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


@pytest.mark.parametrize("name", ["journal", "other"])
def test_an_older_systemds_journal_is_told_by_its_socket(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "JOURNAL", str(tmp_path / "journal"))
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as stream:
        listener.bind(str(tmp_path / name))
        listener.listen()
        stream.connect(str(tmp_path / name))
        with stream.makefile("w") as text:
            assert log.is_journal(text, {}) is (name == "journal")
        # It was only looked at.
        assert stream.fileno() >= 0
        stream.sendall(b"x")


@pytest.fixture
def journal() -> Iterator[tuple[log.UnwaitingHandler, socket.socket]]:
    """A handler and the journal's end of its socket."""
    there, here = socket.socketpair()
    with there, here:
        handler = log.UnwaitingHandler(here.fileno())
        handler.setFormatter(log.ForJournal())
        yield handler, there
        handler.close()


def taken(there: socket.socket) -> bytes:
    """What has come to the journal."""
    parts = []
    with suppress(BlockingIOError):
        while part := there.recv(1 << 20, socket.MSG_DONTWAIT):
            parts.append(part)
    return b"".join(parts)


def test_a_journal_that_takes_nothing_holds_up_nobody(journal: tuple[log.UnwaitingHandler, socket.socket]) -> None:
    """A blocking write of line 280 stood still until the watchdog ended the daemon, and all VMs with it."""
    handler, there = journal
    text, count = "a line" + " of words" * 10, 0
    while not handler._lost:
        handler.handle(record(logging.INFO, f"{count} {text}"))
        count += 1
    handler.handle(record(logging.INFO, "not taken either"))
    got = b""
    while more := taken(there):
        got += more
        handler.flush()
    assert got.decode().splitlines() == [f"<6>vm=1234 {number} {text}" for number in range(count - 1)]
    handler.handle(record(logging.ERROR, "again"))
    assert taken(there) == b"<4>2 lines of the log are lost: nobody took them in time\n<3>vm=1234 again\n"


MANY = """
import logging, sys
from varstore_companion.daemon import log
log.begin(sys.stderr)
for number in range({count}):
    logging.info("line %d of a daemon whose log is not read", number)
"""


def test_a_process_whose_journal_hangs_goes_on() -> None:
    there, here = socket.socketpair()
    with there, here:
        status = os.fstat(here.fileno())
        environment = {**python_environment(), "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command = python_command(MANY.format(count=10_000))
        subprocess.run(command, stderr=here.fileno(), env=environment, check=True, timeout=60)
        assert taken(there).startswith(b"<6>line 0 of a daemon whose log is not read\n")


def test_a_process_behind_whose_pipe_nobody_reads_goes_on() -> None:
    """And whoever else has the pipe waits for it as before."""
    there, here = os.pipe()
    with os.fdopen(there, "rb") as reader, os.fdopen(here, "wb") as writer:
        command = python_command(MANY.format(count=10_000))
        subprocess.run(command, stderr=writer, env=python_environment(), check=True, timeout=60)
        assert os.get_blocking(writer.fileno())
        writer.close()
        lines = reader.read().splitlines()
    assert lines[:-1] == [f"INFO line {number} of a daemon whose log is not read".encode() for number in range(len(lines) - 1)]
    assert len(lines) > 500


def test_who_reads_slowly_has_every_line_when_the_process_ends() -> None:
    there, here = os.pipe()
    with os.fdopen(there, "rb") as reader:
        # Less than what may wait, and more than what a pipe holds.
        command = python_command(MANY.format(count=4_000))
        with subprocess.Popen(command, stderr=here, env=python_environment()) as process:
            os.close(here)
            assert len(reader.read().splitlines()) == 4_000
            assert process.wait(60) == 0


def test_a_pipe_that_is_read_again_tells_what_is_lost() -> None:
    there, here = os.pipe()
    with os.fdopen(there, "rb", buffering=0) as reader, os.fdopen(here, "wb") as writer:
        handler = log.UnwaitingHandler(writer.fileno())
        handler.setFormatter(log.OneLine())
        count = 0
        while not handler._lost:
            handler.handle(record(logging.INFO, f"{count}"))
            count += 1
        while handler._waiting:
            reader.read(1 << 16)
            handler.flush()
        os.set_blocking(there, False)
        while reader.read(1 << 16):
            pass
        handler.handle(record(logging.ERROR, "again"))
        for _ in range(2):
            handler.close()
        handler.handle(record(logging.ERROR, "to nobody"))
        assert reader.read(1 << 16) == b"WARNING 1 lines of the log are lost: nobody took them in time\nERROR vm=1234 again\n"


def test_a_line_that_is_taken_in_part_is_ended_before_the_next(journal: tuple[log.UnwaitingHandler, socket.socket]) -> None:
    handler, there = journal
    lines = [f"{number} {'word ' * 300}end" for number in range(150)]
    for line in lines:
        handler.handle(record(logging.INFO, line))
    got = b""
    while more := taken(there):
        got += more
        handler.flush()
    assert got.decode().splitlines() == [f"<6>vm=1234 {line}" for line in lines]


def test_a_journal_that_is_gone_ends_nothing(journal: tuple[log.UnwaitingHandler, socket.socket]) -> None:
    handler, there = journal
    there.close()
    for _ in range(3):
        handler.handle(record(logging.INFO, "to nobody"))
    assert not handler._waiting
    for _ in range(2):
        handler.close()
    handler.handle(record(logging.INFO, "nor to nobody"))
    assert not handler._waiting


def test_a_line_that_cannot_be_made_ends_nothing(
    journal: tuple[log.UnwaitingHandler, socket.socket], capsys: pytest.CaptureFixture[str]
) -> None:
    handler, there = journal
    handler.handle(logging.LogRecord("x", logging.INFO, "file", 1, "%d", ("no number",), None))
    handler.handle(record(logging.INFO, "next"))
    assert taken(there) == b"<6>vm=1234 next\n"
    assert "TypeError" in capsys.readouterr().err


def test_levels_are_changed_and_given_back(root: logging.Logger) -> None:
    vm, writer = (logging.getLogger(f"{log.ROOT}.daemon.{name}") for name in ("vm", "writer"))
    log.set_level("", "warning")
    assert not vm.isEnabledFor(logging.INFO)
    log.set_level("daemon.vm", "debug")
    assert vm.isEnabledFor(logging.DEBUG)
    assert not writer.isEnabledFor(logging.INFO)
    assert log.levels() == {"": "warning", "daemon.vm": "debug"}
    log.set_level("daemon", "error")
    assert not writer.isEnabledFor(logging.WARNING)
    for name in ("daemon.vm", "daemon", ""):
        log.set_level(name, "inherit")
    assert root.level == vm.level == logging.NOTSET


def test_a_logger_that_there_is_not_is_refused_and_not_made() -> None:
    before = len(logging.root.manager.loggerDict)
    for name in ("daemon.none", "trio", "varstore_companion.daemon.vm", "x" * 64, "\n"):
        with pytest.raises(ConfigurationError, match=r"expected one of daemon, .*daemon\.vm"):
            log.set_level(name, "debug")
    assert len(logging.root.manager.loggerDict) == before


async def test_over_the_control_socket(place: Place, root: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    async with greeted(place.control) as control:
        assert "daemon.vm" not in (await control.call(Log(), LogAnswer)).json
        with caplog.at_level(logging.INFO):
            answer = await control.call(Log(LogLevel.DEBUG, "daemon.vm"), LogAnswer)
        assert '"daemon.vm": "debug"' in answer.json
        assert caplog.messages == ["from here on the log of daemon.vm is at level debug"]
        with pytest.raises(Refused) as caught:
            await control.call(Log(LogLevel.DEBUG, "no such"), LogAnswer)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        await control.call(Log(LogLevel.ERROR, ""), LogAnswer)
        assert root.level == logging.ERROR
        assert '"": "error"' in (await control.call(Log(LogLevel.INHERIT, "daemon.vm"), LogAnswer)).json
