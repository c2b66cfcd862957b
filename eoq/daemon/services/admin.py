"""Requests of people who steer: pause and resume a queue, purge it, redrive or drop its dead letters."""

from __future__ import annotations

from functools import partial

from ...errors import EoqError, InvalidRequest
from .. import requests as ask
from ..broker.broker import Broker
from ..clock import Clock
from ..records import Step
from ..session import Fields, Reply, Session, Submitter
from ..store.commands import Drop, Pause, Purge, Redrive


class AdminService:
    """Does what people ask for, a bounded step a request."""

    handles = (ask.Pause, ask.Resume, ask.Purge, ask.Redrive, ask.Drop)

    def __init__(self, writer: Submitter, clock: Clock, broker: Broker) -> None:
        self._writer = writer
        self._clock = clock
        self._broker = broker

    def handle(self, _session: Session, request: ask.Request, reply: Reply) -> None:
        """Acts on a request; ``reply`` is called once. Raises `InvalidRequest` for what is refused at once."""
        match request:
            case ask.Pause(queue=queue):
                self._pause(queue, True, reply)
            case ask.Resume(queue=queue):
                self._pause(queue, False, reply)
            case ask.Purge(queue=queue, upto=upto):
                self._purge(queue, upto, reply)
            case ask.Redrive():
                self._redrive(request, reply)
            case ask.Drop():
                self._drop(request, reply)

    def _pause(self, queue: str, paused: bool, reply: Reply) -> None:
        def done(outcome: bool | EoqError) -> None:
            reply(outcome if isinstance(outcome, EoqError) else {"changed": outcome})

        self._writer.submit(Pause(queue, paused), done)
        if not paused:
            self._broker.stir_all(queue)

    def _purge(self, queue: str, upto: int | None, reply: Reply) -> None:
        def done(outcome: Step | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply(_fields(outcome, "upto") | {"count": len(outcome.ids)})
            self._broker.ended(outcome.ended)

        self._writer.submit(Purge(self._clock.wall(), queue, upto), done)

    def _redrive(self, request: ask.Redrive, reply: Reply) -> None:
        command = Redrive(self._clock.wall(), request.queue, *_selected(request))
        self._writer.submit(command, partial(self._answer, request, reply))
        self._broker.stir_all(request.queue)

    def _drop(self, request: ask.Drop, reply: Reply) -> None:
        command = Drop(self._clock.wall(), request.queue, *_selected(request))
        self._writer.submit(command, partial(self._answer, request, reply))

    def _answer(self, request: ask.Redrive | ask.Drop, reply: Reply, outcome: Step | EoqError) -> None:
        if isinstance(outcome, EoqError):
            reply(outcome)
            return
        missing = sorted(set(request.ids or ()) - set(outcome.ids))
        reply(_fields(outcome, "after") | {"ids": outcome.ids, "missing": missing})


def _selected(request: ask.Redrive | ask.Drop) -> tuple[list[str] | None, float | None, int]:
    if request.ids is not None and (request.all or request.failed_before is not None):
        raise InvalidRequest("give `ids`, or `all` or `failed_before`, not both")
    if request.ids is None and not request.all and request.failed_before is None:
        raise InvalidRequest("say which dead letters: `ids`, `failed_before`, or `all`")
    for id in request.ids or ():
        if not id.isprintable():
            # No message has such an id; and SQLite's JSON ends a text at a NUL, so that it would mean another.
            raise InvalidRequest(f"{id!r} is no id: it has characters that cannot be printed")
    return request.ids, request.failed_before, request.after


def _fields(step: Step, name: str) -> Fields:
    """Where to go on, if there is more."""
    return {} if step.after is None else {name: step.after}
