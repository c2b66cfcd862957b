"""Test kills at each point of adding a schedule and of storing an occurrence: each is stored once."""

from __future__ import annotations

import signal
from contextlib import closing
from datetime import datetime
from typing import Final

import pytest

import eoq
from tests.faults.daemons import ids_of, planted_daemon, settle_all
from tests.faults.planted_daemon import Die, Plant, Point
from tests.support import Wire, eventually

COMMITTED: Final = ("committed", "replying")

around_the_commit = pytest.mark.parametrize(
    "point", ["written", "committed", *(pytest.param(p, marks=pytest.mark.slow) for p in ("begun", "replying"))]
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "quick_commit",
    [pytest.param(None, id="quick"), pytest.param(0.0, id="in the thread", marks=pytest.mark.slow)],
)
@around_the_commit
def test_a_kill_while_an_occurrence_is_stored_loses_and_doubles_none(point: Point, quick_commit: float | None) -> None:
    """The first call of the scheduler finds nothing due. The second stores the first occurrence and plans the next."""
    ids: list[str] = []
    with planted_daemon(Plant(Die(point, "schedule_fire", nth=2), quick_commit)) as daemon:
        with closing(Wire(daemon.socket)) as wire:
            first = wire.ask({"op": "schedule_add", "name": "tick", "queue": "ticks", "every": 1})["next_at"]
        assert daemon.wait() == -signal.SIGKILL
        daemon.start_plain()
        with eoq.connect(daemon.socket) as client:

            def some() -> bool:
                ids.extend(ids_of(settle_all(client, "ticks")))
                return len(ids) >= 3

            eventually(some)
    times = [datetime.fromisoformat(id.partition("@")[2]).timestamp() for id in ids]
    assert times == [first + n for n in range(len(ids))]


@pytest.mark.first_by_default
@around_the_commit
def test_a_kill_while_a_schedule_is_added_stores_it_once_or_not_at_all(point: Point) -> None:
    """A confirmed schedule is stored, and a repeated request adds no second one."""
    with planted_daemon(Plant(Die(point, "schedule_add"))) as daemon:
        with closing(Wire(daemon.socket)) as wire:
            wire.send({"op": "schedule_add", "name": "s", "queue": "q", "every": 1000})
            assert daemon.wait() == -signal.SIGKILL
        daemon.start_plain()
        with eoq.connect(daemon.socket) as client:
            stored = [row["name"] for row in client.ask("schedules")["schedules"]]
            assert stored == (["s"] if point in COMMITTED else [])
            again = client.ask("schedule_add", name="s", queue="q", every=1000)
            assert again["changed"] is (point not in COMMITTED)
            assert len(client.ask("schedules")["schedules"]) == 1
