"""`make nightly`: kill the daemon 500 times, print the table; ends with 1 when anything was lost or turned back.

    python -I tests/killing/run.py [--kills N] [--movers N] [--seed N]

The seed is printed, and gives the same plan again; which moments a kill then meets is the machine's own affair.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from random import SystemRandom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# The line above makes them importable in isolated mode.
from killing.loop import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the daemon under load, and see that nothing acknowledged is lost.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--movers", type=int, default=4, help="VMs of 20 that another host takes over meanwhile")
    parser.add_argument("--interposed", type=int, default=6, help="VMs of 20 whose guards' sockets are taken over")
    parser.add_argument("--longest-life", type=float, default=2.0, metavar="SECONDS", help="of a daemon, from ready on")
    parser.add_argument("--seed", type=int, default=SystemRandom().getrandbits(32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    plan = Plan(
        options.seed,
        options.kills,
        movers=options.movers,
        interposed=options.interposed,
        longest_life=options.longest_life,
    )
    with tempfile.TemporaryDirectory(prefix="killing-") as folder:
        tally = run(plan, Path(folder), lambda text: print(text, file=sys.stderr))
    print(tally.table())
    return 1 if tally.notes else 0


if __name__ == "__main__":
    sys.exit(main())
