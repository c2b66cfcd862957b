"""Results that come back: how a message ended where it went is told to the daemon that has forwarded it.

    the message ends there → its result is in the engine → the daemon that has forwarded it stores it → it is removed

Each step is repeated until the next is done, and a repeated step changes nothing. Each is woken by the one before, with
a sweep behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from ..backoff import pauses
from ..client.aio import AsyncClient
from ..errors import EoqError, InvalidRequest
from ..outbox.rows import FileBusy
from ..protocol.features import RESULTS
from ..protocol.forwarding import MessageEnd, results, take_results
from ..protocol.limits import MAX_BATCH
from ..system.aio_thread import in_thread

T = TypeVar("T")

log = logging.getLogger("eoq.bridge")

SWEEP_SECONDS: Final = 30.0
"""How often each side looks without being woken."""
BUSY_PAUSE: Final = 1.0
"""Seconds before the engine is asked again while others are writing."""
EARLY_PAUSE: Final = 0.5
"""Seconds before a result is offered again whose message is not settled here yet."""
WAIT_SECONDS: Final = 10.0
"""How long one request waits for the ends of its messages."""
MOST_WAITS: Final = 16
"""Requests that wait at once."""
DEAD_PAGES: Final = 10
"""Pages of dead letters that one sweep looks at. The next sweep goes on behind them."""
MOST_OWED: Final = 20_000
"""Ids of messages whose ends are waited for. What is above that is found later."""
UNKNOWN: Final = "how it ended is no longer known there"


async def check_results(client: AsyncClient) -> None:
    """Raise `InvalidRequest` if the daemon is too old for results that come back."""
    if not await client.channel.knows(RESULTS):
        raise InvalidRequest("the daemon is of an earlier version, which has no results that come back; update it")


class DeadLetter(NamedTuple):
    """A message that was a dead letter when its end was told, at that moment in seconds since the epoch."""

    told_at: float
    id: str


class OwedResults(Protocol):
    """The ingesting half: the results that this machine owes, for one queue. One thread at a time uses it."""

    def owed(self, limit: int) -> list[str]:
        """Return the ids of messages that this machine has stored, and whose results are waited for."""

    def dead(self, limit: int, behind: DeadLetter | None) -> list[DeadLetter]:
        """Return those that were dead letters when they were told, the newest first: those ``behind`` one of them."""

    def fill(self, ends: Sequence[MessageEnd]) -> None:
        """Tell how messages ended. A repeat changes nothing; only a dead letter may end again."""

    def close(self) -> None:
        """Close the connection."""


class AwaitedResults(Protocol):
    """The forwarding half: the results that came back to this daemon. One thread at a time uses it."""

    @property
    def name(self) -> str:
        """The engine's URL, without user and password."""

    def read(
        self, queues: Collection[str], without: Collection[str], *, behind_writers: bool
    ) -> list[tuple[str, MessageEnd]]:
        """Return results that are there for messages of these queues, except those of the ids ``without``.

        ``behind_writers`` first waits until all are seen that are being written. Raises `FileBusy` if that takes long.
        """

    def finish(self, queue: str, ends: Sequence[MessageEnd]) -> None:
        """Remove results that the daemon has stored, or that nobody waits for. A dead letter may still change."""

    async def watch(self, wake: Callable[[], None], seconds: float) -> None:
        """Call ``wake`` when there may be a result, and every ``seconds`` at least, until cancelled."""

    def close(self) -> None:
        """Close the connection."""


