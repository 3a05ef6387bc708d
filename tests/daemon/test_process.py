"""What the daemon asks of its process."""

import gc

from varstore_companion.daemon.process import spare_what_stands


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
