"""Returns: leased messages are given back, or made dead letters, when their delivery ends without an ack."""

from __future__ import annotations

from typing import Final

from ....records import DeliveryLost, DeliveryRef, End
from ....store.commands import RejectDelivery, RetryDeliveries
from ..database import Database
from ..tables.clock import ClockNotes
from ..tables.groups import Groups
from ..tables.messages import CANCELLED, Ending, Messages
from ..totals import Totals
from .leased import Delivered, Leased
from .lives import Lives

_RETRY: Final = """
    update message
    set
      state = case
        when :counts and attempts + 1 >= :max_attempts then 'dead'
        when :due_at > :unset then 'delayed'
        else 'ready'
      end,
      attempts = attempts + :counts,
      due_at = iif(:due_at > :unset, :due_at, null),
      fixed = 0,
      error = iif(:counts, coalesce(:error, error), error),
      failed_at = iif(:counts, :now, failed_at),
      deliveries = deliveries + 1,
      delivered_at = :delivered_at,
      consumer = :consumer,
      life = :life,
      delivery = :number
    where seq = :seq
    returning id, state, priority, error, expires_at, expires_at <= :unset, cancelled_at is not null
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
    returning id, cancelled_at is not null
    """


class Returns:
    """The deliveries that fail."""

    def __init__(
        self,
        database: Database,
        messages: Messages,
        groups: Groups,
        leased: Leased,
        lives: Lives,
        clock_notes: ClockNotes,
        totals: Totals,
    ) -> None:
        self._database = database
        self._messages = messages
        self._groups = groups
        self._leased = leased
        self._lives = lives
        self._unset = clock_notes.unset
        self._totals = totals

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

    def _lease_of(self, delivery: DeliveryRef) -> Delivered | None:
        """Return what leases the message of a delivery, if it is this very delivery."""
        lease = None if delivery.ended else self._leased.get(delivery.seq)
        return lease if lease is not None and lease.number == delivery.number else None

    def _retry(self, command: RetryDeliveries, delivery: DeliveryRef, lease: Delivered, counts: bool) -> End | bool:
        now, queue_id, seq = command.now, lease.queue_id, delivery.seq
        id, state, priority, last_error, expires_at, expired, cancelled = self._database.execute(
            _RETRY,
            {
                "now": now,
                "unset": self._unset(now),
                "due_at": self._unset(command.due_at),
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
        message = Ending(seq, queue_id, id, delivery.group, delivery.size, "ready")
        if cancelled:
            return self._messages.discard(now, message, "cancelled", CANCELLED)
        if state == "dead":
            return self._messages.ended(now, message, "dead", last_error)
        if expires_at is not None:
            if expired:
                return self._messages.expire(now, [message._replace(state=state)], command.settings)[0]
            self._leased.may_expire(expires_at)
        if counts:
            self._totals.add(queue_id, "retried", 1)
        if state == "ready":
            self._leased.ready(queue_id, priority, seq)
        if delivery.group is not None:
            self._groups.line_up(now, queue_id, delivery.group)
        return True

    def reject(self, command: RejectDelivery) -> str:
        """See `RejectDelivery`."""
        now, delivery, error = command.now, command.delivery, command.error
        lease = self._lease_of(delivery)
        if lease is None:
            self._require_dead(delivery)
            return "dead"
        self._leased.give_back([delivery.seq])
        id, cancelled = self._database.execute(
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
        if cancelled:
            return self._messages.discard(now, message, "cancelled", CANCELLED).outcome
        return self._messages.ended(now, message, "dead", error).outcome

    def _require_dead(self, delivery: DeliveryRef) -> None:
        """Raise `DeliveryLost` unless this very delivery has made its message a dead letter."""
        found = self._database.execute(
            """
            select state, life, delivery
            from message
            where seq = ? and queue = ? and id = ?
            """,
            (delivery.seq, delivery.queue_id, delivery.id),
        ).fetchone()
        if found is None or found != ("dead", self._lives.find(delivery.life), delivery.number):
            raise DeliveryLost(delivery)
