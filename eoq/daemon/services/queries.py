"""Requests that only look: results and new messages (and waiting for them), counts, peeks, the daemon's own state."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

from ... import __version__
from ...errors import EoqError, NotFound
from ...protocol.codec import put_bytes
from ...protocol.limits import MAX_BATCH
from .. import requests as ask
from ..broker.throughput import Rate
from ..session import Fields, Reply, Session
from ..store.sqlite.reader import Filter, Reader

Key: TypeAlias = tuple[str, str]

OUTCOMES: Final = ("done", "dead", "expired", "dropped")
"""The states in which a message has ended."""
STOP_SECONDS: Final = 0.5
"""How long those who follow a queue may take to be answered when the daemon stops."""


class _Waiter:
    """Someone who waits for a message to end."""

    def __init__(self, session: Session, reply: Reply) -> None:
        self.session = session
        self.reply = reply
        self.timer: asyncio.TimerHandle | None = None


class Queries:
    """Answers questions from the reader's connection, and results at the moment they are stored."""

    handles = (ask.GetResult, ask.Queues, ask.Peek, ask.Show, ask.Tail, ask.Status)

    def __init__(self, reader: Reader, describe: Callable[[], Fields], rate: Callable[[str], Rate]) -> None:
        self._reader = reader
        self._describe = describe
        self._rate = rate
        self._started = time.time()
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[Key, list[_Waiter]] = {}
        self._tails: dict[str, set[asyncio.Future[None]]] = {}
        self._stopping = False
        self._tasks: dict[Session, set[asyncio.Task[None]]] = {}

    def handle(self, session: Session, request: ask.Request, reply: Reply) -> None:
        """Answers a request; ``reply`` is called once, now or later."""
        match request:
            case ask.GetResult(queue=queue, id=id, wait=wait):
                self._result(session, (queue, id), wait, reply)
            case ask.Queues():
                self._spawn(session, self._queues, reply)
            case ask.Peek():
                self._spawn(session, partial(self._peek, request), reply)
            case ask.Tail():
                self._spawn(session, partial(self._tail, request), reply)
            case ask.Show(queue=queue, id=id):
                self._spawn(session, partial(self._show, queue, id), reply)
            case ask.Status():
                reply(self._status())

    def ended(self, queue: str, id: str, outcome: str, result: bytes | None, error: str | None) -> None:
        """A message has ended: those who wait for its result have it now."""
        if self._waiters and (waiters := self._waiters.pop((queue, id), None)):
            told = _result(outcome, result, error)  # one for all: it may be large, and they may read slowly
            for waiter in waiters:
                self._answer(waiter, told)

    def arrived(self, queue: str) -> None:
        """Messages were stored in a queue: those who follow it look again."""
        for arrival in self._tails.pop(queue, ()):
            if not arrival.done():
                arrival.set_result(None)

    def closed(self, session: Session) -> None:
        """A connection has ended, and with it what it asked and waited for."""
        for task in self._tasks.get(session, ()):
            task.cancel()
        for key in [key for key, waiters in self._waiters.items() if any(w.session is session for w in waiters)]:
            for waiter in list(self._waiters[key]):
                if waiter.session is session:
                    self._forget(key, waiter)

    async def stop(self) -> None:
        """Answers all who wait, and gives up what is being read."""
        for key, waiters in list(self._waiters.items()):
            for waiter in list(waiters):
                self._waited(key, waiter)
        self._stopping = True
        for queue in list(self._tails):
            self.arrived(queue)
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _result(self, session: Session, key: Key, wait: float, reply: Reply) -> None:
        waiter = _Waiter(session, reply)
        # Known before the file is read, so that a message that ends meanwhile is not missed.
        self._waiters.setdefault(key, []).append(waiter)

        async def look() -> None:
            try:
                found = await self._reader.result(*key)
            except EoqError as error:
                if self._forget(key, waiter):
                    reply(error)
                return
            if waiter not in self._waiters.get(key, ()):
                return
            if found is not None and found["state"] in OUTCOMES:
                self._forget(key, waiter)
                reply(_result(found["state"], found["result"], found["error"]))
            elif not wait:
                self._waited(key, waiter)
            else:
                waiter.timer = self._loop.call_later(wait, partial(self._waited, key, waiter))

        self._keep(session, look())

    def _waited(self, key: Key, waiter: _Waiter) -> None:
        if self._forget(key, waiter):
            waiter.reply({"outcome": None})

    def _answer(self, waiter: _Waiter, fields: Fields) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiter.reply(fields)

    def _forget(self, key: Key, waiter: _Waiter) -> bool:
        """Takes a waiter off the list; False where it has been answered."""
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiters = self._waiters.get(key, [])
        if waiter not in waiters:
            return False
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[key]
        return True

    async def _queues(self) -> Fields:
        queues = await self._reader.queues()
        for queue in queues:
            rate = self._rate(queue["name"])
            queue.update(paused=bool(queue["paused"]), sent_rate=rate.sent, done_rate=rate.done)
        return {"queues": queues}

    async def _peek(self, request: ask.Peek) -> Fields:
        wanted = Filter(request.group, request.headers, request.contains)
        found = await self._reader.peek(request.queue, request.state, request.limit, wanted)
        return {"messages": found.messages, "more": found.more}

    async def _tail(self, request: ask.Tail) -> Fields:
        after = request.after
        deadline = self._loop.time() + request.wait
        while True:
            arrival = self._loop.create_future()
            # Known before the file is read, so that what comes meanwhile is not missed.
            self._tails.setdefault(request.queue, set()).add(arrival)
            try:
                messages, place = await self._reader.tail(request.queue, after, request.last, MAX_BATCH)
                if messages or self._stopping or self._loop.time() >= deadline:
                    return {"messages": messages, "after": place}
                if after is not None and place > after:
                    after = place
                    continue  # there may be more rows to look through
                after = place
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await arrival
            finally:
                self._leave_tail(request.queue, arrival)

    def _leave_tail(self, queue: str, arrival: asyncio.Future[None]) -> None:
        arrivals = self._tails.get(queue)
        if arrivals is not None:
            arrivals.discard(arrival)
            if not arrivals:
                del self._tails[queue]

    async def _show(self, queue: str, id: str) -> Fields:
        message = await self._reader.show(queue, id)
        if message is None:
            raise NotFound(f"there is no message {id!r} in the queue {queue!r}; `eoq queues` lists the queues")
        return {"message": {"queue": queue, **message}}

    def _status(self) -> Fields:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "sqlite": sqlite3.sqlite_version,
            "started_at": self._started,
            **self._describe(),
        }

    def _spawn(self, session: Session, look: Callable[[], Awaitable[Fields]], reply: Reply) -> None:
        async def run() -> None:
            try:
                fields: Fields | EoqError = await look()
            except EoqError as error:
                fields = error
            reply(fields)

        self._keep(session, run())

    def _keep(self, session: Session, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.setdefault(session, set()).add(task)
        task.add_done_callback(partial(self._done, session))

    def _done(self, session: Session, task: asyncio.Task[None]) -> None:
        tasks = self._tasks[session]
        tasks.discard(task)
        if not tasks:
            del self._tasks[session]


def _result(outcome: str, result: bytes | None, error: str | None) -> Fields:
    fields: Fields = {"outcome": outcome}
    if result is not None:
        put_bytes(fields, "result", result)
    if error is not None:
        fields["error"] = error
    return fields
