"""Requests of operators: pause, resume, purge or delete a queue, redrive or drop its dead letters."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from ...errors import EoqError, InvalidRequest
from .. import requests as ask
from ..broker.due_times import DueTimes
from ..broker.events import Events
from ..clock import Clock
from ..config.settings import SettingsOf
from ..records import Deleted, Step
from ..session import Fields, Handlers, Reply, Session, Submitter
from ..store.commands import DeleteQueue, Drop, Pause, Purge, Redrive
from .topics import Topics


class AdminService:
    """The handlers of these requests. Each request becomes one command, which does a bounded step."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        due_times: DueTimes,
        events: Events,
        topics: Topics,
        settings: SettingsOf,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._due_times = due_times
        self._events = events
        self._topics = topics
        self._settings = settings
        self.handlers: Handlers = {
            ask.Pause: self._pause,
            ask.Resume: self._resume,
            ask.DeleteQueue: self._delete_queue,
            ask.Purge: self._purge,
            ask.Redrive: self._redrive,
            ask.Drop: self._drop,
        }

    def _pause(self, _session: Session, request: ask.Pause, reply: Reply) -> None:
        self._writer.submit(Pause(request.queue, True), partial(_answer_change, reply))

    def _resume(self, _session: Session, request: ask.Resume, reply: Reply) -> None:
        self._writer.submit(Pause(request.queue, False), partial(_answer_change, reply))
        self._events.ready(request.queue, None)

    def _delete_queue(self, _session: Session, request: ask.DeleteQueue, reply: Reply) -> None:
        def done(outcome: Deleted | EoqError) -> None:
            reply(outcome if isinstance(outcome, EoqError) else outcome._asdict())

        command = DeleteQueue(request.queue, request.forget_ids, self._topics.configured_names())
        self._writer.submit(command, done)

    def _purge(self, _session: Session, request: ask.Purge, reply: Reply) -> None:
        def done(outcome: Step | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply(_next_step(outcome, "upto") | {"count": len(outcome.ids)})
            self._due_times.ended(outcome.ended)

        self._writer.submit(Purge(self._clock.wall(), request.queue, request.upto), done)

    def _redrive(self, _session: Session, request: ask.Redrive, reply: Reply) -> None:
        to = None if request.to == request.queue else request.to
        if to is not None and self._topics.is_topic(to):
            raise InvalidRequest(f"{to!r} is a topic, where messages are not stored; name one of its queues")
        now = self._clock.wall()
        command = Redrive(now, request.queue, *_selected(request), to, self._settings)
        if to is None:
            self._redrive_here(request, command, [], reply)
            return

        def done(outcome: Step | EoqError) -> None:
            _answer_step(request, reply, outcome)
            if not isinstance(outcome, EoqError):
                self._events.stored(to, len(outcome.ids))
                self._due_times.ended(outcome.ended)

        self._writer.submit(command, done)
        if (ttl := self._settings(to).ttl) is not None:
            self._due_times.watch(now + ttl)
        self._events.ready(to, None)

    def _redrive_here(self, request: ask.Redrive, command: Redrive, before: list[str], reply: Reply) -> None:
        """Redrive dead letters in their own queue: those of ``ids`` in steps, after ``before`` that are redriven."""

        def done(outcome: Step | EoqError) -> None:
            if isinstance(outcome, Step):
                outcome = outcome._replace(ids=[*before, *outcome.ids])
                if outcome.left:
                    self._redrive_here(request, replace(command, ids=outcome.left), outcome.ids, reply)
                    return
            _answer_step(request, reply, outcome)

        self._writer.submit(command, done)
        self._events.ready(request.queue, None)

    def _drop(self, _session: Session, request: ask.Drop, reply: Reply) -> None:
        command = Drop(self._clock.wall(), request.queue, *_selected(request))
        self._writer.submit(command, partial(_answer_step, request, reply))


def _answer_change(reply: Reply, outcome: bool | EoqError) -> None:
    reply(outcome if isinstance(outcome, EoqError) else {"changed": outcome})


def _answer_step(request: ask.Redrive | ask.Drop, reply: Reply, outcome: Step | EoqError) -> None:
    if isinstance(outcome, EoqError):
        reply(outcome)
        return
    missing = sorted(set(request.ids or ()) - set(outcome.ids) - set(outcome.refused))
    fields = _next_step(outcome, "after") | {"ids": outcome.ids, "missing": missing}
    reply(fields | {"refused": outcome.refused} if outcome.refused else fields)


def _selected(request: ask.Redrive | ask.Drop) -> tuple[list[str] | None, float | None, int, float | None]:
    """Return which dead letters a request selects. Raises `InvalidRequest`."""
    if request.ids is not None and (request.all or request.failed_before is not None):
        raise InvalidRequest("give `ids`, or `all` or `failed_before`, not both")
    if request.ids is None and not request.all and request.failed_before is None:
        raise InvalidRequest("say which dead letters: `ids`, `failed_before`, or `all`")
    for id in request.ids or ():
        if not id.isprintable():
            # No message has such an id. And SQLite's JSON ends a text at a NUL, so that it would mean another id.
            raise InvalidRequest(f"{id!r} is no id: it has characters that cannot be printed")
    return request.ids, request.failed_before, request.after, request.seen_at


def _next_step(step: Step, name: str) -> Fields:
    """Return the field that says where the next request continues, if there is more to do."""
    return {} if step.after is None else {name: step.after}
