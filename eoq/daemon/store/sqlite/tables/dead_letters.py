"""The commands of operators about messages: purge the waiting ones, redrive or drop dead letters.

Each command is one step of bounded length. The next step continues where the last one ended.
"""

from __future__ import annotations

import json
from typing import Final

from ....records import Step
from ....store.commands import Drop, Purge, Redrive
from ..database import Database
from ..deliveries.leased import Leased
from .contents import Contents
from .groups import Groups
from .messages import ENDING_COLUMNS, Ending, Messages
from .queues import Queues

STEP_ROWS: Final = 500
"""How many messages one step changes."""
STEP_SCANS: Final = 5000
"""How many dead letters one step reads, to find those that failed before a moment."""


class DeadLetters:
    """The waiting messages and dead letters that operators purge, redrive or drop."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        messages: Messages,
        groups: Groups,
        contents: Contents,
        leased: Leased,
    ) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._groups = groups
        self._contents = contents
        self._leased = leased

    def purge(self, command: Purge) -> Step:
        """See `Purge`."""
        queue_id = self._queues.require(command.queue)
        upto = self._messages.next_seq() - 1 if command.upto is None else command.upto
        rows = self._database.execute(
            f"""
            select *
            from (
              select {ENDING_COLUMNS}
              from message
              where queue = :queue and state = 'ready' and seq <= :upto and not leased(seq)
              limit :limit
            )
            union all
            select *
            from (
              select {ENDING_COLUMNS}
              from message
              where queue = :queue and state in ('delayed', 'blocked') and seq <= :upto
              limit :limit
            )
            limit :limit
            """,  # noqa: S608 # a constant
            {"queue": queue_id, "upto": upto, "limit": STEP_ROWS},
        ).fetchall()
        # The newest first, so that no message of a group becomes ready on the way.
        messages = [Ending._make(row) for row in sorted(rows, reverse=True)]
        discard = self._messages.discard
        ended = [discard(command.now, message, "dropped", "the queue was purged") for message in messages]
        return Step([end.id for end in ended], upto if len(rows) == STEP_ROWS else None, ended)

    def redrive(self, command: Redrive) -> Step:
        """See `Redrive`."""
        queue_id = self._queues.require(command.queue)
        messages, after = self._select(command, queue_id)
        rows = self._database.execute(
            """
            update message
            set state = iif("group" is null, 'ready', 'blocked'), attempts = 0, due_at = null, expires_at = null
            where seq in (select value from json_each(?))
            returning priority, seq, state
            """,
            (json.dumps([message.seq for message in messages]),),
        ).fetchall()
        for priority, seq, state in rows:
            if state == "ready":
                self._leased.ready(queue_id, priority, seq)
        self._contents.add(queue_id, len(messages), sum(message.size for message in messages))
        for group in sorted({message.group for message in messages if message.group is not None}):
            self._groups.line_up(command.now, queue_id, group)
        return Step([message.id for message in messages], after)

    def drop(self, command: Drop) -> Step:
        """See `Drop`."""
        queue_id = self._queues.require(command.queue)
        messages, after = self._select(command, queue_id)
        for message in messages:
            self._messages.discard(command.now, message, "dropped", "an operator dropped the dead letter")
        return Step([message.id for message in messages], after)

    def _select(self, command: Redrive | Drop, queue_id: int) -> tuple[list[Ending], int | None]:
        """Return the dead letters of this step, and where the next one continues."""
        if command.ids is not None:
            rows = self._database.execute(
                f"""
                select {ENDING_COLUMNS}
                from message indexed by message_by_id
                where queue = ? and id in (select value from json_each(?)) and state = 'dead'
                """,  # noqa: S608 # a constant
                (queue_id, json.dumps(command.ids)),
            ).fetchall()
            return [Ending._make(row) for row in sorted(rows)], None
        after = command.after
        rows = self._database.execute(
            f"""
            select {ENDING_COLUMNS}, failed_at
            from message
            where queue = ? and state = 'dead' and seq > ?
            order by seq
            limit ?
            """,  # noqa: S608 # a constant
            (queue_id, after, STEP_SCANS),
        ).fetchall()
        found: list[Ending] = []
        for *row, failed_at in rows:
            if len(found) == STEP_ROWS:
                return found, after
            message = Ending._make(row)
            after = message.seq
            if command.failed_before is None or failed_at is None or failed_at < command.failed_before:
                found.append(message)
        return found, after if len(rows) == STEP_SCANS else None
