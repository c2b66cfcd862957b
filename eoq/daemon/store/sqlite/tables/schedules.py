"""The schedules in the daemon's file: what each sends and when, and how far it has come."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from .....errors import EoqError, IdConflict, InvalidRequest, NotFound, QueueFull
from ....records import NewMessage, Stored
from ....schedule_rules import GRACE, Definition, Timing, due, first_of, occurrence_id, rule_of
from ..database import File

MAX_SCHEDULES: Final = 10_000
STEP: Final = 100
"""Occurrences, or schedules, that one transaction deals with, so that no send waits long behind them."""
REFUSED: Final = 5.0
"""Seconds until an occurrence that could not be stored is tried again, unless something ends before."""

_COLUMNS: Final = (
    "name, queue, cron, timezone, every, at, catch_up, content, origin, seen_at, next_at, last_at, error, number"
)


class Schedule(NamedTuple):
    """A schedule as it is stored."""

    definition: Definition
    origin: str
    seen_at: float
    next_at: int | None
    last_at: int | None
    error: str | None
    number: int


class Sent(NamedTuple):
    """The messages of one occurrence, one for each queue it went to, and what came of storing them."""

    messages: Sequence[NewMessage]
    stored: Stored


Send: TypeAlias = Callable[[float, Definition, int], Sent]
"""Stores the messages of an occurrence, now."""


class Fired(NamedTuple):
    """What one step of firing did: what was stored, what a person should know, when to go on, and whether something
    was refused, which is to be tried again when there may be room.
    """

    sent: list[Sent]
    notes: list[str]
    look_at: float | None
    refused: bool


class _Firing(NamedTuple):
    """One step of firing, and what it has done so far."""

    now: float
    send: Send
    sent: list[Sent]
    notes: list[str]
    refused: list[str]
    """Schedules."""


class ScheduleTable(File):
    """The verbs of the table ``schedule``; see ``file.py`` for what a verb is."""

    # ── adding and removing ─────────────────────────────────────────────────────────────────────────────

    def schedule_add(self, now: float, definition: Definition, replace: bool) -> tuple[bool, int | None]:
        """Stores a schedule, whose first occurrence is the first one after ``now``.

        Returns whether that changed anything, and when the next occurrence is. Raises `IdConflict` where the name
        stands for another definition and that is not to be replaced, `InvalidRequest` where the configuration file
        declares it, `QueueFull` where there are too many.
        """
        changed = self._add_schedule(now, definition, "client", replace)
        return changed, self._require_schedule(definition.name).next_at

    def schedule_apply(self, now: float, definitions: Sequence[Definition]) -> list[str]:
        """Makes the schedules of the configuration file exactly these; returns what that changed, for people."""
        notes = []
        with self._all_or_nothing():
            for definition in definitions:
                if self._add_schedule(now, definition, "config", replace=True):
                    notes.append(f"the schedule {definition.name} is new in the configuration, or changed")
            gone = self._database.execute(
                """
                delete from schedule
                where origin = 'config' and name not in (select value from json_each(?))
                returning name
                """,
                (json.dumps([definition.name for definition in definitions]),),
            ).fetchall()
        return notes + [f"the schedule {name} is removed: it is no longer in the configuration" for (name,) in gone]

    def _add_schedule(self, now: float, definition: Definition, origin: str, replace: bool) -> bool:
        old = self._find_schedule(definition.name)
        timing = definition.timing
        if timing.at is None and old is not None and timing.every == old.definition.timing.every:
            timing = timing._replace(at=old.definition.timing.at)
        timing = first_of(timing, now)
        definition = definition._replace(timing=timing)
        if old is None:
            self._require_room()
        elif old.definition == definition and old.origin in (origin, "config"):
            return False
        elif old.origin == "config" and origin == "client":
            raise InvalidRequest(
                f"the schedule {definition.name!r} is declared in the daemon's configuration file; change it there"
            )
        elif not replace:
            raise IdConflict(
                f"there is a schedule {definition.name!r} with another definition, and nothing was changed; replace "
                "it (`--replace`), or take another name"
            )
        if old is not None and old.definition.timing == timing:
            # The same occurrences as before, also those that are late.
            seen_at, next_at = old.seen_at, old.next_at
        else:
            seen_at, next_at = now, rule_of(timing).after(now)
        self._database.execute(
            """
            insert into schedule
              (name, queue, cron, timezone, every, at, catch_up, content, origin, seen_at, next_at, try_at)
            values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11)
            on conflict (name) do update
            set
              queue = excluded.queue,
              cron = excluded.cron,
              timezone = excluded.timezone,
              every = excluded.every,
              at = excluded.at,
              catch_up = excluded.catch_up,
              content = excluded.content,
              origin = excluded.origin,
              seen_at = excluded.seen_at,
              next_at = excluded.next_at,
              try_at = excluded.try_at,
              error = null
            """,
            (*definition[:2], *timing, *definition[3:], origin, seen_at, next_at),
        )
        return True

    def _require_room(self) -> None:
        (count,) = self._database.execute("select count(*) from schedule").fetchone()
        if count >= MAX_SCHEDULES:
            raise QueueFull(f"there are {MAX_SCHEDULES:,} schedules, and no more can be made; remove some")

    def schedule_remove(self, name: str) -> None:
        """Drops a schedule. Raises `NotFound`, or `InvalidRequest` where the configuration file declares it."""
        if self._require_schedule(name).origin == "config":
            raise InvalidRequest(
                f"the schedule {name!r} is declared in the daemon's configuration file; remove it there"
            )
        self._database.execute("delete from schedule where name = ?", (name,))

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────

    def schedule_show(self, name: str) -> Schedule:
        """A schedule; raises `NotFound`."""
        return self._require_schedule(name)

    def schedule_list(self) -> list[Schedule]:
        """All schedules, by name, without their contents."""
        columns = _COLUMNS.replace("content", "''")
        rows = self._database.execute(f"select {columns} from schedule order by name")  # noqa: S608 # our own columns
        return [_schedule(row) for row in rows]

    def _find_schedule(self, name: str) -> Schedule | None:
        row = self._database.execute(
            f"select {_COLUMNS} from schedule where name = ?",  # noqa: S608 # our own columns
            (name,),
        ).fetchone()
        return None if row is None else _schedule(row)

    def _require_schedule(self, name: str) -> Schedule:
        found = self._find_schedule(name)
        if found is None:
            raise NotFound(f"there is no schedule {name!r}; `eoq schedule list` lists them")
        return found

    # ── firing ──────────────────────────────────────────────────────────────────────────────────────────

    def schedule_fire(self, now: float, send: Send, room: bool = False) -> Fired:
        """Stores the messages of occurrences whose time has come, and plans the next ones, in one transaction.

        Deals with about `STEP` occurrences; then the result's ``look_at`` is ``now``. An occurrence that ``send``
        refuses is tried again until it is so late that it was missed, and the schedule's ``catch_up`` holds for it.
        Where there may be ``room``, that is now. One whose id is stored with other content is passed over.
        """
        firing = _Firing(now, send, [], [], [])
        if room:
            self._hurry(now)
        left = STEP - self._plan_anew(now)
        while left > 0 and (schedule := self._due_schedule(now)) is not None:
            left -= max(self._fire(firing, schedule, left), 1)
        look_at = now if left <= 0 else self._next_look()
        return Fired(firing.sent, firing.notes, look_at, bool(firing.refused))

    def _hurry(self, now: float) -> None:
        """What was refused is tried now, the longest ago first."""
        self._database.execute(
            """
            update schedule
            set try_at = :now
            where number in (
              select number
              from schedule
              where try_at > :now and next_at <= :now
              order by try_at
              limit :step
            )
            """,
            {"now": now, "step": STEP},
        )

    def _plan_anew(self, now: float) -> int:
        """Where the clock was set back: what it has passed comes again, under the same ids where it was sent.

        A step of less than `GRACE` is waited for. Returns how many schedules were planned.
        """
        rows = self._database.execute(
            f"select {_COLUMNS} from schedule where seen_at > ? limit ?",  # noqa: S608 # our own columns
            (now + GRACE, STEP),
        ).fetchall()
        since = now - GRACE  # it may have been set back some time ago
        for schedule in map(_schedule, rows):
            try:
                following = rule_of(schedule.definition.timing).after(since)
            except InvalidRequest:  # its time zone is gone: nothing is known but what was planned
                following = schedule.next_at
            self._plan(schedule._replace(seen_at=since, next_at=following, error=None), following)
        return len(rows)

    def _due_schedule(self, now: float) -> Schedule | None:
        row = self._database.execute(
            f"select {_COLUMNS} from schedule where try_at <= ? order by try_at limit 1",  # noqa: S608 # our own columns
            (now,),
        ).fetchone()
        return None if row is None else _schedule(row)

    def _next_look(self) -> float | None:
        (earliest,) = self._database.execute("select min(try_at) from schedule where try_at is not null").fetchone()
        return None if earliest is None else float(earliest)

    def _fire(self, firing: _Firing, schedule: Schedule, room: int) -> int:
        """Sends up to ``room`` occurrences of one schedule; returns how many it has dealt with."""
        now = firing.now
        name = schedule.definition.name
        planned = schedule.next_at
        assert planned is not None  # noqa: S101 # without one it is never due
        try:
            rule = rule_of(schedule.definition.timing)
            chosen = due(rule, schedule.definition.catch_up, planned, now)
        except InvalidRequest as error:  # its time zone is gone from this machine
            self._postpone(firing, schedule, planned, error)
            return 1
        if chosen[:1] != [planned]:
            until = chosen[0] if chosen else int(now)
            firing.notes.append(
                f"schedule {name}: from {occurrence_id(name, planned)} until {occurrence_id(name, until)} its "
                f"occurrences were missed, and are not sent (catch_up is {schedule.definition.catch_up!r})"
            )
        for number, at in enumerate(chosen[:room]):
            try:
                firing.sent.append(firing.send(now, schedule.definition, at))
            except IdConflict as error:
                firing.notes.append(f"schedule {name}: an occurrence is passed over: {error}")
                schedule = schedule._replace(error=str(error))
            except EoqError as error:
                self._postpone(firing, schedule, at, error)
                return number + 1
            else:
                schedule = schedule._replace(last_at=at, error=None)
        if len(chosen) > room:
            self._plan(schedule._replace(next_at=chosen[room]), now)
        else:
            following = rule.after(now)
            self._plan(schedule._replace(seen_at=now, next_at=following), following)
        return len(chosen)

    def _postpone(self, firing: _Firing, schedule: Schedule, at: int, error: EoqError) -> None:
        """An occurrence cannot be sent now; said once, not at each try."""
        name = schedule.definition.name
        firing.refused.append(name)
        if schedule.error is None:
            firing.notes.append(f"schedule {name}: {occurrence_id(name, at)} waits, and is tried again: {error}")
        self._plan(schedule._replace(next_at=at, error=str(error)), firing.now + REFUSED)

    def _plan(self, schedule: Schedule, try_at: float | None) -> None:
        self._database.execute(
            """
            update schedule
            set seen_at = ?, next_at = ?, last_at = ?, error = ?, try_at = ?
            where number = ?
            """,
            (schedule.seen_at, schedule.next_at, schedule.last_at, schedule.error, try_at, schedule.number),
        )


def _schedule(row: Sequence[Any]) -> Schedule:
    name, queue, cron, timezone, every, at, catch_up, content, *rest = row
    return Schedule(Definition(name, queue, Timing(cron, timezone, every, at), catch_up, content), *rest)
