"""Deliveries: a message is leased, then given back, made a dead letter, or recovered when the daemon starts.

Each delivery has a number, which fences (G7): a settle that names another number changes nothing. Acks are in
``acks.py``, and what is leased is known by ``leased.py``.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Final, TypeAlias

from ....config.settings import SettingsOf
from ....records import Claimed, ClaimedMessage, DeliveryRef, End, NewMessage
from ....store.commands import Claim, RejectDelivery, RetryDeliveries
from ..database import Database
from .acks import require_end
from .contents import Contents
from .groups import Groups
from .leased import START, Delivery, Key, Leased, Place
from .lives import Lives
from .messages import Ending, Messages
from .puts import Puts
from .queues import Queues

EXPIRY_ROWS: Final = 500
"""How many expired messages one claim ends."""

Row: TypeAlias = tuple[Any, ...]

_COLUMNS: Final = 'seq, id, body, headers, attempts + 1, priority, "group", enqueued_at, expires_at, digest'
_NEXT: Final = f"""
    select {_COLUMNS}
    from message
    where queue = ?1 and state = 'ready' and priority = ?2 and seq > ?3
    order by seq
    limit ?4
    """  # noqa: S608 # a constant
_NEXT_BELOW: Final = f"""
    select {_COLUMNS}
    from message
    where queue = ?1 and state = 'ready' and priority < ?2
    order by priority desc, seq
    limit ?3
    """  # noqa: S608 # a constant
_SCAN: Final = (_NEXT, _NEXT_BELOW)
_SCAN_SKIPPING: Final = tuple(one.replace("'ready'", "'ready' and not leased(seq)") for one in _SCAN)
_ONE: Final = f"""
    select {_COLUMNS}
    from message
    where seq = ? and queue = ? and priority = ? and state = 'ready'
    """  # noqa: S608 # a constant
_LAST: Final = """
    select -priority, seq
    from message
    where queue = ? and state = 'ready'
    order by priority, seq desc
    limit 1
    """
# Each part is answered by the first entry of an index. A leased message is stored as ready. A message that was
# delivered and then expired or was dropped may have been processed, if its ack was lost. It holds the watermark back as
# long as its record is kept, so that an inbox knows its id even if a backup from before its end is restored.
_LOWEST_UNSETTLED: Final = """
    select min(seq)
    from (
      select min(seq) as seq from message where queue = ?1 and state in ('delayed', 'blocked')
      union all
      select min(seq) from message where queue = ?1 and state = 'dead'
      union all
      select min(seq) from message where queue = ?1 and state in ('expired', 'dropped') and deliveries > 0
      union all
      select min(seq) from message where queue = ?1 and state = 'ready' and priority = 0
      union all
      select min(seq) from message where queue = ?1 and state = 'ready' and priority <> 0
    )
    """
_READY_AND_LOWEST: Final = f"""
    select
      (select 1 from message where queue = ?1 and state = 'ready' and priority = ?2 and seq > ?3 limit 1),
      (select 1 from message where queue = ?1 and state = 'ready' and priority < ?2 limit 1),
      ({_LOWEST_UNSETTLED})
    """  # noqa: S608 # a constant
_RETRY: Final = """
    update message
    set
      state = case
        when :counts and attempts + 1 >= :max_attempts then 'dead'
        when :due_at > :now then 'delayed'
        else 'ready'
      end,
      attempts = attempts + :counts,
      due_at = iif(:due_at > :now, :due_at, null),
      fixed = 0,
      error = iif(:counts, coalesce(:error, error), error),
      failed_at = iif(:counts, :now, failed_at),
      deliveries = deliveries + 1,
      delivered_at = :delivered_at,
      consumer = :consumer,
      life = :life,
      delivery = :number
    where seq = :seq
    returning id, state, priority, error, expires_at <= :now
    """
_REJECT: Final = """
    update message
    set
      state = 'dead',
      attempts = attempts + 1,
      error = coalesce(:error, error),
      failed_at = :now,
      deliveries = deliveries + 1,
      delivered_at = :delivered_at,
      consumer = :consumer,
      life = :life,
      delivery = :number
    where seq = :seq
    returning id
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
        leased: Leased,
        lives: Lives,
        puts: Puts,
    ) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._groups = groups
        self._contents = contents
        self._leased = leased
        self._lives = lives
        self._puts = puts

    # ── claiming ────────────────────────────────────────────────────────────────────────────────────────

    def claim(self, command: Claim) -> Claimed:
        """See `Claim`."""
        queue_id = self._queues.known_id(command.queue) or self._queues.find(command.queue)
        if queue_id is None:
            return Claimed([], self._messages.next_seq())
        if self._queues.is_paused(queue_id):
            return Claimed([], self._watermark(queue_id))
        place = self._leased.place(queue_id)
        rows, expired, unfinished = self._take(command, queue_id, place)
        ended = self._messages.expire(command.now, expired, command.settings) if expired else ()
        if not rows:
            return Claimed([], self._watermark(queue_id), ended, unfinished)
        number = self._leased.add(
            queue_id, command.now, command.consumer, command.handles, [message.seq for message in rows]
        )
        return Claimed(rows, self._watermark(queue_id), ended, unfinished, queue_id, number)

    def _take(self, command: Claim, queue_id: int, place: Place) -> tuple[list[ClaimedMessage], list[Ending], bool]:
        """Return the messages to lease, the expired ones among them, and whether more may be ready."""
        claimed: list[ClaimedMessage] = []
        expired: list[Ending] = []
        size = 0
        last = START
        unfinished = False
        now, limit, most_bytes = command.now, command.limit, command.most_bytes
        with closing(self._candidates(queue_id, place, limit)) as candidates:
            for row in candidates:
                expires_at = row[8]
                if expires_at is not None and expires_at <= now:
                    unfinished = len(expired) == EXPIRY_ROWS
                    if not unfinished:
                        expired.append(Ending(row[0], queue_id, row[1], row[6], len(row[2]), "ready"))
                else:
                    size += len(row[2]) + len(row[3] or "")
                    unfinished = size > most_bytes and bool(claimed)
                    if not unfinished:
                        claimed.append(ClaimedMessage(*row))
                if unfinished:
                    break
                last = (-row[5], row[0])
                if len(claimed) == limit:
                    break
        self._leased.move(place, last)
        if unfinished:
            self._leased.ready(queue_id, row[5], row[0])  # it was passed, and not taken
        return claimed, expired, unfinished

    def _candidates(self, queue_id: int, place: Place, limit: int) -> Generator[Row, None, None]:
        """Yield the ready messages that are not leased, in the order of delivery."""
        leased = self._leased
        while (key := leased.pop_back(place)) is not None:
            rank, seq = key
            row = self._database.execute(_ONE, (seq, queue_id, -rank)).fetchone()
            if row is not None and leased.get(seq) is None:
                yield row
        yield from self._scan(queue_id, place.key, limit, _SCAN_SKIPPING if place.skipping else _SCAN)
        if place.skipping:
            last = self._database.execute(_LAST, (queue_id,)).fetchone()
            if last is not None:
                leased.move(place, last)
            place.skipping = False

    def _scan(self, queue_id: int, key: Key, limit: int, statements: Sequence[str]) -> Iterator[Row]:
        """Yield the ready messages behind ``key``. The rows are read one by one, because their bodies may be large."""
        execute = self._database.execute
        following, below = statements
        while True:
            rank, seq = key
            found = 0
            if key != START:
                for row in execute(following, (queue_id, -rank, seq, limit)):
                    found += 1
                    key = (rank, row[0])
                    yield row
            if found < limit:
                found = 0
                for row in execute(below, (queue_id, -rank, limit)):
                    found += 1
                    key = (-row[5], row[0])
                    yield row
                if found < limit:
                    return

    def _watermark(self, queue_id: int) -> int:
        """Return the lowest seq that is not settled, or the next seq."""
        (lowest,) = self._database.execute(_LOWEST_UNSETTLED, (queue_id,)).fetchone()
        return self._messages.next_seq() if lowest is None else int(lowest)

    def store_and_claim(self, now: float, message: NewMessage, claim: Claim) -> Claimed | None:
        """Store a message that a consumer waits for, and lease it, which saves two statements.

        The file and both outcomes are as after a put and a claim. Return None, and change nothing, where a put and a
        claim have to run instead.
        """
        queue_id = self._queues.make(message.queue)
        expired = message.expires_at is not None and message.expires_at <= claim.now
        place = self._leased.place(queue_id)
        if claim.queue != message.queue or expired or place.back or place.skipping or self._queues.is_paused(queue_id):
            return None
        rank, last = place.key
        ready, lower, lowest = self._database.execute(_READY_AND_LOWEST, (queue_id, -rank, last)).fetchone()
        if ready is not None or lower is not None:
            return None
        seq = self._puts.store_one(now, message)
        if seq is None:
            return None
        self._leased.move(place, (-message.priority, seq))
        number = self._leased.add(queue_id, claim.now, claim.consumer, claim.handles, [seq])
        claimed = ClaimedMessage(
            seq,
            message.id,
            message.body,
            message.headers,
            1,
            message.priority,
            None,
            now,
            message.expires_at,
            message.digest,
        )
        return Claimed([claimed], seq if lowest is None else lowest, (), False, queue_id, number)

    # ── failing ─────────────────────────────────────────────────────────────────────────────────────────

    def retry(self, command: RetryDeliveries) -> list[End | bool]:
        """See `RetryDeliveries`."""
        leases = [self._lease_of(delivery) for delivery in command.deliveries]
        seqs = {delivery.seq for delivery, lease in zip(command.deliveries, leases, strict=True) if lease is not None}
        counted = set(seqs) if command.counts == "all" else set[int]()
        if command.counts == "handled":
            counted = self._leased.handled(seqs)
        self._leased.give_back(seqs)
        outcomes: list[End | bool] = []
        for delivery, lease in zip(command.deliveries, leases, strict=True):
            if lease is None or delivery.seq not in seqs:
                outcomes.append(False)
            else:
                seqs.remove(delivery.seq)  # where it is named twice, the second one is too late
                outcomes.append(self._retry(command, delivery, lease, delivery.seq in counted))
        return outcomes

    def _lease_of(self, delivery: DeliveryRef) -> Delivery | None:
        """Return what leases the message of a delivery, if it is this very delivery."""
        lease = None if delivery.ended else self._leased.get(delivery.seq)
        return lease if lease is not None and lease.number == delivery.number else None

    def _retry(self, command: RetryDeliveries, delivery: DeliveryRef, lease: Delivery, counts: bool) -> End | bool:
        now, queue_id, seq = command.now, lease.queue_id, delivery.seq
        id, state, priority, last_error, expired = self._database.execute(
            _RETRY,
            {
                "now": now,
                "due_at": command.due_at,
                "counts": counts,
                "max_attempts": command.settings(delivery.queue).max_attempts,
                "error": command.error,
                "delivered_at": lease.delivered_at,
                "consumer": lease.consumer,
                "life": self._lives.number,
                "number": lease.number,
                "seq": seq,
            },
        ).fetchone()
        if counts:
            self._messages.record_failure(now, seq, command.error)
        message = Ending(seq, queue_id, id, delivery.group, delivery.size, state)
        if state == "dead":
            return self._messages.ended(now, message._replace(state="ready"), "dead", last_error)
        if expired:
            return self._messages.expire(now, [message], command.settings)[0]
        if state == "ready":
            self._leased.ready(queue_id, priority, seq)
        if delivery.group is not None:
            self._groups.line_up(now, queue_id, delivery.group)
        return True

    def reject(self, command: RejectDelivery) -> None:
        """See `RejectDelivery`."""
        now, delivery, error = command.now, command.delivery, command.error
        lease = self._lease_of(delivery)
        if lease is None:
            require_end(self._database, self._lives, delivery, "dead")
            return
        self._leased.give_back([delivery.seq])
        (id,) = self._database.execute(
            _REJECT,
            {
                "error": error,
                "now": now,
                "delivered_at": lease.delivered_at,
                "consumer": lease.consumer,
                "life": self._lives.number,
                "number": delivery.number,
                "seq": delivery.seq,
            },
        ).fetchone()
        self._messages.record_failure(now, delivery.seq, error)
        message = Ending(delivery.seq, lease.queue_id, id, delivery.group, delivery.size, "ready")
        self._messages.ended(now, message, "dead", error)

    # ── starting ────────────────────────────────────────────────────────────────────────────────────────

    def recover(self, now: float, settings: SettingsOf, clean: bool) -> None:
        """End the leases of the last daemon: their messages are delivered again (G3), or dead.

        Leases do not outlive their daemon. Where it did not stop in a ``clean`` way, the deliveries count that were
        being handled, and a message that has no attempt left is dead.
        """
        rows = self._database.execute(
            """
            select delivery.number, delivery.handles, message.queue, message.seq
            from delivery
            cross join json_each(delivery.seqs) as delivered
            cross join message on message.seq = delivered.value
            where message.state = 'ready'
            order by delivery.number, delivered.key
            """
        ).fetchall()
        self._database.execute(
            """
            update message
            set
              deliveries = deliveries + 1, delivered_at = ended.delivered_at, consumer = ended.consumer,
              life = ?, delivery = ended.number
            from (
              select delivered.value as seq, delivery.number, delivery.delivered_at, delivery.consumer
              from delivery, json_each(delivery.seqs) as delivered
            ) as ended
            where message.seq = ended.seq and +message.state = 'ready'
            """,
            (self._lives.before,),
        )
        self._database.execute("delete from delivery")
        if not clean:
            for queue_id, seqs in _handled(rows).items():
                max_attempts = settings(self._queues.name(queue_id)).max_attempts
                self._count_attempts(now, queue_id, seqs, max_attempts)
        groups = self._database.execute(
            """
            select queue, "group"
            from message
            where seq in (select value from json_each(?)) and "group" is not null
            """,
            (str([seq for *_, seq in rows]),),
        ).fetchall()
        for queue_id, group in sorted(set(groups)):
            self._groups.line_up(now, queue_id, group)

    def _count_attempts(self, now: float, queue_id: int, seqs: list[int], max_attempts: int) -> None:
        error = "the daemon ended before the message was settled"
        among = json.dumps(seqs)
        dead = self._database.execute(
            """
            update message
            set
              state = iif(attempts + 1 >= ?, 'dead', state),
              attempts = attempts + 1,
              failed_at = ?,
              error = ?
            where seq in (select value from json_each(?))
            returning iif(state = 'dead', length(body), null)
            """,
            (max_attempts, now, error, among),
        ).fetchall()
        self._database.execute(
            """
            insert or replace into failure (seq, delivery, delivered_at, consumer, failed_at, error)
            select seq, deliveries, delivered_at, consumer, ?, ?
            from message
            where seq in (select value from json_each(?))
            """,
            (now, error, among),
        )
        sizes = [size for (size,) in dead if size is not None]
        self._contents.add(queue_id, -len(sizes), -sum(sizes))


def _handled(rows: Sequence[tuple[int, int | None, int, int]]) -> dict[int, list[int]]:
    """Return by queue the messages that were being handled: the first of each delivery, as many as it handles at once.

    Each row is a message that was delivered and not settled: the delivery's number and ``handles``, queue and seq.
    """
    handled: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    for number, handles, queue_id, seq in rows:
        counts[number] = counts.get(number, 0) + 1
        if handles is None or counts[number] <= handles:
            handled.setdefault(queue_id, []).append(seq)
    return handled
