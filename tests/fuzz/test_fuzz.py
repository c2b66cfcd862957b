"""Hostile inputs, some thousands of each kind. ``python -m tests.fuzz`` runs any number."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.files import Report, run_configs, run_rows, run_spool
from tests.fuzz.lines import run_lines


def _check_lines(count: int, seed: int) -> None:
    report = run_lines(count, seed)
    assert report.is_good, report
    assert report.lines >= count
    assert report.ok > count / 20, report
    assert report.errors["invalid_request"] > count / 4, report


@pytest.mark.slow
def test_every_line_is_answered_once() -> None:
    _check_lines(5_000, seed=1)


@pytest.mark.slow
def test_each_of_many_lines_is_answered_once() -> None:
    _check_lines(100_000, seed=2)


KINDS = [run_spool, run_rows, run_configs]


def _check(run: Callable[[int, int], Report], count: int, seed: int) -> None:
    report = run(count, seed)
    assert report.is_good, report
    assert report.taken + report.reasons.total() == count
    assert len(report.reasons) > 10, report


@pytest.mark.parametrize("run", KINDS)
@pytest.mark.slow
def test_every_hostile_input_is_taken_or_rejected_with_its_reason(run: Callable[[int, int], Report]) -> None:
    _check(run, 150, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("run", KINDS)
def test_each_of_many_hostile_inputs_is_taken_or_rejected(run: Callable[[int, int], Report]) -> None:
    _check(run, 2_000, seed=2)
