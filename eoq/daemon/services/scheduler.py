"""Schedules: the messages of recurring occurrences are stored when they are due, each once.

There is one timer, for the earliest occurrence of all schedules. How far each schedule has come is in the file, and
moves on in the transaction that stores the messages. A restart goes on from there.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ...errors import EoqError, InvalidRequest
from .. import requests as ask
from ..broker.publishing import Publisher
from ..clock import Alarm, Clock
from ..config.model import Config
from ..config.settings import SettingsOf
from ..records import DueSchedules, Fired, NewMessage, OccurrencePlan, ScheduleAdded, ScheduleRecord
from ..request_values import content_of, new_schedule, scheduled_message
from ..schedule_rules import GRACE, Definition, due, occurrence_id, rule_of
from ..session import Fields, Handlers, Reply, Session, Submitter
from ..store.commands import (
    Command,
    R,
    ReadDue,
    ScheduleAdd,
    ScheduleApply,
    ScheduleList,
    ScheduleRemove,
    ScheduleShow,
    StoreOccurrences,
)

LONGEST_TIMER: Final = GRACE / 2
"""Seconds after which the wall clock is looked at again: if it has jumped, what comes now is in time all the same."""
FAILED_SECONDS: Final = 1.0
"""Seconds until a step that the disk refused is tried again."""
REFUSED_SECONDS: Final = 5.0
"""Seconds until a refused occurrence is tried again, unless messages end before."""
ROOM_SECONDS: Final = 0.2
"""Seconds from the end of a message until refused occurrences are tried again: more messages will end meanwhile."""
STEP: Final = 100
"""Occurrences, or schedules, that one transaction deals with, so that no send waits long behind them."""

log = logging.getLogger("eoq.schedule")


class Scheduler:
    """Knows when to look for what is due."""

    def __init__(self, writer: Submitter, clock: Clock, publisher: Publisher, settings: SettingsOf) -> None:
        self._writer = writer
        self._clock = clock
        self._publisher = publisher
        self._settings = settings
        self._asked: deque[tuple[ask.Request, Reply]] = deque()
        self._alarm = Alarm(clock, self._look, LONGEST_TIMER)
        self._config: Config | None = None
        self._failing = False
        self._refused = False
        """Whether an occurrence was refused and waits for room."""
        self._room = False
        """Whether there may be room since the last step."""
        self._stepping = False
        """Whether a step is under way."""
        self._look_again = False
        """Whether something became due meanwhile."""
        self._stopping = False
        kinds = (ask.ScheduleAdd, ask.ScheduleRemove, ask.ScheduleShow, ask.Schedules)
        self.handlers: Handlers = dict.fromkeys(kinds, self.handle)

    def apply(self, config: Config) -> None:
        """The schedules of the configuration are these from now on; begins to send what is due.

        Raises `InvalidRequest` where one of them is wrong.
        """
        self._config = config

        def done(outcome: list[str] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                log.error("the schedules of the configuration could not be stored: %s", outcome)
                if not self._stopping:
                    self._clock.call_later(REFUSED_SECONDS, partial(self._apply_again, config))
            else:
                for note in outcome:
                    log.info(note)
            self._look()

        now = self._clock.wall()
        definitions = [new_schedule(schedule, now) for schedule in config.schedule]
        self._writer.submit(ScheduleApply(now, definitions), done)

    def _apply_again(self, config: Config) -> None:
        if config is self._config and not self._stopping:
            self.apply(config)

    def stop(self) -> None:
        """Answers what was asked; sends nothing more."""
        while self._asked:
            self._answer_next()
        self._stopping = True
        self._alarm.stop()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, _session: Session, request: ask.Request, reply: Reply) -> None:
        """Acts on a request, one in each turn of the event loop; ``reply`` is called once, later.

        To find out that a cron expression has no occurrence takes a hundredth of a second, which a thousand of them
        are not to take from the others in one piece.
        """
        self._asked.append((request, reply))
        if len(self._asked) == 1:
            self._clock.call_later(0, self._next_turn)

    def _next_turn(self) -> None:
        if self._asked:
            self._answer_next()
        if self._asked:
            self._clock.call_later(0, self._next_turn)

    def _answer_next(self) -> None:
        request, reply = self._asked.popleft()
        try:
            self._act(request, reply)
        except EoqError as error:
            reply(error)

    def _act(self, request: ask.Request, reply: Reply) -> None:
        match request:
            case ask.ScheduleAdd():
                now = self._clock.wall()
                command = ScheduleAdd(now, new_schedule(request, now), request.replace)
                self._submit(command, partial(self._added, reply), reply)
            case ask.ScheduleRemove(name=name):
                self._submit(ScheduleRemove(name), lambda _: reply({}), reply)
            case ask.ScheduleShow(name=name):
                self._submit(ScheduleShow(name), lambda found: reply({"schedule": _with_message(found)}), reply)
            case ask.Schedules():
                self._submit(ScheduleList(), lambda found: reply({"schedules": [_fields(one) for one in found]}), reply)

    def _submit(self, command: Command[R], answer: Callable[[R], None], reply: Reply) -> None:
        def done(outcome: R | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
            else:
                answer(outcome)

        self._writer.submit(command, done)

    def _added(self, reply: Reply, outcome: ScheduleAdded) -> None:
        reply({"changed": outcome.changed, "next_at": outcome.next_at})
        if outcome.next_at is not None:
            self._alarm.set(outcome.next_at)

    # ── firing ──────────────────────────────────────────────────────────────────────────────────────────

    def made_room(self) -> None:
        """Try the refused occurrences again soon: messages have ended, so there may be room."""
        if self._refused:
            self._refused = False
            self._room = True
            self._alarm.set_in(ROOM_SECONDS)

    def _look(self) -> None:
        """Read what is due. What follows is one step: route the messages, then store them."""
        if self._stopping:
            return
        if self._stepping:
            self._look_again = True
            return
        self._stepping = True
        self._clock.wall()  # notices that the clock was set
        room, self._room = self._room, False
        now = self._clock.wall()
        self._writer.submit(ReadDue(now, STEP, room), partial(self._plan, now), durable=False)

    def _plan(self, now: float, outcome: DueSchedules | EoqError) -> None:
        if isinstance(outcome, EoqError):
            self._failed(outcome)
            return
        notes: list[str] = []
        plans = [self._plan_anew(now, schedule) for schedule in outcome.set_back]
        left = STEP - len(plans)
        ahead = {plan.schedule.row_id for plan in plans}
        waiting = [schedule for schedule in outcome.due if schedule.row_id not in ahead]
        while waiting and left > 0:
            plan = self._plan_due(now, waiting.pop(0), left, notes)
            plans.append(plan)
            left -= max(len(plan.occurrences), 1)
        if not plans:
            self._end_step(outcome.look_at)
            return
        command = StoreOccurrences(now, plans, self._settings, now + REFUSED_SECONDS)
        self._writer.submit(command, partial(self._fired, notes))

    def _plan_anew(self, now: float, schedule: ScheduleRecord) -> OccurrencePlan:
        """Plan a schedule after the clock was set back: the occurrences since then come again.

        Those that were stored have the same ids, so none is stored twice. A step of less than `GRACE` is waited for.
        """
        since = now - GRACE  # the clock may have been set back some time ago
        try:
            following = rule_of(schedule.definition.timing).after(since)
        except InvalidRequest:  # its time zone is gone, so only the planned occurrence is known
            following = schedule.next_at
        then = schedule._replace(seen_at=since, next_at=following, error=None)
        return OccurrencePlan(schedule, (), then, following)

    def _plan_due(self, now: float, schedule: ScheduleRecord, limit: int, notes: list[str]) -> OccurrencePlan:
        """Plan up to ``limit`` occurrences of one schedule, with their messages."""
        definition = schedule.definition
        planned = schedule.next_at
        assert planned is not None  # noqa: S101 # a schedule without a next occurrence is never due
        try:
            rule = rule_of(definition.timing)
            chosen = due(rule, definition.catch_up, planned, now)
        except InvalidRequest as error:  # its time zone is gone from this machine
            self._refused = True
            if schedule.error is None:  # logged once, not at each try
                waits = f"{occurrence_id(definition.name, planned)} waits, and is tried again"
                notes.append(f"schedule {definition.name}: {waits}: {error}")
            then = schedule._replace(next_at=planned, error=str(error))
            return OccurrencePlan(schedule, (), then, now + REFUSED_SECONDS)
        if chosen[:1] != [planned]:
            notes.append(_missed(definition, planned, chosen[0] if chosen else int(now)))
        occurrences = [(at, self._route(now, definition, at)) for at in chosen[:limit]]
        if len(chosen) > limit:
            return OccurrencePlan(schedule, occurrences, schedule._replace(next_at=chosen[limit]), now)
        following = rule.after(now)
        return OccurrencePlan(schedule, occurrences, schedule._replace(seen_at=now, next_at=following), following)

    def _route(self, now: float, definition: Definition, at: int) -> Sequence[NewMessage]:
        return self._publisher.route([scheduled_message(definition, at)], now).messages

    def _fired(self, notes: list[str], outcome: Fired | EoqError) -> None:
        if isinstance(outcome, EoqError):
            self._failed(outcome)
            return
        self._failing = False
        self._refused |= outcome.refused
        for note in (*notes, *outcome.notes):
            log.warning(note)
        for messages, stored in outcome.stored:
            self._publisher.submitted(messages)
            self._publisher.stored(messages, stored)
        self._end_step(outcome.look_at)

    def _failed(self, error: EoqError) -> None:
        if not self._failing:
            log.error("what is due could not be sent, and is tried again until it is: %s", error)
        self._failing = True
        self._end_step(self._clock.wall() + FAILED_SECONDS)

    def _end_step(self, look_at: float | None) -> None:
        self._stepping = False
        if self._look_again:
            self._look_again = False
            self._look()
        elif look_at is not None:
            self._alarm.set(look_at)


def _missed(definition: Definition, planned: int, until: int) -> str:
    """Return the line for the log that says which occurrences were missed."""
    name = definition.name
    return (
        f"schedule {name}: from {occurrence_id(name, planned)} until {occurrence_id(name, until)} its occurrences were "
        f"missed, and are not sent (catch_up is {definition.catch_up!r})"
    )


def _fields(schedule: ScheduleRecord) -> Fields:
    """A schedule as the wire shows it, without its message."""
    definition = schedule.definition
    fields: Fields = {"name": definition.name, "queue": definition.queue}
    fields |= {name: value for name, value in definition.timing._asdict().items() if value is not None}
    fields |= {
        "catch_up": definition.catch_up,
        "origin": schedule.origin,
        "next_at": schedule.next_at,
        "last_at": schedule.last_at,
    }
    if schedule.error is not None:
        fields["error"] = schedule.error
    return fields


def _with_message(schedule: ScheduleRecord) -> Fields:
    """Return a schedule as the wire shows it, with its message."""
    return _fields(schedule) | {"message": content_of(schedule.definition)}
