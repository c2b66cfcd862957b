"""The model: what the daemon's file must hold after each verb, in plain dictionaries, knowing nothing of SQL.

It says what is right, not how it is done: what is blocked in its group is worked out from the order of storing
each time it is asked, and a delivery is fenced by being the very object that holds the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from eoq.daemon.config.settings import QueueSettings

Key = tuple[str, str]
"""Queue and id."""
SETTLED: Final = ("done", "expired", "dropped")
FINISHED: Final = (*SETTLED, "dead")


class Refused(Exception):
    """The request must be refused with this code, and nothing may change."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Draft:
    """A message as it is sent. ``due`` and ``expires`` are wall-clock; None is at once, and never."""

    queue: str
    id: str
    body: bytes = b"x"
    headers: tuple[tuple[str, str], ...] = ()
    group: str | None = None
    priority: int = 0
    due: float | None = None
    expires: float | None = None
    fixed: bool = False
    """Whether ``due`` was asked for as a moment, and not as a wait."""

    @property
    def key(self) -> Key:
        return self.queue, self.id

    @property
    def content(self) -> object:
        """What makes the same id a duplicate and not a conflict (G2)."""
        return self.body, self.headers, self.group


@dataclass(eq=False)
class Message:
    """A stored message. ``state`` is what it would be if nothing of its group were before it."""

    draft: Draft
    state: str
    due: float | None
    stored_at: float
    expires: float | None
    attempts: int = 0
    holder: Delivery | None = None
    last: Delivery | None = None
    """The newest delivery, whatever became of it."""
    result: bytes | None = None
    ended_at: float | None = None
    failed_at: float | None = None
    failures: int = 0
    fixed: bool = False


@dataclass(eq=False)
class Delivery:
    """One lease. What the daemon told of it is filled in when the reply is given."""

    message: Message
    attempt: int
    receipt: str = ""
    deadline: float = 0.0
    ended: bool = False
    """Whether its end is certain: its settling was answered, its time is over, its connection or daemon is gone."""
    in_flight: int = 0
    """Requests about it that are not answered yet."""


class Row(NamedTuple):
    """What the file must say of a message."""

    queue: str
    id: str
    state: str
    attempts: int
    priority: int
    group: str | None
    due: float | None
    expires: float | None
    stored_at: float
    failed_at: float | None
    failures: int
    body: bytes | None
    result: bytes | None


class End(NamedTuple):
    """A message that ended, as whoever waits for its result must be told."""

    queue: str
    id: str
    outcome: str
    result: bytes | None


