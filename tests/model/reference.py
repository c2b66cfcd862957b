"""The model: what the daemon's file must contain after each command, in plain dictionaries and without SQL.

It says what is right, not how it is done. Which messages are blocked in their group is worked out from the order of
storing each time. A delivery is fenced by its identity: it has to be the very object in `Message.delivery`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from eoq.daemon.config.settings import QueueSettings

Key = tuple[str, str]
"""Queue and id."""
SETTLED: Final = ("done", "expired", "dropped", "cancelled")
FINISHED: Final = (*SETTLED, "dead")


class Refused(Exception):
    """A request must be refused with this code, and nothing may change."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Draft:
    """A message as it is sent. ``due`` and ``expires`` are wall-clock. None means at once, and never."""

    queue: str
    id: str
    body: bytes = b"x"
    headers: tuple[tuple[str, str], ...] = ()
    group: str | None = None
    priority: int = 0
    due: float | None = None
    expires: float | None = None
    fixed: bool = False
    """Whether ``due`` was sent as a moment, and not as a delay."""

    @property
    def key(self) -> Key:
        return self.queue, self.id

    @property
    def content(self) -> object:
        """What must be equal for the same id to be a duplicate and not a conflict (G2)."""
        return self.body, self.headers, self.group


@dataclass(eq=False)
class Message:
    """A stored message. ``state`` is the state that it would have if its group did not block it."""

    draft: Draft
    state: str
    due: float | None
    stored_at: float
    expires: float | None
    attempts: int = 0
    delivery: Delivery | None = None
    """The delivery that has its lease."""
    last: Delivery | None = None
    """Its newest delivery, which may have ended."""
    result: bytes | None = None
    ended_at: float | None = None
    failed_at: float | None = None
    failures: int = 0
    fixed: bool = False
    cancelled: bool = False
    """Whether it ends as cancelled when its delivery ends without an ack."""
    content: object = None
    """The content that was sent first. An edit changes the draft, and not this."""
    sent_with: Delivery | None = None
    """The delivery with whose ack it was stored."""


@dataclass(eq=False)
class Delivery:
    """One delivery. ``receipt`` and ``deadline`` are filled in when a client gets it."""

    message: Message
    attempt: int
    receipt: str = ""
    deadline: float = 0.0
    ended: bool = False
    """Whether its lease has surely ended: it was settled, its time is over, or its connection or daemon is gone."""
    in_flight: int = 0
    """How many requests about it are not answered yet."""
    claim: Claim | None = None
    """What was delivered together with it."""


@dataclass(eq=False)
class Claim:
    """What one receive delivered, in its order, and how many of it the consumer handles at once. None is all."""

    handles: int | None
    deliveries: list[Delivery]

    def handled(self) -> list[Delivery]:
        """Return the deliveries that are being handled: the first ones that have not ended."""
        return [one for one in self.deliveries if one.message.delivery is one][: self.handles]


class Row(NamedTuple):
    """What the file must contain of a message. Of a settled one it has less."""

    queue: str
    id: str
    state: str
    attempts: int | None
    priority: int | None
    group: str | None
    due: float | None
    expires: float | None
    stored_at: float | None
    failed_at: float | None
    failures: int
    body: bytes | None
    result: bytes | None


