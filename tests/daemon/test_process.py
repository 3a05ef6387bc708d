"""What the daemon asks of its process."""

import errno
import fcntl
import gc
from pathlib import Path

import pytest

from varstore_companion.daemon.process import locked, spare_what_stands
from varstore_companion.errors import ConfigurationError


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(ConfigurationError, match=rf"{tmp_path}: cannot be locked: No locks"), locked(tmp_path):
        pass


def test_what_stands_is_not_looked_through_again() -> None:
    tracked: list[object] = [[]]
    loose: list[object] = []
    loose.append(loose)
    number = id(loose)
    del loose
    try:
        spare_what_stands()
        assert gc.get_freeze_count() > 1_000
        left = gc.get_objects()
        assert not any(each is tracked for each in left)
        assert all(id(each) != number for each in left), "garbage is not kept for ever"
    finally:
        gc.unfreeze()
    assert any(each is tracked for each in gc.get_objects())
