"""How much work commands are, so that no transaction is long, and no client alone fills the queue of the writer.

The unit is about what a small message costs: ten microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ..records import NewMessage
from .commands import (
    Bind,
    Command,
    Drop,
    EditMessage,
    Forget,
    ListBindings,
    OnceFinish,
    Purge,
    Put,
    Redrive,
    RejectDelivery,
    RetryDeliveries,
    Settle,
    StoreTotals,
    TakeResults,
    Unbind,
)
from .schedule_commands import ScheduleAdd, ScheduleList, SchedulePause, ScheduleRemove, StoreOccurrences

DEFINITION: Final = 10
"""The weight of a change of one schedule or binding."""
STEP: Final = 500
"""The weight of a step over many rows."""


def weight_of(command: Command[Any]) -> int:
    """Return about how much work a command is."""
    weigh = _WEIGHTS.get(type(command))
    return 1 if weigh is None else weigh(command)


def _of_put(command: Put) -> int:
    return _of_messages(command.messages)


def _of_settle(command: Settle) -> int:
    results = sum([len(result) for _, result in command.acks if result is not None]) >> 10
    return len(command.acks) + results + _of_messages(command.messages)


def _of_results(command: TakeResults) -> int:
    return len(command.results) + (sum([len(result.result or b"") for result in command.results]) >> 10)


def _of_retry(command: RetryDeliveries) -> int:
    return len(command.deliveries) + (sum([delivery.size for delivery in command.deliveries]) >> 10)


def _of_reject(command: RejectDelivery) -> int:
    return 1 + (command.delivery.size >> 10)


def _of_edit(command: EditMessage) -> int:
    return 1 + (len(command.body or b"") >> 10)


def _of_finish(command: OnceFinish) -> int:
    return 1 + (len(command.output or b"") >> 10)


def _of_occurrences(command: StoreOccurrences) -> int:
    return sum(_of_messages(messages) for plan in command.plans for _, messages in plan.occurrences)


def _of_definition(_command: Command[Any]) -> int:
    return DEFINITION


def _of_step(_command: Command[Any]) -> int:
    return STEP


def _of_messages(messages: Sequence[NewMessage]) -> int:
    """Return the weight of storing messages: one for each, and one for each KiB of their bodies."""
    if len(messages) == 1:
        return 1 + (len(messages[0].body) >> 10)
    return len(messages) + (sum([len(message.body) for message in messages]) >> 10)


_WEIGHTS: Final[dict[type, Callable[[Any], int]]] = {
    Put: _of_put,
    Settle: _of_settle,
    TakeResults: _of_results,
    RetryDeliveries: _of_retry,
    RejectDelivery: _of_reject,
    EditMessage: _of_edit,
    OnceFinish: _of_finish,
    StoreOccurrences: _of_occurrences,
    **dict.fromkeys((ScheduleAdd, ScheduleRemove, SchedulePause, Bind, Unbind), _of_definition),
    **dict.fromkeys((Purge, Redrive, Drop, Forget, StoreTotals, ScheduleList, ListBindings), _of_step),
}
