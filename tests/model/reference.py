"""The model: what the daemon's file must hold after each verb, in plain dictionaries, knowing nothing of SQL.

It says what is right, not how it is done: what is blocked in its group is worked out from the order of storing
each time it is asked, and a delivery is fenced by being the very object that holds the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

Key = tuple[str, str]
"""Queue and id."""
FINISHED: Final = ("done", "dead")


class Refused(Exception):
    """The request must be refused with this code, and nothing may change."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Draft:
    """A message as it is sent. ``due`` is wall-clock; None is at once."""

    queue: str
    id: str
    body: bytes = b"x"
    headers: tuple[tuple[str, str], ...] = ()
    group: str | None = None
    priority: int = 0
    due: float | None = None

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
    attempts: int = 0
    holder: Delivery | None = None
    last: Delivery | None = None
    """The newest delivery, whatever became of it."""
    result: bytes | None = None
    ended_at: float | None = None


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
    stored_at: float
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

    max_attempts: int
    messages: dict[Key, Message] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    """What ended since the daemon started."""

    # ── what it looks like ──────────────────────────────────────────────────────────────────────────────

    def blocked(self) -> set[Message]:
        """Those that wait for a message before them in their group (G8)."""
        blocked = set()
        taken: set[tuple[str, str]] = set()
        for message in self.messages.values():
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

    def delayed(self) -> list[Message]:
        """What becomes ready by the passing of time alone."""
        blocked = self.blocked()
        return [m for m in self.messages.values() if m.state == "delayed" and m not in blocked]

    def leased(self) -> list[Message]:
        return [m for m in self.messages.values() if m.state == "leased"]

    def queues(self) -> set[str]:
        return {queue for queue, _ in self.messages}

    def first_not_settled(self, queue: str) -> Message | None:
        """Where the watermark stands; a dead letter can be redriven, so it is not settled."""
        return next((m for m in self._of(queue) if m.state != "done"), None)

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
            stored_at=message.stored_at,
            body=None if state == "done" else draft.body,
            result=message.result,
        )

    def _of(self, queue: str) -> list[Message]:
        return [m for m in self.messages.values() if m.draft.queue == queue]

    # ── what happens to it ──────────────────────────────────────────────────────────────────────────────

    def put(self, now: float, drafts: Sequence[Draft]) -> list[int]:
        """Stores all or, if an id has other content, none; returns the indexes of duplicates."""
        known = {key: message.draft.content for key, message in self.messages.items()}
        duplicates = []
        for index, draft in enumerate(drafts):
            if draft.key not in known:
                known[draft.key] = draft.content
            elif known[draft.key] == draft.content:
                duplicates.append(index)
            else:
                raise Refused("id_conflict")
        for index, draft in enumerate(drafts):
            if index not in duplicates:
                due = draft.due if draft.due is not None and draft.due > now else None
                self.messages[draft.key] = Message(draft, "ready" if due is None else "delayed", due, now)
        return duplicates

    def claim(self, queue: str, count: int) -> list[Delivery]:
        """Leases the first ``count`` that are ready; each delivery counts from the moment it is given."""
        return [self._lease(message) for message in self.ready(queue)[:count]]

    def _lease(self, message: Message) -> Delivery:
        message.attempts += 1
        message.state = "leased"
        message.holder = message.last = Delivery(message, message.attempts)
        return message.holder

    def settle(
        self, now: float, acks: Sequence[tuple[Delivery, bytes | None]], sends: Sequence[Draft] = ()
    ) -> list[int]:
        """Acks and sends, all or nothing (G4); a repeated ack of the same delivery is no fault (G7)."""
        for delivery, _ in acks:
            message = delivery.message
            if message.holder is not delivery and not (message.state == "done" and message.last is delivery):
                raise Refused("lease_lost")
        duplicates = self.put(now, sends)  # raises before it changes anything
        deliveries = [delivery for delivery, _ in acks]
        if any(d.message.holder is not d for d in deliveries) or len(set(map(id, deliveries))) < len(acks):
            # Repeated, it answers as the first did: what it sent itself is no duplicate.
            first = now if deliveries[0].message.holder is deliveries[0] else deliveries[0].message.ended_at
            duplicates = [i for i in duplicates if self.messages[sends[i].key].stored_at != first]
        for delivery, result in acks:
            if delivery.message.holder is delivery:
                self._end(now, delivery.message, "done", result)
        return duplicates

    def retry(self, now: float, delivery: Delivery, due: float | None = None, *, counts: bool = True) -> bool:
        """Gives a message back, to be delivered again unless no attempt is left; False where the lease was lost."""
        message = delivery.message
        if message.holder is not delivery:
            return False
        if counts and message.attempts >= self.max_attempts:
            self._end(now, message, "dead", None)
            return True
        message.attempts -= not counts
        message.holder = None
        message.due = due if due is not None and due > now else None
        message.state = "ready" if message.due is None else "delayed"
        return True

    def nack(self, now: float, delivery: Delivery, due: float | None) -> None:
        if not self.retry(now, delivery, due):
            raise Refused("lease_lost")

    def reject(self, now: float, delivery: Delivery) -> None:
        message = delivery.message
        if message.holder is delivery:
            self._end(now, message, "dead", None)
        elif not (message.state == "dead" and message.last is delivery):
            raise Refused("lease_lost")

    def promote(self, now: float) -> None:
        """Makes ready what is due."""
        for message in self.delayed():
            if message.due is not None and message.due <= now:
                message.state = "ready"

    def restart(self, now: float) -> None:
        """Leases end with the daemon that gave them, and so does a message whose last attempt that was."""
        for message in self.leased():
            assert message.holder is not None
            self.retry(now, message.holder)
        self.ends.clear()

    def _end(self, now: float, message: Message, outcome: str, result: bytes | None) -> None:
        before = self.blocked()
        message.state = outcome
        message.holder = None
        message.result = result
        message.ended_at = now
        self.ends.append(End(*message.draft.key, outcome, result))
        for follower in before - self.blocked():
            # Its delay ran on while it was blocked.
            follower.state = "delayed" if follower.due is not None and follower.due > now else "ready"
