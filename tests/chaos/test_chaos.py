"""Producers, workers and the daemon are real processes, killed and stopped at random. Each effect is there once.

``python -m tests.chaos`` runs the same for longer. ``EOQ_SEED`` repeats the plan and the order of the kills of an
earlier run, but not its timing.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.chaos.run import run


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [60.0])
def test_everything_killed_at_random_takes_effect_once(seconds: float) -> None:
    seed = int(os.environ.get("EOQ_SEED") or random.SystemRandom().randrange(10**6))
    print(f"EOQ_SEED={seed}")
    report = run(seconds, seed)
    print(report)
    assert report.is_good, report
    assert report.effects > report.actions.total()
    assert all(report.sent[way] for way in ("send", "outbox", "spool"))
    assert report.keys and report.ticks
    assert report.actions["kill daemon"] and report.actions["set clock"]
    assert any(action.startswith("restore") for action in report.actions)
