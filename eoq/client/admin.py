"""Looking at queues and steering them, from a client: the same methods for the blocking and the asyncio one.

What is shown is plain fields, as PROTOCOL.md lists them. What changes many messages goes in steps of the daemon's, so
that no other client waits; it is repeated until nothing is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from ..message import Outgoing
from ..protocol import admin_calls
from ..protocol.admin_calls import Changed
from ..protocol.calls import Call
from ..protocol.codec import Fields

T = TypeVar("T")


class Admin:
    """The methods of `eoq.Client` that look at queues and steer them."""

    def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    def queues(self) -> list[Fields]:
        """All queues, with how many messages of each are in which state, whether they are paused, and their rates."""
        return self._run(admin_calls.QUEUES)

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
        return self._run(admin_calls.peek(queue, state, limit, group, headers, contains))

    def show(self, queue: str, id: str) -> Fields:
        """All that is known of one message, with its deliveries. Raises `NotFound`."""
        return self._run(admin_calls.show(queue, id))

    def tail(self, queue: str, *, last: int = 0) -> Iterator[Fields]:
        """Messages of a queue as they are stored, without end; first the ``last`` that are there."""
        messages, after = self._run(admin_calls.tail(queue, None, last))
        while True:
            yield from messages
            messages, after = self._run(admin_calls.tail(queue, after, 0))

    def pause(self, queue: str) -> bool:
        """Backoff back all deliveries of a queue, also after a restart. Returns whether that is new."""
        return self._run(admin_calls.changes("pause", queue))

    def resume(self, queue: str) -> bool:
        """Ends a pause. Returns whether there was one. Raises `NotFound`."""
        return self._run(admin_calls.changes("resume", queue))

    def purge(self, queue: str) -> int:
        """Drops all messages of a queue that wait; leased ones and dead letters stay. Returns how many went.

        Raises `NotFound`.
        """
        gone, upto = self._run(admin_calls.purge(queue, None))
        while upto is not None:
            count, upto = self._run(admin_calls.purge(queue, upto))
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
        for part in admin_calls.parts(ids):
            after: int | None = 0
            while after is not None:
                step = self._run(admin_calls.change_dead(op, queue, part, failed_before, everything, after))
                changed.ids.extend(step.changed.ids)
                changed.missing.extend(step.changed.missing)
                after = step.after
        return changed

    def bind(self, topic: str, queue: str, headers: Mapping[str, str] | None = None) -> None:
        """Binds a queue to a topic: what is sent to the topic's name goes to each bound queue.

        With ``headers`` only messages that have all of them. Raises `InvalidRequest` where the topic is a queue with
        messages, or the queue a topic.
        """
        self._run(admin_calls.bind(topic, queue, headers))

    def unbind(self, topic: str, queue: str) -> None:
        """Ends a binding. Raises `NotFound`."""
        self._run(admin_calls.unbind(topic, queue))

    def topics(self) -> list[Fields]:
        """All bindings: topic, queue and headers of each."""
        return self._run(admin_calls.TOPICS)

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
        return self._run(admin_calls.schedule(name, queue, message, cron, timezone, every, at, catch_up, replace))

    def unschedule(self, name: str) -> None:
        """Ends a schedule; what it has sent stays. Raises `NotFound`, and `InvalidRequest` for one of the daemon's
        configuration.
        """
        self._run(admin_calls.unschedule(name))

    def schedules(self) -> list[Fields]:
        """All schedules: name, queue, when they occur, next and last time."""
        return self._run(admin_calls.SCHEDULES)


class AsyncAdmin:
    """The methods of `eoq.AsyncClient` that look at queues and steer them; see `Admin`."""

    async def _run(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def queues(self) -> list[Fields]:
        """See `Admin.queues`."""
        return await self._run(admin_calls.QUEUES)

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
        """See `Admin.peek`."""
        return await self._run(admin_calls.peek(queue, state, limit, group, headers, contains))

    async def show(self, queue: str, id: str) -> Fields:
        """See `Admin.show`."""
        return await self._run(admin_calls.show(queue, id))

    async def tail(self, queue: str, *, last: int = 0) -> AsyncIterator[Fields]:
        """See `Admin.tail`."""
        messages, after = await self._run(admin_calls.tail(queue, None, last))
        while True:
            for message in messages:
                yield message
            messages, after = await self._run(admin_calls.tail(queue, after, 0))

    async def pause(self, queue: str) -> bool:
        """See `Admin.pause`."""
        return await self._run(admin_calls.changes("pause", queue))

    async def resume(self, queue: str) -> bool:
        """See `Admin.resume`."""
        return await self._run(admin_calls.changes("resume", queue))

    async def purge(self, queue: str) -> int:
        """See `Admin.purge`."""
        gone, upto = await self._run(admin_calls.purge(queue, None))
        while upto is not None:
            count, upto = await self._run(admin_calls.purge(queue, upto))
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
        """See `Admin.redrive`."""
        return await self._change_dead("redrive", queue, ids, failed_before, everything)

    async def drop(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
    ) -> Changed:
        """See `Admin.drop`."""
        return await self._change_dead("drop", queue, ids, failed_before, everything)

    async def _change_dead(
        self, op: str, queue: str, ids: Sequence[str] | None, failed_before: float | None, everything: bool
    ) -> Changed:
        changed = Changed([], [])
        for part in admin_calls.parts(ids):
            after: int | None = 0
            while after is not None:
                step = await self._run(admin_calls.change_dead(op, queue, part, failed_before, everything, after))
                changed.ids.extend(step.changed.ids)
                changed.missing.extend(step.changed.missing)
                after = step.after
        return changed

    async def bind(self, topic: str, queue: str, headers: Mapping[str, str] | None = None) -> None:
        """See `Admin.bind`."""
        await self._run(admin_calls.bind(topic, queue, headers))

    async def unbind(self, topic: str, queue: str) -> None:
        """See `Admin.unbind`."""
        await self._run(admin_calls.unbind(topic, queue))

    async def topics(self) -> list[Fields]:
        """See `Admin.topics`."""
        return await self._run(admin_calls.TOPICS)

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
        """See `Admin.schedule`."""
        message = Outgoing(body, headers=headers, priority=priority, group=group, ttl=ttl)
        return await self._run(admin_calls.schedule(name, queue, message, cron, timezone, every, at, catch_up, replace))

    async def unschedule(self, name: str) -> None:
        """See `Admin.unschedule`."""
        await self._run(admin_calls.unschedule(name))

    async def schedules(self) -> list[Fields]:
        """See `Admin.schedules`."""
        return await self._run(admin_calls.SCHEDULES)
