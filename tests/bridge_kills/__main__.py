"""Run the system, kill its parts, and print what was done and what was lost, doubled or out of order.

python -m tests.bridge_kills --kills 500 --messages 20000 --seed 7 --results --steps 300 --cuts --skew 3600 --away 60

A stream takes each message by itself, so each is a step. There, `--steps` must be some thousands, or no batch arrives.
"""

from __future__ import annotations

import argparse
import sys

from tests.bridge_kills.run import Plan, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bridge_kills")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--machines", type=int, default=3, help="destinations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("postgres", "jetstream"), default="postgres")
    parser.add_argument("--in-daemons", action="store_true", help="the daemons run the bridges, by their configuration")
    parser.add_argument("--results", action="store_true", help="results come back, and are checked")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="a bridge kills itself at one of N steps")
    parser.add_argument("--cuts", action="store_true", help="the network is cut and frozen")
    parser.add_argument("--skew", type=float, default=0.0, metavar="SECONDS", help="wrong clocks, ahead and behind")
    parser.add_argument("--away", type=float, default=0.0, metavar="SECONDS", help="the engine is away, once")
    given = parser.parse_args()
    report = run(
        Plan(
            given.messages,
            given.kills,
            given.machines,
            given.seed,
            engine=given.engine,
            in_daemons=given.in_daemons,
            results=given.results,
            one_step_in=given.steps,
            cuts=given.cuts,
            skew=given.skew,
            away=given.away,
        )
    )
    print(report)
    sys.exit(0 if report.clean else 1)


if __name__ == "__main__":
    main()
