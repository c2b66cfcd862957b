"""Receivers: requests for the messages of a queue. They are served in the order of their requests.

A receiver without messages waits in memory. When messages may be ready, the next receiver of their queue is woken: it
submits its claim right behind the command that made them ready. Both then share one transaction, and no client polls.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from typing import Final

from ...errors import EoqError
from ...protocol.codec import put_bytes
from .. import requests as ask
from ..clock import Alarm, Clock
from ..config.settings import SettingsOf
from ..records import Claimed, DeliveryRef
from ..session import Fields, Handlers, Reply, Session, Submitter
from ..store.commands import Claim
from .consumers import Consumers
from .due_times import DueTimes
from .events import Events
from .leases import Bound, Lease, Leases, Receipts
from .limits import DeliveryLimits
from .redelivery import Redelivery
from .wait_list import Waiter, WaitList

RECEIVE_BYTES: Final = 2 * 1024 * 1024
"""Bytes of bodies and headers in one reply to a receive. A single larger message goes alone."""

MOST_WOKEN: Final = 50
"""How many receivers of a queue claim at once. A client may have thousands, and the commands of others come between."""


class Receiver(Waiter, eq=False, kw_only=True):
    """A receive that has not been answered."""

    request: ask.Receive
    patient: bool
    """Whether it waits if its queue has no message for it."""
    claiming: bool = False
    cancelled: bool = False
    """Whether its client has cancelled it, and may not read what it is answered."""
    allowed: int = 0
    """How many messages its claim under way may lease."""
    limited: bool = False
    """Whether its queue has delivery limits. Then the messages that its claim may lease are reserved for it."""
    wakeups: int = 0
    """How many wakeups its queue had when its last claim was submitted."""
    unmet: int = 0
    """How many of them were unmet then."""


class _Line:
    """What the receivers of one queue share, for as long as there are any."""

    __slots__ = ("alarm", "deferred", "empty_at", "unmet", "wakeups")

    def __init__(self) -> None:
        self.wakeups = 0
        """How often messages may have become ready."""
        self.unmet = 0
        """How often too few receivers were idle. Those that were claiming then claim again."""
        self.empty_at = -1
        """How many wakeups there were when a claim was submitted that found nothing."""
        self.alarm: Alarm | None = None
        """Rings when the rate of the queue allows another delivery."""
        self.deferred: dict[Receiver, None] = {}
        """Receivers that want an answer at once, while everything allowed is reserved for claims under way."""


class Receivers:
    """All receives that have not been answered."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        settings: SettingsOf,
        receipts: Receipts,
        leases: Leases,
        redelivery: Redelivery,
        due_times: DueTimes,
        events: Events,
        source: str,
    ) -> None:
        """``source`` is the identity of the daemon's file."""
        self._writer = writer
        self._clock = clock
        self._settings = settings
        self._receipts = receipts
        self._leases = leases
        self._redelivery = redelivery
        self._due_times = due_times
        self._events = events
        self._source = source
        self.consumers = Consumers()
        self.limits = DeliveryLimits(settings, clock, leases)
        self._wait_list: WaitList[Receiver] = WaitList(clock, self._end_wait, self._drop_line)
        self._lines: dict[str, _Line] = {}
        self._stopping = False
        self.handlers: Handlers = {ask.Receive: self.receive, ask.Cancel: self._cancel}

    @property
    def waiting(self) -> int:
        """How many receivers wait now."""
        return self._wait_list.count

    def waiting_for(self, queue: str) -> int:
        """Return how many receivers wait for the messages of a queue."""
        return len(self._wait_list.line(queue))

    def stop(self) -> None:
        """Answer all receivers that wait. Deliver nothing from now on."""
        self._stopping = True
        for receiver in self._wait_list.all_waiters():
            if not receiver.claiming:
                self._answer(receiver, Claimed([], 0))

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, session: Session, request: ask.Receive, reply: Reply) -> None:
        """Lease the messages that are ready, or wait for them."""
        wait, queue = request.wait, request.queue
        receiver = Receiver(
            session=session,
            reply=reply,
            key=queue,
            name=(session, request.rid),
            request=request,
            patient=wait > 0,
        )
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = _Line()
        self._wait_list.join(receiver)
        self.consumers.note(session, queue)
        if wait:
            self._wait_list.start_timer(receiver, wait)
            if line.empty_at == line.wakeups and not self._stopping:
                session.parked(request)  # no message became ready since another receiver has looked
                return
        self._claim(receiver, line)

    def _cancel(self, session: Session, request: ask.Cancel, reply: Reply) -> None:
        """Answer receives of this connection with no messages."""
        reply({})
        for receiver in self._wait_list.named((session, request.request)):
            receiver.cancelled = True
            self._end_wait(receiver)

    # ── waking ──────────────────────────────────────────────────────────────────────────────────────────

    def wake(self, queue: str, count: int | None) -> None:
        """Let the next ``count`` receivers of a queue claim, or all of them. See `Events.ready`.

        Where they are many, some begin, and each that leases all that it may lets another claim: see `_claimed`.
        """
        line = self._lines.get(queue)
        if line is None or self._stopping:
            return
        line.wakeups += 1
        wanted = MOST_WOKEN if count is None else min(count, MOST_WOKEN)
        idle = (receiver for receiver in self._wait_list.line(queue) if not receiver.claiming)
        woken = 0
        for receiver in list(islice(idle, wanted)):
            if receiver.joined and not receiver.claiming:
                self._claim(receiver, line)
                woken += receiver.claiming
        # Where enough were woken, those that are claiming already need not look again. If hundreds did so after each
        # message, none would ever rest, and the bytes that they have reserved for their replies would never be free.
        line.unmet += woken < wanted

    def wake_all(self) -> None:
        """Let all receivers try again: settings have changed, and may allow more."""
        for queue in list(self._lines):
            self.wake(queue, None)

    # ── claiming ────────────────────────────────────────────────────────────────────────────────────────

    def _claim(self, receiver: Receiver, line: _Line) -> None:
        queue = receiver.request.queue
        receiver.wakeups, receiver.unmet = line.wakeups, line.unmet
        receiver.allowed = receiver.request.limit
        receiver.limited = self.limits.is_limited(queue)
        if receiver.limited:
            receiver.allowed = self.limits.allow(queue, receiver.allowed)
            if not receiver.allowed:
                self._defer(receiver, line)
                return
        receiver.claiming = True
        command = Claim(
            self._clock.wall(),
            queue,
            receiver.allowed,
            RECEIVE_BYTES,
            self._settings,
            receiver.session.consumer,
            receiver.request.handles,
        )
        # Not durable: a lease that a loss of power undoes belongs to a daemon that has ended as well.
        self._writer.submit(command, partial(self._claimed, receiver, line), durable=False)

    def _defer(self, receiver: Receiver, line: _Line) -> None:
        """Let a receiver wait until the limits of its queue allow more, or answer it with nothing.

        While claims are under way it waits for them: it may lease what they do not need.
        """
        queue = receiver.request.queue
        has_reserved = self.limits.has_reserved(queue)
        seconds = None if has_reserved else self.limits.seconds_left(queue)
        if seconds is not None:
            if line.alarm is None:
                line.alarm = Alarm(self._clock, partial(self.wake, queue, None))
            line.alarm.set_in(seconds)
        if receiver.patient and not self._stopping:
            receiver.session.parked(receiver.request)
            return
        if has_reserved and not self._stopping:
            line.deferred[receiver] = None
        else:
            self._answer(receiver, Claimed([], 0))

    def _claim_deferred(self, queue: str) -> None:
        """Let the deferred receivers of a queue claim what a finished claim did not need."""
        line = self._lines.get(queue)
        if line is None or not line.deferred:
            return
        deferred, line.deferred = line.deferred, {}
        for receiver in deferred:
            if receiver.joined and not receiver.claiming:
                self._claim(receiver, line)

    def _claimed(self, receiver: Receiver, line: _Line, outcome: Claimed | EoqError) -> None:
        receiver.claiming = False
        queue = receiver.request.queue
        claim = outcome if isinstance(outcome, Claimed) else Claimed([], 0)
        leased = len(claim.messages)
        if receiver.limited:
            self.limits.claimed(queue, receiver.allowed, leased)
        self._conclude(receiver, line, outcome)
        more = claim.unfinished or leased == receiver.allowed
        if not receiver.joined and (more or receiver.limited or isinstance(outcome, EoqError)):
            # There may be more messages than this receiver could lease. Or other receivers found nothing allowed while
            # all was reserved for this one.
            self.wake(queue, 1)
        if receiver.limited:
            self._claim_deferred(queue)
        self._due_times.ended(claim.ended)

    def _conclude(self, receiver: Receiver, line: _Line, outcome: Claimed | EoqError) -> None:
        """Answer a receiver, let it wait on, or give back what was claimed for it."""
        if receiver.joined and receiver.session.hung_up():
            self._wait_list.leave(receiver)
        if isinstance(outcome, Claimed) and (receiver.cancelled or not receiver.joined):
            # It left while its claim was under way: its connection was closed, or its client has cancelled it.
            if outcome.messages:
                leases = self._make_leases(receiver.request, outcome, None)
                self._redelivery.give_back(leases, None, "none")
            if receiver.joined:
                self._answer(receiver, Claimed([], 0))
        elif isinstance(outcome, EoqError):
            if receiver.joined:
                self._wait_list.leave(receiver)
                receiver.reply(outcome)
        elif outcome.messages or self._stopping:
            self._answer(receiver, outcome)
        elif outcome.unfinished or (receiver.patient and receiver.unmet != line.unmet):
            self._claim(receiver, line)
        else:
            line.empty_at = receiver.wakeups
            if receiver.patient:
                receiver.session.parked(receiver.request)
            else:
                self._answer(receiver, outcome)

    # ── answering ───────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, receiver: Receiver, claim: Claimed) -> None:
        self._wait_list.leave(receiver)
        messages = self._deliver(receiver, claim) if claim.messages else []
        receiver.reply(
            {
                "messages": messages,
                "watermark": claim.watermark,
                "source": self._source,
                "retention": self._settings(receiver.request.queue).retention,
            }
        )

    def _deliver(self, receiver: Receiver, claim: Claimed) -> list[Fields]:
        """Lease claimed messages, and return them as fields of the reply."""
        request = receiver.request
        leases = self._make_leases(
            request, claim, self._redelivery.bound_to(receiver.session) if request.bound else None
        )
        self._leases.add(leases)
        self._redelivery.watch()
        messages = []
        for message, lease in zip(claim.messages, leases, strict=True):
            fields: Fields = {
                "id": message.id,
                "receipt": lease.receipt,
                "seq": message.seq,
                "attempt": message.attempt,
                "enqueued_at": message.enqueued_at,
                "digest": message.digest.hex(),
            }
            put_bytes(fields, "body", message.body)
            if message.headers is not None:
                fields["headers"] = json.loads(message.headers)
            if message.priority:
                fields["priority"] = message.priority
            if message.group is not None:
                fields["group"] = message.group
            if message.expires_at is not None:
                fields["expires_at"] = message.expires_at
            messages.append(fields)
        return messages

    def _make_leases(self, request: ask.Receive, claim: Claimed, bound: Bound | None) -> list[Lease]:
        deadline = self._clock.monotonic() + request.lease
        number, queue_id = claim.delivery_number, claim.queue_id
        write = self._receipts.write
        return [
            Lease(
                DeliveryRef(
                    message.seq,
                    number,
                    request.queue,
                    message.group,
                    len(message.body),
                    message.expires_at is not None,
                    False,
                    "",
                    queue_id,
                    message.id,
                ),
                message.id,
                message.attempt,
                write(message.seq, number, queue_id, message.id),
                deadline,
                bound,
            )
            for message in claim.messages
        ]

    def _end_wait(self, receiver: Receiver) -> None:
        """Answer a receiver with no messages. If its claim is under way, the claim still answers it."""
        if not receiver.joined:
            return
        if receiver.claiming:
            receiver.patient = False
        else:
            self._answer(receiver, Claimed([], 0))

    def _drop_line(self, last: Receiver) -> None:
        line = self._lines.pop(last.request.queue)
        if line.alarm is not None:
            line.alarm.stop()
