"""Rights: each request says which queues it touches, and what it must be allowed to do with them."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from eoq.daemon import requests
from eoq.daemon.rules.rights import Need, Right, needs

SAMPLES: Final[dict[str, dict[str, Any]]] = {
    "send": {"queue": "q", "body": ""},
    "send_many": {"queue": "q", "messages": [{"body": ""}]},
    "receive": {"queue": "q"},
    "ack": {"receipt": "r"},
    "settle": {"acks": [{"receipt": "r"}], "send": [{"queue": "q", "body": ""}, {"queue": "other", "body": ""}]},
    "nack": {"receipt": "r"},
    "reject": {"receipt": "r"},
    "extend": {"receipt": "r", "seconds": 1},
    "release": {"receipts": ["r", "s"]},
    "cancel": {"request": 1},
    "result": {"queue": "q", "id": "i"},
    "results": {"queue": "q", "ids": ["i"]},
    "take_results": {"queue": "q", "results": [{"id": "i", "outcome": "done"}]},
    "once": {"key": "k", "token": "t"},
    "once_done": {"key": "k", "token": "t"},
    "once_release": {"key": "k", "token": "t"},
    "queues": {},
    "overview": {},
    "peek": {"queue": "q"},
    "tail": {"queue": "q"},
    "show": {"queue": "q", "id": "i"},
    "why": {"queue": "q", "id": "i"},
    "status": {},
    "metrics": {},
    "pause": {"queue": "q"},
    "resume": {"queue": "q"},
    "delete_queue": {"queue": "q"},
    "purge": {"queue": "q"},
    "cancel_message": {"queue": "q", "id": "i"},
    "edit": {"queue": "q", "id": "i", "delay": 1},
    "redrive": {"queue": "q", "all": True, "to": "other"},
    "drop": {"queue": "q", "all": True},
    "bind": {"topic": "t", "queue": "q"},
    "unbind": {"topic": "t", "queue": "q"},
    "topics": {},
    "schedule_add": {"name": "s", "queue": "q", "every": 1},
    "schedule_remove": {"name": "s"},
    "schedule_pause": {"name": "s"},
    "schedule_resume": {"name": "s"},
    "schedule_run": {"name": "s"},
    "schedule_show": {"name": "s"},
    "schedules": {},
}
"""A request of each type, by its name on the wire."""
NO_QUEUE: Final = {"cancel", "status"}
"""Requests that touch no queue."""


def _request(op: str) -> requests.Request:
    return requests.decode(json.dumps({"op": op, **SAMPLES[op]}).encode())


def test_there_is_a_sample_of_every_request() -> None:
    assert {kind.__struct_config__.tag for kind in requests.REQUESTS} == set(SAMPLES)


@pytest.mark.parametrize("op", SAMPLES)
def test_every_request_says_what_it_needs(op: str) -> None:
    """Every queue, topic and receipt that stands in it is part of a need."""
    found = needs(_request(op))
    assert bool(found) == (op not in NO_QUEUE)
    fields = json.dumps(SAMPLES[op])
    named = {value for value in ("q", "other", "t", "r", "s", "k") if f'"{value}"' in fields}
    if op in NO_QUEUE or op.startswith("schedule_"):
        named &= {"q"}
    if op.startswith("once"):
        named &= {"k"}
    assert {name for need in found for name in (need.queue, need.receipt, need.key) if name is not None} == named


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("send", [Need(Right.SEND, "q")]),
        ("receive", [Need(Right.RECEIVE, "q")]),
        ("ack", [Need(Right.RECEIVE, receipt="r")]),
        ("settle", [Need(Right.RECEIVE, receipt="r"), Need(Right.SEND, "q"), Need(Right.SEND, "other")]),
        ("purge", [Need(Right.ADMINISTER, "q")]),
        ("bind", [Need(Right.ADMINISTER, "t"), Need(Right.ADMINISTER, "q")]),
        ("queues", [Need(Right.OBSERVE)]),
        ("schedules", [Need(Right.ADMINISTER)]),
        ("result", [Need(Right.RECEIVE, "q")]),
        ("results", [Need(Right.RECEIVE, "q")]),
        ("take_results", [Need(Right.RECEIVE, "q")]),
        ("once", [Need(Right.ONCE, key="k")]),
        ("status", []),
    ],
)
def test_needs_of_some_requests(op: str, expected: list[Need]) -> None:
    assert needs(_request(op)) == expected
