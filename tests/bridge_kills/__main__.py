"""Run the system, kill its parts, and print what was done and what was lost, doubled or out of order.

python -m tests.bridge_kills --kills 500 --messages 20000 --seed 7 [--in-daemons] [--engine jetstream]
"""

from __future__ import annotations

import argparse
import sys

from tests.bridge_kills.run import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bridge_kills")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--machines", type=int, default=3, help="destinations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--in-daemons", action="store_true", help="the daemons run the bridges, by their configuration")
    parser.add_argument("--engine", choices=("postgres", "jetstream"), default="postgres")
    arguments = parser.parse_args()
    sizes = arguments.messages, arguments.kills, arguments.machines, arguments.seed
    report = run(*sizes, in_daemons=arguments.in_daemons, engine=arguments.engine)
    print(report)
    sys.exit(0 if report.clean else 1)


if __name__ == "__main__":
    main()
