"""Checks of what a caller gives, before it is sent: each raises `InvalidRequest` with what is wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain

from ..errors import InvalidRequest
from ..message import Outgoing
from .limits import MAX_DELAY, MAX_ID, MAX_PRIORITY, MAX_QUEUE, MAX_TTL, QUEUE_NAMES, QUEUE_PATTERN

_match_queue = re.compile(QUEUE_PATTERN).match


def check_queue(queue: str) -> str:
    """``queue``, or `InvalidRequest` where it is no name of a queue."""
    # What is too long is not remembered either.
    if type(queue) is str and len(queue) <= MAX_QUEUE:
        is_queue = _is_queue(queue)
    else:
        is_queue = isinstance(queue, str) and _match_queue(queue) is not None
    if not is_queue:
        raise InvalidRequest(f"{queue!r} is no queue name: {QUEUE_NAMES}")
    return queue


@lru_cache(1000)
def _is_queue(name: str) -> bool:
    # The same few, again and again: to know them takes half the time of a match.
    return _match_queue(name) is not None


SHORTEST_TTL = 0.001
"""Seconds to live of a message that came too late."""


def check_options(message: Outgoing) -> None:
    """Raises `InvalidRequest`, in words for people, where an option of a message is of no use to the daemon."""
    if message.id is not None:
        check_name("id", message.id)
    if message.group is not None:
        check_name("group", message.group)
    if message.headers is not None:
        check_headers(message.headers)
    priority = message.priority
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > MAX_PRIORITY:
        raise InvalidRequest(f"the priority is a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}, not {priority!r}")
    if message.delay is not None:
        check_seconds("delay", message.delay, MAX_DELAY)
        if message.at is not None:
            raise InvalidRequest("give `delay` or `at`, not both")
    if message.at is not None:
        check_seconds("at", message.at, 1e11)
    if message.ttl is not None:
        check_ttl(message.ttl)


def check_headers(headers: object) -> None:
    if not (
        isinstance(headers, Mapping) and all(isinstance(text, str) for text in chain.from_iterable(headers.items()))
    ):
        raise InvalidRequest('headers are an object of texts: {"name": "value"}')
    try:
        "".join(chain.from_iterable(headers.items())).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the headers are not valid Unicode: {error}") from error


def check_name(what: str, name: object) -> None:
    if not (isinstance(name, str) and 1 <= len(name) <= MAX_ID and name.isprintable()):
        raise InvalidRequest(f"the {what} {name!r} is not 1 to {MAX_ID} printable characters")


def check_seconds(what: str, seconds: object, most: float) -> None:
    if not (isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= most):
        raise InvalidRequest(f"`{what}` is a number of seconds from 0 to {most:.0f}, not {seconds!r}")


def check_ttl(ttl: float | None) -> None:
    """Raises `InvalidRequest` where ``ttl`` is no number of seconds for something to be kept."""
    if ttl is not None and not (isinstance(ttl, int | float) and not isinstance(ttl, bool) and 0 < ttl <= MAX_TTL):
        raise InvalidRequest(f"`ttl` is a number of seconds above 0, {MAX_TTL:.0f} at most, not {ttl!r}")


def time_left(ttl: float, since: float) -> float:
    """The seconds left of a ``ttl`` that counts from ``since`` (seconds since the epoch).

    A message whose time is over is sent all the same, and expires at once: so its id is known, and its end.
    """
    return min(max(since + ttl - time.time(), SHORTEST_TTL), ttl)
