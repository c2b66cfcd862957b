"""Deliveries: a message is leased, then given back, made a dead letter, or recovered when the daemon starts.

Each delivery has a number, which fences (G7): a settle that names an earlier number changes nothing. Acks are in
``acks.py``.
"""

from __future__ import annotations

from typing import Final

from ....config.settings import SettingsOf
from ....records import Claimed, ClaimedMessage, DeliveryRef, End, NewMessage
from ....store.commands import Claim, RejectDelivery, RetryDeliveries
from ..database import Database
from .acks import require_state
from .contents import Contents
from .groups import Groups
from .messages import ENDING_COLUMNS, Ending, Messages, at_seqs
from .puts import Puts
from .queues import Queues

EXPIRY_ROWS: Final = 500
"""How many messages one claim reads to find expired ones."""

_LEASE: Final = """
    update message
    set state = 'leased', attempts = attempts + 1, fence = fence + 1, delivered_at = ?, consumer = ?
    where {seqs}
    """
# Each part is answered by the first entry of an index. A message that was delivered and then expired or was dropped may
# have been processed, if its ack was lost. It holds the watermark back as long as its record is kept, so that an inbox
# knows its id even if a backup from before its end is restored.
_UNSETTLED_NOT_READY: Final = """
      select min(seq) as seq from message where queue = ?1 and state = 'leased'
      union all
      select min(seq) from message where queue = ?1 and state in ('delayed', 'blocked')
      union all
      select min(seq) from message where queue = ?1 and state = 'dead'
      union all
      select min(seq) from message where queue = ?1 and state in ('expired', 'dropped') and fence > 0
    """
_LOWEST_UNSETTLED: Final = f"""
    select min(seq)
    from (
      {_UNSETTLED_NOT_READY}
      union all
      select min(seq) from message where queue = ?1 and state = 'ready' and priority = 0
      union all
      select min(seq) from message where queue = ?1 and state = 'ready' and priority <> 0
    )
    """  # noqa: S608 # a constant
# Where nothing is ready, the first of the others is the watermark: they were stored before the new message.
_READY_AND_LOWEST: Final = f"""
    select
      (
        select seq
        from message
        where queue = ?1 and state = 'ready'
        limit 1
      ),
      (
        select min(seq)
        from ({_UNSETTLED_NOT_READY})
      )
    """  # noqa: S608 # a constant
_RETRY: Final = """
    update message
    set
      state = case
        when :counts and attempts >= :max_attempts then 'dead'
        when :due_at > :now then 'delayed'
        else 'ready'
      end,
      attempts = attempts - not :counts,
      due_at = iif(:due_at > :now, :due_at, null),
      fixed = 0,
      error = coalesce(:error, error),
      failed_at = iif(:counts, :now, failed_at)
    where seq = :seq and fence = :fence and state = 'leased'
    returning queue, id, state, error, expires_at <= :now
    """


