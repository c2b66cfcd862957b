"""Batching: which commands of a transaction share a statement.

The planner sees all commands of the moment. Neighbouring puts of one message each, to one queue, become one insert. A
put and the claim that waits for its message store the message as leased at once. Every outcome is as if the commands
had run one after the other. Measure: `send, 8 producers` and `send → waiting consumer` of tests/bench/run.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from ....errors import EoqError
from ...records import NewMessage, Stored
from ..commands import Claim, Command, Put
from .database import MANY
from .deliveries.claims import Claims
from .sending.puts import Puts
from .tables.queues import Queues
from .totals import Totals


class Batching:
    """The planner that runs the commands of one transaction."""

    def __init__(
        self,
        queues: Queues,
        puts: Puts,
        claims: Claims,
        totals: Totals,
        methods: dict[type[Command[Any]], Callable[[Any], object]],
    ) -> None:
        """``methods`` has, for each type of command, the method that runs it."""
        self._queues = queues
        self._puts = puts
        self._claims = claims
        self._totals = totals
        self._methods = methods

    def run(self, commands: Sequence[Command[Any]], seconds: float = math.inf) -> list[object]:
        """Run ``commands`` in their order; return the outcome of each, or the `EoqError` it raised.

        After ``seconds`` no further command is begun, and those that ran have an outcome. What they have counted is
        stored with what they have changed.
        """
        outcomes: list[object] = []
        end = time.monotonic() + seconds
        while len(outcomes) < len(commands):
            start = len(outcomes)
            if start and time.monotonic() > end:
                break
            sends = self._alike(commands, start)
            if sends:
                outcomes += self._send(commands, start, sends)
            else:
                outcomes.append(self._run_one(commands[start]))
        self._totals.store()
        return outcomes

    def _run_one(self, command: Command[Any]) -> object:
        try:
            return self._methods[type(command)](command)
        except EoqError as refusal:
            self._totals.refused(command, refusal)
            return refusal

    def _alike(self, commands: Sequence[Command[Any]], start: int) -> list[tuple[float, NewMessage]]:
        """Return the messages of the puts from ``start`` on that can share one insert, each with its moment.

        Each of these puts stores one message, to be delivered now, without a group, in the same known queue, which has
        no limits. So only a duplicate can keep them from sharing an insert.
        """
        sends: list[tuple[float, NewMessage]] = []
        for command in commands[start : start + MANY]:
            if not isinstance(command, Put) or len(command.messages) != 1:
                break
            message = command.messages[0]
            if message.due_at is not None or message.group is not None:
                break
            if not sends:
                queue, expires_at = message.queue, message.expires_at
                if self._queues.known_id(queue) is None or command.settings(queue).limited:
                    break
            elif message.queue != queue or message.expires_at != expires_at:
                break
            sends.append((command.now, message))
        return sends

    def _send(
        self, commands: Sequence[Command[Any]], start: int, sends: Sequence[tuple[float, NewMessage]]
    ) -> list[object]:
        following = commands[start + 1] if start + 1 < len(commands) else None
        if isinstance(following, Claim):
            claimed = self._claims.store_and_claim(*sends[0], following)
            if claimed is not None:
                return [Stored([], ()), claimed]
        try:
            if self._puts.store_alike(sends):
                return [Stored([], ())] * len(sends)
        except EoqError as refusal:
            for command in commands[start : start + len(sends)]:
                self._totals.refused(command, refusal)
            return [refusal] * len(sends)
        # Not all of them are new. Each command is run alone, and finds out.
        return [self._run_one(command) for command in commands[start : start + len(sends)]]