class ResultSender:
    """It tells how the messages of one queue ended here, for those whose results are waited for."""

    def __init__(self, client: AsyncClient, queue: str, owed: OwedResults) -> None:
        self._client = client
        self._queue = queue
        self._owed = owed
        self._fresh: list[str] = []
        """Ids that no request waits for yet."""
        self._known: set[str] = set()
        """All ids that are waited for."""
        self._looked_at: DeadLetter | None = None
        """The last of the dead letters that were looked at; None after the oldest one."""
        self._waits: set[asyncio.Task[None]] = set()
        self._engine = asyncio.Lock()

    def add(self, ids: Collection[str]) -> None:
        """Wait for the ends of messages that were just stored. Call it in the loop's thread."""
        new = [id for id in ids if id not in self._known][: max(0, MOST_OWED - len(self._known))]
        self._known.update(new)
        self._fresh += new
        while self._fresh and len(self._waits) < MOST_WAITS:
            task = asyncio.create_task(self._follow(self._some_fresh(MAX_BATCH)))
            self._waits.add(task)
            task.add_done_callback(self._waits.discard)

    async def run(self) -> None:
        """Tell until this task is cancelled. What is away is waited for."""
        waits = pauses()
        try:
            while True:
                try:
                    await self.sweep()
                except EoqError as error:
                    log.info("%s: the results that are owed cannot be read: %s; waiting", self._queue, error)
                    await asyncio.sleep(next(waits))  # the engine or the daemon is away
                else:
                    waits = pauses()
                    await asyncio.sleep(SWEEP_SECONDS)
        finally:
            for task in list(self._waits):
                task.cancel()
            await asyncio.gather(*self._waits, return_exceptions=True)
            self._owed.close()

    async def sweep(self) -> None:
        """Find what is owed by the rows, and tell again how dead letters ended that were redriven."""
        self.add(await self._use(partial(self._owed.owed, MOST_OWED)))
        for _ in range(DEAD_PAGES):
            await self._tell_redriven()
            if self._looked_at is None:
                return

    async def flush(self) -> None:
        """Tell what has ended by now."""
        owed = await self._use(partial(self._owed.owed, MOST_OWED))
        for start in range(0, len(owed), MAX_BATCH):
            left = owed[start : start + MAX_BATCH]
            while left and (told := await self._tell(left, 0.0)):
                left = [id for id in left if id not in told]
        await self._tell_redriven()
        while self._looked_at is not None:
            await self._tell_redriven()
        await in_thread(self._owed.close)

    async def _follow(self, ids: list[str]) -> None:
        waits = pauses()
        try:
            while ids:
                try:
                    told = await self._tell(ids, WAIT_SECONDS)
                except EoqError as error:
                    log.info("%s: results cannot be told: %s; waiting", self._queue, error)
                    await asyncio.sleep(next(waits))  # the engine or the daemon is away
                    continue
                waits = pauses()
                self._known -= told
                ids = [id for id in ids if id not in told]
                ids += self._some_fresh(MAX_BATCH - len(ids))
        except Exception:
            log.exception("%s: a fault in eoq; results are told later", self._queue)
        finally:
            self._known.difference_update(ids)  # the next sweep finds them

    async def _tell_redriven(self) -> None:
        """Tell how those of the next page of dead letters ended that were redriven meanwhile."""
        page = await self._use(partial(self._owed.dead, MAX_BATCH, self._looked_at))
        left = [letter.id for letter in page]
        while left:
            ended, _unknown = await self._client.channel.run(results(self._queue, left, 0.0))
            await self._fill([end for end in ended if end.outcome != "dead"])
            seen = {end.id for end in ended}
            # A reply has so many bytes only. Those that it leaves out are asked for again.
            left = [id for id in left if id not in seen] if seen else []
        self._looked_at = page[-1] if len(page) == MAX_BATCH else None

    async def _tell(self, ids: Sequence[str], wait: float) -> set[str]:
        """Tell how those among these messages ended that have. Return their ids."""
        ended, unknown = await self._client.channel.run(results(self._queue, ids, wait))
        ends = ended + [MessageEnd(id, "forwarded", None, UNKNOWN) for id in unknown]
        await self._fill(ends)
        return {end.id for end in ends}

    async def _fill(self, ends: Sequence[MessageEnd]) -> None:
        if ends:
            await self._use(partial(self._owed.fill, ends))

    def _some_fresh(self, most: int) -> list[str]:
        some, self._fresh = self._fresh[:most], self._fresh[most:]
        return some

    async def _use(self, work: Callable[[], T]) -> T:
        async with self._engine:
            return await in_thread(work)


class ResultTaker:
    """It stores the results that came back in the daemon that has forwarded the messages of ``queues()``."""

    def __init__(self, client: AsyncClient, awaited: AwaitedResults, queues: Callable[[], Collection[str]]) -> None:
        self._client = client
        self._awaited = awaited
        self._queues = queues
        self._early: set[str] = set()
        """The ids of results whose messages are not settled here yet."""

    async def run(self) -> None:
        """Store results until this task is cancelled. What is away is waited for."""
        woken = asyncio.Event()
        watching = asyncio.create_task(self._awaited.watch(woken.set, SWEEP_SECONDS))
        waits = pauses()
        try:
            while True:
                woken.clear()
                self._early.clear()
                pause = SWEEP_SECONDS
                try:
                    await self._take_all()
                    waits = pauses()
                    pause = EARLY_PAUSE if self._early else SWEEP_SECONDS
                except FileBusy:
                    pause = BUSY_PAUSE
                except EoqError as error:
                    log.info("results from %s cannot be taken: %s; waiting", self._awaited.name, error)
                    await asyncio.sleep(next(waits))  # the engine or the daemon is away
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await woken.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._awaited.close()

    async def flush(self) -> None:
        """Store the results that are there now."""
        while await self._take(behind_writers=False):
            pass
        await in_thread(self._awaited.close)

    async def _take_all(self) -> None:
        behind_writers = False
        while True:
            if await self._take(behind_writers=behind_writers):
                behind_writers = False
            elif behind_writers:
                return
            else:
                behind_writers = True

    async def _take(self, *, behind_writers: bool) -> bool:
        """Store some results. Return whether there were any."""
        read = partial(self._awaited.read, list(self._queues()), list(self._early), behind_writers=behind_writers)
        by_queue: dict[str, list[MessageEnd]] = {}
        for queue, end in await in_thread(read):
            by_queue.setdefault(queue, []).append(end)
        for queue, ends in by_queue.items():
            early: list[str] = await self._client.channel.run(take_results(queue, ends))
            self._early.update(early)
            await in_thread(partial(self._awaited.finish, queue, [end for end in ends if end.id not in early]))
        return bool(by_queue)
