"""Pruning: which processed ids an inbox may delete (G9). The rules, for every kind of database.

An id may be deleted when its message can no longer be delivered. The daemon knows when that is. Each delivery carries
the watermark W of its queue: the lowest seq that is not settled. Ready, delayed, blocked, leased and dead messages all
hold the watermark back. A message that was delivered, and then expired or was dropped by an operator or by a full
queue, counts as unsettled for the retention of its queue.

The inbox keeps W together with the time L at which the delivery was requested. This pair, a dated watermark, states:
"at time L, all messages below W were settled". The rule of this file is:

    An id is deleted if its seq is below W, and it was processed, or last delivered again, before L - keep and before
    the moment H that the clock is believed to allow (``belief.py``).

``keep`` is by default the retention of the queue, which each delivery brings. So the daemon has forgotten an id before
the inbox does, and a send that is repeated late meets one of the two. W is compared only with the ids of the same file
of the daemon (``source``), and with those whose file is not known.

The rule is safe when the daemon's file is restored. Let a backup be made at time B and restored at time R, and be no
older than ``keep``: R - B <= keep. A message that is unsettled in the backup is delivered again after R. Before the
restore it was settled after B, in one of two ways:

- It was processed and acked. Then it was processed at B or later, or it was delivered again and found at B or later.
- It was given up (it expired or was dropped). Then W stayed below it for the retention of the queue, which is not
  shorter than ``keep``. So each watermark above it has a date L > B + keep >= R.

Now look at the date L of the watermark that the rule uses:

- If R > L, the rule deletes only ids that were processed before L - keep < R - keep <= B. That is none of the first
  kind. Messages of the second kind are not below W yet.
- If R <= L, the watermark comes from the restored file. What is unsettled in that file is not below W.

The rule is safe when a sender repeats a message late. If the daemon still knows its id, it answers `duplicate`. If it
does not, because its file was restored to before the first send, the inbox knows the id for the retention of the queue
after the message was processed. That is as long as the daemon would have known it. If the content is another one, the
digest shows that.

The rule is safe when a worker is slow. H is stored (``forgotten_to``), and is never lowered. Let a delivery be
requested at time r, and let its worker pause until the lease has ended and the id was deleted. Another consumer
processed the message, or found it processed, after r. So the id was deleted by an H > r. The inbox refuses each
delivery that is older than ``keep``, whose id is not found, and that was requested before H, with `LeaseLost`. If the
lease of a refused delivery is still alive, the message is just delivered again.

L and r are the times at which the deliveries were requested. The deliveries arrived then or later: a reply may wait in
the socket of a process that is stopped. So the inbox deletes less, and refuses more, than by the times of arrival.

The rule is safe when a clock is wrong. The clock of the daemon plays no part: W counts messages and no time, and the
daemon forgets an id only after its retention of time that surely passed (its file notes each time the clock was set).
The clock of the worker dates the ids, L and H:

- If it is ahead by E when an id is processed, the id is kept longer by E.
- If it is ahead by E when L is observed, each id seems older by E. But H is not moved by E. It is at most one hour
  (``REACH_SECONDS``) beyond what was believed before, unless the clock shows the same again an hour later. So an
  excursion deletes nothing that is younger than ``keep`` less an hour. Only a clock that stays ahead while messages are
  processed is believed, and can delete up to E too early.
- If it is behind when an id is processed, the date of the id would be too old. The clock is then behind a moment that
  the file shows to be past, and the id gets a date of a year later.
- If it is set back after H was stored, H stays. A delivery whose request seems to be old, or still to come, is refused
  where its id may have been deleted. The message is then delivered again, and nothing is lost.

A late repeat and a wrong clock together: the repeat of a send reaches either a daemon that still knows the id, or one
that has surely forgotten it (see above) and then an inbox that has kept the id for ``keep`` of its own time. Where both
have forgotten it, ``retention`` has passed since it was processed, and G2 promises nothing any more. A sender of eoq
that repeats by itself says until when its message may be stored (``not_after``), so that it never comes so late.

What follows for the code:

- W is never used without its own L. The highest W is never combined with the latest L.
- ``keep`` is counted back from L and not from now. An inbox without deliveries for a week deletes nothing that week.
- A new file of the daemon has another ``source``. Ids of the earlier file stay.

The rule does not cover: a backup that is older than ``keep``; a second restore of a backup from before the first
restore; a restore of both files (a new file of the daemon counts as one); a queue whose retention is shorter than
``keep``; a late repeat after a restore, where ``keep`` is shorter than the retention; and a worker that pauses for
longer than ``keep`` while the clock is wrong.

The statements are in ``sweeping.py`` for SQLite, and in the folder ``postgres`` for PostgreSQL.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from ...errors import InvalidRequest
from ...message import Delivery
from .belief import Belief, believe, date_of

KEEP_SECONDS: Final = 86400.0
"""How many seconds a processed id is kept at least, if neither the application nor the daemon says how long."""
EVERY: Final = 100
"""How many messages of a queue are processed between two automatic steps."""
ROWS: Final = 200
"""How many rows a step reads: twice as many as were added since the last step, so that pruning catches up."""
SLACK: Final = 60.0
"""How many seconds a delivery may seem to come from the future, because the clock was corrected."""

Stream: TypeAlias = tuple[str, str]
"""The identity of a daemon's file, and a queue. A daemon that does not say its identity has an empty one."""


