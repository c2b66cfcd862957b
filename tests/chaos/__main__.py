"""``python -m tests.chaos [--minutes N] [--seed S] [--pause P]``: kill everything at random, and print what was lost.

The exit status is 1 if anything was. A seed repeats the plan and the order of the kills, but not their timing.
"""

from __future__ import annotations

import argparse
import random
import sys

from tests.chaos.run import LONGEST_PAUSE, run


def main() -> int:
    """Run, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--pause", type=float, default=LONGEST_PAUSE, help="seconds between two kills, at most")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    report = run(options.minutes * 60, options.seed, options.pause)
    print(report)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
