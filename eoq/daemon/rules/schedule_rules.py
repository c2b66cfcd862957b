"""Schedule rules: when the occurrences of a schedule are, and which of the past ones are still to be sent.

These are pure functions of time. All occurrences are whole seconds since the epoch. cronsim reads the cron expressions.
It follows Debian's cron, also where a time zone skips an hour or repeats one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from ...errors import InvalidRequest

if TYPE_CHECKING:
    from cronsim import CronSim

GRACE: Final = 60.0
"""Seconds. An occurrence that is at most this late was not missed."""
MOST_MISSED: Final = 1000
"""How many missed occurrences of one schedule are sent at most: the newest ones."""
DEFAULT_ZONE: Final = "UTC"
"""It is the same on every machine, and repeats or skips no hour."""
NICKNAMES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""Those of crontab(5)."""


class Timing(NamedTuple):
    """When a schedule sends: by ``cron`` in a ``timezone``, or ``every`` number of seconds, counted from ``at``."""

    cron: str | None
    timezone: str | None
    every: int | None
    at: int | None


class Definition(NamedTuple):
    """What a schedule sends, and when, after validation. ``content`` is JSON: the fields of a send."""

    name: str
    queue: str
    timing: Timing
    catch_up: str
    content: str


class Rule(Protocol):
    """A series of occurrences."""

    def after(self, moment: float) -> int | None:
        """Return the first one later than ``moment``, or None where there is none within 50 years."""
        ...

    def back_from(self, moment: float) -> Iterator[int]:
        """Yield those at ``moment`` and before, the newest first."""
        ...


class Every:
    """An occurrence at ``start``, and one every ``seconds`` after it. The series never drifts."""

    def __init__(self, seconds: int, start: int) -> None:
        self._seconds = seconds
        self._start = start

    def after(self, moment: float) -> int | None:
        if moment < self._start:
            return self._start
        return self._start + (int(moment - self._start) // self._seconds + 1) * self._seconds

    def back_from(self, moment: float) -> Iterator[int]:
        if moment >= self._start:
            newest = self._start + int(moment - self._start) // self._seconds * self._seconds
            yield from range(newest, self._start - 1, -self._seconds)


class Cron:
    """A cron expression of five fields, by the clock of a time zone."""

    def __init__(self, expression: str, zone: tzinfo) -> None:
        self._expression = NICKNAMES.get(expression.lower(), expression)
        self._zone = zone

    def after(self, moment: float) -> int | None:
        # An hour that is repeated has its occurrences the first time. In the second one, they are in the past.
        return next((found for found in self._walk(int(moment)) if found > moment), None)

    def back_from(self, moment: float) -> Iterator[int]:
        return (found for found in self._walk(int(moment) + 1, reverse=True) if found <= moment)

    def _walk(self, moment: int, reverse: bool = False) -> Iterator[int]:
        try:
            for found in self._simulate(moment, reverse):
                yield int(found.timestamp())
        except (OverflowError, ValueError):
            return  # beyond the years that Python knows

    def _simulate(self, moment: int, reverse: bool) -> CronSim:
        from cronsim import CronSim, CronSimError  # imported only where there is a schedule

        try:
            if len(self._expression.split()) != 5:
                raise CronSimError("Wrong number of fields")
            return CronSim(self._expression, datetime.fromtimestamp(moment, self._zone), reverse=reverse)
        except CronSimError as error:
            raise InvalidRequest(
                f"{self._expression!r} is no cron expression ({str(error).lower()}); write minute, hour, day of the "
                "month, month and day of the week, such as '30 6 * * MON-FRI'"
            ) from error


AnyRule: TypeAlias = Every | Cron


def first_of(timing: Timing, added_at: float) -> Timing:
    """Return the timing with an ``at`` if it needs one: the first occurrence is one interval after ``added_at``."""
    if timing.every is None or timing.at is not None:
        return timing
    return timing._replace(at=int(added_at) + timing.every)


def begun_before(timing: Timing, planned: int, seen_at: float, since: float) -> Timing:
    """Return the timing of a schedule whose clock was set back from ``seen_at`` to ``since``.

    The seconds of ``every`` are counted from a moment of the clock that was wrong. Where the schedule had begun, or its
    first occurrence was at most one interval away, it goes on: the count begins earlier, by whole intervals. A start
    further away was chosen by the user, and stays. ``planned`` is the occurrence that would be next.
    """
    if timing.every is None or timing.at is None or planned - seen_at > timing.every:
        return timing
    return timing._replace(at=min(timing.at, planned - int(planned - since - 1) // timing.every * timing.every))


def rule_of(timing: Timing) -> AnyRule:
    """Return the occurrences of a timing. Raises `InvalidRequest`."""
    if (timing.cron is None) == (timing.every is None):
        raise InvalidRequest("give either `cron` or `every`")
    if timing.every is not None:
        if timing.timezone is not None:
            raise InvalidRequest("`timezone` belongs to `cron`; `every` counts seconds, which are the same everywhere")
        if timing.at is None:
            raise InvalidRequest("`every` needs `at`, the time that it counts from")
        return Every(timing.every, timing.at)
    if timing.at is not None:
        raise InvalidRequest("`at` belongs to `every`: the time that the seconds are counted from")
    assert timing.cron is not None  # noqa: S101 # checked above, in a way that mypy does not follow
    if not (timing.cron.isascii() and timing.cron.isprintable()):
        raise InvalidRequest(f"{timing.cron!r} is no cron expression: a cron expression has no such characters")
    return Cron(timing.cron, zone_of(timing.timezone or DEFAULT_ZONE))


def zone_of(name: str) -> tzinfo:
    """Return the time zone of an IANA name. Raises `InvalidRequest`."""
    if name == DEFAULT_ZONE:
        return UTC
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidRequest(
            f"there is no time zone {name!r} on this machine; write an IANA name such as Europe/Berlin, and if none "
            "is known here, install the system's or Python's package `tzdata`"
        ) from error


def due(rule: Rule, catch_up: str, planned: int, now: float) -> list[int]:
    """Return the occurrences to send, the oldest first: from the occurrence ``planned`` up to ``now``.

    Occurrences that are at most `GRACE` late are all sent. Older ones were missed. Of those, the ``catch_up`` "all"
    sends the newest `MOST_MISSED`, "last" sends the newest one unless a later one is sent, and "none" sends none.
    """
    chosen: list[int] = []
    for found in _between(rule, planned, now):
        missed = found < now - GRACE
        if len(chosen) == MOST_MISSED or (missed and (catch_up == "none" or (catch_up == "last" and chosen))):
            break
        chosen.append(found)
    return chosen[::-1]


def _between(rule: Rule, planned: int, now: float) -> Iterator[int]:
    """Yield the occurrences from ``planned`` to ``now``, the newest first."""
    following = rule.after(planned)
    if following is not None and following <= now:
        for found in rule.back_from(now):
            if found <= planned:
                break
            yield found
    yield planned


def occurrence_id(name: str, at: int) -> str:
    """Return the id of the message that a schedule sends for an occurrence."""
    return f"{name}@{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