class End(NamedTuple):
    """A message that ended, as it must be announced to clients that wait for its result."""

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
    """The messages that ended since the daemon started."""
    paused: set[str] = field(default_factory=set)
    bindings: dict[Key, dict[str, str]] = field(default_factory=dict)
    """By topic and queue: the headers that a message must have."""

    # ── its state ──────────────────────────────────────────────────────────────────────────────

    def blocked(self) -> set[Message]:
        """Return the messages that wait for one before them in their group (G8)."""
        blocked = set()
        taken: set[tuple[str, str]] = set()
        # A leased message has its turn, also if an earlier one of its group came back meanwhile.
        for message in sorted(self.messages.values(), key=lambda message: message.state != "leased"):
            group = message.draft.group
            if group is None or message.state in FINISHED:
                continue
            if (message.draft.queue, group) in taken:
                blocked.add(message)
            taken.add((message.draft.queue, group))
        return blocked

    def ready(self, queue: str) -> list[Message]:
        """Return the messages that may be delivered, in the order of delivery."""
        blocked = self.blocked()
        ready = [m for m in self._of(queue) if m.state == "ready" and m not in blocked]
        return sorted(ready, key=lambda message: -message.draft.priority)  # stable: the order of storing stays

    def next(self, queue: str) -> list[Message]:
        """Return the messages that a claim would find, in their order."""
        return [] if queue in self.paused else self.ready(queue)

    def waiting(self, queue: str) -> list[Message]:
        """Return the messages that are neither leased nor have ended, in the order of storing."""
        return [m for m in self._of(queue) if m.state in ("ready", "delayed")]

    def allowance(self, queue: str) -> int | None:
        """Return how many more messages may be leased. None is no limit."""
        most = self.settings(queue).max_in_flight
        return None if most is None else most - sum(m.draft.queue == queue for m in self.leased())

    def next_expiry(self) -> float | None:
        moments = [m.expires for queue in self.queues() for m in self.waiting(queue) if m.expires is not None]
        return min(moments, default=None)

    def delayed(self) -> list[Message]:
        """Return the messages that become ready by the passing of time alone."""
        blocked = self.blocked()
        return [m for m in self.messages.values() if m.state == "delayed" and m not in blocked]

    def leased(self) -> list[Message]:
        return [m for m in self.messages.values() if m.state == "leased"]

    def queues(self) -> set[str]:
        return {queue for queue, _ in self.messages}

    def first_not_settled(self, queue: str) -> Message | None:
        """Return the message at the watermark.

        A dead letter can be redriven, so it is not settled. A message that was delivered, and then expired or was
        dropped, may have been processed, so it counts as not settled.
        """
        return next((m for m in self._of(queue) if m.state not in SETTLED or _perhaps_processed(m)), None)

    def rows(self) -> list[Row]:
        blocked = self.blocked()
        return [self._row(message, message in blocked) for message in self.messages.values()]

    def _row(self, message: Message, blocked: bool) -> Row:
        draft = message.draft
        if message.state in SETTLED:
            unknown = (None,) * 7
            return Row(draft.queue, draft.id, message.state, *unknown, message.failures, None, message.result)
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
            body=draft.body,
            result=message.result,
        )

    def _of(self, queue: str) -> list[Message]:
        return [m for m in self.messages.values() if m.draft.queue == queue]

    # ── commands ──────────────────────────────────────────────────────────────────────────────

    def route(self, now: float, drafts: Sequence[Draft]) -> list[tuple[int, Draft]]:
        """Return what is stored: each message, or its copies for the queues bound to its topic, with their ttl.

        Where one is for a topic, all are stored queue by queue.
        """
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
        if not any(draft.queue in topics for draft in drafts):
            return routed
        order = list(dict.fromkeys(draft.queue for _, draft in routed))
        return sorted(routed, key=lambda pair: order.index(pair[1].queue))

    def copies(self, routed: Sequence[tuple[int, Draft]], drafts: Sequence[Draft]) -> list[int] | None:
        """Return to how many queues each message goes. None where none of them is for a topic."""
        topics = {topic for topic, _ in self.bindings}
        if not any(draft.queue in topics for draft in drafts):
            return None
        return [sum(index == origin for origin, _ in routed) for index in range(len(drafts))]

    def put(self, now: float, routed: Sequence[tuple[int, Draft]]) -> list[int]:
        """Store all messages or none. Return the indexes of those whose copies were all there before."""
        known = {key: message.content for key, message in self.messages.items()}
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
            self.messages[draft.key].content = draft.content
        for key in dropped:
            self._end(now, self.messages[key], "dropped", None)
        return sorted(old - new)

    def _room(self, queue: str, fresh: Sequence[Draft]) -> list[Key]:
        """Return what is dropped to make room for ``fresh`` messages, perhaps some of themselves. Raises `Refused`."""
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

    def claim(self, queue: str, count: int, handles: int | None) -> list[Delivery]:
        """Lease the first ``count`` messages."""
        deliveries = [self._lease(message) for message in self.next(queue)[:count]]
        claim = Claim(handles, deliveries)
        for delivery in deliveries:
            delivery.claim = claim
        return deliveries

    def _lease(self, message: Message) -> Delivery:
        message.state = "leased"
        message.delivery = message.last = Delivery(message, message.attempts + 1)
        return message.delivery

    def lose(self, now: float, deliveries: Sequence[Delivery], *, counts: bool, starting: bool = False) -> None:
        """Give messages back whose consumer, or whose daemon, has gone. Only what was being handled counts."""
        handled = {id(one) for delivery in deliveries if delivery.claim for one in delivery.claim.handled()}
        for delivery in deliveries:
            self.retry(now, delivery, counts=counts and id(delivery) in handled, starting=starting)

    def settle(
        self,
        now: float,
        acks: Sequence[tuple[Delivery, bytes | None]],
        routed: Sequence[tuple[int, Draft]] = (),
    ) -> list[int]:
        """Ack and send, all or nothing (G4). A repeated ack of the same delivery is no error (G7)."""
        for delivery, _ in acks:
            message = delivery.message
            if message.delivery is not delivery and not (message.state == "done" and message.last is delivery):
                raise Refused("lease_lost")
        deliveries = [delivery for delivery, _ in acks]
        repeated = any(d.message.delivery is not d for d in deliveries) or len(set(map(id, deliveries))) < len(acks)
        # The acks come first: they make room in their queues.
        before = [(d.message, d.message.state, d.message.delivery) for d in deliveries]
        for delivery in deliveries:
            delivery.message.state = "done"
        known = set(self.messages)
        try:
            duplicates = self.put(now, routed)
        finally:
            for message, state, _ in before:
                message.state = state
        live = [delivery for delivery in deliveries if delivery.message.delivery is delivery]
        for _, draft in routed:
            if live and draft.key not in known:
                self.messages[draft.key].sent_with = live[0]
        if repeated:
            # The reply equals the first one: messages that were stored with one of the acks are no duplicates, except
            # the second one of an id.
            keys = [draft.key for _, draft in routed]
            first = {i for n, (i, draft) in enumerate(routed) if keys.index(draft.key) == n}
            with_acks = {i for i, draft in routed if self.messages[draft.key].sent_with in deliveries}
            duplicates = [i for i in duplicates if i not in first & with_acks]
        for delivery, result in acks:
            if delivery.message.delivery is delivery:
                delivery.message.attempts += 1
                self._end(now, delivery.message, "done", result)
        return duplicates

    def retry(
        self, now: float, delivery: Delivery, due: float | None = None, *, counts: bool = True, starting: bool = False
    ) -> bool:
        """Give a message back. It is delivered again, unless it has no attempt or no time left.

        Return False where the lease was lost.
        """
        message = delivery.message
        if message.delivery is not delivery:
            return False
        if counts:
            message.attempts += 1
            message.failed_at = now
            message.failures += 1
        if message.cancelled:
            self._end(now, message, "cancelled", None)
            return True
        if counts and message.attempts >= self.settings(message.draft.queue).max_attempts:
            self._end(now, message, "dead", None)
            return True
        with self._groups_move_on(now):
            message.delivery = None
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
        if message.delivery is delivery:
            message.attempts += 1
            message.failed_at = now
            message.failures += 1
            self._end(now, message, "cancelled" if message.cancelled else "dead", None)
        elif not (message.state == "dead" and message.last is delivery):
            raise Refused("lease_lost")

    def expire(self, now: float, message: Message) -> None:
        """End a message whose time to live is over."""
        if self.settings(message.draft.queue).on_expiry == "dead":
            message.failed_at = now
            self._end(now, message, "dead", None)
        else:
            self._end(now, message, "expired", None)

    def expired(self, now: float) -> list[Message]:
        """Return the messages that wait although their time to live is over."""
        waiting = [m for queue in self.queues() for m in self.waiting(queue)]
        return [m for m in waiting if m.expires is not None and m.expires <= now]

    def promote(self, now: float) -> None:
        """Make due messages ready."""
        for message in self.delayed():
            if message.due is not None and message.due <= now:
                message.state = "ready"
                message.due = None

    def shift(self, seconds: float) -> None:
        """Move waits and times to live with the wall clock, so that they last as long as they had left."""
        for message in self.messages.values():
            if message.state in FINISHED and message.state != "dead":
                continue
            if message.due is not None and not message.fixed:
                message.due += seconds
            if message.expires is not None:
                message.expires += seconds

    def restart(self, now: float, *, crash: bool) -> None:
        """End all leases with their daemon. After a ``crash`` a message is dead whose last attempt that was."""
        leases = [message.delivery for message in self.leased() if message.delivery is not None]
        self.lose(now, leases, counts=crash, starting=True)
        self.ends.clear()

    # ── administration ────────────────────────────────────────────────────────────────────────────

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
        """Return the dead letters of these ids, or those that failed before a moment."""
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

    def cancel(self, now: float, key: Key) -> tuple[str, bool, bool]:
        """Settle a message as cancelled, or note it where it is leased. Return state, changed and delivered."""
        message = self.messages[key]
        if message.state in SETTLED:
            return message.state, False, False
        if message.state == "leased":
            changed, message.cancelled = not message.cancelled, True
            return "leased", changed, True
        self._end(now, message, "cancelled", None)
        return "cancelled", True, message.last is not None

    def edit(
        self, now: float, key: Key, body: bytes | None, priority: int | None, due: float | None, fixed: bool
    ) -> tuple[str, bool]:
        """Change a message that waits. Return its state, and whether it was delivered."""
        message = self.messages[key]
        if message.state in SETTLED or message.state == "leased" or (message.state == "dead" and due is not None):
            raise Refused("invalid_request")
        changes = {"body": body, "priority": priority}
        message.draft = replace(message.draft, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type] # each of its own type
        if due is not None:
            message.due = due if due > now else None
            message.fixed = fixed
            message.state = "ready" if message.due is None else "delayed"
        state = "blocked" if message in self.blocked() else message.state
        return state, message.last is not None

    def drop(self, now: float, messages: Sequence[Message]) -> None:
        for message in messages:
            message.state = "dropped"

    def _end(self, now: float, message: Message, outcome: str, result: bytes | None) -> None:
        with self._groups_move_on(now):
            message.state = outcome
            message.delivery = None
            message.result = result
            message.ended_at = now
        self.ends.append(End(*message.draft.key, outcome, result))

    @contextmanager
    def _groups_move_on(self, now: float) -> Iterator[None]:
        before = self.blocked()
        yield
        for follower in before - self.blocked():
            if follower.state not in FINISHED:
                # Its delay went on while it was blocked.
                if follower.due is not None and follower.due <= now:
                    follower.due = None
                follower.state = "ready" if follower.due is None else "delayed"


def _perhaps_processed(message: Message) -> bool:
    return message.state in ("expired", "dropped", "cancelled") and message.last is not None
