"""How far an inbox believes the wall clock, so that a clock that is wrong for a moment makes it forget nothing early.

Ids are deleted when they were processed long enough ago by the wall clock. Its errors have different effects:

- **Ahead.** Every id seems old. So the clock is believed only as far as it runs on from what was believed before: by
  up to an hour since the last step. After a longer pause, the date of an earlier step counts, as soon as the clock is
  found an hour beyond it. A clock that is ahead for a moment, and then right again, is found before the date that it
  gave, which is then discarded.
- **Behind.** A new id gets an old date. If the clock is behind a moment that is surely past, the date of an id that is
  processed now is unknown, and it is kept for a year.

The believed moment less ``keep`` is stored (``forgotten_to``) and never lowered.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

REACH_SECONDS: Final = 3600.0
"""How far beyond the believed moment the clock is believed at once. With a short ``keep`` it is twice ``keep``."""
UNKNOWN_SECONDS: Final = 366 * 86400.0
"""How much later than the known past the date is that stands for an unknown one."""


class Belief(NamedTuple):
    """``forgotten_to`` is the moment before which ids may be deleted, ``seen_at`` the date of the last observation."""

    forgotten_to: float
    seen_at: float


def believe(before: Belief | None, requested_at: float, now: float, keep: float) -> Belief:
    """Return the belief after a delivery that was requested at ``requested_at``, if the clock says ``now``.

    ``before`` is the stored one. Without one there is nothing to compare the clock with.
    """
    if math.isinf(keep):
        return Belief(before.forgotten_to if before else 0.0, requested_at)
    if before is None:
        return Belief(now - keep, requested_at)
    reach = min(REACH_SECONDS, 2 * keep)
    if keep == 0 or now - (before.forgotten_to + keep) <= reach:
        return Belief(max(before.forgotten_to, now - keep), requested_at)
    if now >= before.seen_at + reach:
        return Belief(max(before.forgotten_to, before.seen_at - keep), requested_at)
    # A clock that was ahead has given this date, or it is too young to prove anything.
    return Belief(before.forgotten_to, min(before.seen_at, requested_at))


def date_of(now: float, known_past: float) -> float:
    """Return the date of an id that is processed ``now`` by the clock, when ``known_past`` is surely past."""
    return now if now >= known_past else known_past + UNKNOWN_SECONDS
