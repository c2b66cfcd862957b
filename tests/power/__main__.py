"""``python -m tests.power [--cuts N] [--seed S]``: cut the power at random moments, and print what was lost.

A daemon and a worker live and are killed. Each cut takes their files, the daemon's and the ledger, as a disk may have
them after a loss of power, starts a daemon and a worker on them, and compares. That is done in memory, and by a daemon
in this process, but for one cut of each life. The exit status is 1 if anything confirmed was lost or took effect twice.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.power.cuts import LOSSES, check_cut, check_cut_here, live
from tests.support import memory_folder

STEPS: Final = 20
"""Steps of a daemon's life: so few that its log never begins again."""
CUTS_OF_A_LIFE: Final = 50
"""How often the files of one daemon are cut before the next one lives."""


@contextmanager
def _in_memory() -> Iterator[Path]:
    """Make a folder, in memory where there is such a file system, and remove it at the end."""
    parent = memory_folder() or Path("/tmp")  # noqa: S108 # the path of a socket must be short
    with TemporaryDirectory(prefix="eoq-", dir=parent) as folder:
        yield Path(folder)


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
        with _in_memory() as folder:
            moments = live(folder, rng, STEPS)
            for number in range(min(CUTS_OF_A_LIFE, options.cuts - done.total())):
                loss, moment, seed = rng.choice(LOSSES), rng.choice(moments), rng.randrange(10**9)
                check = check_cut_here if number else check_cut
                with _in_memory() as copy:
                    result = check(folder, moments, moment, loss, seed, copy)
                done[loss.__name__] += 1
                found.update(result)
                if result["lost"] or result["doubled"] or result["damaged"]:
                    print(f"{dict(result)}: {loss.__name__} {seed} {moment.length} {moment.ledger}", flush=True)
    print(f"seed {options.seed}, {time.monotonic() - began:,.0f} s")
    print(f"{done.total():,} cuts: " + ", ".join(f"{name} {count:,}" for name, count in sorted(done.items())))
    print(", ".join(f"{name} {found[name]:,}" for name in ("confirmed", "lost", "doubled", "damaged")))
    return 1 if found["lost"] or found["doubled"] or found["damaged"] else 0


if __name__ == "__main__":
    sys.exit(main())
