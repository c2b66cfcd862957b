"""Test ``eoq demo``: every payment takes effect once despite kills, and a wrong effect is a failure."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from tests.support import Shell

ROOT = Path(__file__).parents[2]


def test_each_payment_takes_effect_once(shell: Shell) -> None:
    ran = shell.run("eoq demo --payments 400 --kills 4 --seed 5 --json")
    assert ran.status == 0, ran.errors
    found = json.loads(ran.text)
    assert found["good"]
    assert found["effects"] == found["payments"] == 400
    assert (found["daemon_kills"], found["worker_kills"]) == (2, 2)
    assert found["sends"] > 400
    assert found["duplicates_refused"] > 0
    assert found["balance_found"] == found["balance_expected"] > 0


@pytest.mark.slow
def test_the_demo_runs_in_a_checkout_and_prints_a_table(shell: Shell) -> None:
    ran = shell.run(f"cd {ROOT} && eoq demo --payments 50 --kills 1")
    assert ran.status == 0, ran.errors
    assert "every payment took effect exactly once" in ran.text
    assert "balance found" in ran.text


@pytest.mark.parametrize(
    ("missing", "doubled", "found"), [(1, 0, 100), (0, 1, 100), (0, 0, 99)], ids=["missing", "doubled", "balance"]
)
def test_a_missing_or_doubled_effect_is_a_failure(missing: int, doubled: int, found: int) -> None:
    outcome = import_module("eoq.cli.demo").Outcome(1, 1, 0, 0, 0, 0, 0, 1, missing, doubled, 100, found, 0.0, 0)
    assert not outcome.good
