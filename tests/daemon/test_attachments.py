"""The list of attached sockets on disk."""

import errno
import json
import os
from pathlib import Path
from uuid import uuid4

import pytest

from varstore_companion.daemon import attachments
from varstore_companion.daemon.attachments import Attachment, NewerListError, interposed
from varstore_companion.errors import ConfigurationError
from varstore_companion.journal import files

VM = uuid4()


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "attached.json"
    assert attachments.load(path) == ()
    kept = (
        Attachment(VM, Path("/run/a.sock"), None, 0o660, resume=False),
        Attachment(VM, Path("/run/b.sock"), 0, 0, resume=True),
        Attachment(uuid4(), Path("/run/\udcff\udcfe\n.sock"), 0xFFFF_FFFE, 0o777, resume=False),
        Attachment(uuid4(), Path("/run/d.sock"), None, 0o660, resume=False, upstream=Path("/run/\udcff.guard")),
        interposed(uuid4(), Path("/run/\udcff"), resume=True),
    )
    attachments.save(path, kept)
    assert attachments.load(path) == kept
    attachments.save(path, ())
    assert attachments.load(path) == ()


def entry(**changed: object) -> str:
    return json.dumps(
        {"format": 1, "attachments": [Attachment(VM, Path("/a"), None, 0o660, resume=False).describe() | changed]}
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"x"',
        "{}",
        '{"format": 0, "attachments": []}',
        '{"format": "2", "attachments": []}',
        '{"format": [], "attachments": []}',
        '{"format": 1}',
        '{"format": 1, "attachments": 3}',
        '{"format": 1, "attachments": [7]}',
        '{"format": 1, "attachments": [{}]}',
        "[" * 200_000,
        entry(vm="not a uuid"),
        entry(vm=None),
        entry(vm=7),
        entry(path=7),
        entry(path=None),
        entry(path="/a\0b"),
        entry(gid="7"),
        entry(gid=-1),
        entry(gid=1 << 32),
        entry(gid=0xFFFF_FFFF),
        entry(mode="9"),
        entry(mode=432),
        entry(mode="-1"),
        entry(mode="10000"),
        entry(mode="4755"),
        entry(upstream=7),
        entry(upstream=["/a"]),
        entry(upstream="/a\0b"),
        entry(interpose="yes"),
        entry(interpose=1),
        entry(interpose=None),
    ],
)
def test_what_is_no_such_list_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "attached.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"attached\.json") as raised:
        attachments.load(path)
    assert not isinstance(raised.value, NewerListError)


@pytest.mark.parametrize("text", ['{"format": 2}', '{"format": 1000, "attachments": [7]}'])
def test_a_list_of_a_later_version_is_told_from_a_damaged_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "attached.json"
    path.write_text(text)
    with pytest.raises(NewerListError, match=r"attached\.json: format \d+, from a later version.*reads up to format 1"):
        attachments.load(path)


def test_a_list_from_before_upstreams_is_read(tmp_path: Path) -> None:
    path = tmp_path / "attached.json"
    plain = Attachment(VM, Path("/a"), None, 0o660, resume=True)
    described = plain.describe()
    del described["upstream"], described["interpose"]
    path.write_text(json.dumps({"format": 1, "host_start": files.host_start(), "attachments": [described]}))
    assert attachments.load(path) == (plain,)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "attached.json"
    path.write_bytes(b'{"format": 1, "attachments": [], "x": "\xff"}')
    with pytest.raises(ConfigurationError, match=r"attached\.json"):
        attachments.load(path)


def test_what_cannot_be_saved_leaves_the_list_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "attached.json"
    before = (Attachment(VM, Path("/run/a.sock"), None, 0o660, resume=False),)
    attachments.save(path, before)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        attachments.save(path, ())
    monkeypatch.undo()
    assert attachments.load(path) == before
    assert [each.name for each in tmp_path.iterdir()] == ["attached.json"]


def test_they_are_of_one_start_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A path has the domain's number in it, and after a reboot another VM's domain may have that number (invariant 8)."""
    path, start = tmp_path / "attached.json", tmp_path / "start"
    monkeypatch.setattr(files, "_HOST_START", start)
    plain, taken = Attachment(VM, Path("/a"), None, 0o660, resume=True), interposed(VM, Path("/b"), resume=False)
    start.write_text("one\n")
    attachments.save(path, [plain, taken])
    assert attachments.load(path) == (plain, taken)
    assert caplog.messages == []
    start.write_text("two\n")
    assert attachments.load(path) == ()
    assert "2 sockets do not come back" in caplog.messages[-1]
    start.unlink()
    assert attachments.load(path) == ()
    attachments.save(path, [plain, taken])
    assert attachments.load(path) == ()
    path.write_text(json.dumps({"format": 1, "attachments": [plain.describe()]}))
    assert attachments.load(path) == ()
