"""The features of a daemon, as its ``status`` names them, and the requests that depend on them."""

from __future__ import annotations

import time
from typing import Final, Literal, TypeAlias

from .codec import Fields

NOT_AFTER: Final = "not_after"
"""``send``, ``send_many`` and ``settle`` take ``not_after``: until when a message may be stored."""
FORWARDED: Final = "forwarded"
"""``settle`` takes ``forwarded``: the place to which its messages went."""
PAGES: Final = "pages"
"""``queues`` and ``metrics`` are answered in parts, and there is ``overview``."""
QueueOrder: TypeAlias = Literal["name", "busy", "depth", "ready", "dead", "sent", "done", "age"]
"""The orders in which ``overview`` has the queues."""
RESULTS: Final = "results"
"""``settle`` takes ``awaits``, and there are the requests ``results`` and ``take_results``."""
HANDLES: Final = "handles"
"""``receive`` takes ``handles``: how many of the messages are handled at once."""


def is_limited(fields: Fields) -> bool:
    """Return whether a repeat of a request depends on what the daemon knows: it stores messages, or has ``handles``."""
    return fields["op"] in ("send", "send_many") or "send" in fields or "handles" in fields


def stored_until(sent_at: float, seconds: float) -> float:
    """Return the ``not_after`` of a message that was first sent at ``sent_at``, by a clock that may have been ahead."""
    return max(0.0, min(sent_at, time.time()) + seconds)


def as_repeat(fields: Fields, not_after: float | None, handles: bool) -> Fields:
    """Return a request as it is repeated: its messages may be stored until ``not_after`` (seconds since the epoch).

    ``not_after`` is None, or ``handles`` false, for a daemon that does not know the field.
    """
    if "handles" in fields and not handles:
        return {name: value for name, value in fields.items() if name != "handles"}
    if fields["op"] == "send":
        return _until(fields, not_after)
    if fields["op"] == "send_many":
        return {**fields, "messages": [_until(message, not_after) for message in fields["messages"]]}
    if "send" in fields:
        return {**fields, "send": [_until(message, not_after) for message in fields["send"]]}
    return fields


def _until(message: Fields, not_after: float | None) -> Fields:
    if not_after is not None:
        return {**message, "not_after": min(not_after, message.get("not_after", not_after))}
    return {name: value for name, value in message.items() if name != "not_after"}
