"""The requests of a bridge: these messages went to another place; how messages ended; how they ended there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..message import Delivery
from .calls import Call
from .codec import Fields, get_bytes, put_bytes
from .limits import MAX_ERROR


class MessageEnd(NamedTuple):
    """How a message ended: its id, its outcome, and its result or the reason."""

    id: str
    outcome: str
    result: bytes | None
    error: str | None


def forwarded(messages: Sequence[Delivery], place: str, *, awaits: bool = False) -> Call[None]:
    """Settle messages that went to another place, which is named for operators. ``awaits``: their results come back."""
    fields: Fields = {"op": "settle", "acks": [{"receipt": message.receipt} for message in messages]}
    fields["forwarded"] = place[:MAX_ERROR]
    if awaits:
        fields["awaits"] = True
    return Call(fields, lambda _reply: None)


def results(queue: str, ids: Sequence[str], wait: float) -> Call[tuple[list[MessageEnd], list[str]]]:
    """Wait up to ``wait`` seconds until any of these messages has ended. Return those that have, or the first of them.

    Behind them come the ids that the daemon does not know any more.
    """

    def read(reply: Fields) -> tuple[list[MessageEnd], list[str]]:
        return [
            MessageEnd(
                one["id"],
                one["outcome"],
                get_bytes(one.get("result"), one.get("result_base64"), "result"),
                one.get("error"),
            )
            for one in reply["results"]
        ], reply["unknown"]

    return Call({"op": "results", "queue": queue, "ids": list(ids), "wait": wait}, read, wait)


def take_results(queue: str, found: Sequence[MessageEnd]) -> Call[list[str]]:
    """Store how forwarded messages ended elsewhere. The value has the ids of those that are not settled here yet.

    The others are stored, or nothing here waits for them.
    """
    fields = [_fields(one) for one in found]
    return Call({"op": "take_results", "queue": queue, "results": fields}, lambda reply: list(reply["early"]))


def _fields(one: MessageEnd) -> Fields:
    fields: Fields = {"id": one.id, "outcome": one.outcome}
    if one.result is not None:
        put_bytes(fields, "result", one.result)
    if one.error is not None:
        fields["error"] = one.error[:MAX_ERROR]
    return fields
