"""The bridge under kills of every part, the engine among them: nothing lost, nothing doubled, groups in order."""

from __future__ import annotations

import pytest

from tests.bridge_kills.run import Plan, run
from tests.nats_server import why_no_nats
from tests.postgres import why_absent


@pytest.mark.slow
@pytest.mark.skipif(why_absent() is not None, reason=str(why_absent()))
def test_nothing_is_lost_doubled_or_out_of_order() -> None:
    report = run(Plan(messages=600, kills=30, machines=3, seed=3, results=True, one_step_in=200, cuts=True))
    assert report.clean, str(report)
    assert report.booked == 600


@pytest.mark.slow
@pytest.mark.skipif(why_absent() is not None, reason=str(why_absent()))
def test_nor_where_the_daemons_run_the_bridges() -> None:
    report = run(Plan(messages=400, kills=15, machines=2, seed=5, in_daemons=True, results=True))
    assert report.clean, str(report)
    assert report.booked == 400


@pytest.mark.slow
@pytest.mark.skipif(why_no_nats() is not None, reason=str(why_no_nats()))
def test_nor_where_a_stream_is_between() -> None:
    report = run(Plan(messages=600, kills=30, machines=3, seed=3, engine="jetstream", one_step_in=200, cuts=True))
    assert report.clean, str(report)
    assert report.booked == 600
