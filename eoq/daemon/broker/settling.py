"""Settling: the requests of consumers about their deliveries. Ack, settle, nack, reject, release, extend."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from ...errors import EoqError, InvalidRequest, LeaseLost
from ...ids import new_id
from .. import requests as ask
from ..clock import Clock
from ..config.settings import SettingsOf
from ..records import LEASE_ENDED, DeliveryLost, End, NewMessage, Routed, Stored
from ..request_values import new_message, result_of
from ..session import Handlers, Reply, Session, Submitter
from ..store.commands import RejectDelivery, Settle
from .events import Events
from .leases import Lease, Leases, Receipts
from .publishing import Answer, Publisher, many_stored
from .redelivery import Redelivery


class Settling:
    """The handlers of these requests. Each finds the lease behind a receipt, and acts on its delivery."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        settings: SettingsOf,
        rng: random.Random,
        receipts: Receipts,
        leases: Leases,
        redelivery: Redelivery,
        publisher: Publisher,
        events: Events,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._settings = settings
        self._rng = rng
        self._receipts = receipts
        self._leases = leases
        self._redelivery = redelivery
        self._publisher = publisher
        self._events = events
        self.handlers: Handlers = {
            ask.Ack: self._ack,
            ask.Settle: self._settle,
            ask.Nack: self._nack,
            ask.Reject: self._reject,
            ask.Release: self._release,
            ask.Extend: self._extend,
        }

    # ── receipts ────────────────────────────────────────────────────────────────────────────────────────

    def _lease_of(self, receipt: str) -> Lease:
        """Return the lease of a receipt. Raises `InvalidRequest` for a text that never was one.

        If the lease has ended, return a lease that says so. By its delivery number the store still knows whether a
        request repeats an earlier one, whose reply was lost, or is too late.
        """
        lease = self._leases.get(receipt)
        if lease is not None:
            return lease
        parsed = self._receipts.read(receipt)
        if parsed is None:
            raise InvalidRequest(f"{receipt!r} is no receipt; take it from the reply of `receive`")
        return Lease(parsed, "", 0, receipt, 0.0, None)

    def _live_lease_of(self, receipt: str) -> Lease:
        lease = self._lease_of(receipt)
        if lease.delivery.ended:
            raise LeaseLost(LEASE_ENDED)
        return lease

    # ── acks ────────────────────────────────────────────────────────────────────────────────────────────

    def _ack(self, _session: Session, request: ask.Ack, reply: Reply) -> None:
        ack = self._lease_of(request.receipt), result_of(request)
        self._submit(self._clock.wall(), [ack], [], lambda _duplicates, _queues: {}, reply)

    def _settle(self, _session: Session, request: ask.Settle, reply: Reply) -> None:
        now = self._clock.wall()
        acks = [(self._lease_of(item.receipt), result_of(item)) for item in request.acks]
        sends = [new_message(message.queue, message, now, new_id) for message in request.send]
        ids = [message.id for message in sends]
        if request.forwarded is not None and (sends or any(result is not None for _, result in acks)):
            raise InvalidRequest("a forwarded message has no result and sends nothing; leave out `result` and `send`")
        if request.awaits and request.forwarded is None:
            raise InvalidRequest("only the result of a forwarded message can be awaited; give `forwarded`")
        self._submit(now, acks, sends, partial(many_stored, ids), reply, (request.forwarded, request.awaits))

    def _submit(
        self,
        now: float,
        acks: Sequence[tuple[Lease, bytes | None]],
        sends: Sequence[NewMessage],
        answer: Answer,
        reply: Reply,
        way: tuple[str | None, bool] = (None, False),
    ) -> None:
        forwarded, awaits = way
        end = "done" if forwarded is None else "forwarded"
        routed = self._publisher.route(sends, now) if sends else Routed((), None)

        def done(outcome: Stored | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(_naming_the_receipt(outcome, [lease for lease, _ in acks]))
                return
            queues = None if routed.origins is None else routed.queues(len(sends))
            reply(answer(routed.duplicates(outcome.duplicates), queues))
            # Where a lease is named twice, its first result is stored.
            results = {lease: result for lease, result in reversed(acks) if not lease.delivery.ended}
            if results:
                self._redelivery.free(list(results))
                self._events.ended(
                    [
                        End(lease.delivery.queue, lease.id, end, forwarded, result, forwarded, awaits)
                        for lease, result in results.items()
                    ]
                )
                self._events.room()
            if sends:
                self._publisher.stored(routed.messages, outcome)

        deliveries = [(lease.delivery, result) for lease, result in acks]
        self._writer.submit(Settle(now, deliveries, routed.messages, self._settings, forwarded, awaits), done)
        self._redelivery.move_groups_on([lease for lease, _ in acks])
        if sends:
            self._publisher.submitted(routed.messages)

    # ── other ends of a delivery ────────────────────────────────────────────────────────────────────────

    def _nack(self, _session: Session, request: ask.Nack, reply: Reply) -> None:
        lease = self._live_lease_of(request.receipt)
        delay = self._retry_wait(lease) if request.delay is None else request.delay
        self._redelivery.retry([lease], delay, request.error, reply)

    def _retry_wait(self, lease: Lease) -> float:
        """Return the seconds until the next delivery. They grow exponentially, and a part of them is random."""
        settings = self._settings(lease.delivery.queue)
        if lease.attempt <= 1:
            wait = settings.retry_first
        else:
            # The exponent is bounded, so that no power overflows. The cap is reached long before.
            wait = min(settings.retry_base * settings.retry_factor ** min(lease.attempt - 2, 100), settings.retry_cap)
        return wait * self._rng.uniform(1.0 - settings.retry_jitter, 1.0)

    def _reject(self, _session: Session, request: ask.Reject, reply: Reply) -> None:
        lease = self._lease_of(request.receipt)

        def done(outcome: str | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply({})
            if not lease.delivery.ended:
                self._redelivery.free([lease])
                self._events.ended([End(lease.delivery.queue, lease.id, outcome, request.error)])
                self._events.room()

        self._writer.submit(RejectDelivery(self._clock.wall(), lease.delivery, request.error), done)
        self._redelivery.move_groups_on([lease])

    def _release(self, _session: Session, request: ask.Release, reply: Reply) -> None:
        leases = [lease for receipt in request.receipts if (lease := self._leases.get(receipt)) is not None]
        self._redelivery.retry(leases, 0.0, None, reply, "none")

    def _extend(self, _session: Session, request: ask.Extend, reply: Reply) -> None:
        lease = self._live_lease_of(request.receipt)
        self._leases.extend(lease, self._clock.monotonic() + request.seconds)
        self._redelivery.watch()
        reply({"cancelled": True} if lease.cancelled else {})


def _naming_the_receipt(error: EoqError, leases: Sequence[Lease]) -> EoqError:
    """Return an error that says which of several acks has lost its lease."""
    if not isinstance(error, DeliveryLost) or len(leases) == 1:
        return error
    receipt = next(lease.receipt for lease in leases if lease.delivery is error.delivery)
    return LeaseLost(
        f"the lease of the receipt {receipt} has ended, so nothing at all was changed: leave that message out, and "
        "settle the others again"
    )
