"""Requests that only read: results and new messages, and waiting for them; counts and peeks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from ...errors import EoqError, NotFound
from ...protocol.codec import put_bytes
from ...protocol.limits import MAX_BATCH
from .. import requests as ask
from ..broker.wait_list import Waiter, WaitList
from ..clock import Clock
from ..records import End
from ..session import Fields, Handlers, Reply, Session
from ..store.sqlite.reader import Reader
from ..store.sqlite.shown import Filter
from .monitoring.overview import QueueOverview
from .monitoring.tasks import SessionTasks

OUTCOMES: Final = ("done", "forwarded", "dead", "expired", "dropped", "cancelled")
"""The states of a message that has ended."""
FOLLOWED_SECONDS: Final = 60.0
"""How long the ends of a queue's messages are remembered after the last request that follows it."""
STOP_SECONDS: Final = 0.5
"""How long to wait, when the daemon stops, until the requests that follow a queue are answered."""


class ResultWaiter(Waiter):
    """A request that waits for a result."""

    forwarded_to: str | None = None
    """Where the message went. Its result is to come back from there."""


class Followed:
    """What is remembered of a queue that is followed."""

    __slots__ = ("ended", "until")

    def __init__(self) -> None:
        self.ended: deque[str] = deque(maxlen=MAX_BATCH)
        """The ids of the newest messages that have ended."""
        self.until = 0.0
        """Until when, on the clock of the loop, a next request may follow it."""


