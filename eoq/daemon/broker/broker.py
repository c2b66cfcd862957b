"""What a request means: it becomes one verb of the store, and the verb's outcome becomes the reply.

Messages come in through ``intake.py``, and go out to those who ask for them in ``receivers.py``; whatever may make some
ready is told to them here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from ...errors import EoqError, InvalidRequest, LeaseLost
from ...ids import new_id
from ...protocol.codec import put_bytes
from .. import requests as ask
from ..clock import Alarm, Clock, NoticingClock
from ..config.settings import SettingsOf, defaults
from ..records import (
    LEASE_ENDED,
    Advanced,
    Claimed,
    DeliveryLost,
    DeliveryRef,
    End,
    NewMessage,
    Routed,
    Shifted,
    Stored,
    counted,
)
from ..session import Fields, Reply, Session, Submitter
from ..store.commands import Advance, RejectDelivery, RetryDeliveries, Settle, ShiftTimes
from .leases import Lease, Leases, Receipts
from .limits import DeliveryLimits
from .publishing import Arrived, Publishing, Router
from .receivers import Receivers
from .throughput import Throughput

Ended: TypeAlias = Callable[[str, str, str, "bytes | None", "str | None"], None]
"""Told of each message that has ended: queue, id, outcome, result, error."""

ADVANCE_BATCH: Final = 500
"""Due messages made ready, or expired ones ended, in one step: so that no send waits behind a million of them."""
LONGEST_TIMER: Final = 60.0
"""Seconds after which a due time is looked at again, should the wall clock have jumped."""
FAILED_RELEASE: Final = 1.0
"""Seconds until a release that the disk refused is tried again."""


class Broker:
    """Leases, waiting receivers, timers and fencing, over a writer and its store."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        *,
        epoch: str,
        ended: Ended,
        made_room: Callable[[], None] = lambda: None,
        arrived: Arrived = lambda _: None,
        topics: Router | None = None,
        rng: random.Random | None = None,
        settings: SettingsOf = defaults,
    ) -> None:
        self._writer = writer
        self.clock = self._clock = NoticingClock(clock, self._shift)
        self._rng = rng or random.Random()  # noqa: S311 # jitter, not secrets
        self._settings = settings
        self._ended = ended
        self._made_room = made_room
        """Told after `ended`, once for all that end together."""
        self._receipts = Receipts(epoch)
        self._leases = Leases(self._expired)
        self._receivers = Receivers(
            writer,
            self._clock,
            settings,
            DeliveryLimits(settings, self._clock, self._leases.count),
            grant=self._grant,
            give_back=self._return,
            ended=self.ended,
        )
        self._lease_alarm = Alarm(self._clock, self._leases_due)
        self._alarm = Alarm(self._clock, self._advance, LONGEST_TIMER)
        """For due and for expired messages."""
        self.rates = Throughput(clock)
        self.intake = Publishing(
            writer,
            self._clock,
            topics,
            settings,
            self.rates,
            stir=self._receivers.stir,
            watch=self._alarm.set,
            arrived=arrived,
            ended=self.ended,
        )
        self._stopping = False
        self._handlers: dict[type, Callable[[Session, Any, Reply], None]] = {
            ask.Send: self.intake.send,
            ask.SendMany: self.intake.send_many,
            ask.Receive: self._receivers.receive,
            ask.Ack: self._ack,
            ask.Settle: self._settle,
            ask.Nack: self._nack,
            ask.Reject: self._reject,
            ask.Extend: self._extend,
            ask.Release: self._release,
            ask.Cancel: self._cancel,
        }
        self.handles = tuple(self._handlers)

    # ── from the server ─────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Finds out when the first delayed message is due, and when the first expires."""
        self._advance()

    def _shift(self, seconds: float) -> None:
        """The wall clock was set: what waits is moved with it, before anything else is done."""

        def done(outcome: Shifted | EoqError) -> None:
            if isinstance(outcome, EoqError) and not self._stopping:
                self._clock.call_later(FAILED_RELEASE, partial(self._shift, seconds))

        self._writer.submit(ShiftTimes(seconds), done)
        self._alarm.set(self._clock.wall())

    def handle(self, session: Session, request: ask.Request, reply: Reply) -> None:
        """Acts on a request; ``reply`` is called once, now or later. Raises `EoqError` for what is refused."""
        self._handlers[type(request)](session, request, reply)

    def closed(self, session: Session) -> None:
        """A connection has ended: its waiters go, and its bound leases are given back at once."""
        session.closed = True
        self._receivers.closed(session)
        leases = list(session.leases)
        self._leases.remove(leases)
        if leases:
            self._give_back(leases, "the connection of the consumer ended")

    def stop(self) -> None:
        """Answers all who wait; nothing is offered from now on."""
        self._stopping = True
        self._receivers.stop()
        self._lease_alarm.stop()
        self._alarm.stop()

    def settings_changed(self) -> None:
        """What holds for the queues may be something else now: those who wait may be allowed more."""
        self._receivers.stir_everywhere()

    def stir_all(self, queue: str) -> None:
        """Any number of messages of ``queue`` may just have become ready, by a verb just submitted."""
        self._receivers.stir_all(queue)

    @property
    def leased(self) -> int:
        """Messages leased now."""
        return len(self._leases)

    @property
    def waiting(self) -> int:
        """Receivers that wait now."""
        return len(self._receivers)

    # ── messages that end ───────────────────────────────────────────────────────────────────────────────

    def ended(self, ends: Sequence[End]) -> None:
        """Messages have ended that nobody settled: those who wait for their results are told, their groups move on."""
        if not ends:
            return
        for end in ends:
            self._ended(end.queue, end.id, end.outcome, None, end.error)
        self._made_room()
        for queue in {end.queue for end in ends}:
            self._receivers.stir(queue, len(ends))
        self._alarm.set(self._clock.wall())

    # ── delivering ───────────────────────────────────────────────────────────────────────────────────────

    def _grant(self, session: Session, request: ask.Receive, claim: Claimed) -> Fields:
        leases = self._lease(session, request, claim)
        self._leases.add(leases)
        if leases:
            self._watch_leases()
        messages = []
        for message, lease in zip(claim.messages, leases, strict=True):
            fields: Fields = {
                "id": message.id,
                "receipt": lease.receipt,
                "seq": message.seq,
                "attempt": message.attempt,
                "enqueued_at": message.enqueued_at,
            }
            put_bytes(fields, "body", message.body)
            if message.headers is not None:
                fields["headers"] = json.loads(message.headers)
            if message.priority:
                fields["priority"] = message.priority
            if message.group is not None:
                fields["group"] = message.group
            messages.append(fields)
        return {"messages": messages, "watermark": claim.watermark}

    def _lease(self, session: Session, request: ask.Receive, claim: Claimed) -> list[Lease]:
        deadline = self._clock.monotonic() + request.lease
        owner = session.leases if request.bound else None
        return [
            Lease(
                DeliveryRef(
                    message.seq,
                    message.delivery_number,
                    request.queue,
                    message.group,
                    len(message.body),
                    message.expires_at is not None,
                ),
                message.id,
                message.attempt,
                self._receipts.write(message.seq, message.delivery_number),
                deadline,
                owner,
            )
            for message in claim.messages
        ]

    def _return(self, session: Session, request: ask.Receive, claim: Claimed) -> None:
        self._give_back(self._lease(session, request, claim), None, counts=False)

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────

    def _lease_of(self, receipt: str) -> Lease:
        """The lease behind a receipt.

        Where there is none any more, one that has ended: with it the store still knows a repeated request, whose
        first reply was lost, from one that comes too late.
        """
        lease = self._leases.get(receipt)
        if lease is not None:
            return lease
        parsed = self._receipts.read(receipt)
        if parsed is None:
            raise InvalidRequest(f"{receipt!r} is no receipt; take it from what `receive` gave")
        return Lease(DeliveryRef(*parsed, ended=True), "", 0, receipt, 0.0, None)

    def _living_lease_of(self, receipt: str) -> Lease:
        lease = self._lease_of(receipt)
        if lease.delivery.ended:
            raise LeaseLost(LEASE_ENDED)
        return lease

    def _ack(self, session: Session, request: ask.Ack, reply: Reply) -> None:
        ack = self._lease_of(request.receipt), ask.result_of(request)
        self._submit_settle(self._clock.wall(), [ack], [], lambda _: {}, reply)

    def _settle(self, session: Session, request: ask.Settle, reply: Reply) -> None:
        now = self._clock.wall()
        acks = [(self._lease_of(item.receipt), ask.result_of(item)) for item in request.acks]
        sends = [ask.new_message(message.queue, message, now, new_id) for message in request.send]
        ids = [message.id for message in sends]
        self._submit_settle(now, acks, sends, lambda duplicates: {"ids": ids, "duplicates": duplicates}, reply)

    def _submit_settle(
        self,
        now: float,
        acks: Sequence[tuple[Lease, bytes | None]],
        sends: Sequence[NewMessage],
        answer: Callable[[list[int]], Fields],
        reply: Reply,
    ) -> None:
        routed = self.intake.route(sends, now) if sends else Routed((), None)

        def settled(outcome: Stored | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(_which(outcome, [lease for lease, _ in acks]))
                return
            reply(answer(routed.duplicates(outcome.duplicates)))
            # Of a lease that is named twice, the first result is stored.
            done = {lease: result for lease, result in reversed(acks) if not lease.delivery.ended}
            for queue, count in self._free(list(done)).items():
                self.rates.done(queue, count)
            for lease, result in done.items():
                self._ended(lease.delivery.queue, lease.id, "done", result, None)
            if done:
                self._made_room()
            if sends:
                self.intake.arrive(routed.messages, outcome)

        deliveries = [(lease.delivery, result) for lease, result in acks]
        self._writer.submit(Settle(now, deliveries, routed.messages, self._settings), settled)
        self._moved_on([lease for lease, _ in acks])
        if sends:
            self.intake.stored(routed.messages)

    def _free(self, leases: Sequence[Lease]) -> dict[str, int]:
        """Leases are over; where their queues have a limit of messages in flight, others may be given now.

        Returns how many they are by queue.
        """
        self._leases.remove(leases)
        counts = counted([lease.delivery.queue for lease in leases])
        for queue, count in counts.items():
            if self._settings(queue).max_in_flight is not None:
                self._receivers.stir(queue, count)
        return counts

    def _moved_on(self, leases: Sequence[Lease]) -> None:
        """Messages are about to end; the next of their groups may become ready, or delayed until they are due."""
        grouped = [lease.delivery.queue for lease in leases if lease.delivery.group is not None]
        if not grouped:
            return
        for queue, count in counted(grouped).items():
            self._receivers.stir(queue, count)
        self._alarm.set(self._clock.wall())

    def _nack(self, session: Session, request: ask.Nack, reply: Reply) -> None:
        lease = self._living_lease_of(request.receipt)
        delay = self._retry_wait(lease) if request.delay is None else request.delay
        self._retry([lease], delay, request.error, reply)

    def _release(self, session: Session, request: ask.Release, reply: Reply) -> None:
        leases = [lease for receipt in request.receipts if (lease := self._leases.get(receipt)) is not None]
        self._retry(leases, 0.0, None, reply, counts=False)

    def _cancel(self, session: Session, request: ask.Cancel, reply: Reply) -> None:
        reply({})
        self._receivers.cancel(session, request.request)

    def _retry(
        self, leases: Sequence[Lease], delay: float, error: str | None, reply: Reply, counts: bool = True
    ) -> None:
        now = self._clock.wall()

        def done(outcome: list[End | bool] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            self._free(leases)
            self.ended([end for end in outcome if isinstance(end, End)])
            if counts and False in outcome:
                reply(LeaseLost(LEASE_ENDED))
            else:
                reply({})

        due_at = now + delay if delay else None
        deliveries = [lease.delivery for lease in leases]
        self._writer.submit(RetryDeliveries(now, deliveries, self._settings, due_at, error, counts), done)
        if delay:
            self._alarm.set(now + delay)
        if any(lease.delivery.expires for lease in leases):
            self._alarm.set(now)  # looks when the next expires
        for queue, count in counted([lease.delivery.queue for lease in leases]).items():
            self._receivers.stir(queue, count)
        self._moved_on(leases)

    def _retry_wait(self, lease: Lease) -> float:
        """Seconds until the next delivery, growing exponentially, with some of it left to chance."""
        settings = self._settings(lease.delivery.queue)
        if lease.attempt <= 1:
            wait = settings.retry_first
        else:
            # The exponent is bounded, so that no power overflows; the cap is reached long before.
            wait = min(settings.retry_base * settings.retry_factor ** min(lease.attempt - 2, 100), settings.retry_cap)
        return wait * self._rng.uniform(1.0 - settings.retry_jitter, 1.0)

    def _reject(self, session: Session, request: ask.Reject, reply: Reply) -> None:
        lease = self._lease_of(request.receipt)

        def done(outcome: EoqError | None) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply({})
            if not lease.delivery.ended:
                self._free([lease])
                self._ended(lease.delivery.queue, lease.id, "dead", None, request.error)
                self._made_room()

        self._writer.submit(RejectDelivery(self._clock.wall(), lease.delivery, request.error), done)
        self._moved_on([lease])

    def _extend(self, session: Session, request: ask.Extend, reply: Reply) -> None:
        lease = self._living_lease_of(request.receipt)
        self._leases.extend(lease, self._clock.monotonic() + request.seconds)
        self._watch_leases()
        reply({})

    # ── leases that end ─────────────────────────────────────────────────────────────────────────────────

    def _watch_leases(self) -> None:
        deadline = self._leases.next_deadline()
        if deadline is not None:
            self._lease_alarm.set_in(deadline - self._clock.monotonic())

    def _leases_due(self) -> None:
        self._leases.expire(self._clock.monotonic())
        self._watch_leases()

    def _expired(self, leases: list[Lease]) -> None:
        self._give_back(leases, "the lease ended before the message was settled")

    def _give_back(self, leases: Sequence[Lease], error: str | None, counts: bool = True) -> None:
        """Releases messages whose leases are gone, and goes on trying if the disk refuses."""

        def done(outcome: Fields | EoqError) -> None:
            if isinstance(outcome, EoqError) and not isinstance(outcome, LeaseLost) and not self._stopping:
                self._clock.call_later(FAILED_RELEASE, partial(self._give_back, leases, error, counts))

        if leases:
            self._retry(leases, 0.0, error, done, counts)

    # ── what time does ──────────────────────────────────────────────────────────────────────────────────

    def _advance(self) -> None:
        def done(outcome: Advanced | EoqError) -> None:
            if isinstance(outcome, EoqError):
                self._alarm.set(self._clock.wall() + FAILED_RELEASE)
                return
            for queue, count in outcome.ready.items():
                self._receivers.stir(queue, count)
            if outcome.next_at is not None:
                self._alarm.set(outcome.next_at)
            self.ended(outcome.ended)

        self._writer.submit(Advance(self._clock.wall(), ADVANCE_BATCH, self._settings), done)


def _which(error: EoqError, leases: Sequence[Lease]) -> EoqError:
    """Of several acks, the one whose lease has ended is named."""
    if not isinstance(error, DeliveryLost) or len(leases) == 1:
        return error
    receipt = next(lease.receipt for lease in leases if lease.delivery is error.delivery)
    return LeaseLost(
        f"the lease of the receipt {receipt} has ended, so nothing at all was changed: leave that message out, and "
        "settle the others again"
    )
