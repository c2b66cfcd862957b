"""Redelivery: messages go back to their queues when a delivery ends without an ack.

That happens when its consumer nacks or releases it, when its lease ends, when the connection that it is bound to ends,
or when the client that it was claimed for has disconnected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ...errors import EoqError, LeaseLost
from ..clock import Alarm, Clock
from ..config.settings import SettingsOf
from ..records import LEASE_ENDED, End, counted
from ..session import Fields, Reply, Session, Submitter
from ..store.commands import Counts, RetryDeliveries
from .due_times import DueTimes
from .events import Events
from .leases import Bound, Lease, Leases

STEP_LEASES: Final = 200
"""How many leases end in one step."""
STEP_BYTES: Final = 2 * 1024 * 1024
"""How many bytes of bodies these may have together, or one alone more: SQLite writes a body again with its message."""
RETRY_SECONDS: Final = 1.0
"""Seconds until giving back is tried again after a failure of the disk."""


class Redelivery:
    """The end of leases, by time and with their connections. Their messages become deliverable again."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        settings: SettingsOf,
        leases: Leases,
        due_times: DueTimes,
        events: Events,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._settings = settings
        self._leases = leases
        self._due_times = due_times
        self._events = events
        self._alarm = Alarm(clock, self._expire)
        self._bound: dict[Session, Bound] = {}
        self._expiring = False
        self._stopping = False

    def stop(self) -> None:
        """End no more leases by time."""
        self._stopping = True
        self._alarm.stop()

    def bound_to(self, session: Session) -> Bound:
        """Return the leases that end with a connection. Their messages are then given back at once."""
        bound = self._bound.get(session)
        if bound is None:
            bound = self._bound[session] = {}
            session.on_close(partial(self._give_back_bound, session))
        return bound

    def watch(self) -> None:
        """Set the alarm for the next lease that ends. Call it when a deadline is new."""
        deadline = self._leases.next_deadline()
        if deadline is not None:
            self._alarm.set_in(deadline - self._clock.monotonic())

    def free(self, leases: Sequence[Lease]) -> None:
        """Remove leases that have ended. If a queue limits its messages in flight, others may be delivered now."""
        self._leases.remove(leases)
        for queue, count in counted([lease.delivery.queue for lease in leases]).items():
            if self._settings(queue).max_in_flight is not None:
                self._events.ready(queue, count)

    def move_groups_on(self, leases: Sequence[Lease]) -> None:
        """Announce that messages are about to end or come back: the next of their groups may be ready, or due later."""
        grouped = [lease.delivery.queue for lease in leases if lease.delivery.group is not None]
        if not grouped:
            return
        for queue, count in counted(grouped).items():
            self._events.ready(queue, count)
        self._due_times.check_again()

    def retry(
        self, leases: Sequence[Lease], delay: float, error: str | None, reply: Reply, counts: Counts = "all"
    ) -> None:
        """Make messages deliverable again in ``delay`` seconds.

        ``counts`` says which of them use an attempt. Unless all do, a lease that has ended before is no error.

        Where their bodies are large, this takes several steps, the last messages first (see `Leases.expire`). So
        commands of others come between.
        """
        now = self._clock.wall()
        begin = _last_step(leases)
        earlier, leases = leases[:begin], leases[begin:]

        def done(outcome: list[End | bool] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            self.free(leases)
            self._due_times.ended([end for end in outcome if isinstance(end, End)])
            if earlier:
                self.retry(earlier, delay, error, reply, counts)
            elif counts == "all" and False in outcome:
                reply(LeaseLost(LEASE_ENDED))
            else:
                reply({})

        due_at = now + delay if delay else None
        deliveries = [lease.delivery for lease in leases]
        self._writer.submit(RetryDeliveries(now, deliveries, self._settings, due_at, error, counts), done)
        if due_at is not None:
            self._due_times.watch(due_at)
        if any(lease.delivery.expires for lease in leases):
            self._due_times.check_again()  # to learn when the next message expires
        for queue, count in counted([lease.delivery.queue for lease in leases]).items():
            self._events.ready(queue, count)
        self.move_groups_on(leases)

    def give_back(
        self,
        leases: Sequence[Lease],
        error: str | None,
        counts: Counts,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Make messages whose leases have ended deliverable again. Keep trying if the disk fails.

        ``then`` is called after the first try.
        """

        def done(outcome: Fields | EoqError) -> None:
            if isinstance(outcome, EoqError) and not isinstance(outcome, LeaseLost) and not self._stopping:
                self._clock.call_later(RETRY_SECONDS, partial(self.give_back, leases, error, counts))
            then()

        if leases:
            self.retry(leases, 0.0, error, done, counts)
        else:
            then()

    def _expire(self) -> None:
        """End the leases whose time is over. Where they are many, other requests come between the steps."""
        if self._expiring:
            return
        expired = self._leases.expire(self._clock.monotonic(), STEP_LEASES)
        self._expiring = len(expired) >= STEP_LEASES
        error = "the lease ended before the message was settled"
        if self._expiring:
            self.give_back(expired, error, "handled", self._expire_more)
        else:
            self.give_back(expired, error, "handled")
            self.watch()

    def _expire_more(self) -> None:
        self._expiring = False
        if not self._stopping:
            self.watch()

    def _give_back_bound(self, session: Session) -> None:
        """Give back the messages of a connection that has ended, in steps.

        The last ones are first: as in `Leases.expire`, what is left of a delivery then begins as it did.
        """
        self._give_back_some(list(self._bound.pop(session)))

    def _give_back_some(self, left: list[Lease]) -> None:
        while left:
            # Those that were settled meanwhile, with their receipts, are not given back.
            leases = [lease for lease in left[-STEP_LEASES:] if self._leases.get(lease.receipt) is lease]
            del left[-STEP_LEASES:]
            if leases:
                self._leases.remove(leases)
                # Where it is the daemon that stops, no consumer has failed.
                counts: Counts = "none" if self._stopping else "handled"
                then = partial(self._give_back_some, left)
                self.give_back(leases, "the connection of the consumer ended", counts, then)
                return


def _last_step(leases: Sequence[Lease]) -> int:
    """Return the index of the first lease of the last step."""
    size, begin = 0, len(leases)
    while begin > 0 and (size := size + leases[begin - 1].delivery.size) <= STEP_BYTES:
        begin -= 1
    return min(begin, max(0, len(leases) - 1))
