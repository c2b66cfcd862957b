"""Handing over: a message that somebody waits for is stored as leased, instead of being stored and then claimed.

What is in the file afterwards, and what either side is told, is the same. It saves two statements, and a page of the
log: the message never enters the index of those that are ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ....errors import StorageFull
from ...records import Claimed, ClaimedMessage, NewMessage, Stored
from ..commands import Claim
from .database import Verb
from .tables.deliveries import UNSETTLED_NOT_READY, Delivering

_PUT_LEASED: Final = """
    insert or ignore into message
      (
        seq, queue, id, state, attempts, fence, priority, enqueued_at, due_at, fixed, expires_at, digest, headers, body,
        delivered_at, consumer
      )
    values (?, ?, ?, 'leased', 1, 1, ?, ?, null, 0, ?, ?, ?, ?, ?, ?)
    """
# Where nothing is ready, the first of the others is the watermark: they were stored before what is handed over.
_BEFORE_IT: Final = f"""
    select
      (
        select seq
        from message
        where queue = ?1 and state = 'ready'
        limit 1
      ),
      (
        select min(seq)
        from ({UNSETTLED_NOT_READY})
      )
    """  # noqa: S608 # a constant


class HandingOver(Delivering):
    """A `put` of one message and the `claim` of whoever waits for it, done as one."""

    def _attempt_next(self, verbs: Sequence[Verb], start: int) -> list[object]:
        take = verbs[start + 1] if start + 1 < len(verbs) else None
        if isinstance(take, Claim) and (sends := self._alike(verbs, start)):
            claim = self.hand_over(*sends[0], take)
            if claim is not None:
                return [Stored([], ()), claim]
        return super()._attempt_next(verbs, start)

    def hand_over(self, now: float, message: NewMessage, take: Claim) -> Claimed | None:
        """None, and nothing is changed, where it has to be a put and a claim."""
        number = self._queues[message.queue]
        expired = message.expires_at is not None and message.expires_at <= take.now
        if take.queue != message.queue or expired or self._is_paused(number):
            return None
        ready, lowest = self._database.execute(_BEFORE_IT, (number,)).fetchone()
        if ready is not None:
            return None
        seq = self._next_seq
        row = (
            *(seq, number, message.id, message.priority, now, message.expires_at, message.digest),
            *(message.headers, message.body, take.now, take.consumer),
        )
        if not self._database.execute(_PUT_LEASED, row).rowcount:
            return None  # stored before
        try:
            self._require_space(seq)
        except StorageFull:
            return None
        self._next_seq += 1
        if self._contents:
            self._count_stored([message], ())
        claimed = ClaimedMessage(
            seq, message.id, message.body, message.headers, 1, 1, message.priority, None, now, message.expires_at
        )
        return Claimed([claimed], seq if lowest is None else lowest)