@dataclass
class Model:
    """All messages of all queues, in the order in which they were stored."""

    settings: Callable[[str], QueueSettings]
    messages: dict[Key, Message] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    """What ended since the daemon started."""
    paused: set[str] = field(default_factory=set)
    bindings: dict[Key, dict[str, str]] = field(default_factory=dict)
    """By topic and queue, with the headers that are asked for."""

    # ── what it looks like ──────────────────────────────────────────────────────────────────────────────

    def blocked(self) -> set[Message]:
        """Those that wait for a message before them in their group (G8)."""
        blocked = set()
        taken: set[tuple[str, str]] = set()
        # One that is leased has its turn, also if another came back before it.
        for message in sorted(self.messages.values(), key=lambda message: message.state != "leased"):
            group = message.draft.group
            if group is None or message.state in FINISHED:
                continue
            if (message.draft.queue, group) in taken:
                blocked.add(message)
            taken.add((message.draft.queue, group))
        return blocked

    def ready(self, queue: str) -> list[Message]:
        """What may be delivered, in the order of delivery."""
        blocked = self.blocked()
        ready = [m for m in self._of(queue) if m.state == "ready" and m not in blocked]
        return sorted(ready, key=lambda message: -message.draft.priority)  # stable: the order of storing stays

    def next(self, queue: str) -> list[Message]:
        """What is delivered next, if somebody asks."""
        return [] if queue in self.paused else self.ready(queue)

    def waiting(self, queue: str) -> list[Message]:
        """What is neither leased nor has ended, in the order of storing."""
        return [m for m in self._of(queue) if m.state in ("ready", "delayed")]

    def allowance(self, queue: str) -> int | None:
        """How many more may be leased; None is no limit."""
        most = self.settings(queue).max_in_flight
        return None if most is None else most - sum(m.draft.queue == queue for m in self.leased())

    def next_expiry(self) -> float | None:
        moments = [m.expires for queue in self.queues() for m in self.waiting(queue) if m.expires is not None]
        return min(moments, default=None)

    def delayed(self) -> list[Message]:
        """What becomes ready by the passing of time alone."""
        blocked = self.blocked()
        return [m for m in self.messages.values() if m.state == "delayed" and m not in blocked]

    def leased(self) -> list[Message]:
        return [m for m in self.messages.values() if m.state == "leased"]

    def queues(self) -> set[str]:
        return {queue for queue, _ in self.messages}

    def first_not_settled(self, queue: str) -> Message | None:
        """Where the watermark stands.

        A dead letter can be redriven, so it is not settled. What was delivered and then given up may be processed.
        """
        return next((m for m in self._of(queue) if m.state not in SETTLED or _given_up(m)), None)

    def rows(self) -> list[Row]:
        blocked = self.blocked()
        return [self._row(message, message in blocked) for message in self.messages.values()]

    def _row(self, message: Message, blocked: bool) -> Row:
        draft = message.draft
        state = "blocked" if blocked else message.state
        return Row(
            queue=draft.queue,
            id=draft.id,
            state=state,
            attempts=message.attempts,
            priority=draft.priority,
            group=draft.group,
            due=message.due if state == "delayed" else None,
            expires=message.expires,
            stored_at=message.stored_at,
            failed_at=message.failed_at,
            failures=message.failures,
            body=None if state in SETTLED else draft.body,
            result=message.result,
        )

    def _of(self, queue: str) -> list[Message]:
        return [m for m in self.messages.values() if m.draft.queue == queue]

    # ── what happens to it ──────────────────────────────────────────────────────────────────────────────

    def route(self, now: float, drafts: Sequence[Draft]) -> list[tuple[int, Draft]]:
        """What is stored where: each message, or its copies for those bound to its topic; with its time to live."""
        topics = {topic for topic, _ in self.bindings}
        routed = []
        for index, draft in enumerate(drafts):
            queues = [draft.queue]
            if draft.queue in topics:
                wanted = [(q, h) for (topic, q), h in self.bindings.items() if topic == draft.queue]
                queues = sorted(q for q, headers in wanted if headers.items() <= dict(draft.headers).items())
            for queue in queues:
                ttl = self.settings(queue).ttl
                expires = now + ttl if draft.expires is None and ttl is not None else draft.expires
                routed.append((index, replace(draft, queue=queue, expires=expires)))
        return routed

    def put(self, now: float, routed: Sequence[tuple[int, Draft]]) -> list[int]:
        """Stores all or, if one is refused, none; returns the indexes of messages all of whose copies were there."""
        known = {key: message.draft.content for key, message in self.messages.items()}
        new, old = set(), set()
        fresh = []
        for index, draft in routed:
            if draft.key not in known:
                known[draft.key] = draft.content
                fresh.append(draft)
                new.add(index)
            elif known[draft.key] == draft.content:
                old.add(index)
            else:
                raise Refused("id_conflict")
        dropped = [key for queue in {draft.queue for draft in fresh} for key in self._room(queue, fresh)]
        for draft in fresh:
            due = draft.due if draft.due is not None and draft.due > now else None
            state = "ready" if due is None else "delayed"
            self.messages[draft.key] = Message(draft, state, due, now, draft.expires, fixed=draft.fixed)
        for key in dropped:
            self._end(now, self.messages[key], "dropped", None)
        return sorted(old - new)

    def _room(self, queue: str, fresh: Sequence[Draft]) -> list[Key]:
        """What has to go for ``fresh`` messages, perhaps some of themselves; raises where there is no room for them."""
        settings = self.settings(queue)
        mine = [draft for draft in fresh if draft.queue == queue]
        there = [m.draft for m in self._of(queue) if m.state not in FINISHED]
        oldest = [m.draft for m in self.waiting(queue)] + mine[:-1]
        count = len(there) + len(mine)
        size = sum(len(draft.body) for draft in there + mine)
        dropped = []
        while (settings.max_depth is not None and count > settings.max_depth) or (
            settings.max_bytes is not None and size > settings.max_bytes
        ):
            if settings.when_full == "refuse" or not oldest:
                raise Refused("queue_full")
            count -= 1
            size -= len(oldest[0].body)
            dropped.append(oldest.pop(0).key)
        return dropped

    def claim(self, queue: str, count: int) -> list[Delivery]:
        """Leases the first ``count`` that are next; each delivery counts from the moment it is given."""
        return [self._lease(message) for message in self.next(queue)[:count]]

    def _lease(self, message: Message) -> Delivery:
        message.attempts += 1
        message.state = "leased"
        message.holder = message.last = Delivery(message, message.attempts)
        return message.holder

    def settle(
        self,
        now: float,
        acks: Sequence[tuple[Delivery, bytes | None]],
        routed: Sequence[tuple[int, Draft]] = (),
    ) -> list[int]:
        """Acks and sends, all or nothing (G4); a repeated ack of the same delivery is no fault (G7)."""
        for delivery, _ in acks:
            message = delivery.message
            if message.holder is not delivery and not (message.state == "done" and message.last is delivery):
                raise Refused("lease_lost")
        deliveries = [delivery for delivery, _ in acks]
        repeated = any(d.message.holder is not d for d in deliveries) or len(set(map(id, deliveries))) < len(acks)
        first = None
        if repeated:
            # It answers as the first did: what that sent itself, at the moment of its acks, is no duplicate.
            first = now if deliveries[0].message.holder is deliveries[0] else deliveries[0].message.ended_at
        # The acks come first: they make room in their queues.
        before = [(d.message, d.message.state, d.message.holder) for d in deliveries]
        for delivery in deliveries:
            delivery.message.state = "done"
        try:
            duplicates = self.put(now, routed)
        finally:
            for message, state, _ in before:
                message.state = state
        if repeated:
            stored = {i: [self.messages[draft.key].stored_at for j, draft in routed if j == i] for i in duplicates}
            duplicates = [i for i in duplicates if first not in stored[i]]
        for delivery, result in acks:
            if delivery.message.holder is delivery:
                self._end(now, delivery.message, "done", result)
        return duplicates

    def retry(
        self, now: float, delivery: Delivery, due: float | None = None, *, counts: bool = True, starting: bool = False
    ) -> bool:
        """Gives a message back, to be delivered again unless no attempt or no time is left; False where the lease was
        lost.
        """
        message = delivery.message
        if message.holder is not delivery:
            return False
        if counts:
            message.failed_at = now
            message.failures += 1
        if counts and message.attempts >= self.settings(message.draft.queue).max_attempts:
            self._end(now, message, "dead", None)
            return True
        message.attempts -= not counts
        with self._groups_move_on(now):
            message.holder = None
            message.due = due if due is not None and due > now else None
            message.fixed = False
            message.state = "ready" if message.due is None else "delayed"
        if not starting and message.expires is not None and message.expires <= now:
            self.expire(now, message)
        return True

    def nack(self, now: float, delivery: Delivery, due: float | None) -> None:
        if not self.retry(now, delivery, due):
            raise Refused("lease_lost")

    def reject(self, now: float, delivery: Delivery) -> None:
        message = delivery.message
        if message.holder is delivery:
            message.failed_at = now
            message.failures += 1
            self._end(now, message, "dead", None)
        elif not (message.state == "dead" and message.last is delivery):
            raise Refused("lease_lost")

    def expire(self, now: float, message: Message) -> None:
        """The time of a message is over."""
        if self.settings(message.draft.queue).on_expiry == "dead":
            message.failed_at = now
            self._end(now, message, "dead", None)
        else:
            self._end(now, message, "expired", None)

    def expired(self, now: float) -> list[Message]:
        """What waits although its time is over."""
        waiting = [m for queue in self.queues() for m in self.waiting(queue)]
        return [m for m in waiting if m.expires is not None and m.expires <= now]

    def promote(self, now: float) -> None:
        """Makes ready what is due."""
        for message in self.delayed():
            if message.due is not None and message.due <= now:
                message.state = "ready"
                message.due = None

    def shift(self, seconds: float) -> None:
        """The wall clock was set: waits and times to live go on for as long as they had left."""
        for message in self.messages.values():
            if message.state in FINISHED:
                continue
            if message.due is not None and not message.fixed:
                message.due += seconds
            if message.expires is not None:
                message.expires += seconds

    def restart(self, now: float) -> None:
        """Leases end with the daemon that gave them, and so does a message whose last attempt that was."""
        for message in self.leased():
            assert message.holder is not None
            self.retry(now, message.holder, starting=True)
        self.ends.clear()

    # ── what people do to it ────────────────────────────────────────────────────────────────────────────

    def known_queue(self, queue: str) -> None:
        if queue not in self.queues():
            raise Refused("not_found")

    def purge(self, now: float, queue: str) -> int:
        self.known_queue(queue)
        waiting = self.waiting(queue)
        for message in reversed(waiting):
            self._end(now, message, "dropped", None)
        return len(waiting)

    def dead(self, queue: str, ids: Sequence[str] | None, failed_before: float | None) -> list[Message]:
        """Dead letters: of these ids, or that failed before a moment."""
        self.known_queue(queue)
        dead = [m for m in self._of(queue) if m.state == "dead"]
        if ids is not None:
            return [m for m in dead if m.draft.id in ids]
        return [m for m in dead if failed_before is None or m.failed_at is None or m.failed_at < failed_before]

    def redrive(self, now: float, messages: Sequence[Message]) -> None:
        with self._groups_move_on(now):
            for message in messages:
                message.state = "ready"
                message.attempts = 0
                message.due = message.expires = None

    def drop(self, now: float, messages: Sequence[Message]) -> None:
        for message in messages:
            message.state = "dropped"

    def _end(self, now: float, message: Message, outcome: str, result: bytes | None) -> None:
        with self._groups_move_on(now):
            message.state = outcome
            message.holder = None
            message.result = result
            message.ended_at = now
        self.ends.append(End(*message.draft.key, outcome, result))

    @contextmanager
    def _groups_move_on(self, now: float) -> Iterator[None]:
        before = self.blocked()
        yield
        for follower in before - self.blocked():
            if follower.state not in FINISHED:
                # Its delay ran on while it was blocked.
                if follower.due is not None and follower.due <= now:
                    follower.due = None
                follower.state = "ready" if follower.due is None else "delayed"


def _given_up(message: Message) -> bool:
    return message.state in ("expired", "dropped") and message.last is not None
