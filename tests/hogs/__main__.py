"""``python -m tests.hogs [--seconds N] [HOG…]``: what one client or file that does its worst does to others."""

from __future__ import annotations

import argparse
import sys

from tests.hogs.hogs import HOGS
from tests.hogs.run import run


def main() -> int:
    """Run the hogs, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.hogs", description=(__doc__ or "").partition("``: ")[2])
    parser.add_argument("hogs", nargs="*", metavar="HOG", help=", ".join(HOGS))
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    failed = False
    for hog in options.hogs or HOGS:
        report = run(hog, options.seconds)
        print(report, flush=True)
        failed = failed or bool(report.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
