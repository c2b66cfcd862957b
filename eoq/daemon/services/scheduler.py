"""The scheduler: it stores the messages of schedules when their occurrences are due, each once.

There is one alarm, for the earliest occurrence of all schedules. The file says which occurrence of each schedule is
next. That changes in the transaction that stores the messages, so a restart continues from there.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from ...errors import EoqError, InvalidRequest
from .. import requests as ask
from ..broker.publishing import Publisher
from ..clock import Alarm, Clock
from ..config.model import Config
from ..config.settings import SettingsOf
from ..records import DueSchedules, Fired, NewMessage, OccurrencePlan, ScheduleAdded, ScheduleRecord
from ..request_values import content_of, message_now, new_schedule, scheduled_message
from ..rules.schedule_rules import GRACE, Definition, begun_before, due, occurrence_id, rule_of
from ..session import Fields, Handlers, Reply, Session, Submitter
from ..store.commands import Command, R
from ..store.schedule_commands import (
    ReadDue,
    ScheduleAdd,
    ScheduleApply,
    ScheduleList,
    SchedulePause,
    ScheduleRemove,
    ScheduleShow,
    StoreOccurrences,
)

LONGEST_TIMER: Final = GRACE / 2
"""Seconds after which the alarm rings in any case. So occurrences are in time even if the wall clock has jumped."""
FAILED_SECONDS: Final = 1.0
"""Seconds until a step that the disk refused is tried again."""
REFUSED_SECONDS: Final = 5.0
"""Seconds until a refused occurrence is tried again, unless messages end before."""
ROOM_SECONDS: Final = 0.2
"""Seconds from the end of a message until refused occurrences are tried again. Meanwhile more messages may end."""
STEP: Final = 100
"""How many occurrences or schedules one transaction handles, so that no send waits long behind them."""
MOST_UNDER_WAY: Final = 16
"""How many requests wait for the store at once. Those of other clients stand behind them."""
PLAN_SECONDS: Final = 0.02
"""How long one step plans at most. To find an occurrence of a rare cron expression takes a hundredth of a second."""

log = logging.getLogger("eoq.schedule")


class Scheduler:
    """The timer and the requests of all schedules."""

    def __init__(self, writer: Submitter, clock: Clock, publisher: Publisher, settings: SettingsOf) -> None:
        self._writer = writer
        self._clock = clock
        self._publisher = publisher
        self._settings = settings
        self._requests: deque[tuple[Session, ask.Request, Reply]] = deque()
        self._has_turn = False
        """Whether the next request is about to be handled."""
        self._under_way = 0
        """How many requests wait for the store."""
        self._alarm = Alarm(clock, self._read_due, LONGEST_TIMER)
        self._config: Config | None = None
        self._failing = False
        self._refused = False
        """Whether an occurrence was refused, and waits until its queue has room."""
        self._room = False
        """Whether a queue may have got room since the last step."""
        self._stepping = False
        """Whether a step is under way."""
        self._read_again = False
        """Whether to read again after this step, because something may have become due meanwhile."""
        self._stopping = False
        kinds = (
            *(ask.ScheduleAdd, ask.ScheduleRemove, ask.ScheduleShow, ask.Schedules),
            *(ask.SchedulePause, ask.ScheduleResume, ask.ScheduleRun),
        )
        self.handlers: Handlers = dict.fromkeys(kinds, self.handle)

    def apply(self, config: Config) -> None:
        """Store the schedules of ``config`` in place of the earlier ones, and begin to send what is due.

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
                    log.info("%s", note)
            self._read_due()

        now = self._clock.wall()
        definitions = [new_schedule(schedule, now) for schedule in config.schedule]
        self._writer.submit(ScheduleApply(now, definitions), done)

    def _apply_again(self, config: Config) -> None:
        if config is self._config and not self._stopping:
            self.apply(config)

    def stop(self) -> None:
        """Answer all requests, and send nothing from now on."""
        while self._requests:
            self._answer_next()
        self._stopping = True
        self._alarm.stop()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, session: Session, request: ask.Request, reply: Reply) -> None:
        """Handle a request in a later turn of the event loop, one request in each turn.

        To find that a cron expression has no occurrence takes a hundredth of a second. A thousand such requests in one
        turn would keep other clients waiting.
        """
        self._requests.append((session, request, reply))
        self._plan_turn()

    def _plan_turn(self) -> None:
        if self._requests and not self._has_turn and self._under_way < MOST_UNDER_WAY:
            self._has_turn = True
            self._clock.call_later(0, self._next_turn)

    def _next_turn(self) -> None:
        self._has_turn = False
        if self._requests:
            self._answer_next()
            self._plan_turn()

    def _answer_next(self) -> None:
        session, request, reply = self._requests.popleft()
        if session.closed:
            return
        try:
            self._act(request, reply)
        except EoqError as error:
            reply(error)

    def _act(self, request: ask.Request, reply: Reply) -> None:
        match request:
            case ask.ScheduleAdd():
                now = self._clock.wall()
                command = ScheduleAdd(now, *new_schedule(request, now), request.replace)
                self._submit(command, partial(self._added, reply), reply)
            case ask.ScheduleRemove(name=name):
                self._submit(ScheduleRemove(name), lambda _: reply({}), reply)
            case ask.SchedulePause(name=name):
                pausing = SchedulePause(self._clock.wall(), name, True)
                self._submit(pausing, lambda changed: reply({"changed": changed}), reply)
            case ask.ScheduleResume(name=name):
                self._submit(SchedulePause(self._clock.wall(), name, False), partial(self._resumed, reply), reply)
            case ask.ScheduleRun():
                self._submit(ScheduleShow(request.name), partial(self._run_now, request, reply), reply)
            case ask.ScheduleShow(name=name):
                self._submit(ScheduleShow(name), lambda found: reply({"schedule": _with_message(found)}), reply)
            case ask.Schedules():
                self._submit(ScheduleList(), lambda found: reply({"schedules": [_fields(one) for one in found]}), reply)

    def _submit(self, command: Command[R], answer: Callable[[R], None], reply: Reply) -> None:
        self._under_way += 1

        def done(outcome: R | EoqError) -> None:
            self._under_way -= 1
            self._plan_turn()
            if isinstance(outcome, EoqError):
                reply(outcome)
            else:
                answer(outcome)

        self._writer.submit(command, done)

    def _added(self, reply: Reply, outcome: ScheduleAdded) -> None:
        reply({"changed": outcome.changed, "next_at": outcome.next_at})
        if outcome.next_at is not None:
            self._alarm.set(outcome.next_at)

    def _resumed(self, reply: Reply, changed: bool) -> None:
        reply({"changed": changed})
        self._read_due()  # sets the alarm for its next occurrence

    def _run_now(self, request: ask.ScheduleRun, reply: Reply, schedule: ScheduleRecord) -> None:
        """Send the message of a schedule now, besides its occurrences."""
        now = self._clock.wall()
        try:
            message = message_now(schedule.definition, now, request.id)
            self._publisher.put(now, [message], partial(_sent_now, message.id), reply)
        except EoqError as error:
            reply(error)

    # ── firing ──────────────────────────────────────────────────────────────────────────────────────────

    def made_room(self) -> None:
        """Try the refused occurrences again soon: messages have ended, so there may be room."""
        if self._refused:
            self._refused = False
            self._room = True
            self._alarm.set_in(ROOM_SECONDS)

    def _read_due(self) -> None:
        """Begin a step: read the schedules that are due. `_plan` then routes their messages and stores them."""
        if self._stopping:
            return
        if self._stepping:
            self._read_again = True
            return
        self._stepping = True
        room, self._room = self._room, False
        now = self._clock.wall()
        self._writer.submit(ReadDue(now, STEP, room), partial(self._plan, now), durable=False)

    def _plan(self, now: float, outcome: DueSchedules | EoqError) -> None:
        if isinstance(outcome, EoqError):
            self._failed(outcome)
            return
        end = self._clock.monotonic() + PLAN_SECONDS
        notes: list[str] = []
        plans: list[OccurrencePlan] = []
        ahead = {schedule.row_id for schedule in outcome.set_back}
        waiting = deque(schedule for schedule in outcome.due if schedule.row_id not in ahead)
        set_back = deque(outcome.set_back)
        left = STEP
        while (set_back or waiting) and left > 0 and (not plans or self._clock.monotonic() < end):
            if set_back:
                plan = self._plan_anew(now, set_back.popleft())
            else:
                plan = self._plan_due(now, waiting.popleft(), left, notes)
            plans.append(plan)
            left -= max(len(plan.occurrences), 1)
        if not plans:
            self._end_step(outcome.next_due_at)
            return
        # Those that were set back are not found by the moment of their next occurrence.
        again = now if outcome.set_back else None
        command = StoreOccurrences(now, plans, self._settings, now + REFUSED_SECONDS)
        self._writer.submit(command, partial(self._fired, notes, again))

    def _plan_anew(self, now: float, schedule: ScheduleRecord) -> OccurrencePlan:
        """Plan a schedule after the clock was set back: its occurrences since the new time are sent again.

        Those that were stored have the same ids, so none is stored twice. If the clock was set back by less than
        `GRACE`, the schedule just waits.
        """
        since = now - GRACE  # the clock may have been set back some time ago
        definition, following = schedule.definition, schedule.next_at
        if following is not None:
            timing = begun_before(definition.timing, following, schedule.seen_at, since)
            definition = definition._replace(timing=timing)
        # Where its time zone is not on this machine any more, only the planned occurrence is known.
        with suppress(InvalidRequest):
            following = rule_of(definition.timing).after(since)
        updated = schedule._replace(definition=definition, seen_at=since, next_at=following, error=None)
        return OccurrencePlan(schedule, (), updated, following)

    def _plan_due(self, now: float, schedule: ScheduleRecord, limit: int, notes: list[str]) -> OccurrencePlan:
        """Plan up to ``limit`` occurrences of one schedule, with their messages."""
        definition = schedule.definition
        planned = schedule.next_at
        assert planned is not None  # noqa: S101 # a schedule without a next occurrence is never due
        try:
            rule = rule_of(definition.timing)
            chosen = due(rule, definition.catch_up, planned, now)
        except InvalidRequest as error:  # its time zone is not on this machine any more
            self._refused = True
            if schedule.error is None:  # logged once, not at each try
                waits = f"{occurrence_id(definition.name, planned)} waits, and is tried again"
                notes.append(f"schedule {definition.name}: {waits}: {error}")
            updated = schedule._replace(next_at=planned, error=str(error))
            return OccurrencePlan(schedule, (), updated, now + REFUSED_SECONDS)
        if chosen[:1] != [planned]:
            notes.append(_missed(definition, planned, chosen[0] if chosen else int(now)))
        occurrences = [(at, self._route(now, definition, at)) for at in chosen[:limit]]
        if len(chosen) > limit:
            return OccurrencePlan(schedule, occurrences, schedule._replace(next_at=chosen[limit]), now)
        following = rule.after(now)
        return OccurrencePlan(schedule, occurrences, schedule._replace(seen_at=now, next_at=following), following)

    def _route(self, now: float, definition: Definition, at: int) -> Sequence[NewMessage]:
        return self._publisher.route([scheduled_message(definition, at)], now).messages

    def _fired(self, notes: list[str], again: float | None, outcome: Fired | EoqError) -> None:
        """End a step. The next one is ``again``, or where a schedule is due."""
        if isinstance(outcome, EoqError):
            self._failed(outcome)
            return
        self._failing = False
        self._refused |= outcome.refused
        for note in (*notes, *outcome.notes):
            log.warning("%s", note)
        for messages, stored in outcome.stored:
            self._publisher.submitted(messages)
            self._publisher.stored(messages, stored)
        self._end_step(outcome.next_due_at if again is None else again)

    def _failed(self, error: EoqError) -> None:
        if not self._failing:
            log.error("the messages of schedules that are due could not be stored; trying again: %s", error)
        self._failing = True
        self._end_step(self._clock.wall() + FAILED_SECONDS)

    def _end_step(self, next_due_at: float | None) -> None:
        self._stepping = False
        if self._read_again:
            self._read_again = False
            self._read_due()
        elif next_due_at is not None:
            self._alarm.set(next_due_at)


