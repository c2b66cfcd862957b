"""What people do to messages: purge those that wait, and redrive or drop dead letters.

Each verb is one step of bounded length. Whoever wants more asks again, from where the last step ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from ....records import Step
from .messages import ENDING_COLUMNS, Ending, MessageTable

STEP_ROWS: Final = 500
"""Messages changed in one step."""
STEP_LOOKS: Final = 5000
"""Dead letters looked at in one step, for those of the right age."""


class DeadLetters(MessageTable):
    """The verbs `purge`, `redrive` and `drop`."""

    def purge(self, now: float, queue: str, upto: int | None) -> Step:
        """Drops messages that wait: those at place ``upto`` and before, None is all there are now.

        Leased messages and dead letters stay. ``after`` of the step is the ``upto`` of the next.
        """
        number = self._known_queue(queue)
        upto = self._end() - 1 if upto is None else upto
        rows = self._database.execute(
            f"""
            select *
            from (
              select {ENDING_COLUMNS}
              from message
              where queue = :queue and state = 'ready' and seq <= :upto
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
            {"queue": number, "upto": upto, "limit": STEP_ROWS},
        ).fetchall()
        # From behind, so that none of a group becomes ready on the way.
        messages = [Ending._make(row) for row in sorted(rows, reverse=True)]
        ended = [self._discard(now, message, "dropped", "the queue was purged") for message in messages]
        return Step([end.id for end in ended], upto if len(rows) == STEP_ROWS else None, ended)

    def redrive(
        self, now: float, queue: str, *, ids: Sequence[str] | None, failed_before: float | None, after: int
    ) -> Step:
        """Gives dead letters another set of attempts: those of ``ids``, or all that failed before a moment.

        Each keeps its id, its place, and what is known of its deliveries; its time to live no longer counts.
        """
        number = self._known_queue(queue)
        messages, after_that = self._dead(number, ids, failed_before, after)
        self._database.execute(
            """
            update message
            set state = iif("group" is null, 'ready', 'blocked'), attempts = 0, due_at = null, expires_at = null
            where seq in (select value from json_each(?))
            """,
            (json.dumps([message.seq for message in messages]),),
        )
        self._count(number, len(messages), sum(message.size for message in messages))
        for group in sorted({message.group for message in messages if message.group is not None}):
            self._line_up(now, number, group)
        return Step([message.id for message in messages], after_that)

    def drop(
        self, now: float, queue: str, *, ids: Sequence[str] | None, failed_before: float | None, after: int
    ) -> Step:
        """Settles dead letters as dropped: those of ``ids``, or all that failed before a moment."""
        number = self._known_queue(queue)
        messages, after_that = self._dead(number, ids, failed_before, after)
        for message in messages:
            self._discard(now, message, "dropped", "a person dropped the dead letter")
        return Step([message.id for message in messages], after_that)

    def _dead(
        self, number: int, ids: Sequence[str] | None, failed_before: float | None, after: int
    ) -> tuple[list[Ending], int | None]:
        """Dead letters of a queue, and where to go on."""
        if ids is not None:
            rows = self._database.execute(
                f"""
                select {ENDING_COLUMNS}
                from message indexed by message_by_id
                where queue = ? and id in (select value from json_each(?)) and state = 'dead'
                """,  # noqa: S608 # a constant
                (number, json.dumps(ids)),
            ).fetchall()
            return [Ending._make(row) for row in sorted(rows)], None
        rows = self._database.execute(
            f"""
            select {ENDING_COLUMNS}, failed_at
            from message
            where queue = ? and state = 'dead' and seq > ?
            order by seq
            limit ?
            """,  # noqa: S608 # a constant
            (number, after, STEP_LOOKS),
        ).fetchall()
        found: list[Ending] = []
        for *row, failed_at in rows:
            if len(found) == STEP_ROWS:
                break
            message = Ending._make(row)
            after = message.seq
            if failed_before is None or failed_at is None or failed_at < failed_before:
                found.append(message)
        else:
            if len(rows) < STEP_LOOKS:
                return found, None
        return found, after