@dataclass(slots=True)
class _Watermark:
    """The dated watermark that the latest delivery of a queue brought to this process."""

    watermark: int
    requested_at: float
    retention: float | None = None
    since_step: int = EVERY
    """Messages processed since the last step. It starts with `EVERY`, so that a short-lived process makes one step."""


class KnownWatermark(NamedTuple):
    """What the database has about the watermark of a stream. ``seen_at`` is its date."""

    watermark: int
    retention: float | None
    forgotten_to: float
    seen_at: float


class Limits(NamedTuple):
    """Ids with a seq below ``watermark`` that were processed before the moment ``before`` may be deleted."""

    watermark: int
    before: float


class Pruning:
    """The watermarks that this process has received, and what follows from them and from the stored ones.

    ``keep`` is in seconds; with ``math.inf`` no id is ever deleted. None means the retention of the queue, as the
    daemon says it. Raises `InvalidRequest` if it is not such a number.
    """

    def __init__(self, keep: float | None) -> None:
        if keep is not None and (
            not isinstance(keep, int | float) or isinstance(keep, bool) or math.isnan(keep) or keep < 0
        ):
            raise InvalidRequest(f"`keep` is a number of seconds, 0 or more, not {keep!r}")
        self.fixed_keep = keep
        """The ``keep`` of the application, or None."""
        self.known_past: float | None = None
        """A moment that is surely past, as far as the database tells. None before the database was asked."""
        self._received: dict[Stream, _Watermark] = {}

    @property
    def streams(self) -> Iterable[Stream]:
        """The streams whose watermark this process has received."""
        return self._received

    def keep(self, retention: float | None) -> float:
        """Return how many seconds an id of a queue with this ``retention`` is kept at least."""
        if self.fixed_keep is not None:
            return self.fixed_keep
        return KEEP_SECONDS if retention is None else retention

    def date(self, now: float) -> float:
        """Return the date for ids that are processed now. If the clock is surely behind, it is far in the future."""
        return now if self.known_past is None else date_of(now, self.known_past)

    def note(self, messages: Iterable[Delivery], now: float, ahead: float = 0.0) -> list[Stream]:
        """Note the watermarks of deliveries that were just processed. Return the streams for which a step is due.

        ``now`` is by the clock of the dates in the database. It is ``ahead`` seconds ahead of the clock by which the
        deliveries are dated, here and in the other methods.
        """
        by_stream: dict[Stream, list[Delivery]] = {}
        for message in messages:
            by_stream.setdefault((message.source, message.queue), []).append(message)
        due = []
        for stream, deliveries in by_stream.items():
            received = self._received.setdefault(stream, _Watermark(0, -math.inf))
            received.since_step += len(deliveries)
            if now < received.requested_at:
                # The clock was set back. Beside the old date, ids processed from now on would seem older than they are.
                # A step replaces the dated watermark, also in the database.
                received.since_step = EVERY
            # Any of the deliveries may be the latest, so take the lowest watermark and the earliest time.
            received.watermark = min([message.watermark for message in deliveries])
            received.requested_at = min([message.received_at for message in deliveries]) + ahead
            received.retention = deliveries[-1].retention
            if received.since_step >= EVERY:
                received.since_step = 0
                due.append(stream)
        return due

    def limits(self, stream: Stream, stored: KnownWatermark | None, now: float) -> tuple[Limits, KnownWatermark | None]:
        """Return which ids of a stream may be deleted, and what is to be stored about its watermark (or None).

        ``stored`` is what the database has about it.
        """
        received = self._received.get(stream)
        if received is not None and received.requested_at > now:
            received = None  # by a wrong clock
        if received is None:
            if stored is None or stored.seen_at > now:
                return Limits(0, -math.inf), None
            received = _Watermark(stored.watermark, stored.seen_at, stored.retention)
        elif stored is not None and received.requested_at < stored.seen_at <= now:
            received = _Watermark(stored.watermark, stored.seen_at, stored.retention)
        keep = self.keep(received.retention)
        belief = believe(
            None if stored is None else Belief(stored.forgotten_to, stored.seen_at), received.requested_at, now, keep
        )
        watermark = received.watermark
        if stored is not None and belief.seen_at == stored.seen_at:
            watermark = stored.watermark  # it stays with its date
        if self.known_past is not None:
            self.known_past = max(self.known_past, min(belief.seen_at, belief.forgotten_to + keep))
        limits = Limits(received.watermark, min(belief.forgotten_to, received.requested_at - keep))
        return limits, KnownWatermark(watermark, received.retention, belief.forgotten_to, belief.seen_at)

    def is_old(self, message: Delivery, now: float, ahead: float = 0.0) -> bool:
        """Return whether a delivery was requested so long ago that `is_late` has to be asked about it."""
        return not -SLACK <= now - message.received_at - ahead <= self.keep(message.retention)

    def is_late(self, message: Delivery, stored: KnownWatermark | None, now: float, ahead: float = 0.0) -> bool:
        """Return whether the id of an old delivery may have been deleted, if it is not found."""
        requested_at = message.received_at + ahead
        return stored is not None and (requested_at < stored.forgotten_to or requested_at > now + SLACK)
