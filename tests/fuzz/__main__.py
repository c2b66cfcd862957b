"""``python -m tests.fuzz [--lines N] [--spool N] [--rows N] [--configs N] [--seed S]``: many hostile inputs.

Prints what became of them. The exit status is 1 if one was not answered once, or ended a process.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable

from tests.fuzz.files import ALL, Report
from tests.fuzz.lines import LineReport, run_lines


def main() -> int:
    """Run, and print the reports."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    for kind in ("lines", *ALL):
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = vars(parser.parse_args())
    seed = options["seed"]
    print(f"seed {seed}", flush=True)
    good = True
    runs: dict[str, Callable[[int, int], LineReport | Report]] = {"lines": run_lines, **ALL}
    for kind, run in runs.items():
        if options[kind]:
            report = run(options[kind], seed)
            print(report, flush=True)
            good = good and report.is_good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
