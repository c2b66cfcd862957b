# Made from aio_settling.py by .ci/unasync.py. Change that file, then run the script.
"""How the inboxes finish with messages: ack those that were applied together, and give the others back."""

from __future__ import annotations

from collections.abc import Sequence

from ... import outcomes
from ...errors import EoqError, LeaseLost, MessageTooLarge
from ...message import Message
from .batch import ack_groups, note_not_given_back


def give_back(message: Message, error: Exception) -> None:
    """Reject or nack a message, as the error of its handler says. If that fails, add a note to the error."""
    try:
        outcomes.give_back(message, error)
    except EoqError as failure:
        note_not_given_back(error, message, failure)


def ack_all(acks: Sequence[tuple[Message, bytes | None]]) -> None:
    """Ack messages together. Where a lease was lost, ack one by one, so that the others are acked all the same."""
    lost: LeaseLost | None = None
    for group in ack_groups(acks):
        try:
            group[0][0].settler.ack_many(group)
        except (LeaseLost, MessageTooLarge):
            for message, result in group:
                try:
                    message.ack(result=result)
                except LeaseLost as error:
                    lost = error
    if lost is not None:
        raise lost