class Deliveries:
    """The deliveries of messages, until they are acked or end otherwise."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        messages: Messages,
        groups: Groups,
        contents: Contents,
        puts: Puts,
    ) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._groups = groups
        self._contents = contents
        self._puts = puts

    # ── claiming ────────────────────────────────────────────────────────────────────────────────────────

    def claim(self, command: Claim) -> Claimed:
        """See `Claim`."""
        queue_id = self._queues.known_id(command.queue) or self._queues.find(command.queue)
        if queue_id is None:
            return Claimed([], self._messages.next_seq())
        if self._queues.is_paused(queue_id):
            return Claimed([], self._watermark(queue_id))
        messages, expired, cut = self._next(command, queue_id)
        ended: list[End] = []
        if expired:
            ended = self._expire_first(command, queue_id)
            messages, expired, cut = self._next(command, queue_id)
            cut = cut or expired
            if expired and not messages:
                return Claimed([], self._watermark(queue_id), ended, unfinished=True)
        if messages:
            seqs, values = at_seqs([message.seq for message in messages])
            self._database.execute(_LEASE.format(seqs=seqs), (command.now, command.consumer, *values))
        return Claimed(messages, self._watermark(queue_id), ended, unfinished=cut)

    def _next(self, command: Claim, queue_id: int) -> tuple[list[ClaimedMessage], bool, bool]:
        """Return the messages to lease, whether an expired one follows them, and whether the rest is too large."""
        claimed: list[ClaimedMessage] = []
        size = 0
        cursor = self._database.execute(
            """
            select seq, id, body, headers, attempts + 1, fence + 1, priority, "group", enqueued_at, expires_at,
              digest
            from message
            where queue = ? and state = 'ready'
            order by priority desc, seq
            limit ?
            """,
            (queue_id, command.limit),
        )
        expired = cut = False
        for row in cursor:
            size += len(row[2]) + len(row[3] or "")
            if claimed and size > command.most_bytes:
                cut = True
                break
            expires_at = row[9]
            if expires_at is not None and expires_at <= command.now:
                expired = True
                break
            claimed.append(ClaimedMessage(*row))
        cursor.close()
        return claimed, expired, cut

    def _expire_first(self, command: Claim, queue_id: int) -> list[End]:
        """End the expired messages among the first ready ones."""
        rows = self._database.execute(
            f"""
            select {ENDING_COLUMNS}, expires_at
            from message
            where queue = ? and state = 'ready'
            order by priority desc, seq
            limit ?
            """,  # noqa: S608 # a constant
            (queue_id, EXPIRY_ROWS),
        ).fetchall()
        now = command.now
        expired = [Ending._make(row) for *row, at in rows if at is not None and at <= now]
        return self._messages.expire(now, expired, command.settings)

    def _watermark(self, queue_id: int) -> int:
        """Return the lowest seq that is not settled, or the next seq."""
        (lowest,) = self._database.execute(_LOWEST_UNSETTLED, (queue_id,)).fetchone()
        return self._messages.next_seq() if lowest is None else int(lowest)

    def store_and_claim(self, now: float, message: NewMessage, claim: Claim) -> Claimed | None:
        """Store a message that a consumer waits for as leased, which saves two statements and a page of the log.

        The file and both outcomes are as after a put and a claim: the message would enter the index of ready messages
        and leave it at once. Return None, and change nothing, where a put and a claim have to run instead.
        """
        queue_id = self._queues.make(message.queue)
        expired = message.expires_at is not None and message.expires_at <= claim.now
        if claim.queue != message.queue or expired or self._queues.is_paused(queue_id):
            return None
        ready, lowest = self._database.execute(_READY_AND_LOWEST, (queue_id,)).fetchone()
        if ready is not None:
            return None
        seq = self._puts.store_leased(now, message, claim.now, claim.consumer)
        if seq is None:
            return None
        claimed = ClaimedMessage(
            seq,
            message.id,
            message.body,
            message.headers,
            1,
            1,
            message.priority,
            None,
            now,
            message.expires_at,
            message.digest,
        )
        return Claimed([claimed], seq if lowest is None else lowest)

    # ── failing ─────────────────────────────────────────────────────────────────────────────────────────

    def retry(self, command: RetryDeliveries) -> list[End | bool]:
        """See `RetryDeliveries`."""
        return [self._retry(command, delivery) for delivery in command.deliveries]

    def _retry(self, command: RetryDeliveries, delivery: DeliveryRef) -> End | bool:
        now, counts = command.now, command.counts
        row = self._database.execute(
            _RETRY,
            {
                "now": now,
                "due_at": command.due_at,
                "counts": counts,
                "max_attempts": command.settings(delivery.queue).max_attempts,
                "error": command.error,
                "seq": delivery.seq,
                "fence": delivery.number,
            },
        ).fetchone()
        if row is None:
            return False
        queue_id, id, state, last_error, expired = row
        if counts:
            self._messages.record_failure(now, delivery.seq, delivery.number, command.error)
        message = Ending(delivery.seq, queue_id, id, delivery.group, delivery.size, state)
        if state == "dead":
            return self._messages.ended(now, message._replace(state="leased"), "dead", last_error)
        if expired:
            return self._messages.expire(now, [message], command.settings)[0]
        if delivery.group is not None:
            self._groups.line_up(now, queue_id, delivery.group)
        return True

    def reject(self, command: RejectDelivery) -> None:
        """See `RejectDelivery`."""
        now, delivery, error = command.now, command.delivery, command.error
        if delivery.ended:
            require_state(self._database, delivery, "dead")
            return
        row = self._database.execute(
            """
            update message
            set state = 'dead', error = coalesce(:error, error), failed_at = :now
            where seq = :seq and fence = :fence and state = 'leased'
            returning queue, id
            """,
            {"error": error, "now": now, "seq": delivery.seq, "fence": delivery.number},
        ).fetchone()
        if row is None:
            require_state(self._database, delivery, "dead")
            return
        self._messages.record_failure(now, delivery.seq, delivery.number, error)
        queue_id, id = row
        message = Ending(delivery.seq, queue_id, id, delivery.group, delivery.size, "leased")
        self._messages.ended(now, message, "dead", error)

    # ── starting ────────────────────────────────────────────────────────────────────────────────────────

    def recover(self, now: float, settings: SettingsOf) -> None:
        """End the leases of the last daemon: their messages are delivered again (G3), or dead.

        Leases do not outlive their daemon. If such a lease was the last of ``max_attempts``, the message is dead.
        """
        # This write fails now if the file cannot be written, even if there is no lease to end.
        self._database.execute("update queue set paused = paused where false")
        queues = self._database.execute(
            """
            select number, name
            from queue
            where number in (select queue from message where state = 'leased')
            """
        ).fetchall()
        for queue_id, name in queues:
            self._recover_queue(now, queue_id, settings(name).max_attempts)

    def _recover_queue(self, now: float, queue_id: int, max_attempts: int) -> None:
        error = "the daemon ended before the message was settled"
        self._database.execute(
            """
            insert or replace into failure (seq, fence, delivered_at, consumer, failed_at, error)
            select seq, fence, delivered_at, consumer, ?, ?
            from message
            where queue = ? and state = 'leased'
            """,
            (now, error, queue_id),
        )
        groups = self._database.execute(
            """
            select distinct "group"
            from message
            where queue = ? and state = 'leased' and "group" is not null
            """,
            (queue_id,),
        ).fetchall()
        sizes = self._database.execute(
            """
            update message
            set state = 'dead', failed_at = ?, error = ?
            where queue = ? and state = 'leased' and attempts >= ?
            returning length(body)
            """,
            (now, error, queue_id, max_attempts),
        ).fetchall()
        self._database.execute(
            """
            update message
            set state = 'ready', failed_at = ?, error = ?
            where queue = ? and state = 'leased'
            """,
            (now, error, queue_id),
        )
        self._contents.add(queue_id, -len(sizes), -sum(size for (size,) in sizes))
        for (group,) in groups:
            self._groups.line_up(now, queue_id, group)
