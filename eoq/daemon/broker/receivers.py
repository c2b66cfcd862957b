"""Receivers: who asks a queue for messages, and who gets them, in the order in which they came.

A receiver that finds nothing waits in memory. Whatever may make a message ready (a send, a nack, a lease that ends, a
due time, a group that moves on) stirs its queue: the next waiter's claim is submitted right behind, so that both share
one transaction and nobody polls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

from ...errors import EoqError
from .. import requests as ask
from ..clock import Alarm, Clock, Timer
from ..config.settings import SettingsOf
from ..records import Claimed, End
from ..session import Fields, Reply, Session, Submitter
from ..store.commands import Claim
from .limits import DeliveryLimits

RECEIVE_BYTES: Final = 2 * 1024 * 1024
"""Bytes of bodies and headers in one reply to a receive; a single larger message goes alone."""

Grant: TypeAlias = Callable[[Session, ask.Receive, Claimed], Fields]
"""Makes leases of what was claimed, and the reply that hands them over."""
Return: TypeAlias = Callable[[Session, ask.Receive, Claimed], None]
"""Gives back what was claimed for somebody who has gone: nobody has looked at it."""


class Waiter:
    """A receive that has not been answered."""

    def __init__(self, session: Session, request: ask.Receive, reply: Reply) -> None:
        self.session = session
        self.request = request
        self.reply = reply
        self.timer: Timer | None = None
        self.claiming = False
        self.answered = False
        self.allowed = 0
        """How many messages its claim under way may take,"""
        self.limited = False
        """and whether that was set aside for it by its queue's settings."""
        self.patient = request.wait > 0
        self.seen = 0
        """How often its queue had been stirred when its last claim was submitted."""


class Line:
    """Who waits at one queue, in order of arrival. ``stirred`` counts what may have made messages ready, ``alarm``
    rings when the queue's rate allows another delivery. ``held`` are those who want an answer at once, and wait for
    claims under way, which have all that is allowed set aside and may not need it.
    """

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()
        self.stirred = 0
        self.alarm: Alarm | None = None
        self.held: dict[Waiter, None] = {}


