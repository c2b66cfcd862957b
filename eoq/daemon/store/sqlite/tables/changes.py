"""Changes of one message: it is cancelled, or its body, its priority or its due time is changed."""

from __future__ import annotations

from typing import Final

from .....errors import InvalidRequest, NotFound, StorageFull
from ....records import Cancelled, Edited
from ....store.commands import CancelMessage, EditMessage
from ..database import Database
from ..deliveries.leased import Leased
from ..deliveries.settled import Settled
from ..space import Space
from .clock import ClockNotes
from .contents import Contents
from .messages import CANCELLED, ENDING_COLUMNS, Ending, Messages
from .queues import Queues

_FIND: Final = f"""
    select {ENDING_COLUMNS}, deliveries, priority, due_at, fixed
    from message
    where seq = (select seq from known_id where queue = ? and id = ?)
    """  # noqa: S608 # a constant


class MessageChanges:
    """The commands for one message."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        messages: Messages,
        contents: Contents,
        leased: Leased,
        settled: Settled,
        space: Space,
        clock_notes: ClockNotes,
    ) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._contents = contents
        self._leased = leased
        self._settled = settled
        self._space = space
        self._clock_notes = clock_notes

    def cancel(self, command: CancelMessage) -> Cancelled:
        """See `CancelMessage`."""
        queue_id = self._queues.require(command.queue)
        row = self._database.execute(_FIND, (queue_id, command.id)).fetchone()
        if row is None:
            return Cancelled(self._outcome_of(queue_id, command.queue, command.id), False, False, None, ())
        message, deliveries = Ending._make(row[:6]), row[6]
        lease = self._leased.get(message.seq)
        if lease is None:
            end = self._messages.discard(command.now, message, "cancelled", CANCELLED)
            return Cancelled("cancelled", True, deliveries > 0, None, [end])
        changed = self._database.execute(
            """
            update message
            set cancelled_at = ?
            where seq = ? and cancelled_at is null
            """,
            (command.now, message.seq),
        ).rowcount
        return Cancelled("leased", changed > 0, True, (message.seq, lease.number, queue_id), ())

    def edit(self, command: EditMessage) -> Edited:
        """See `EditMessage`."""
        queue_id = self._queues.require(command.queue)
        named = f"the message {command.id!r} of the queue {command.queue!r}"
        row = self._database.execute(_FIND, (queue_id, command.id)).fetchone()
        if row is None:
            outcome = self._outcome_of(queue_id, command.queue, command.id)
            raise InvalidRequest(f"{named} is settled as {outcome}, so it cannot be edited; send a new one")
        message, (deliveries, priority, due_at, fixed) = Ending._make(row[:6]), row[6:]
        if self._leased.get(message.seq) is not None:
            raise InvalidRequest(f"{named} is leased, so it cannot be edited; try again when it was given back")
        state = message.state
        if command.due_at is not None:
            if state == "dead":
                raise InvalidRequest(f"{named} is a dead letter, which is not due; redrive it (`eoq dead redrive`)")
            due_at, fixed, is_later = None, False, command.due_at > command.now
            if is_later:
                due_at = command.due_at if command.fixed else self._clock_notes.unset(command.due_at)
                fixed = command.fixed
            if state != "blocked":
                state = "delayed" if is_later else "ready"
        if command.priority is not None:
            priority = command.priority
        size = message.size if command.body is None else len(command.body)
        if command.body is not None and (lacking := self._space.lacking(size)) is not None:
            raise StorageFull(lacking)
        self._database.execute(
            """
            update message
            set state = ?, priority = ?, due_at = ?, fixed = ?, body = coalesce(?, body)
            where seq = ?
            """,
            (state, priority, due_at, fixed, command.body, message.seq),
        )
        if state == "ready":
            self._leased.ready(queue_id, priority, message.seq)
        if state != "dead":
            self._contents.add(queue_id, 0, size - message.size)
        return Edited(state, deliveries > 0)

    def _outcome_of(self, queue_id: int, queue: str, id: str) -> str:
        """Return how a message was settled. Raises `NotFound` where it is not known."""
        outcome = self._settled.outcome_of(queue_id, id)
        if outcome is None:
            raise NotFound(f"there is no message {id!r} in the queue {queue!r}; `eoq queues` lists the queues")
        return outcome
