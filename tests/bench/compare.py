"""Compare the speed of two checkouts, row by row, in alternation.

    python tests/bench/compare.py OLD_ROOT NEW_ROOT [--python OLD,NEW] [--rounds N] [--scale X] [--rows NAME[,NAME…]]

Both are measured by ``run.py`` beside this file, each with its own interpreter: ``ROOT/.venv/bin/python`` unless
``--python`` names others. A round measures each row twice for each checkout, in the order old, new, old, new (or new,
old, new, old in every second round), in short processes. So what disturbs the machine disturbs both.

A ratio above 1 means that NEW is faster, for times as well as for rates. The table shows the median of the rounds'
ratios with the lowest and highest, and the same for one checkout against itself: differences smaller than that spread
mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench import run
else:
    import run  # the file beside this one, which runs as a script

BENCHMARK = Path(__file__).with_name("run.py")
SKIPPED = ("raw-send", "raw-send-100", "raw-take", "raw-take-100", "fdatasync")
"""Rows that do not depend on eoq."""


@dataclass(frozen=True)
class Checkout:
    """One of the two: its folder and the interpreter that has it installed."""

    root: Path
    python: Path

    def check(self) -> None:
        """Exit unless the interpreter imports eoq from the folder."""
        if not self.python.exists():
            sys.exit(f"there is no interpreter {self.python}; name one with --python")
        found = self._run("-c", "import eoq; print(eoq.__file__)").strip()
        if not Path(found).resolve().is_relative_to(self.root.resolve()):
            sys.exit(f"{self.python} imports {found}, which is not in {self.root}; name its interpreter with --python")

    def measure(self, row: run.Row, scale: float) -> float:
        """Return the figure of one row, so that more is better."""
        output = self._run(str(BENCHMARK), "--json", "--rounds", "1", "--scale", f"{scale}", "--rows", row.name)
        figure = float(json.loads(output)["rates"][row.label])
        return 1 / figure if row.in_seconds else figure

    def _run(self, *arguments: str) -> str:
        # Compiled files must be kept: otherwise every process compiles what it imports.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run([self.python, *arguments], stdout=subprocess.PIPE, env=environment, cwd="/", check=True)
        return done.stdout.decode()


@dataclass
class Ratios:
    """The ratios of one row, one for each round."""

    new: list[float] = field(default_factory=list)
    itself: list[float] = field(default_factory=list)

    def add(self, row: run.Row, old: Checkout, new: Checkout, scale: float, *, new_first: bool) -> None:
        """Measure one round."""
        first, second = (new, old) if new_first else (old, new)
        a1, b1, a2, b2 = (checkout.measure(row, scale) for checkout in (first, second, first, second))
        ratio = math.sqrt(b1 * b2 / (a1 * a2))
        self.new.append(1 / ratio if new_first else ratio)
        self.itself.append(a2 / a1)


def spread(values: list[float]) -> str:
    """Return the median, the lowest and the highest value."""
    return f"{statistics.median(values):7.3f}  {min(values):6.3f} .. {max(values):.3f}"


def print_table(ratios: dict[str, Ratios], rows: list[run.Row]) -> None:
    """Print the ratios of all rounds so far."""
    print(f"{'':44}{'new / old':^26}{'one against itself':^26}")
    for row in rows:
        print(f"{row.label:44}{spread(ratios[row.name].new):26}{spread(ratios[row.name].itself)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", type=Path, metavar="OLD_ROOT")
    parser.add_argument("new", type=Path, metavar="NEW_ROOT")
    parser.add_argument("--python", metavar="OLD,NEW", help="interpreters; default: .venv/bin/python of each checkout")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default 7")
    parser.add_argument("--scale", type=float, default=0.25, metavar="X", help="factor for the numbers of messages")
    parser.add_argument("--rows", metavar="NAME[,NAME…]", help="only these rows (`run.py --list` prints their names)")
    options = parser.parse_args()
    roots = (options.old, options.new)
    pythons = options.python.split(",") if options.python else [root / ".venv/bin/python" for root in roots]
    if len(pythons) != 2:
        parser.error("--python takes two interpreters, separated by a comma")
    old, new = (Checkout(root, Path(python).absolute()) for root, python in zip(roots, pythons, strict=True))
    rows = [row for row in dict.fromkeys(run.chosen_rows(options.rows)) if options.rows or row.name not in SKIPPED]
    for checkout in (old, new):
        checkout.check()
    ratios = {row.name: Ratios() for row in rows}
    try:
        for number in range(options.rounds):
            for row in rows:
                if sys.stderr.isatty():
                    print(f"\r\x1b[Kround {number + 1} of {options.rounds}: {row.name}", end="", file=sys.stderr)
                ratios[row.name].add(row, old, new, options.scale, new_first=number % 2 == 1)
    except KeyboardInterrupt:
        print("\nstopped; what was measured so far:", file=sys.stderr)
        rows = [row for row in rows if ratios[row.name].new]
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print_table(ratios, rows)


if __name__ == "__main__":
    main()
