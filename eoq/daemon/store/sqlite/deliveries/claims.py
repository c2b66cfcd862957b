"""Claims: the next messages of a queue are leased.

Each claim has a number, which fences (G7): a settle that names another number changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final, TypeAlias

from ....measures import Histogram
from ....records import Claimed, ClaimedMessage, NewMessage
from ....store.commands import Claim
from ..database import Database
from ..sending.puts import Puts
from ..tables.clock import ClockNotes
from ..tables.messages import Ending, Messages
from ..tables.queues import Queues
from ..totals import Totals
from .leased import START, ClaimPlace, Leased

EXPIRY_ROWS: Final = 500
"""How many expired messages one claim ends."""

Row: TypeAlias = tuple[Any, ...]

_COLUMNS: Final = 'seq, id, body, headers, attempts + 1, priority, "group", enqueued_at, expires_at, digest'
_NEXT: Final = f"""
    select {_COLUMNS}
    from message
    where queue = ?1 and state = 'ready' and priority = ?2 and seq > ?3
    order by seq
    """  # noqa: S608 # a constant
_NEXT_BELOW: Final = f"""
    select {_COLUMNS}
    from message
    where queue = ?1 and state = 'ready' and priority < ?2
    order by priority desc, seq
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
      select min(seq) from outcome where queue = ?1 and outcome <> 'done' and delivery is not null
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


class Claims:
    """The claims of receivers."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        messages: Messages,
        leased: Leased,
        puts: Puts,
        clock_notes: ClockNotes,
        totals: Totals,
        waiting: Histogram,
    ) -> None:
        """``waiting`` gets the seconds from the send of each message until its delivery."""
        self._database = database
        self._queues = queues
        self._messages = messages
        self._leased = leased
        self._puts = puts
        self._clock_notes = clock_notes
        self._totals = totals
        self._waiting = waiting

    def claim(self, command: Claim) -> Claimed:
        """See `Claim`."""
        queue_id = self._queues.known_id(command.queue) or self._queues.find(command.queue)
        if queue_id is None:
            return Claimed([], self._puts.next_seq)
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
        self._totals.add(queue_id, "delivered", len(rows))
        self._waiting.add_since([message.enqueued_at for message in rows], command.now)
        return Claimed(rows, self._watermark(queue_id), ended, unfinished, queue_id, number)

    def _take(
        self, command: Claim, queue_id: int, place: ClaimPlace
    ) -> tuple[list[ClaimedMessage], list[Ending], bool]:
        """Return the messages to lease, the expired ones among them, and whether more may be ready."""
        claimed: list[ClaimedMessage] = []
        expired: list[Ending] = []
        size = 0
        last = START
        unfinished = False
        limit, most_bytes = command.limit, command.most_bytes
        set_by = self._clock_notes.set_by
        unset = command.now - set_by
        for row in chain.from_iterable(self._candidates(queue_id, place)):
            seq, id, body, headers, _, priority, group, _, expires_at, _ = row
            if expires_at is not None and expires_at <= unset:
                unfinished = len(expired) == EXPIRY_ROWS
                if not unfinished:
                    expired.append(Ending(seq, queue_id, id, group, len(body), "ready"))
            else:
                size += len(body) + (0 if headers is None else len(headers))
                unfinished = size > most_bytes and bool(claimed)
                if not unfinished:
                    if expires_at is not None:
                        row = (*row[:8], expires_at + set_by, *row[9:])
                    claimed.append(ClaimedMessage(*row))
            if unfinished:
                break
            last = (-priority, seq)
            if len(claimed) == limit:
                break
        self._leased.move(place, last)
        if unfinished:
            self._leased.ready(queue_id, priority, seq)  # it was passed, and not taken
        return claimed, expired, unfinished

    def _candidates(self, queue_id: int, place: ClaimPlace) -> Iterator[Iterable[Row]]:
        """Yield, in parts, the ready messages that are not leased, in the order of delivery.

        The rows of a part are read one by one, because their bodies may be large.
        """
        execute, leased = self._database.execute, self._leased
        while (key := leased.pop_back(place)) is not None:
            rank, seq = key
            row = execute(_ONE, (seq, queue_id, -rank)).fetchone()
            if row is not None and leased.get(seq) is None:
                yield (row,)
        following, below = _SCAN_SKIPPING if place.skipping else _SCAN
        rank, seq = place.key
        if place.key != START:
            yield execute(following, (queue_id, -rank, seq))
        yield execute(below, (queue_id, -rank))
        if place.skipping:
            last = execute(_LAST, (queue_id,)).fetchone()
            if last is not None:
                leased.move(place, last)
            place.skipping = False

    def _watermark(self, queue_id: int) -> int:
        """Return the lowest seq that is not settled, or the next seq."""
        (lowest,) = self._database.execute(_LOWEST_UNSETTLED, (queue_id,)).fetchone()
        return self._puts.next_seq if lowest is None else int(lowest)

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
        self._totals.add(queue_id, "delivered", 1)
        self._waiting.add(max(0.0, claim.now - now))
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
