"""The table ``schedule``: what each schedule sends and when, and which occurrence is next.

Firing takes two commands, so that no routing runs inside a transaction: `ReadDue` returns the schedules that are due,
the scheduler routes their messages, and `StoreOccurrences` stores the messages and moves the schedules on, in one
transaction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from .....errors import EoqError, IdConflict, InvalidRequest, NotFound, QueueFull
from ....records import DueSchedules, Fired, OccurrencePlan, ScheduleAdded, ScheduleRecord
from ....rules.schedule_rules import GRACE, Definition, Timing, first_of, occurrence_id, rule_of
from ....store.commands import Put
from ....store.schedule_commands import (
    ReadDue,
    ScheduleAdd,
    ScheduleApply,
    ScheduleList,
    SchedulePause,
    ScheduleRemove,
    ScheduleShow,
    StoreOccurrences,
)
from ..database import Database
from ..sending.puts import Puts
from ..totals import Totals

MAX_SCHEDULES: Final = 10_000

_COLUMNS: Final = """
    name, queue, cron, timezone, every, at, catch_up, content, origin, seen_at, next_at, last_at, error, paused, number
    """


class Schedules:
    """All schedules."""

    def __init__(self, database: Database, puts: Puts, totals: Totals) -> None:
        self._database = database
        self._puts = puts
        self._totals = totals

    # ── adding and removing ─────────────────────────────────────────────────────────────────────────────

    def add(self, command: ScheduleAdd) -> ScheduleAdded:
        """See `ScheduleAdd`."""
        definition = command.definition
        changed = self._add(command.now, definition, command.first_at, "client", command.replace)
        return ScheduleAdded(changed, self._require(definition.name).next_at)

    def apply(self, command: ScheduleApply) -> list[str]:
        """See `ScheduleApply`."""
        definitions = command.definitions
        notes = []
        with self._database.savepoint():
            for definition, first_at in definitions:
                if self._add(command.now, definition, first_at, "config", replace=True):
                    notes.append(f"the schedule {definition.name} is new in the configuration, or changed")
            gone = self._database.execute(
                """
                delete from schedule
                where origin = 'config' and name not in (select value from json_each(?))
                returning name
                """,
                (json.dumps([definition.name for definition, _ in definitions]),),
            ).fetchall()
        return notes + [f"the schedule {name} is removed: it is no longer in the configuration" for (name,) in gone]

    def _add(self, now: float, definition: Definition, first_at: int, origin: str, replace: bool) -> bool:
        """Store a schedule; return whether that changed anything."""
        old = self._find(definition.name)
        timing = first_of(definition.timing, now)
        if definition.timing.at is None and old is not None and timing.every == old.definition.timing.every:
            timing = timing._replace(at=old.definition.timing.at)
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
            # The occurrences are the same as before, also those that are late.
            seen_at, next_at = old.seen_at, old.next_at
        else:
            seen_at, next_at = now, first_at
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
              try_at = iif(schedule.paused, null, excluded.try_at),
              error = null
            """,
            (*definition[:2], *timing, *definition[3:], origin, seen_at, next_at),
        )
        return True

    def restore(self, schedule: ScheduleRecord) -> bool:
        """Store a schedule of an export, and how far it has come. Return False if its definition is known.

        Raises `IdConflict` where the name has another definition, and `QueueFull` where there are too many.
        """
        definition = schedule.definition
        old = self._find(definition.name)
        if old is not None:
            if old.definition != definition:
                raise IdConflict(
                    f"there is a schedule {definition.name!r} with another definition; remove the line or the schedule"
                )
            return False
        self._require_room()
        self._database.execute(
            """
            insert into schedule
              (name, queue, cron, timezone, every, at, catch_up, content, origin, seen_at, next_at, last_at, error,
               paused, try_at)
            values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            (
                *(*definition[:2], *definition.timing, *definition[3:], *schedule[1:-1]),
                None if schedule.paused else schedule.next_at,
            ),
        )
        return True

    def _require_room(self) -> None:
        (count,) = self._database.execute("select count(*) from schedule").fetchone()
        if count >= MAX_SCHEDULES:
            raise QueueFull(f"there are {MAX_SCHEDULES:,} schedules, and no more can be made; remove some")

    def remove(self, command: ScheduleRemove) -> None:
        """See `ScheduleRemove`."""
        name = command.name
        if self._require(name).origin == "config":
            raise InvalidRequest(
                f"the schedule {name!r} is declared in the daemon's configuration file; remove it there"
            )
        self._database.execute("delete from schedule where name = ?", (name,))

    def pause(self, command: SchedulePause) -> bool:
        """See `SchedulePause`."""
        old = self._require(command.name)
        if bool(old.paused) == command.paused:
            return False
        next_at = old.next_at if command.paused else rule_of(old.definition.timing).after(command.now)
        self._database.execute(
            """
            update schedule
            set paused = ?, seen_at = ?, next_at = ?, try_at = ?
            where name = ?
            """,
            (command.paused, command.now, next_at, None if command.paused else next_at, command.name),
        )
        return True

    # ── queries ─────────────────────────────────────────────────────────────────────────────────────────

    def show(self, command: ScheduleShow) -> ScheduleRecord:
        """See `ScheduleShow`."""
        return self._require(command.name)

    def list_all(self, _command: ScheduleList) -> list[ScheduleRecord]:
        """See `ScheduleList`."""
        columns = _COLUMNS.replace("content", "''")
        rows = self._database.execute(f"select {columns} from schedule order by name")  # noqa: S608 # our own columns
        return [_record(row) for row in rows]

    def _find(self, name: str) -> ScheduleRecord | None:
        row = self._database.execute(
            f"select {_COLUMNS} from schedule where name = ?",  # noqa: S608 # our own columns
            (name,),
        ).fetchone()
        return None if row is None else _record(row)

    def _require(self, name: str) -> ScheduleRecord:
        found = self._find(name)
        if found is None:
            raise NotFound(f"there is no schedule {name!r}; `eoq schedule list` lists them")
        return found

    # ── firing ──────────────────────────────────────────────────────────────────────────────────────────

    def read_due(self, command: ReadDue) -> DueSchedules:
        """See `ReadDue`."""
        now, limit = command.now, command.limit
        if command.hurry:
            self._hurry(now, limit)
        set_back = self._database.execute(
            f"select {_COLUMNS} from schedule where seen_at > ? and not paused limit ?",  # noqa: S608 # our own columns
            (now + GRACE, limit),
        ).fetchall()
        due = self._database.execute(
            f"select {_COLUMNS} from schedule where try_at <= ? order by try_at limit ?",  # noqa: S608 # our own columns
            (now, limit),
        ).fetchall()
        return DueSchedules([_record(row) for row in set_back], [_record(row) for row in due], self._next_try())

    def _hurry(self, now: float, limit: int) -> None:
        """Make the schedules due whose occurrence was refused, beginning with the one that is to be tried first."""
        self._database.execute(
            """
            update schedule
            set try_at = :now
            where number in (
              select number
              from schedule
              where try_at > :now and next_at <= :now
              order by try_at
              limit :limit
            )
            """,
            {"now": now, "limit": limit},
        )

    def _next_try(self) -> float | None:
        (earliest,) = self._database.execute("select min(try_at) from schedule where try_at is not null").fetchone()
        return None if earliest is None else float(earliest)

    def store_occurrences(self, command: StoreOccurrences) -> Fired:
        """See `StoreOccurrences`."""
        fired = Fired([], [], None, False)
        for plan in command.plans:
            if self._find(plan.schedule.definition.name) == plan.schedule:
                fired = self._store(command, plan, fired)
        return fired._replace(next_due_at=self._next_try())

    def _store(self, command: StoreOccurrences, plan: OccurrencePlan, fired: Fired) -> Fired:
        name = plan.schedule.definition.name
        updated, try_at = plan.updated, plan.try_at
        refused = fired.refused
        for at, messages in plan.occurrences:
            try:
                stored = self._puts.store(command.now, messages, command.settings)
            except IdConflict as error:
                self._totals.refused(Put(command.now, messages, command.settings), error)
                fired.notes.append(f"schedule {name}: an occurrence is skipped: {error}")
                updated = updated._replace(error=str(error))
            except EoqError as error:
                self._totals.refused(Put(command.now, messages, command.settings), error)
                if plan.schedule.error is None:  # logged once, not at each try
                    waits = f"{occurrence_id(name, at)} waits, and is tried again"
                    fired.notes.append(f"schedule {name}: {waits}: {error}")
                updated = updated._replace(seen_at=plan.schedule.seen_at, next_at=at, error=str(error))
                try_at, refused = command.retry_at, True
                break
            else:
                fired.stored.append((messages, stored))
                updated = updated._replace(last_at=at, error=None)
        self._database.execute(
            """
            update schedule
            set at = ?, seen_at = ?, next_at = ?, last_at = ?, error = ?, try_at = ?
            where number = ?
            """,
            (
                updated.definition.timing.at,
                updated.seen_at,
                updated.next_at,
                updated.last_at,
                updated.error,
                try_at,
                updated.row_id,
            ),
        )
        return fired._replace(refused=refused)


def _record(row: Sequence[Any]) -> ScheduleRecord:
    name, queue, cron, timezone, every, at, catch_up, content, *rest = row
    return ScheduleRecord(Definition(name, queue, Timing(cron, timezone, every, at), catch_up, content), *rest)
