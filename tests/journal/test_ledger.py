"""What is noted of writes that are under way outlives a killed daemon, and nothing else does."""

import errno
import os
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from varstore_companion.journal import files
from varstore_companion.journal.ledger import MAX_VMS, Ledger, Noted

A, B = bytes([1]) * 32, bytes([2]) * 32


def opened(path: Path) -> Ledger:
    ledger = Ledger(path)
    ledger.open()
    return ledger


def test_the_next_daemon_finds_what_was_noted_last(tmp_path: Path) -> None:
    path, one, two = tmp_path / "ledger", uuid4(), uuid4()
    ledger = opened(path)
    ledger.note(one, A)
    ledger.note(two, A, B)
    ledger.note(one, B, A)
    ledger.note(one, A)
    assert ledger.noted(one) == Noted(A, None)
    # Not closed: the process was killed.
    again = opened(path)
    assert (again.noted(one), again.noted(two), again.noted(uuid4())) == (Noted(A, None), Noted(A, B), None)
    again.note(two, B)
    assert opened(path).noted(two) == Noted(B, None)
    assert opened(path).noted(one) == Noted(A, None)


def test_nothing_counts_after_the_host_went_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, vm = tmp_path / "ledger", uuid4()
    opened(path).note(vm, A, B)
    boot = tmp_path / "boot_id"
    boot.write_text("00000000-0000-0000-0000-000000000001\n")
    monkeypatch.setattr(files, "_HOST_START", boot)
    assert opened(path).noted(vm) is None
    opened(path).note(vm, B)
    assert opened(path).noted(vm) == Noted(B, None)


@pytest.mark.parametrize("byte", range(0, 84, 5))
def test_a_damaged_slot_is_no_note_and_is_used_again(tmp_path: Path, byte: int) -> None:
    path, one, two, new = tmp_path / "ledger", uuid4(), uuid4(), uuid4()
    ledger = opened(path)
    ledger.note(one, A, B)
    ledger.note(two, B)
    data = bytearray(path.read_bytes())
    data[64 + byte] ^= 0x10
    path.write_bytes(data)
    again = opened(path)
    assert (again.noted(one), again.noted(two)) == (None, Noted(B, None))
    again.note(new, A)
    assert path.stat().st_size == len(data)
    assert (opened(path).noted(new), opened(path).noted(two)) == (Noted(A, None), Noted(B, None))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100, 147])
def test_a_file_that_was_cut(tmp_path: Path, size: int) -> None:
    path, vm = tmp_path / "ledger", uuid4()
    opened(path).note(vm, A)
    os.truncate(path, size)
    ledger = opened(path)
    assert ledger.noted(vm) is None
    ledger.note(vm, B)
    assert opened(path).noted(vm) == Noted(B, None)


def test_it_is_bounded_and_the_oldest_give_way(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    vms = [UUID(int=number + 1) for number in range(MAX_VMS + 10)]
    ledger.note(vms[0], A)
    for vm in vms[1:MAX_VMS]:
        ledger.note(vm, A)
    ledger.note(vms[0], B)
    for vm in vms[MAX_VMS:]:
        ledger.note(vm, B, A)
    again = opened(tmp_path / "ledger")
    for found in (ledger, again):
        assert found.noted(vms[0]) == Noted(B, None)
        assert [found.noted(vm) for vm in vms[1:11]] == [None] * 10
        assert found.noted(vms[11]) == Noted(A, None)
        assert found.noted(vms[-1]) == Noted(B, A)


def test_a_file_that_takes_nothing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = opened(tmp_path / "ledger")
    ledger.close()
    for _ in range(3):
        ledger.note(uuid4(), A)
    assert len(caplog.messages) == 1


def test_a_full_disk_keeps_no_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, one, two = tmp_path / "ledger", uuid4(), uuid4()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        ledger = opened(path)
        ledger.note(one, A)
        assert ledger.noted(one) == Noted(A, None)
    assert len(caplog.messages) == 1
    assert opened(path).noted(one) is None
    path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        ledger = opened(path)
        ledger.note(one, A)
    # There is room again.
    ledger.note(two, A, B)
    assert (opened(path).noted(one), opened(path).noted(two)) == (None, Noted(A, B))


def test_where_no_start_of_the_host_can_be_told_nothing_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, vm = tmp_path / "ledger", uuid4()
    monkeypatch.setattr(files, "_HOST_START", tmp_path / "absent")
    for number in range(1, 3):
        ledger = opened(path)
        assert ledger.noted(vm) is None
        assert len(caplog.messages) == number
        ledger.note(vm, A)
        assert ledger.noted(vm) == Noted(A, None)


def test_what_is_forgotten_is_forgotten_by_the_next_daemon_too(tmp_path: Path) -> None:
    path, one, two, new = tmp_path / "ledger", uuid4(), uuid4(), uuid4()
    ledger = opened(path)
    ledger.note(one, A, B)
    ledger.note(two, B)
    ledger.forget(one)
    ledger.forget(one)
    for found in (ledger, opened(path)):
        assert (found.noted(one), found.noted(two)) == (None, Noted(B, None))
    size = path.stat().st_size
    ledger.note(new, A)
    assert path.stat().st_size == size
    assert (opened(path).noted(new), opened(path).noted(two)) == (Noted(A, None), Noted(B, None))
