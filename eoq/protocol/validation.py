"""Checks of a caller's arguments before they are sent. Each raises `InvalidRequest` with what is wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from math import isfinite
from typing import Final

from ..errors import InvalidRequest, MessageTooLarge
from ..message import MAX_DELAY, Outgoing, encode_payload
from ..outcomes import ResultRefused, ResultTooLarge
from .limits import (
    MAX_BODY,
    MAX_HEADERS,
    MAX_ID,
    MAX_LINE,
    MAX_PRIORITY,
    MAX_QUEUE,
    MAX_TTL,
    QUEUE_NAMES,
    QUEUE_PATTERN,
)

SHORTEST_TTL: Final = 0.001
"""The time to live, in seconds, of a message whose ttl has passed before it is sent."""
LATEST: Final = 1e11
"""The latest time of delivery, in seconds since the epoch."""

_match_queue = re.compile(QUEUE_PATTERN).match


def check_queue(queue: str) -> str:
    """Return ``queue``. Raises `InvalidRequest` where it is not the name of a queue."""
    # Names that are too long are not cached either.
    if type(queue) is str and len(queue) <= MAX_QUEUE:
        is_queue = _is_queue(queue)
    else:
        is_queue = isinstance(queue, str) and _match_queue(queue) is not None
    if not is_queue:
        raise InvalidRequest(f"{queue!r} is no queue name: {QUEUE_NAMES}")
    return queue


@lru_cache(1000)
def _is_queue(name: str) -> bool:
    # A program uses few queues again and again, and the cache takes half the time of the match.
    return _match_queue(name) is not None


def check_options(message: Outgoing) -> None:
    """Raise `InvalidRequest` where the daemon would refuse an option of a message."""
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
        check_seconds("at", message.at, LATEST)
    if message.ttl is not None:
        check_ttl(message.ttl)


def check_headers(headers: object) -> None:
    """Raise `InvalidRequest` where ``headers`` are not texts by name."""
    if not (
        isinstance(headers, Mapping) and all(isinstance(text, str) for text in chain.from_iterable(headers.items()))
    ):
        raise InvalidRequest('headers are an object of texts: {"name": "value"}')
    try:
        "".join(chain.from_iterable(headers.items())).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the headers are not valid Unicode: {error}") from error


def body_too_large(size: int) -> MessageTooLarge:
    """Return the error for a body of ``size`` bytes, which is over the limit."""
    return MessageTooLarge(
        f"the body has {size:,} bytes and {MAX_BODY:,} is the limit; store it elsewhere and send its name"
    )


def too_long(line: bytes) -> MessageTooLarge:
    """Return the error for a line that is longer than the daemon accepts."""
    return MessageTooLarge(f"the request has {len(line):,} bytes and {MAX_LINE:,} is the limit; send less in one")


def encode_result(returned: object) -> bytes | None:
    """Return what a handler returned as the result of its message.

    Raises `ResultRefused` for what is neither bytes, text nor JSON, and `ResultTooLarge`.
    """
    if returned is None:
        return None
    try:
        result, _ = encode_payload(returned)
    except InvalidRequest as error:
        raise ResultRefused(f"the handler's result cannot be stored: {error}") from error
    if len(result) > MAX_BODY:
        raise ResultTooLarge(
            f"the handler's result has {len(result):,} bytes and {MAX_BODY:,} is the limit; store it elsewhere"
        )
    return result


def headers_too_large(size: int) -> MessageTooLarge:
    """Return the error for headers of ``size`` characters as JSON, which is over the limit."""
    return MessageTooLarge(f"the headers have {size:,} characters and {MAX_HEADERS:,} is the limit")


def check_name(what: str, name: object) -> None:
    """Raise `InvalidRequest` where ``name`` cannot be an id, a group or a key; ``what`` says which it is."""
    if not (isinstance(name, str) and 1 <= len(name) <= MAX_ID and name.isprintable()):
        raise InvalidRequest(f"the {what} {name!r} is not 1 to {MAX_ID} printable characters")


def check_seconds(what: str, seconds: object, most: float) -> None:
    """Raise `InvalidRequest` where ``seconds`` is not a number from 0 to ``most``."""
    if not (isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= most):
        raise InvalidRequest(f"`{what}` is a number of seconds from 0 to {most:.0f}, not {seconds!r}")


def check_ttl(ttl: float | None) -> None:
    """Raise `InvalidRequest` where ``ttl`` is neither None nor a number of seconds in bounds."""
    if ttl is not None and not (isinstance(ttl, int | float) and not isinstance(ttl, bool) and 0 < ttl <= MAX_TTL):
        raise InvalidRequest(f"`ttl` is a number of seconds above 0, {MAX_TTL:.0f} at most, not {ttl!r}")


def check_finite(what: str, number: object) -> None:
    """Raise `InvalidRequest` where ``number`` is NaN or infinite: JSON has neither. The daemon checks the rest."""
    if isinstance(number, float) and not isfinite(number):
        raise InvalidRequest(f"`{what}` is a finite number, not {number!r}")


def time_left(ttl: float, since: float) -> float:
    """Return the seconds left of a ``ttl`` that counts from ``since`` (seconds since the epoch).

    The least is `SHORTEST_TTL`: a message whose ttl has passed is sent all the same and expires at once, so that the
    daemon knows its id and how it ended.
    """
    return min(max(since + ttl - time.time(), SHORTEST_TTL), ttl)
