"""How much work commands are, so that no transaction is long, and no client alone fills the queue of the writer.

The unit is about what a small message costs: ten microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..records import NewMessage
from .commands import Command, Drop, Forget, Purge, Put, Redrive, RetryDeliveries, Settle, StoreTotals

STEP: Final = 500
"""The weight of a step over many rows."""
_STEPS: Final[dict[type, int]] = dict.fromkeys((Purge, Redrive, Drop, Forget, StoreTotals), STEP)


def weight_of(command: Command[Any]) -> int:
    """Return about how much work a command is."""
    if isinstance(command, Put):
        return _weight_of_messages(command.messages)
    if isinstance(command, Settle):
        return len(command.acks) + _weight_of_messages(command.messages)
    if isinstance(command, RetryDeliveries):
        return len(command.deliveries)
    return _STEPS.get(type(command), 1)


def _weight_of_messages(messages: Sequence[NewMessage]) -> int:
    """Return the weight of storing messages: one for each, and one for each KiB of their bodies."""
    if len(messages) == 1:
        return 1 + (len(messages[0].body) >> 10)
    return len(messages) + (sum([len(message.body) for message in messages]) >> 10)
