"""``python -m tests.power [--cuts N] [--seed S]``: cut the power at random moments, and print what was lost.

A daemon lives and is killed; each cut takes its files as a disk may have them after a loss of power, starts a daemon on
them, and compares. The exit status is 1 if anything confirmed was lost, or delivered twice.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from typing import Final

from tests.power.cuts import LOSSES, check_cut, live
from tests.support import short_folder

STEPS: Final = 20
"""Steps of a daemon's life: so few that its log never begins again."""
CUTS_OF_A_LIFE: Final = 50
"""How often the files of one daemon are cut before the next one lives."""


def main() -> int:
    """Run, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.power", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    began = time.monotonic()
    found: Counter[str] = Counter()
    done: Counter[str] = Counter()
    while done.total() < options.cuts:
        with short_folder() as folder:
            moments = live(folder, rng, STEPS)
            for _ in range(min(CUTS_OF_A_LIFE, options.cuts - done.total())):
                loss = rng.choice(LOSSES)
                with short_folder() as copy:
                    result = check_cut(folder, moments, rng.choice(moments), loss, rng.randrange(10**9), copy)
                done[loss.__name__] += 1
                found.update(result)
    print(f"seed {options.seed}, {time.monotonic() - began:,.0f} s")
    print(f"{done.total():,} cuts: " + ", ".join(f"{name} {count:,}" for name, count in sorted(done.items())))
    print(", ".join(f"{name} {found[name]:,}" for name in ("confirmed", "lost", "doubled", "damaged")))
    return 1 if found["lost"] or found["doubled"] or found["damaged"] else 0


if __name__ == "__main__":
    sys.exit(main())
