"""Publishing: the messages of sends, acks and schedules are routed and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, TypeAlias

from msgspec.structs import replace

from ...errors import EoqError, InvalidRequest
from ...ids import new_id
from .. import requests as ask
from ..clock import Clock
from ..config.settings import SettingsOf
from ..records import NewMessage, Routed, Stored, counted
from ..request_values import new_message
from ..session import Fields, Handlers, Reply, Session, Submitter
from ..store.commands import Put
from .due_times import DueTimes
from .events import Events

MAX_COPIES: Final = 25_000
"""How many messages one request may store: a client's batch of 250, to a topic with the most queues."""
MAX_COPIED: Final = 16 * 1024 * 1024
"""Bytes of the bodies of these messages, as many as a line may have. The daemon does nothing else meanwhile."""


Answer: TypeAlias = Callable[[list[int], list[int] | None], Fields]
"""Makes the reply of a send, of the indexes of duplicates and the number of queues of each message (None: no topic)."""


def many_stored(ids: list[str], duplicates: list[int], queues: list[int] | None) -> Fields:
    """Return the fields of a reply to a request that stores several messages."""
    fields: Fields = {"ids": ids, "duplicates": duplicates}
    return fields if queues is None else {**fields, "queues": queues}


class Router(Protocol):
    """What a publisher needs of the topics."""

    def is_topic(self, name: str) -> bool: ...
    def route(self, messages: Sequence[NewMessage]) -> Routed: ...


class Publisher:
    """The way of messages into their queues. It announces them to the other parts."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        settings: SettingsOf,
        topics: Router | None,
        due_times: DueTimes,
        events: Events,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._settings = settings
        self._topics = topics
        self._due_times = due_times
        self._events = events
        self.handlers: Handlers = {ask.Send: self.send, ask.SendMany: self.send_many}

    def send(self, _session: Session, request: ask.Send, reply: Reply) -> None:
        """Store one message. A message for one queue that is deliverable at once, as most are, takes a shorter path."""
        now = self._clock.wall()
        message = new_message(request.queue, request, now, new_id)
        queue = message.queue
        # The cases for which `route` and `submitted` have something to do.
        if (
            message.due_at is not None
            or message.expires_at is not None
            or self._settings(queue).ttl is not None
            or (self._topics is not None and self._topics.is_topic(queue))
        ):

            def answer(duplicates: list[int], queues: list[int] | None) -> Fields:
                fields: Fields = {"id": message.id, "duplicate": bool(duplicates)}
                return fields if queues is None else {**fields, "queues": queues[0]}

            self.put(now, [message], answer, reply)
            return

        def done(outcome: Stored | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            duplicate = bool(outcome.duplicates)
            reply({"id": message.id, "duplicate": duplicate})
            if not duplicate:
                self._events.stored(queue, 1)
            if outcome.ended:
                self._due_times.ended(outcome.ended)

        self._writer.submit(Put(now, (message,), self._settings), done)
        self._events.ready(queue, 1)

    def send_many(self, _session: Session, request: ask.SendMany, reply: Reply) -> None:
        """Store several messages, all or none."""
        now = self._clock.wall()
        messages = [new_message(request.queue, message, now, new_id) for message in request.messages]
        ids = [message.id for message in messages]
        self.put(now, messages, partial(many_stored, ids), reply)

    def put(self, now: float, messages: Sequence[NewMessage], answer: Answer, reply: Reply) -> None:
        """Store messages, and reply with what ``answer`` makes of the outcome."""
        routed = self.route(messages, now)

        def done(outcome: Stored | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply(answer(routed.duplicates(outcome.duplicates), routed.queues(len(messages))))
            self.stored(routed.messages, outcome)

        self._writer.submit(Put(now, routed.messages, self._settings), done)
        self.submitted(routed.messages)

    def route(self, messages: Sequence[NewMessage], now: float) -> Routed:
        """Return messages as they are to be stored: in the queues bound to their topic, with their queue's ttl.

        Raises `InvalidRequest` where the copies would be too many or too large.
        """
        routed = Routed(messages, None) if self._topics is None else self._topics.route(messages)
        if routed.origins is not None:
            _check_copies(len(messages), routed.messages)
        ttls: dict[str, float] = {}
        for queue in {message.queue for message in routed.messages}:
            if (ttl := self._settings(queue).ttl) is not None:
                ttls[queue] = ttl
        if not ttls:
            return routed
        expiring = [
            replace(message, expires_at=now + ttls[message.queue])
            if message.expires_at is None and message.queue in ttls
            else message
            for message in routed.messages
        ]
        return Routed(expiring, routed.origins)

    def submitted(self, messages: Sequence[NewMessage]) -> None:
        """Wake receivers for ``messages``, which a command that was just submitted stores.

        Set an earlier alarm if a delayed or expiring message needs it.
        """
        moments = []
        counts: dict[str, int] = {}
        for message in messages:
            counts[message.queue] = counts.get(message.queue, 0) + 1
            if message.due_at is not None:
                moments.append(message.due_at)
            if message.expires_at is not None:
                moments.append(message.expires_at)
        if moments:
            self._due_times.watch(min(moments))
        for queue, count in counts.items():
            self._events.ready(queue, count)

    def stored(self, messages: Sequence[NewMessage], outcome: Stored) -> None:
        """Announce the ``outcome`` of storing ``messages`` to the listeners."""
        known = set(outcome.duplicates)
        new = [message.queue for index, message in enumerate(messages) if index not in known]
        for queue, count in counted(new).items():
            self._events.stored(queue, count)
        if outcome.ended:
            self._due_times.ended(outcome.ended)


def _check_copies(sent: int, copies: Sequence[NewMessage]) -> None:
    if len(copies) > MAX_COPIES:
        raise InvalidRequest(
            f"{sent:,} messages for topics would be {len(copies):,} in their queues, and {MAX_COPIES:,} is the limit "
            "of one request; send fewer at once"
        )
    size = sum(len(message.body) for message in copies)
    if size > MAX_COPIED:
        raise InvalidRequest(
            f"{sent:,} messages for topics would have {size:,} bytes in their queues, and {MAX_COPIED:,} is the limit "
            "of one request; send fewer at once"
        )
