"""Routes: which handler acts on each type of request, whether it may wait, and how large its reply may be."""

from __future__ import annotations

from typing import Final, NamedTuple

from ...protocol.limits import MAX_OUTPUT
from .. import requests as ask
from ..session import Handler

WAITING: Final = (ask.Receive, ask.GetResult, ask.Results, ask.Once, ask.Tail)
FETCHED: Final[dict[type, int]] = {
    ask.Once: 4 * MAX_OUTPUT,
    **dict.fromkeys((ask.Receive, ask.GetResult, ask.Peek, ask.Show, ask.Why, ask.Tail), 1024 * 1024),
    ask.Results: 2 * 1024 * 1024,
    **dict.fromkeys((ask.Metrics, ask.Queues), 16 * 1024 * 1024),
    **dict.fromkeys((ask.Overview, ask.ScheduleShow, ask.Schedules), 1024 * 1024),
}
"""The requests whose replies may have megabytes, and about how many bytes each takes until its reply is made."""


class Route(NamedTuple):
    """How one type of request is handled."""

    handle: Handler
    may_wait: bool
    size: int
    """About how many bytes its reply may have; 0 for few."""


def route_of(kind: type, handle: Handler) -> Route:
    """Return how requests of one type are handled, by ``handle``."""
    return Route(handle, kind in WAITING, FETCHED.get(kind, 0))
