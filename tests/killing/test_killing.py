"""Twenty kills, other ones each time. `make nightly` makes 500.

The seed is printed with the table; `tests/killing/run.py --kills 20 --movers 2 --interposed 4 --longest-life 0.6 --seed N`
goes by it again.
"""

from pathlib import Path
from random import SystemRandom

import pytest
import trio

from killing.embedded import EmbeddedLoop
from killing.loop import Plan, run
from support.certificates import microsoft_folder

pytestmark = pytest.mark.skipif(
    microsoft_folder() is None, reason="Microsoft's certificates come from the package virt-firmware, which is not installed"
)


def test_nothing_acknowledged_is_lost_or_turned_back(tmp_path: Path) -> None:  # invariants 6, 7 and 9
    seed = SystemRandom().getrandbits(32)
    tally = run(Plan(seed, kills=20, movers=2, interposed=4, longest_life=0.6), tmp_path)
    print(f"seed {seed}\n{tally.table()}")
    assert not tally.notes
    assert tally.kills == 20
    # There was something to lose.
    assert tally.to_toolstack > 0
    assert tally.to_journal > 0
    assert tally.past_daemon > 0
    assert tally.quarantined == tally.moved


async def test_nor_on_the_embedded_toolstack_while_its_file_is_locked(tmp_path: Path) -> None:  # invariants 6, 7 and 9
    seed = SystemRandom().getrandbits(32)
    loop = EmbeddedLoop(tmp_path, seed, kills=3)
    with trio.fail_after(120):
        await loop.run()
    print(f"seed {seed}\n{loop.tally.table()}")
    assert not loop.tally.notes
    assert loop.tally.kills == 3
    assert loop.tally.quarantined == 0
    assert loop.tally.to_toolstack > 0
    assert loop.tally.to_journal > 0