class Receivers:
    """All receives that have not been answered, by queue."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        settings: SettingsOf,
        flow: DeliveryLimits,
        *,
        grant: Grant,
        give_back: Return,
        ended: Callable[[Sequence[End]], None],
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._clock = clock
        self._flow = flow
        self._grant = grant
        self._return = give_back
        self._ended = ended
        self._lines: dict[str, Line] = {}
        self._stopping = False

    def __len__(self) -> int:
        return sum(len(line.waiters) for line in self._lines.values())

    def closed(self, session: Session) -> None:
        """A connection has ended, and with it its receives."""
        for waiter in tuple(session.waiting):
            self._leave(waiter)

    def cancel(self, session: Session, rid: ask.Rid) -> None:
        """A receive of this connection waits no longer: it is answered, as if its time was over."""
        for waiter in tuple(session.waiting):
            if waiter.request.rid == rid:
                self._waited(waiter)

    def stop(self) -> None:
        """Answers all who wait; nothing is offered from now on."""
        self._stopping = True
        for line in list(self._lines.values()):
            for waiter in tuple(line.waiters):
                if not waiter.claiming:
                    self._answer(waiter, Claimed([], 0))

    def receive(self, session: Session, request: ask.Receive, reply: Reply) -> None:
        """Leases what there is, or waits for it; ``reply`` is called once, now or later."""
        waiter = Waiter(session, request, reply)
        session.waiting.add(waiter)
        line = self._lines.setdefault(request.queue, Line())
        line.waiters.append(waiter)
        if request.wait:
            waiter.timer = self._clock.call_later(request.wait, partial(self._waited, waiter))
        self._claim(waiter, line)

    def _claim(self, waiter: Waiter, line: Line) -> None:
        request = waiter.request
        waiter.seen = line.stirred
        waiter.limited = self._flow.limits(request.queue)
        waiter.allowed = self._flow.allow(request.queue, request.limit)
        if not waiter.allowed:
            self._hold_back(waiter, line)
            return
        waiter.claiming = True
        consumer = waiter.session.consumer
        now = self._clock.wall()
        verb = Claim(now, request.queue, waiter.allowed, RECEIVE_BYTES, self._settings, consumer)
        # A lease that is lost with the power was one of a daemon that is gone as well.
        self._writer.submit(verb, partial(self._claimed, waiter, line), durable=False)

    def _hold_back(self, waiter: Waiter, line: Line) -> None:
        """The settings of its queue allow no more for now: a lease that ends, or some time, lets the next one claim.

        Where claims are under way their end does: one that finds nothing leaves nothing to wait for.
        """
        queue = waiter.request.queue
        undecided = self._flow.undecided(queue)
        seconds = None if undecided else self._flow.seconds(queue)
        if seconds is not None:
            if line.alarm is None:
                line.alarm = Alarm(self._clock, partial(self.stir_all, queue))
            line.alarm.set_in(seconds)
        if waiter.patient and not self._stopping:
            return
        if undecided and not self._stopping:
            line.held[waiter] = None
        else:
            self._answer(waiter, Claimed([], 0))

    def _claim_held(self, queue: str) -> None:
        """A claim is no longer under way: those who want an answer at once claim what it has left."""
        line = self._lines.get(queue)
        if line is None or not line.held:
            return
        held, line.held = line.held, {}
        for waiter in held:
            if not waiter.claiming and not waiter.answered:
                self._claim(waiter, line)

    def _claimed(self, waiter: Waiter, line: Line, outcome: Claimed | EoqError) -> None:
        waiter.claiming = False
        queue = waiter.request.queue
        claim = outcome if isinstance(outcome, Claimed) else Claimed([], 0)
        taken = len(claim.messages)
        if waiter.limited:
            self._flow.claimed(queue, waiter.allowed, taken)
        self._conclude(waiter, line, outcome)
        more = claim.unfinished or taken == waiter.allowed
        if waiter.answered and (more or waiter.limited or isinstance(outcome, EoqError)):
            # There may be more than this one could take, or others were held back while it had all that is allowed.
            self.stir(queue, 1)
        if waiter.limited:
            self._claim_held(queue)
        self._ended(claim.ended)

    def _conclude(self, waiter: Waiter, line: Line, outcome: Claimed | EoqError) -> None:
        if not waiter.answered and waiter.session.hung_up():
            self._leave(waiter)
        if waiter.answered:
            # It left while its claim was under way (a closed connection, a wait that ended).
            if isinstance(outcome, Claimed):
                self._return(waiter.session, waiter.request, outcome)
        elif isinstance(outcome, EoqError):
            self._leave(waiter)
            waiter.reply(outcome)
        elif outcome.messages or self._stopping:
            self._answer(waiter, outcome)
        elif outcome.unfinished or (waiter.patient and waiter.seen != line.stirred):
            self._claim(waiter, line)
        elif not waiter.patient:
            self._answer(waiter, outcome)

    def _answer(self, waiter: Waiter, claim: Claimed) -> None:
        self._leave(waiter)
        waiter.reply(self._grant(waiter.session, waiter.request, claim))

    def _waited(self, waiter: Waiter) -> None:
        """The time of a waiter is over. A claim under way still answers it."""
        if waiter.answered:
            return
        if waiter.claiming:
            waiter.patient = False
        else:
            self._answer(waiter, Claimed([], 0))

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
            if line.alarm is not None:
                line.alarm.stop()
            del self._lines[queue]

    def stir_all(self, queue: str) -> None:
        """Any number of messages of ``queue`` may just have become ready, by a verb just submitted."""
        line = self._lines.get(queue)
        if line is not None:
            self.stir(queue, len(line.waiters))

    def stir_everywhere(self) -> None:
        """What holds for the queues may be something else now: those who wait may be allowed more."""
        for queue in list(self._lines):
            self.stir_all(queue)

    def stir(self, queue: str, count: int) -> None:
        """Up to ``count`` messages of ``queue`` may just have become ready: the next waiters claim them."""
        line = self._lines.get(queue)
        if line is None or self._stopping:
            return
        line.stirred += 1
        for waiter in tuple(line.waiters):
            if not waiter.claiming and not waiter.answered:
                self._claim(waiter, line)
                count -= 1
                if count <= 0:
                    break