def _sent_now(id: str, duplicates: list[int], _queues: list[int] | None) -> Fields:
    return {"id": id, "duplicate": bool(duplicates)}


def _missed(definition: Definition, planned: int, until: int) -> str:
    """Return the line for the log that says which occurrences were missed."""
    name = definition.name
    return (
        f"schedule {name}: from {occurrence_id(name, planned)} until {occurrence_id(name, until)} its occurrences were "
        f"missed, and are not sent (catch_up is {definition.catch_up!r})"
    )


def _fields(schedule: ScheduleRecord) -> Fields:
    """Return a schedule as the wire shows it, without its message."""
    definition = schedule.definition
    fields: Fields = {"name": definition.name, "queue": definition.queue}
    fields |= {name: value for name, value in definition.timing._asdict().items() if value is not None}
    fields |= {
        "catch_up": definition.catch_up,
        "origin": schedule.origin,
        "next_at": schedule.next_at,
        "last_at": schedule.last_at,
    }
    if schedule.paused:
        fields["paused"] = True
    if schedule.error is not None:
        fields["error"] = schedule.error
    return fields


def _with_message(schedule: ScheduleRecord) -> Fields:
    """Return a schedule as the wire shows it, with its message."""
    return _fields(schedule) | {"message": content_of(schedule.definition)}
