"""The request of a forwarder: these messages went to another place."""

from __future__ import annotations

from collections.abc import Sequence

from ..message import Delivery
from .calls import Call
from .limits import MAX_ERROR


def forwarded(messages: Sequence[Delivery], place: str) -> Call[None]:
    """Settle messages that went to another place, which is named for people."""
    acks = [{"receipt": message.receipt} for message in messages]
    return Call({"op": "settle", "acks": acks, "forwarded": place[:MAX_ERROR]}, lambda _reply: None)