class Queries:
    """The handlers of these requests. They read over the reader's connection, and learn of new results by events."""

    def __init__(self, reader: Reader, clock: Clock, overview: QueueOverview) -> None:
        self._reader = reader
        self._overview = overview
        self._loop = asyncio.get_running_loop()
        self._results: WaitList[ResultWaiter] = WaitList(clock, self._answer_without_result)
        """The requests that wait for a result. The key is the message's queue and id."""
        self._followed: dict[str, Followed] = {}
        """The queues that are followed, or were a moment ago."""
        self._tails: dict[str, set[asyncio.Future[None]]] = {}
        """By queue, the futures to complete when messages are stored in it."""
        self._tasks = SessionTasks()
        self._stopping = False
        self.handlers: Handlers = {
            ask.GetResult: self._result,
            ask.Queues: self._queues,
            ask.Overview: self._rank,
            ask.Peek: self._peek,
            ask.Show: self._show,
            ask.Tail: self._tail,
        }

    async def stop(self) -> None:
        """Answer all requests that wait, and cancel the queries that still run."""
        for waiter in self._results.all_waiters():
            self._answer_without_result(waiter)
        self._stopping = True
        for queue in list(self._tails):
            self.stored(queue, 0)
        tasks = self._tasks.all()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────

    def ended(self, ends: Sequence[End]) -> None:
        """Answer the requests that wait for the results of messages that have ended."""
        if self._followed:
            for end in ends:
                if end.queue in self._followed:
                    self._followed[end.queue].ended.append(end.id)
        if not self._results.count:
            return
        for end in ends:
            waiters = list(self._results.line((end.queue, end.id)))
            if waiters:
                # One reply for all waiters: it may be large, and their clients may read slowly.
                fields = result_fields(end.outcome, end.result, end.error, end.forwarded_to)
                for waiter in waiters:
                    if end.awaits:
                        waiter.forwarded_to = end.forwarded_to
                        continue
                    self._results.leave(waiter)
                    waiter.reply(fields)

    def stored(self, queue: str, _count: int) -> None:
        """Let the requests that follow a queue read again: messages were stored in it."""
        for arrival in self._tails.pop(queue, ()):
            if not arrival.done():
                arrival.set_result(None)

    # ── results ─────────────────────────────────────────────────────────────────────────────────────────

    def _result(self, session: Session, request: ask.GetResult, reply: Reply) -> None:
        waiter = ResultWaiter(session=session, reply=reply, key=(request.queue, request.id))
        # Before the file is read, so that a message that ends meanwhile is not missed.
        self._results.join(waiter)
        self._tasks.spawn(session, self._read_result(waiter, request))

    async def _read_result(self, waiter: ResultWaiter, request: ask.GetResult) -> None:
        try:
            found = await self._reader.result(request.queue, request.id)
        except EoqError as error:
            if self._results.leave(waiter):
                waiter.reply(error)
            return
        if not waiter.joined:
            return
        if found is not None:
            waiter.forwarded_to = found["forwarded_to"] or waiter.forwarded_to
        if found is not None and found["state"] in OUTCOMES:
            self._results.leave(waiter)
            waiter.reply(result_fields(found["state"], found["result"], found["error"], found["forwarded_to"]))
        elif not request.wait:
            self._answer_without_result(waiter)
        else:
            self._results.start_timer(waiter, request.wait)
            waiter.session.parked(request)

    def _answer_without_result(self, waiter: ResultWaiter) -> None:
        if self._results.leave(waiter):
            waiter.reply(result_fields(None, None, None, waiter.forwarded_to))

    # ── other queries ───────────────────────────────────────────────────────────────────────────────────

    def _queues(self, session: Session, request: ask.Queues, reply: Reply) -> None:
        self._run(session, partial(self._overview.queues, request), reply)

    def _rank(self, session: Session, request: ask.Overview, reply: Reply) -> None:
        self._run(session, partial(self._overview.overview, request), reply)

    def _peek(self, session: Session, request: ask.Peek, reply: Reply) -> None:
        self._run(session, partial(self._read_peek, request), reply)

    def _show(self, session: Session, request: ask.Show, reply: Reply) -> None:
        self._run(session, partial(self._read_message, request), reply)

    def _tail(self, session: Session, request: ask.Tail, reply: Reply) -> None:
        self._run(session, partial(self._follow, session, request), reply)

    async def _read_peek(self, request: ask.Peek) -> Fields:
        wanted = Filter(request.group, request.headers, request.contains)
        found = await self._reader.peek(request.queue, request.state, request.limit, wanted)
        return {"messages": found.messages, "more": found.more}

    async def _read_message(self, request: ask.Show) -> Fields:
        message = await self._reader.show(request.queue, request.id)
        if message is None:
            raise NotFound(
                f"there is no message {request.id!r} in the queue {request.queue!r}; `eoq queues` lists the queues"
            )
        return {"message": {"queue": request.queue, **message}}

    async def _follow(self, session: Session, request: ask.Tail) -> Fields:
        after = request.after
        deadline = self._loop.time() + request.wait
        while True:
            arrival = self._loop.create_future()
            # Before the file is read, so that messages stored meanwhile are not missed.
            self._tails.setdefault(request.queue, set()).add(arrival)
            try:
                ended = list(self._follow_on(request.queue).ended)
                messages, seq = await self._reader.tail(request.queue, after, request.last, MAX_BATCH, ended)
                if messages or self._stopping or self._loop.time() >= deadline:
                    return {"messages": messages, "after": seq}
                if after is not None and seq > after:
                    after = seq
                    continue  # there may be more rows to read
                after = seq
                session.parked(request)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await arrival
            finally:
                self._leave_tail(request.queue, arrival)

    def _follow_on(self, queue: str) -> Followed:
        """Remember which messages of a queue end. A request that follows it may find them settled already."""
        now = self._loop.time()
        for name in [name for name, one in self._followed.items() if one.until < now and name not in self._tails]:
            del self._followed[name]
        followed = self._followed.setdefault(queue, Followed())
        followed.until = now + FOLLOWED_SECONDS
        return followed

    def _leave_tail(self, queue: str, arrival: asyncio.Future[None]) -> None:
        arrivals = self._tails.get(queue)
        if arrivals is not None:
            arrivals.discard(arrival)
            if not arrivals:
                del self._tails[queue]

    # ── tasks ───────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, session: Session, read: Callable[[], Awaitable[Fields]], reply: Reply) -> None:
        async def run() -> None:
            try:
                fields: Fields | EoqError = await read()
            except EoqError as error:
                fields = error
            reply(fields)

        self._tasks.spawn(session, run())


def result_fields(outcome: str | None, result: bytes | None, error: str | None, forwarded_to: str | None) -> Fields:
    """Return how a message ended, as the fields of a reply. An ``outcome`` of None: it has not."""
    fields: Fields = {"outcome": outcome}
    if result is not None:
        put_bytes(fields, "result", result)
    if error is not None:
        fields["error"] = error
    if forwarded_to is not None:
        fields["forwarded_to"] = forwarded_to
    return fields
