"""The public face of the bridge: run a forward or an ingest from a program. `eoq forward` and the daemon use it too."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeVar

from ..client.aio import AsyncClient, connect_async
from ..errors import InvalidRequest
from ..protocol.durations import read_duration
from .engine import KEEP_SECONDS, LIMIT, SHORTEST_KEEP, Engine, IngestOptions, Mover, OpenRows
from .forward import Forwarder
from .patterns import check_ingested, check_pattern
from .places import open_engine

T = TypeVar("T")


class Bridge:
    """One queue that is forwarded to other machines, or ingested from them, over PostgreSQL or a stream of NATS.

    Make it with `Bridge.forward` or `Bridge.ingest`, in any process of the machine whose daemon it serves. Then call
    `run` or `flush`, or in asyncio `run_async` or `flush_async`. An object runs once at a time.

    ``database`` is the URL of the database (or another connection string of libpq), or of a stream of NATS JetStream:
    nats://HOST/STREAM. A password in it never appears in logs or errors. ``socket`` is that of the daemon, as for
    `eoq.connect`.
    """

    def __init__(
        self,
        direction: Literal["forward", "ingest"],
        queue: str,
        engine: Engine,
        name: str | None,
        make: Callable[[AsyncClient], Mover],
        socket: str | os.PathLike[str] | None,
    ) -> None:
        """Do as `forward` and `ingest`, which are to be called."""
        check_pattern(queue)
        self.direction = direction
        self.queue = queue
        self.place = engine.name
        """The name of the database, without user and password."""
        self._name = name
        self._make = make
        self._socket = socket
        self._engine = engine
        self._current: Mover | None = None
        self._moved = self._refused = 0
        """What was counted in earlier runs."""
        self._stopped = False
        self._began_at = 0.0
        self._wake: Callable[[], object] | None = None
        """It ends the run, from any thread."""

    @classmethod
    def forward(
        cls,
        queue: str,
        database: str,
        *,
        results: bool = False,
        partitions: int | None = None,
        socket: str | os.PathLike[str] | None = None,
    ) -> Bridge:
        """Return a bridge that moves the messages of a queue to the table in the database, or to the stream.

        ``queue`` may be a pattern such as ``orders.*``: all queues that match, also those that are made later. With
        ``results``, how the messages end on the other machines comes back, as far as their ingests tell it.

        Raises `InvalidRequest` for a name that no queue can have, or a connection string that cannot be read.
        """
        engine = open_engine(database, partitions)

        def make(client: AsyncClient) -> Mover:
            return Forwarder(client, queue, engine, results=results)

        return cls("forward", queue, engine, None, make, socket)

    @classmethod
    def ingest(
        cls,
        queue: str,
        database: str,
        *,
        name: str | None = None,
        limit: int = LIMIT,
        keep: float | str = KEEP_SECONDS,
        results: bool = False,
        partitions: int | None = None,
        partition: str | None = None,
        socket: str | os.PathLike[str] | None = None,
    ) -> Bridge:
        """Return a bridge that takes messages for a queue from the table in the database.

        ``name`` is that of this machine; by default it is the identity of the daemon's file. At most ``limit`` messages
        are claimed or unsettled here. For ``keep`` seconds, or a text such as ``30d``, a table remembers the ids of
        what was taken. With ``results``, how the messages end here is told to the machines that have asked for it. From
        a stream, the ``partition`` is taken, such as ``0-3`` of 8 ``partitions``; by default all.

        Raises `InvalidRequest` for a pattern or a name that no queue can have, a connection string that cannot be read,
        a ``limit`` below 1, or a ``keep`` below a day.
        """
        check_ingested(queue)
        seconds = read_duration(keep)
        if limit < 1 or seconds < SHORTEST_KEEP:
            raise InvalidRequest("an ingest needs a limit of 1 or more, and a keep of a day (1d) or more")
        engine, options = open_engine(database, partitions, partition), IngestOptions(name, limit, seconds, results)
        return cls("ingest", queue, engine, name, lambda client: engine.ingester(client, queue, options), socket)

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Move messages until `stop` is called, or until Ctrl-C.

        While the engine or the daemon is away, it waits. Raises `Unavailable` if there is no daemon at the start,
        `InvalidRequest` if another machine takes the queue under this name or has this partition, and `StorageFailed`
        or `Forbidden` if an ingest cannot use the engine at its start.
        """
        asyncio.run(self.run_async())

    async def run_async(self) -> None:
        """Do as `run`, until this task is cancelled or `stop` is called."""
        await self._with_client(lambda one: one.run())

    def flush(self) -> int:
        """Move what is there now, up to the limit of an ingest. Return how many messages could not be moved for good.

        Those are dead letters of this call here (forward), or all rows that are set aside for this machine (ingest).
        Raises the error that keeps it from going on: those of `run`, and for an ingest what the daemon says, such as
        `QueueFull`.
        """
        return asyncio.run(self.flush_async())

    async def flush_async(self) -> int:
        """Do as `flush`."""
        return await self._with_client(lambda one: one.flush()) or 0

    def stop(self) -> None:
        """Let `run` return, also if it is called later. Messages in its hands go back to their queue.

        Any thread, and any handler of a signal, may call it.
        """
        self._stopped = True
        if (wake := self._wake) is not None:
            with suppress(RuntimeError):  # its loop has just ended
                wake()

    async def _with_client(self, work: Callable[[Mover], Coroutine[Any, Any, T]]) -> T | None:
        """Return what ``work`` returns, or None if it was stopped."""
        if self._current is not None:
            raise InvalidRequest("this bridge runs already; make another object to run it twice")
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        async with connect_async(self._socket) as client:
            one = self._current = self._make(client)
            self._began_at = time.monotonic()
            self._wake = partial(loop.call_soon_threadsafe, woken.set)
            if self._stopped:
                woken.set()
            working = asyncio.create_task(_checked(one, work))
            stopping = asyncio.create_task(woken.wait())
            try:
                await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
                return await working if working.done() else None
            finally:
                for task in (working, stopping):
                    task.cancel()
                await asyncio.gather(working, stopping, return_exceptions=True)
                self._moved, self._refused = self.moved, self.refused
                self._current = self._wake = None

    # ── what it has done; any thread may ask ────────────────────────────────────────────────────────────

    @property
    def moved(self) -> int:
        """How many messages this object has moved, those included that were there already."""
        return self._moved + (0 if (current := self._current) is None else current.moved)

    @property
    def refused(self) -> int:
        """How many became dead letters here (forward), or were set aside in the database (ingest)."""
        return self._refused + (0 if (current := self._current) is None else current.refused)

    @property
    def error(self) -> str | None:
        """Why it waits now, or None while all is well and while it does not run."""
        return None if (current := self._current) is None else current.error

    @property
    def running_for(self) -> float:
        """For how many seconds it has been running, or 0."""
        return 0.0 if self._current is None else time.monotonic() - self._began_at

    @property
    def name(self) -> str | None:
        """The name of this machine, for an ingest. Without one it is known once it runs."""
        return self._name if (current := self._current) is None else current.owner

    def waiting(self) -> OpenRows:
        """Return what waits in the database. Raises `StorageFailed`, `Forbidden`, or `NotFound` without the table."""
        counts = self._engine.counts()
        try:
            return counts.count(self.queue, self.name)
        finally:
            counts.close()


async def _checked(one: Mover, work: Callable[[Mover], Coroutine[Any, Any, T]]) -> T:
    await one.check()
    return await work(one)
