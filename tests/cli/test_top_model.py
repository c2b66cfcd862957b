"""What ``eoq top`` makes of the daemon's answers, without a terminal and without Textual."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

model = import_module("eoq.cli.top.model")
lines = import_module("eoq.cli.top.lines")
polling = import_module("eoq.cli.top.polling")


def _row(name: str, **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("ready", "leased", "delayed", "blocked", "dead"), 0)
    rates = {"sent_rate": 0.0, "done_rate": 0.0, "oldest_ready": None, "paused": False}
    return {"name": name, **counts, **rates, "since_start": {"retried": 0}, **more}


def _answer(*rows: dict[str, Any]) -> dict[str, Any]:
    sums = {state: sum(row[state] for row in rows) for state in ("ready", "leased", "delayed", "blocked", "dead")}
    return {"count": len(rows), "matching": len(rows), "sums": sums, "queues": list(rows)}


def _model(*rows: dict[str, Any]) -> Any:
    one = model.Model()
    one.update({"now": 100.0, "started_at": 40.0, "version": "1"}, _answer(*rows), 0.01)
    return one


def test_the_busiest_queues_come_first_and_the_order_can_be_changed() -> None:
    one = _model(_row("idle", ready=9), _row("a", dead=2), _row("busy", sent_rate=1.0), _row("out", leased=1))
    orders = {}
    for _ in model.ORDERS:
        orders[one.order] = [queue.name for queue in one.shown()]
        one.next_order()
    assert orders == {
        "activity": ["busy", "out", "idle", "a"],
        "depth": ["idle", "out", "a", "busy"],
        "dead": ["a", "busy", "idle", "out"],
        "name": ["a", "busy", "idle", "out"],
    }
    one.wanted = "I"
    assert [queue.name for queue in one.shown()] == ["idle"]


def test_the_course_of_a_queue_is_kept_until_the_queue_is_gone() -> None:
    one = _model(_row("q", ready=1, delayed=2))
    one.update({"now": 101.0}, _answer(_row("q", ready=7, oldest_ready=99.5)), 0.01)
    queue = one.queues["q"]
    assert (list(queue.depths), queue.oldest) == ([3, 7], 1.5)
    one.update({"now": 102.0}, _answer(), 0.01)
    one.update({"now": 103.0}, _answer(_row("q")), 0.01)
    assert list(one.queues["q"].depths) == [0]


@pytest.mark.parametrize("width", [40, 80, 132, 200])
def test_each_row_fits_its_screen(width: int) -> None:
    one = _model(_row("n" * 100, ready=123_456_789, dead=99_999, sent_rate=54321.5, oldest_ready=1.0, paused=True))
    (queue,) = one.shown()
    assert len(lines.queue_head(width)) == len(lines.queue_line(queue, width)) == max(width, 73)
    assert "123.5M" in lines.queue_line(queue, width) or "123M" in lines.queue_line(queue, width)
    assert "paused" in lines.queue_line(queue, width)


def test_sparklines_and_numbers_are_short() -> None:
    assert lines.sparkline([0, 1, 1000], 5) == "  ▁▂█"
    assert lines.sparkline([], 3) == "   "
    assert [lines.number(value) for value in (0, 0.5, 12, 9999, 12_345, 1_500_000)] == [
        *("0", "0.5", "12", "9999", "12.3k", "1.5M")
    ]


def test_a_message_cannot_steer_the_terminal() -> None:
    message = {"id": "i", "state": "dead", "attempts": 1, "enqueued_at": 90.0, "error": "\x1b[2J\nno", "body": "\x07"}
    shown = [lines.message_line(message, 100.0, 80), *lines.message_text(message)]
    assert all(line.isprintable() for line in shown)
    assert len(shown[0]) == 80


def test_pauses_grow_with_the_time_of_an_answer() -> None:
    assert [polling.pause_after(seconds) for seconds in (0.001, 0.3, 60.0)] == [1.0, 3.0, 30.0]
