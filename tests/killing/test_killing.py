"""Twenty kills, other ones each time. `make nightly` makes 500.

The seed is printed with the table; `tests/killing/run.py --kills 20 --movers 2 --longest-life 0.6 --seed N` goes by it again.
"""

from pathlib import Path
from random import SystemRandom

import pytest

from killing.loop import Plan, run
from support.certificates import microsoft_folder


def test_nothing_acknowledged_is_lost_or_turned_back(tmp_path: Path) -> None:  # invariants 6, 7 and 9
    if microsoft_folder() is None:
        pytest.skip("Microsoft's certificates come from the package virt-firmware, which is not installed")
    seed = SystemRandom().getrandbits(32)
    tally = run(Plan(seed, kills=20, movers=2, longest_life=0.6), tmp_path)
    print(f"seed {seed}\n{tally.table()}")
    assert not tally.notes
    assert tally.kills == 20
    # There was something to lose.
    assert tally.to_toolstack > 50
    assert tally.to_journal > 50
    assert tally.quarantined == tally.moved
