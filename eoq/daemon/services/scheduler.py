"""Schedules: the messages of recurring occurrences are stored when their time comes, each once.

One timer, for the earliest occurrence of all. What has come so far is in the file, and moves on in the transaction that
stores the messages; a restart goes on from there.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ...errors import EoqError
from .. import requests as ask
from ..broker.publishing import Publishing
from ..clock import Alarm, Clock
from ..schedule_rules import GRACE, Definition
from ..session import Fields, Reply, Session, Submitter
from ..store.sqlite.store import Store
from ..store.sqlite.tables.schedules import REFUSED, Fired, Schedule, Sent

if TYPE_CHECKING:
    from ..config.model import Config

LONGEST_TIMER: Final = GRACE / 2
"""Seconds after which the wall clock is looked at again: if it has jumped, what comes now is in time all the same."""
FAILED: Final = 1.0
"""Seconds until firing that the disk refused is tried again."""
ROOM: Final = 0.2
"""Seconds from when something ends until what was refused is tried again: more will end in them."""

log = logging.getLogger("eoq.schedule")


class Scheduler:
    """Knows when to look for what is due."""

    handles = (ask.ScheduleAdd, ask.ScheduleRemove, ask.ScheduleShow, ask.Schedules)

    def __init__(self, store: Store, writer: Submitter, clock: Clock, intake: Publishing) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        self._intake = intake
        self._asked: deque[tuple[ask.Request, Reply]] = deque()
        self._alarm = Alarm(clock, self._look, LONGEST_TIMER)
        self._config: Config | None = None
        self._failing = False
        self._refused = False
        """Whether an occurrence was refused since there may have been room,"""
        self._room = False
        """and whether there may be now."""
        self._stopping = False

    def apply(self, config: Config) -> None:
        """The schedules of the configuration are these from now on; begins to send what is due.

        Raises `InvalidRequest` where one of them is wrong.
        """
        self._config = config

        def done(outcome: list[str] | EoqError) -> None:
            if isinstance(outcome, EoqError):
                log.error("the schedules of the configuration could not be stored: %s", outcome)
                if not self._stopping:
                    self._clock.call_later(REFUSED, partial(self._apply_again, config))
            else:
                for note in outcome:
                    log.info(note)
            self._look()

        now = self._clock.wall()
        definitions = [ask.new_schedule(schedule, now) for schedule in config.schedule]
        self._writer.submit(partial(self._store.schedule_apply, now, definitions), done)

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
                verb = partial(self._store.schedule_add, now, ask.new_schedule(request, now), request.replace)
                self._submit(verb, partial(self._added, reply), reply)
            case ask.ScheduleRemove(name=name):
                self._submit(partial(self._store.schedule_remove, name), lambda _: reply({}), reply)
            case ask.ScheduleShow(name=name):
                self._submit(
                    partial(self._store.schedule_show, name),
                    lambda found: reply({"schedule": _fields(found) | {"message": ask.content_of(found.definition)}}),
                    reply,
                )
            case ask.Schedules():
                self._submit(
                    self._store.schedule_list,
                    lambda found: reply({"schedules": [_fields(schedule) for schedule in found]}),
                    reply,
                )

    def _submit(self, verb: Callable[[], object], answer: Callable[[Any], None], reply: Reply) -> None:
        self._writer.submit(verb, lambda outcome: (reply if isinstance(outcome, EoqError) else answer)(outcome))

    def _added(self, reply: Reply, outcome: tuple[bool, int | None]) -> None:
        changed, next_at = outcome
        reply({"changed": changed, "next_at": next_at})
        if next_at is not None:
            self._alarm.set(next_at)

    # ── firing ──────────────────────────────────────────────────────────────────────────────────────────

    def made_room(self) -> None:
        """Messages have ended: there may be room for what was refused."""
        if self._refused:
            self._refused = False
            self._room = True
            self._alarm.set_in(ROOM)

    def _look(self) -> None:
        if self._stopping:
            return
        self._clock.wall()  # notices a jump
        room, self._room = self._room, False
        self._writer.submit(partial(self._store.schedule_fire, self._clock.wall(), self._send, room), self._fired)

    def _send(self, now: float, definition: Definition, at: int) -> Sent:
        messages = self._intake.route([ask.scheduled_message(definition, at)], now).messages
        return Sent(messages, self._store.put(now, messages))

    def _fired(self, outcome: Fired | EoqError) -> None:
        if isinstance(outcome, EoqError):
            if not self._failing:
                log.error("what is due could not be sent, and is tried again until it is: %s", outcome)
            self._failing = True
            self._alarm.set(self._clock.wall() + FAILED)
            return
        self._failing = False
        self._refused |= outcome.refused
        for note in outcome.notes:
            log.warning(note)
        for messages, stored in outcome.sent:
            self._intake.stored(messages)
            self._intake.arrive(messages, stored)
        if outcome.look_at is not None:
            self._alarm.set(outcome.look_at)


def _fields(schedule: Schedule) -> Fields:
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
