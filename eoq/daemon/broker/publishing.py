"""Publishing: messages that come in are routed, stored, and told of. Requests bring them, settles, and schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

from msgspec.structs import replace

from ...errors import EoqError, InvalidRequest
from ...ids import new_id
from .. import requests as ask
from ..clock import Clock
from ..config.settings import SettingsOf
from ..records import End, NewMessage, Routed, Stored
from ..session import Fields, Reply, Session, Submitter
from ..store.commands import Put
from .throughput import Throughput

MAX_COPIES: Final = 25_000
"""Messages stored by one request: the 250 of a client's batch, to a topic with as many queues as it can have."""

MAX_COPIED: Final = 128 * 1024 * 1024
"""Bytes of their bodies: enough for the largest message, to such a topic. Nothing else is done meanwhile."""

Arrived: TypeAlias = Callable[[str], None]
"""Told of each queue in which messages were stored."""


class Router(Protocol):
    """What the intake needs of topics."""

    def is_topic(self, name: str) -> bool: ...
    def route(self, messages: Sequence[NewMessage]) -> Routed: ...


class Publishing:
    """The way in, for whoever has messages to store."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        topics: Router | None,
        settings: SettingsOf,
        rates: Throughput,
        *,
        stir: Callable[[str, int], None],
        watch: Callable[[float], None],
        arrived: Arrived,
        ended: Callable[[Sequence[End]], None],
    ) -> None:
        """``stir`` is told how many messages of a queue may be ready soon, ``watch`` when one is due or expires."""
        self._writer = writer
        self._clock = clock
        self._topics = topics
        self._settings = settings
        self._rates = rates
        self._stir = stir
        self._watch = watch
        self._arrived = arrived
        self._ended = ended

    def send(self, _session: Session, request: ask.Send, reply: Reply) -> None:
        """Stores one message. What is meant for its queue alone, and for now, goes a short way: most do."""
        now = self._clock.wall()
        message = ask.new_message(request.queue, request, now, new_id)
        queue = message.queue
        # What `route` and `stored` would do something for.
        if (
            message.due_at is not None
            or message.expires_at is not None
            or self._settings(queue).ttl is not None
            or (self._topics is not None and self._topics.is_topic(queue))
        ):
            self._put(now, [message], lambda duplicates: {"id": message.id, "duplicate": bool(duplicates)}, reply)
            return

        def done(outcome: Stored | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            duplicate = bool(outcome.duplicates)
            reply({"id": message.id, "duplicate": duplicate})
            if not duplicate:
                self._tell(queue, 1)
            if outcome.ended:
                self._ended(outcome.ended)

        self._writer.submit(Put(now, (message,), self._settings), done)
        self._stir(queue, 1)

    def send_many(self, _session: Session, request: ask.SendMany, reply: Reply) -> None:
        """Stores many, or none."""
        now = self._clock.wall()
        messages = [ask.new_message(request.queue, message, now, new_id) for message in request.messages]
        ids = [message.id for message in messages]
        self._put(now, messages, lambda duplicates: {"ids": ids, "duplicates": duplicates}, reply)

    def _put(
        self, now: float, messages: Sequence[NewMessage], answer: Callable[[list[int]], Fields], reply: Reply
    ) -> None:
        routed = self.route(messages, now)

        def done(outcome: Stored | EoqError) -> None:
            if isinstance(outcome, EoqError):
                reply(outcome)
                return
            reply(answer(routed.duplicates(outcome.duplicates)))
            self.arrive(routed.messages, outcome)

        self._writer.submit(Put(now, routed.messages, self._settings), done)
        self.stored(routed.messages)

    def route(self, messages: Sequence[NewMessage], now: float) -> Routed:
        """Messages as they are to be stored: in the queues bound to their topic, with their queue's time to live."""
        routed = Routed(messages, None) if self._topics is None else self._topics.route(messages)
        if len(routed.messages) > MAX_COPIES:
            raise InvalidRequest(
                f"{len(messages):,} messages for topics would be {len(routed.messages):,} in their queues, and "
                f"{MAX_COPIES:,} is the limit of one request; send fewer at once"
            )
        if (
            routed.origins is not None
            and (copied := sum(len(message.body) for message in routed.messages)) > MAX_COPIED
        ):
            raise InvalidRequest(
                f"{len(messages):,} messages for topics would have {copied:,} bytes in their queues, and "
                f"{MAX_COPIED:,} is the limit of one request; send fewer at once"
            )
        queues = {message.queue for message in routed.messages}
        ttls: dict[str, float] = {}
        for queue in queues:
            if (ttl := self._settings(queue).ttl) is not None:
                ttls[queue] = ttl
        if not ttls:
            return routed
        living = [
            replace(message, expires_at=now + ttls[message.queue])
            if message.expires_at is None and message.queue in ttls
            else message
            for message in routed.messages
        ]
        return Routed(living, routed.origins)

    def stored(self, messages: Sequence[NewMessage]) -> None:
        """A verb that stores ``messages`` was just submitted: waiters may claim them, a timer may be needed."""
        planned = []
        counts: dict[str, int] = {}
        for message in messages:
            counts[message.queue] = counts.get(message.queue, 0) + 1
            if message.due_at is not None:
                planned.append(message.due_at)
            if message.expires_at is not None:
                planned.append(message.expires_at)
        if planned:
            self._watch(min(planned))
        for queue, count in counts.items():
            self._stir(queue, count)

    def arrive(self, messages: Sequence[NewMessage], stored: Stored) -> None:
        """Messages were stored: those who look on are told."""
        known = set(stored.duplicates)
        counts: dict[str, int] = {}
        for index, message in enumerate(messages):
            if index not in known:
                counts[message.queue] = counts.get(message.queue, 0) + 1
        for queue, count in counts.items():
            self._tell(queue, count)
        if stored.ended:
            self._ended(stored.ended)

    def _tell(self, queue: str, count: int) -> None:
        self._rates.sent(queue, count)
        self._arrived(queue)
