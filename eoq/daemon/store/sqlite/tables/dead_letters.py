"""The commands of operators for many messages: purge waiting ones, redrive or drop dead letters.

Each command is one step of bounded length. The next step continues where the last one ended.
"""

from __future__ import annotations

import json
from typing import Final

from .....errors import IdConflict, InvalidRequest
from ....records import End, NewMessage, Step
from ....store.commands import Drop, Purge, Redrive
from ..database import Database
from ..deliveries.leased import Leased
from ..deliveries.unleased import Unleased
from ..sending.puts import Puts
from .contents import Contents
from .groups import Groups
from .messages import ENDING_COLUMNS, Ending, Messages
from .queues import Queues

STEP_ROWS: Final = 500
"""How many messages one step changes."""
STEP_BYTES: Final = 16 * 1024 * 1024
"""How many bytes of bodies one step stores in another queue, unless the first alone has more."""
STEP_REWRITTEN: Final = 4 * 1024 * 1024
"""How many bytes of bodies one step writes again in their own queue, unless the first alone has more."""
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
        puts: Puts,
    ) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._groups = groups
        self._contents = contents
        self._leased = leased
        self._unleased = Unleased(database, leased)
        self._puts = puts

    def purge(self, command: Purge) -> Step:
        """See `Purge`."""
        queue_id = self._queues.require(command.queue)
        newest = self._puts.next_seq - 1
        upto = newest if command.upto is None else min(command.upto, newest)
        ready = self._unleased.oldest(queue_id, upto, STEP_ROWS)
        later = self._database.execute(
            f"""
            select {ENDING_COLUMNS}
            from message
            where queue = ? and state in ('delayed', 'blocked') and seq <= ?
            limit ?
            """,  # noqa: S608 # a constant
            (queue_id, upto, STEP_ROWS - len(ready)),
        ).fetchall()
        found = [*ready, *map(Ending._make, later)]
        # The newest first, so that no message of a group becomes ready on the way.
        messages = sorted(found, reverse=True)
        discard = self._messages.discard
        ended = [discard(command.now, message, "dropped", "the queue was purged") for message in messages]
        return Step([end.id for end in ended], upto if len(found) == STEP_ROWS else None, ended)

    def redrive(self, command: Redrive) -> Step:
        """See `Redrive`."""
        queue_id = self._queues.require(command.queue)
        messages, after = self._select(command, queue_id)
        if command.to is not None:
            with self._database.savepoint():
                return self._move(command, command.to, messages, after)
        messages, left = _first_step(messages)
        if left and command.ids is None:
            after = messages[-1].seq
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
        rest = [] if command.ids is None else [message.id for message in left]
        return Step([message.id for message in messages], after, left=rest)

    def _move(self, command: Redrive, to: str, messages: list[Ending], after: int | None) -> Step:
        """Store dead letters in another queue, and drop them here. The bytes of one step are limited."""
        moved: list[str] = []
        refused: list[str] = []
        ended: list[End] = []
        size = 0
        ttl = command.settings(to).ttl
        for index, message in enumerate(messages):
            size += message.size
            if size > STEP_BYTES and index > 0:
                if command.ids is not None:
                    raise InvalidRequest(f"these have more than {STEP_BYTES:,} bytes together; name fewer ids at once")
                return Step(moved, messages[index - 1].seq, ended, refused)
            try:
                copy = self._copy(message, to, None if ttl is None else command.now + ttl)
                ended += self._puts.store(command.now, [copy], command.settings).ended
            except IdConflict:
                refused.append(message.id)
                continue
            self._messages.discard(command.now, message, "dropped", f"it was redriven to the queue {to!r}")
            moved.append(message.id)
        return Step(moved, after, ended, refused)

    def _copy(self, message: Ending, queue: str, expires_at: float | None) -> NewMessage:
        """Return a stored message as it is sent to another queue."""
        id, body, digest, headers, priority, group = self._database.execute(
            """
            select id, body, digest, headers, priority, "group"
            from message
            where seq = ?
            """,
            (message.seq,),
        ).fetchone()
        return NewMessage(queue, id, body, digest, headers, priority, group, expires_at=expires_at)

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
                from message
                where state = 'dead'
                  and seq in (
                    select known_id.seq
                    from json_each(?) as asked
                    cross join known_id on known_id.queue = ? and known_id.id = asked.value
                  )
                """,  # noqa: S608 # a constant
                (json.dumps(command.ids), queue_id),
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
            if failed_at is None or _is_meant(command, failed_at):
                found.append(message)
        return found, after if len(rows) == STEP_SCANS else None


def _first_step(messages: list[Ending]) -> tuple[list[Ending], list[Ending]]:
    """Return the messages of one step, at least one if there is any, and those that are left for the next steps."""
    size = 0
    for index, message in enumerate(messages):
        size += message.size
        if size > STEP_REWRITTEN and index > 0:
            return messages[:index], messages[index:]
    return messages, []


def _is_meant(command: Redrive | Drop, failed_at: float) -> bool:
    """Return whether a command is for a dead letter that failed at a moment."""
    if command.failed_before is not None and failed_at >= command.failed_before:
        return False
    # One that seems to fail later than now was there before the clock was set back.
    return command.seen_at is None or not command.seen_at < failed_at <= command.now
