"""What a request means: it becomes one verb of the store, and the verb's outcome becomes the reply.

The broker also knows who waits. A receiver that finds nothing waits in memory; whatever may make a message
ready (a send, a nack, a lease that ends, a due time, a group that moves on) offers it to the next waiter by
submitting that waiter's claim right behind, so that both share one transaction and nobody polls.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from ..errors import EoqError, InvalidRequest, LeaseLost
from ..ids import new_id
from ..protocol import put_bytes
from . import requests as ask
from .clock import Clock, Timer
from .file import Verb
from .leases import Lease, Leases, Receipts
from .settings import SettingsOf, defaults
from .store import Claim, DeliveryLost, Held, NewMessage, Store

Fields: TypeAlias = dict[str, Any]
Reply: TypeAlias = Callable[["Fields | EoqError"], None]
Done: TypeAlias = Callable[[Any], None]
Ended: TypeAlias = Callable[[str, str, str, "bytes | None", "str | None"], None]
"""Told of each message that has ended: queue, id, outcome, result, error."""

RECEIVE_BYTES: Final = 2 * 1024 * 1024
"""Bytes of bodies in one reply to a receive; a single larger message goes alone."""
PROMOTE_BATCH: Final = 500
"""Due messages made ready in one step, so that no send waits behind a million of them."""
LONGEST_TIMER: Final = 60.0
"""Seconds after which a due time is looked at again, should the wall clock have jumped."""
FAILED_RELEASE: Final = 1.0
"""Seconds until a release that the disk refused is tried again."""


class Submitter(Protocol):
    """What the broker needs of the writer."""

    def submit(self, verb: Verb, done: Done, durable: bool = True) -> None: ...


class Session:
    """What the broker knows of one connection."""

    def __init__(self) -> None:
        self.closed = False
        self.leases: set[Lease] = set()
        """The bound leases; they end with the connection."""
        self.waiting: set[Waiter] = set()


class Waiter:
    """A receive that has not been answered."""

    def __init__(self, session: Session, request: ask.Receive, reply: Reply) -> None:
        self.session = session
        self.request = request
        self.reply = reply
        self.timer: Timer | None = None
        self.claiming = False
        self.answered = False
        self.patient = request.wait > 0
        self.seen = 0
        """How often its queue had been stirred when its last claim was submitted."""


class Line:
    """Who waits at one queue, in order of arrival. ``stirred`` counts what may have made messages ready."""

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()
        self.stirred = 0


class Broker:
    """Leases, waiting receivers, timers and fencing, over a writer and its store."""

    def __init__(
        self,
        store: Store,
        writer: Submitter,
        clock: Clock,
        *,
        epoch: str,
        ended: Ended,
        rng: random.Random | None = None,
        settings: SettingsOf = defaults,
    ) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 # jitter, not secrets
        self._settings = settings
        self._ended = ended
        self._receipts = Receipts(epoch)
        self._leases = Leases(self._expired)
        self._lines: dict[str, Line] = {}
        self._lease_timer: tuple[float, Timer] | None = None
        self._due_timer: tuple[float, Timer] | None = None
        self._stopping = False
        self._handlers: dict[type, Callable[[Session, Any, Reply], None]] = {
            ask.Send: self._send,
            ask.SendMany: self._send_many,
            ask.Receive: self._receive,
            ask.Ack: self._ack,
            ask.Settle: self._settle,
            ask.Nack: self._nack,
            ask.Reject: self._reject,
            ask.Extend: self._extend,
            ask.Release: self._release,
        }

    # ── from the server ─────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Finds out when the first delayed message is due."""
        self._promote()

    def handle(self, session: Session, request: ask.Request, reply: Reply) -> None:
        """Acts on a request; ``reply`` is called once, now or later. Raises `EoqError` for what is refused."""
        self._handlers[type(request)](session, request, reply)

    def closed(self, session: Session) -> None:
        """A connection has ended: its waiters go, and its bound leases are given back at once."""
        session.closed = True
        for waiter in tuple(session.waiting):
            self._leave(waiter)
        leases = list(session.leases)
        for lease in leases:
            self._leases.remove(lease)
        if leases:
            self._give_back(leases, "the connection of the consumer ended")

    def stop(self) -> None:
        """Answers all who wait; nothing is offered from now on."""
        self._stopping = True
        for line in list(self._lines.values()):
            for waiter in tuple(line.waiters):
                if not waiter.claiming:
                    self._answer(waiter, Claim([], 0))
        for timer in (self._lease_timer, self._due_timer):
            if timer is not None:
                timer[1].cancel()

    @property
    def leased(self) -> int:
        """Messages leased now."""
        return len(self._leases)

    @property
    def waiting(self) -> int:
        """Receivers that wait now."""
        return sum(len(line.waiters) for line in self._lines.values())

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, session: Session, request: ask.Send, reply: Reply) -> None:
        now = self._clock.wall()
        message = ask.new_message(request.queue, request, now, new_id)

        def done(outcome: list[int] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
            else:
                reply({"id": message.id, "duplicate": bool(outcome)})

        self._writer.submit(partial(self._store.put, now, (message,)), done)
        self._stored(message.queue, 1, message.due_at)

    def _send_many(self, session: Session, request: ask.SendMany, reply: Reply) -> None:
        now = self._clock.wall()
        messages = [ask.new_message(request.queue, message, now, new_id) for message in request.messages]

        def done(outcome: list[int] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
            else:
                reply({"ids": [message.id for message in messages], "duplicates": outcome})

        self._writer.submit(partial(self._store.put, now, messages), done)
        due = [message.due_at for message in messages if message.due_at is not None]
        self._stored(request.queue, len(messages), min(due, default=None))

    def stored(self, queue: str, count: int) -> None:
        """Somebody else has stored messages in ``queue``, ready now."""
        self._stored(queue, count, None)

    def _stored(self, queue: str, count: int, due_at: float | None) -> None:
        """Messages are about to be stored in ``queue``: waiters may claim them, a timer may be needed."""
        if due_at is not None:
            self._watch_due(due_at)
        self._stir(queue, count)

    # ── receiving ───────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, session: Session, request: ask.Receive, reply: Reply) -> None:
        waiter = Waiter(session, request, reply)
        session.waiting.add(waiter)
        line = self._lines.setdefault(request.queue, Line())
        line.waiters.append(waiter)
        if request.wait:
            waiter.timer = self._clock.call_later(request.wait, partial(self._waited, waiter))
        self._claim(waiter, line)

    def _claim(self, waiter: Waiter, line: Line) -> None:
        waiter.claiming = True
        waiter.seen = line.stirred
        request = waiter.request
        verb = partial(self._store.claim, request.queue, request.limit, RECEIVE_BYTES)
        # A lease that is lost with the power was one of a daemon that is gone as well.
        self._writer.submit(verb, partial(self._claimed, waiter, line), durable=False)

    def _claimed(self, waiter: Waiter, line: Line, outcome: Claim | EoqError) -> None:
        waiter.claiming = False
        if waiter.answered:
            # It left while its claim was under way (a closed connection, a wait that ended).
            if isinstance(outcome, Claim):
                self._give_back(self._lease(waiter, outcome), None, counts=False)
            return
        if isinstance(outcome, EoqError):
            self._leave(waiter)
            waiter.reply(outcome)
        elif outcome.messages or not waiter.patient or self._stopping:
            self._answer(waiter, outcome)
            if len(outcome.messages) == waiter.request.limit:
                # There may be more than this one could take.
                self._stir(waiter.request.queue, 1)
        elif waiter.seen != line.stirred:
            self._claim(waiter, line)

    def _lease(self, waiter: Waiter, claim: Claim) -> list[Lease]:
        request = waiter.request
        deadline = self._clock.monotonic() + request.lease
        owner = waiter.session.leases if request.bound else None
        return [
            Lease(
                Held(message.seq, message.fence, request.queue, message.group),
                message.id,
                message.attempt,
                self._receipts.write(message.seq, message.fence),
                deadline,
                owner,
            )
            for message in claim.messages
        ]

    def _answer(self, waiter: Waiter, claim: Claim) -> None:
        self._leave(waiter)
        leases = self._lease(waiter, claim)
        for lease in leases:
            self._leases.add(lease)
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
        waiter.reply({"messages": messages, "watermark": claim.watermark})

    def _waited(self, waiter: Waiter) -> None:
        """The time of a waiter is over. A claim under way still answers it."""
        if waiter.answered:
            return
        if waiter.claiming:
            waiter.patient = False
        else:
            self._answer(waiter, Claim([], 0))

    def _leave(self, waiter: Waiter) -> None:
        waiter.answered = True
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiter.session.waiting.discard(waiter)
        queue = waiter.request.queue
        line = self._lines[queue]
        if line.waiters and line.waiters[0] is waiter:
            line.waiters.popleft()
        else:
            line.waiters.remove(waiter)
        if not line.waiters:
            del self._lines[queue]

    def _stir(self, queue: str, count: int) -> None:
        """Up to ``count`` messages of ``queue`` may just have become ready: the next waiters claim them."""
        line = self._lines.get(queue)
        if line is None or self._stopping:
            return
        line.stirred += 1
        for waiter in line.waiters:
            if not waiter.claiming:
                self._claim(waiter, line)
                count -= 1
                if count <= 0:
                    break

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
        return Lease(Held(*parsed, ended=True), "", 0, receipt, 0.0, None)

    def _living_lease_of(self, receipt: str) -> Lease:
        lease = self._lease_of(receipt)
        if lease.held.ended:
            raise LeaseLost("the lease of this receipt has ended, so nothing was changed; go on with the next message")
        return lease

    def _ack(self, session: Session, request: ask.Ack, reply: Reply) -> None:
        self._submit_settle([(self._lease_of(request.receipt), ask.result_of(request))], [], lambda _: {}, reply)

    def _settle(self, session: Session, request: ask.Settle, reply: Reply) -> None:
        now = self._clock.wall()
        acks = [(self._lease_of(item.receipt), ask.result_of(item)) for item in request.acks]
        sends = [ask.new_message(message.queue, message, now, new_id) for message in request.send]
        ids = [message.id for message in sends]
        self._submit_settle(acks, sends, lambda duplicates: {"ids": ids, "duplicates": duplicates}, reply)
        for message in sends:
            self._stored(message.queue, 1, message.due_at)

    def _submit_settle(
        self,
        acks: Sequence[tuple[Lease, bytes | None]],
        sends: Sequence[NewMessage],
        answer: Callable[[list[int]], Fields],
        reply: Reply,
    ) -> None:
        def done(outcome: list[int] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(_which(outcome, [lease for lease, _ in acks]))
                return
            reply(answer(outcome))
            for lease, result in acks:
                if not lease.held.ended:
                    self._leases.remove(lease)
                    self._ended(lease.held.queue, lease.id, "done", result, None)

        held = [(lease.held, result) for lease, result in acks]
        self._writer.submit(partial(self._store.settle, self._clock.wall(), held, sends), done)
        for lease, _ in acks:
            self._moved_on(lease)

    def _moved_on(self, lease: Lease) -> None:
        """A message is about to end; the next of its group may become ready, or delayed until it is due."""
        if lease.held.group is not None:
            self._stir(lease.held.queue, 1)
            self._watch_due(self._clock.wall())

    def _nack(self, session: Session, request: ask.Nack, reply: Reply) -> None:
        lease = self._living_lease_of(request.receipt)
        delay = self._retry_wait(lease) if request.delay is None else request.delay
        self._retry([lease], delay, request.error, reply)

    def _release(self, session: Session, request: ask.Release, reply: Reply) -> None:
        leases = [lease for receipt in request.receipts if (lease := self._leases.get(receipt)) is not None]
        self._retry(leases, 0.0, None, reply, counts=False)

    def _retry(
        self, leases: Sequence[Lease], delay: float, error: str | None, reply: Reply, counts: bool = True
    ) -> None:
        now = self._clock.wall()

        def done(outcome: list[str | None] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            for lease, state in zip(leases, outcome, strict=True):
                self._leases.remove(lease)
                if state == "dead":
                    self._ended(lease.held.queue, lease.id, "dead", None, error)
            if counts and None in outcome:
                reply(
                    LeaseLost(
                        "the lease of this receipt has ended, so nothing was changed; go on with the next message"
                    )
                )
            else:
                reply({})

        verb = partial(
            self._store.retry,
            now,
            [lease.held for lease in leases],
            due_at=now + delay if delay else None,
            error=error,
            counts=counts,
        )
        self._writer.submit(verb, done)
        if delay:
            self._watch_due(now + delay)
        for lease in leases:
            self._stir(lease.held.queue, 1)
            self._moved_on(lease)

    def _retry_wait(self, lease: Lease) -> float:
        """Seconds until the next delivery, growing exponentially, with some of it left to chance."""
        settings = self._settings(lease.held.queue)
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
            if not lease.held.ended:
                self._leases.remove(lease)
                self._ended(lease.held.queue, lease.id, "dead", None, request.error)

        self._writer.submit(partial(self._store.reject, self._clock.wall(), lease.held, request.error), done)
        self._moved_on(lease)

    def _extend(self, session: Session, request: ask.Extend, reply: Reply) -> None:
        lease = self._living_lease_of(request.receipt)
        self._leases.extend(lease, self._clock.monotonic() + request.seconds)
        self._watch_leases()
        reply({})

    # ── leases that end ─────────────────────────────────────────────────────────────────────────────────

    def _watch_leases(self) -> None:
        deadline = self._leases.next_deadline()
        if deadline is None or self._stopping:
            return
        if self._lease_timer is not None:
            if self._lease_timer[0] <= deadline:
                return
            self._lease_timer[1].cancel()
        delay = max(0.0, deadline - self._clock.monotonic())
        self._lease_timer = (deadline, self._clock.call_later(delay, self._leases_due))

    def _leases_due(self) -> None:
        self._lease_timer = None
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

    # ── delayed messages ────────────────────────────────────────────────────────────────────────────────

    def _watch_due(self, due_at: float) -> None:
        """Looks for due messages at ``due_at`` (wall clock), or earlier if that is planned already."""
        if self._stopping:
            return
        delay = min(max(0.0, due_at - self._clock.wall()), LONGEST_TIMER)
        # What is planned is compared by the monotonic clock: the wall clock may have jumped since.
        moment = self._clock.monotonic() + delay
        if self._due_timer is not None:
            if self._due_timer[0] <= moment:
                return
            self._due_timer[1].cancel()
        self._due_timer = (moment, self._clock.call_later(delay, self._promote))

    def _promote(self) -> None:
        self._due_timer = None

        def done(outcome: tuple[dict[str, int], float | None] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                self._watch_due(self._clock.wall() + FAILED_RELEASE)
                return
            counts, next_due = outcome
            for queue, count in counts.items():
                self._stir(queue, count)
            if next_due is not None:
                self._watch_due(next_due)

        self._writer.submit(partial(self._store.promote, self._clock.wall(), PROMOTE_BATCH), done)


def _which(error: EoqError, leases: Sequence[Lease]) -> EoqError:
    """Of several acks, the one whose lease has ended is named."""
    if not isinstance(error, DeliveryLost) or len(leases) == 1:
        return error
    receipt = next(lease.receipt for lease in leases if lease.held is error.held)
    return LeaseLost(
        f"the lease of the receipt {receipt} has ended, so nothing at all was changed: leave that message out, and "
        "settle the others again"
    )
