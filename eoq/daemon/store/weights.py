"""How much work commands are, so that no transaction is long, and no client alone fills the queue of the writer.

The unit is about what a small message costs: ten microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..records import NewMessage
from .commands import (
    Command,
    Drop,
    EditMessage,
    Forget,
    OnceFinish,
    Purge,
    Put,
    Redrive,
    RetryDeliveries,
    Settle,
    StoreTotals,
)
from .schedule_commands import StoreOccurrences

STEP: Final = 500
"""The weight of a step over many rows."""
_STEPS: Final[dict[type, int]] = dict.fromkeys((Purge, Redrive, Drop, Forget, StoreTotals), STEP)


def weight_of(command: Command[Any]) -> int:
    """Return about how much work a command is."""
    if isinstance(command, Put):
        return _weight_of_messages(command.messages)
    if isinstance(command, Settle):
        results = sum([len(result) for _, result in command.acks if result is not None]) >> 10
        return len(command.acks) + results + _weight_of_messages(command.messages)
    if isinstance(command, RetryDeliveries):
        return len(command.deliveries)
    if isinstance(command, EditMessage):
        return 1 + (len(command.body or b"") >> 10)
    if isinstance(command, OnceFinish):
        return 1 + (len(command.output or b"") >> 10)
    if isinstance(command, StoreOccurrences):
        return sum(_weight_of_messages(messages) for plan in command.plans for _, messages in plan.occurrences)
    return _STEPS.get(type(command), 1)


def _weight_of_messages(messages: Sequence[NewMessage]) -> int:
    """Return the weight of storing messages: one for each, and one for each KiB of their bodies."""
    if len(messages) == 1:
        return 1 + (len(messages[0].body) >> 10)
    return len(messages) + (sum([len(message.body) for message in messages]) >> 10)
