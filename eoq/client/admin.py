"""Looking at queues and steering them, from a client: the same methods for the blocking and the asyncio one.

What is shown is plain fields, as PROTOCOL.md lists them. What changes many messages goes in steps of the daemon's, so
that no other client waits; it is repeated until nothing is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from ..message import JSON_TYPE, Outgoing, encode_payload
from ..protocol.calls import Call, check_options
from ..protocol.codec import MAX_BATCH, Fields, check_queue, put_bytes

T = TypeVar("T")

TAIL_SECONDS = 20.0
"""How long one request of `tail` waits."""


class Changed(NamedTuple):
    """What became of dead letters: ``ids`` are those that were changed, ``missing`` those that were none."""

    ids: list[str]
    missing: list[str]


def _peek(
    queue: str, state: str, limit: int, group: str | None, headers: Mapping[str, str] | None, contains: str | None
) -> Call[list[Fields]]:
    fields: Fields = {"op": "peek", "queue": check_queue(queue), "state": state, "limit": limit}
    given = {"group": group, "headers": headers, "contains": contains}
    fields.update((name, value) for name, value in given.items() if value is not None)
    return Call(fields, lambda reply: list(reply["messages"]))


def _show(queue: str, id: str) -> Call[Fields]:
    return Call({"op": "show", "queue": check_queue(queue), "id": id}, lambda reply: dict(reply["message"]))


def _tail(queue: str, after: int | None, last: int) -> Call[tuple[list[Fields], int]]:
    place: Fields = {"last": last} if after is None else {"after": after}
    # Without `after` it answers at once: the place to go on from must not be lost with a broken connection.
    wait = 0.0 if after is None else TAIL_SECONDS
    fields = {"op": "tail", "queue": check_queue(queue), "wait": wait, **place}
    return Call(fields, lambda reply: (list(reply["messages"]), int(reply["after"])), wait)


def _changes(op: str, queue: str) -> Call[bool]:
    return Call({"op": op, "queue": check_queue(queue)}, lambda reply: bool(reply["changed"]))


def _purge(queue: str, upto: int | None) -> Call[tuple[int, int | None]]:
    fields: Fields = {"op": "purge", "queue": check_queue(queue), "upto": upto}
    return Call(fields, lambda reply: (int(reply["count"]), reply.get("upto")))


class _Step(NamedTuple):
    changed: Changed
    after: int | None


def _dead(
    op: str, queue: str, ids: Sequence[str] | None, failed_before: float | None, everything: bool, after: int
) -> Call[_Step]:
    fields: Fields = {"op": op, "queue": check_queue(queue), "after": after}
    if ids is not None:
        fields["ids"] = list(ids)
    if failed_before is not None:
        fields["failed_before"] = failed_before
    if everything:
        fields["all"] = True
    return Call(fields, lambda reply: _Step(Changed(reply["ids"], reply["missing"]), reply.get("after")))


def _parts(ids: Sequence[str] | None) -> list[Sequence[str] | None]:
    """As many ids as one request takes at a time; one part where none are given."""
    if ids is None:
        return [None]
    return [ids[start : start + MAX_BATCH] for start in range(0, len(ids), MAX_BATCH)]


def _bind(topic: str, queue: str, headers: Mapping[str, str] | None) -> Call[None]:
    fields: Fields = {"op": "bind", "topic": check_queue(topic), "queue": check_queue(queue)}
    if headers:
        fields["headers"] = dict(headers)
    return Call(fields, lambda _: None)


def _unbind(topic: str, queue: str) -> Call[None]:
    return Call({"op": "unbind", "topic": check_queue(topic), "queue": check_queue(queue)}, lambda _: None)


def _schedule(
    name: str,
    queue: str,
    message: Outgoing,
    cron: str | None,
    timezone: str | None,
    every: int | None,
    at: float | None,
    catch_up: str,
    replace: bool,
) -> Call[float | None]:
    body, is_json = encode_payload(message.body)
    check_options(message)
    headers = {**({"content-type": JSON_TYPE} if is_json else {}), **(message.headers or {})}
    given = {"cron": cron, "timezone": timezone, "every": every, "at": at, "headers": headers or None}
    given |= {"priority": message.priority or None, "group": message.group, "ttl": message.ttl}
    fields: Fields = {"op": "schedule_add", "name": name, "queue": check_queue(queue), "catch_up": catch_up}
    fields |= {"replace": replace, **{key: value for key, value in given.items() if value is not None}}
    put_bytes(fields, "body", body)
    return Call(fields, lambda reply: reply["next_at"])


def _unschedule(name: str) -> Call[None]:
    return Call({"op": "schedule_remove", "name": name}, lambda _: None)


_SCHEDULES: Call[list[Fields]] = Call({"op": "schedules"}, lambda reply: list(reply["schedules"]))
_QUEUES: Call[list[Fields]] = Call({"op": "queues"}, lambda reply: list(reply["queues"]))
_TOPICS: Call[list[Fields]] = Call({"op": "topics"}, lambda reply: list(reply["bindings"]))


class Steering:
    """The methods of `eoq.Client` that look at queues and steer them."""

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def queues(self) -> list[Fields]:
        """All queues, with how many messages of each are in which state, whether they are paused, and their rates."""
        return self._run(_QUEUES)

    def peek(
        self,
        queue: str,
        state: str = "ready",
        *,
        limit: int = 10,
        group: str | None = None,
        headers: Mapping[str, str] | None = None,
        contains: str | None = None,
    ) -> list[Fields]:
        """The next messages of one state, without leasing them: of a group, with all of these headers, or with a text
        in their body, if that is given. For those only the first 50,000 of the state are looked at.
        """
        return self._run(_peek(queue, state, limit, group, headers, contains))

    def show(self, queue: str, id: str) -> Fields:
        """All that is known of one message, with its deliveries. Raises `NotFound`."""
        return self._run(_show(queue, id))

    def tail(self, queue: str, *, last: int = 0) -> Iterator[Fields]:
        """Messages of a queue as they are stored, without end; first the ``last`` that are there."""
        messages, after = self._run(_tail(queue, None, last))
        while True:
            yield from messages
            messages, after = self._run(_tail(queue, after, 0))

    def pause(self, queue: str) -> bool:
        """Holds back all deliveries of a queue, also after a restart. Returns whether that is new."""
        return self._run(_changes("pause", queue))

    def resume(self, queue: str) -> bool:
        """Ends a pause. Returns whether there was one. Raises `NotFound`."""
        return self._run(_changes("resume", queue))

    def purge(self, queue: str) -> int:
        """Drops all messages of a queue that wait; leased ones and dead letters stay. Returns how many went.

        Raises `NotFound`.
        """
        gone, upto = self._run(_purge(queue, None))
        while upto is not None:
            count, upto = self._run(_purge(queue, upto))
            gone += count
        return gone

    def redrive(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
    ) -> Changed:
        """Gives dead letters another set of attempts: those of ``ids``, those whose last failure was before a moment
        (seconds since the epoch), or ``everything``. Raises `NotFound` where there is no such queue.
        """
        return self._change_dead("redrive", queue, ids, failed_before, everything)

    def drop(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
    ) -> Changed:
        """Settles dead letters as dropped; the arguments are those of `redrive`."""
        return self._change_dead("drop", queue, ids, failed_before, everything)

    def _change_dead(
        self, op: str, queue: str, ids: Sequence[str] | None, failed_before: float | None, everything: bool
    ) -> Changed:
        changed = Changed([], [])
        for part in _parts(ids):
            after: int | None = 0
            while after is not None:
                step = self._run(_dead(op, queue, part, failed_before, everything, after))
                changed.ids.extend(step.changed.ids)
                changed.missing.extend(step.changed.missing)
                after = step.after
        return changed

    def bind(self, topic: str, queue: str, headers: Mapping[str, str] | None = None) -> None:
        """Binds a queue to a topic: what is sent to the topic's name goes to each bound queue.

        With ``headers`` only messages that have all of them. Raises `InvalidRequest` where the topic is a queue with
        messages, or the queue a topic.
        """
        self._run(_bind(topic, queue, headers))

    def unbind(self, topic: str, queue: str) -> None:
        """Ends a binding. Raises `NotFound`."""
        self._run(_unbind(topic, queue))

    def topics(self) -> list[Fields]:
        """All bindings: topic, queue and headers of each."""
        return self._run(_TOPICS)

    def schedule(
        self,
        name: str,
        queue: str,
        body: object = b"",
        *,
        cron: str | None = None,
        timezone: str | None = None,
        every: int | None = None,
        at: float | None = None,
        catch_up: Literal["last", "all", "none"] = "last",
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        group: str | None = None,
        ttl: float | None = None,
        replace: bool = False,
    ) -> float | None:
        """Sends a message to ``queue`` at each occurrence from now on, each once, whatever is killed.

        Occurrences are those of a ``cron`` expression, by the clock of ``timezone`` (an IANA name, UTC if None), or
        ``every`` so many seconds, the first ``at`` (seconds since the epoch). ``catch_up`` says what is sent of those
        that were missed by more than a minute: the last, all (1,000 at most), or none. ``ttl`` counts from the
        occurrence. Returns when the next one is, in seconds since the epoch.

        The same again changes nothing. Raises `IdConflict` where the name stands for something else, unless
        ``replace``, and `QueueFull` where there are too many schedules.
        """
        message = Outgoing(body, headers=headers, priority=priority, group=group, ttl=ttl)
        return self._run(_schedule(name, queue, message, cron, timezone, every, at, catch_up, replace))

    def unschedule(self, name: str) -> None:
        """Ends a schedule; what it has sent stays. Raises `NotFound`, and `InvalidRequest` for one of the daemon's
        configuration.
        """
        self._run(_unschedule(name))

    def schedules(self) -> list[Fields]:
        """All schedules: name, queue, when they occur, next and last time."""
        return self._run(_SCHEDULES)


class AsyncSteering:
    """The methods of `eoq.AsyncClient` that look at queues and steer them; see `Steering`."""

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def queues(self) -> list[Fields]:
        """See `Steering.queues`."""
        return await self._run(_QUEUES)

    async def peek(
        self,
        queue: str,
        state: str = "ready",
        *,
        limit: int = 10,
        group: str | None = None,
        headers: Mapping[str, str] | None = None,
        contains: str | None = None,
    ) -> list[Fields]:
        """See `Steering.peek`."""
        return await self._run(_peek(queue, state, limit, group, headers, contains))

    async def show(self, queue: str, id: str) -> Fields:
        """See `Steering.show`."""
        return await self._run(_show(queue, id))

    async def tail(self, queue: str, *, last: int = 0) -> AsyncIterator[Fields]:
        """See `Steering.tail`."""
        messages, after = await self._run(_tail(queue, None, last))
        while True:
            for message in messages:
                yield message
            messages, after = await self._run(_tail(queue, after, 0))

    async def pause(self, queue: str) -> bool:
        """See `Steering.pause`."""
        return await self._run(_changes("pause", queue))

    async def resume(self, queue: str) -> bool:
        """See `Steering.resume`."""
        return await self._run(_changes("resume", queue))

    async def purge(self, queue: str) -> int:
        """See `Steering.purge`."""
        gone, upto = await self._run(_purge(queue, None))
        while upto is not None:
            count, upto = await self._run(_purge(queue, upto))
            gone += count
        return gone

    async def redrive(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
    ) -> Changed:
        """See `Steering.redrive`."""
        return await self._change_dead("redrive", queue, ids, failed_before, everything)

    async def drop(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
    ) -> Changed:
        """See `Steering.drop`."""
        return await self._change_dead("drop", queue, ids, failed_before, everything)

    async def _change_dead(
        self, op: str, queue: str, ids: Sequence[str] | None, failed_before: float | None, everything: bool
    ) -> Changed:
        changed = Changed([], [])
        for part in _parts(ids):
            after: int | None = 0
            while after is not None:
                step = await self._run(_dead(op, queue, part, failed_before, everything, after))
                changed.ids.extend(step.changed.ids)
                changed.missing.extend(step.changed.missing)
                after = step.after
        return changed

    async def bind(self, topic: str, queue: str, headers: Mapping[str, str] | None = None) -> None:
        """See `Steering.bind`."""
        await self._run(_bind(topic, queue, headers))

    async def unbind(self, topic: str, queue: str) -> None:
        """See `Steering.unbind`."""
        await self._run(_unbind(topic, queue))

    async def topics(self) -> list[Fields]:
        """See `Steering.topics`."""
        return await self._run(_TOPICS)

    async def schedule(
        self,
        name: str,
        queue: str,
        body: object = b"",
        *,
        cron: str | None = None,
        timezone: str | None = None,
        every: int | None = None,
        at: float | None = None,
        catch_up: Literal["last", "all", "none"] = "last",
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        group: str | None = None,
        ttl: float | None = None,
        replace: bool = False,
    ) -> float | None:
        """See `Steering.schedule`."""
        message = Outgoing(body, headers=headers, priority=priority, group=group, ttl=ttl)
        return await self._run(_schedule(name, queue, message, cron, timezone, every, at, catch_up, replace))

    async def unschedule(self, name: str) -> None:
        """See `Steering.unschedule`."""
        await self._run(_unschedule(name))

    async def schedules(self) -> list[Fields]:
        """See `Steering.schedules`."""
        return await self._run(_SCHEDULES)
