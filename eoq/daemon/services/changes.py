"""Requests for one message: cancel it, or change its body, its priority or when it is due."""

from __future__ import annotations

from ...errors import EoqError, InvalidRequest
from ...protocol.codec import get_bytes
from ...protocol.limits import MAX_BODY
from ...protocol.validation import body_too_large
from .. import requests as ask
from ..broker.broker import Broker
from ..broker.events import Events
from ..records import Cancelled, Edited
from ..session import Handlers, Reply, Session, Submitter
from ..store.commands import CancelMessage, EditMessage


class MessageChangeService:
    """The handlers of these requests."""

    def __init__(self, writer: Submitter, broker: Broker, events: Events) -> None:
        self._writer = writer
        self._broker = broker
        self._events = events
        self.handlers: Handlers = {ask.CancelMessage: self._cancel, ask.Edit: self._edit}

    def _cancel(self, _session: Session, request: ask.CancelMessage, reply: Reply) -> None:
        def done(outcome: Cancelled | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            if outcome.delivery is not None:
                lease = self._broker.lease_of(*outcome.delivery, request.id)
                if lease is not None:
                    lease.cancelled = True
            reply({"state": outcome.state, "changed": outcome.changed, "delivered": outcome.delivered})
            self._broker.due_times.ended(outcome.ended)

        self._writer.submit(CancelMessage(self._broker.clock.wall(), request.queue, request.id), done)

    def _edit(self, _session: Session, request: ask.Edit, reply: Reply) -> None:
        body = get_bytes(request.body, request.body_base64, "body")
        if body is not None and len(body) > MAX_BODY:
            raise body_too_large(len(body))
        if request.delay is not None and request.at is not None:
            raise InvalidRequest("give `delay` or `at`, not both")
        if body is None and request.priority is None and request.delay is None and request.at is None:
            raise InvalidRequest("say what to change: the body, `priority`, `delay` or `at`")
        now = self._broker.clock.wall()
        due_at = request.at if request.delay is None else now + request.delay

        def done(outcome: Edited | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply({"state": outcome.state, "delivered": outcome.delivered})
            if due_at is not None:
                self._broker.due_times.check_again()

        command = EditMessage(now, request.queue, request.id, body, request.priority, due_at, request.at is not None)
        self._writer.submit(command, done)
        self._events.ready(request.queue, 1)
