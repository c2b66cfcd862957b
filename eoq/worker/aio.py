"""The worker's loop for asyncio: it fetches messages, handles them as tasks and keeps their leases.

`AsyncClient.work` says what it promises. One task fetches, one keeps the leases, and each batch of messages is handled
by a task of its own. The loop has a channel of its own. So a stop can end the request that waits for messages without
ending leases of the rest of the program, and every lease ends with the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..errors import EoqError, Unavailable
from ..message import AsyncMessage
from ..outcomes import give_back_async
from ..protocol import calls
from ..protocol.features import HANDLES
from ..protocol.limits import MAX_BATCH
from ..transport.aio_channel import AsyncChannel
from ..transport.aio_leases import extend_all, release_all
from .aio_acks import AsyncLoopSettler, AsyncMessageSettler, AsyncPipelinedAcks
from .aio_handlers import AsyncApply, AsyncProcessor, applying
from .idle import IdleRule
from .in_flight import Entry, InFlight, Summary
from .options import BEATS, LAST_SECONDS, RECHECK_SECONDS, STOP_SECONDS, WorkOptions
from .reports import FailureLog, Failures, described, log
from .signals import on_signals


async def work(
    channel: AsyncChannel,
    queue: str,
    handler: Callable[..., Awaitable[object]],
    options: WorkOptions,
    inbox: AsyncProcessor[Any] | None,
    stop: asyncio.Event | None,
) -> Summary:
    """Handle the messages of ``queue``. See `AsyncClient.work`."""
    options.check_inbox(inbox)
    if stop is not None and stop.is_set():
        return Summary()
    async with channel.sibling() as own:
        return await _Worker(own, queue, applying(handler, inbox), options, stop).run()


class _Worker:
    """One run of the loop."""

    def __init__(
        self, channel: AsyncChannel, queue: str, apply: AsyncApply, options: WorkOptions, stop: asyncio.Event | None
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._apply = apply
        self._options = options
        self._stop_event = stop
        self._in_flight: InFlight[AsyncMessage] = InFlight(
            options.places + options.prefetch, max(1, options.prefetch // 2), options.suspects
        )
        self._failure_log = FailureLog()
        self._pause: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        """Set when a message leaves. A task that waits for that clears it first."""
        self._waiting: deque[Entry[AsyncMessage]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        settler = AsyncLoopSettler(channel, self._in_flight, self._fail)
        self._acks = AsyncPipelinedAcks(settler, channel, self._in_flight, self._changed)
        self._settler = AsyncMessageSettler(settler, self._acks)
        self._stopped = asyncio.Event()
        self._stop_requested = False
        self._failure: BaseException | None = None

    async def run(self) -> Summary:
        """Work until the loop is stopped."""
        loop = asyncio.get_running_loop()
        keeping = asyncio.create_task(self._guarded(self._keep()))
        fetching = asyncio.create_task(self._guarded(self._fetch()))
        helpers = [keeping, fetching]
        if self._stop_event is not None:
            helpers.append(asyncio.create_task(self._watch(self._stop_event)))
        try:
            with on_signals(lambda: loop.call_soon_threadsafe(self._stop)):
                await self._stopped.wait()
                releasing = asyncio.create_task(self._release_waiting())
                helpers.append(releasing)
                while self._running or self._acks.tasks:
                    await asyncio.wait(self._running | self._acks.tasks)
                catching_up = asyncio.create_task(self._catch_up())
                helpers.append(catching_up)
                await asyncio.wait([releasing, catching_up], timeout=STOP_SECONDS)
                await asyncio.wait([fetching], timeout=LAST_SECONDS)
        finally:
            self._stopped.set()  # a cancelled handler must not make room for the next
            if self._pause is not None:
                self._pause.cancel()
            tasks = [*helpers, *self._running, *self._acks.tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None and not (self._stop_requested and isinstance(self._failure, Unavailable)):
            raise self._failure
        if self._failure is not None:
            log.warning("%s; the loop was ending, and what was not confirmed is delivered again", self._failure)
        return self._in_flight.summary()

    def _stop(self) -> None:
        """Begin the clean end."""
        self._stop_requested = True
        self._stopped.set()

    async def _fail(self, error: BaseException) -> None:
        """Begin the end that raises ``error``."""
        if self._failure is None:
            self._failure = error
        self._stopped.set()
        if isinstance(error, Unavailable):
            await self._channel.close()  # the daemon was waited for already; other requests need not wait as long again

    async def _guarded(self, helper: Awaitable[None]) -> None:
        try:
            await helper
        except Exception as error:  # noqa: BLE001 # it is raised by `run`
            if not (self._stopped.is_set() and isinstance(error, EoqError)):
                await self._fail(error)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stop()

    # ── fetching ────────────────────────────────────────────────────────────────────────────────────────

    async def _fetch(self) -> None:
        idle = IdleRule(self._options.idle_seconds)
        while True:
            while not (room := self._in_flight.room()):
                self._changed.clear()
                await self._changed.wait()
            if self._stopped.is_set():
                return
            busy = bool(self._in_flight)
            wait = idle.wait(self._in_flight)
            self._changed.clear()
            count = await self._receive(room, wait)
            if count or not idle.may_end:
                continue
            if busy:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), RECHECK_SECONDS)
            elif idle.is_over():
                self._stop()

    async def _receive(self, room: int, wait: float) -> int:
        """Receive messages, which are settled through this loop. Return how many."""
        lease = self._options.lease_seconds
        limit = min(room, MAX_BATCH)
        handles = min(self._options.places, MAX_BATCH) if await self._channel.knows(HANDLES) else None
        request = calls.receive(
            self._queue, AsyncMessage, self._settler, limit=limit, wait=wait, lease=lease, bound=True, handles=handles
        )
        messages = await self._channel.run(request)
        back: Sequence[AsyncMessage] = messages
        if not self._stopped.is_set():
            kept, back = self._in_flight.sift(messages)
            self._waiting.extend(self._in_flight.add(kept, self._channel.generation))
            self._start_more()
        await release_all(self._channel, [message.receipt for message in back])
        return len(messages) - len(back)

    # ── handling ────────────────────────────────────────────────────────────────────────────────────────

    def _start_more(self) -> None:
        if self._stop_event is not None and self._stop_event.is_set():
            self._stop()  # not when the watching task sees it: no handler begins after the stop
        pause = self._failure_log.seconds_left()
        if pause and self._pause is None and not self._stopped.is_set():
            self._pause = asyncio.get_running_loop().call_later(pause, self._pause_over)
        while len(self._running) < self._options.concurrency and not (self._pause or self._stopped.is_set()):
            entries = self._in_flight.next_batch(self._take_waiting(), self._options.batch, self._channel.generation)
            if not entries:
                break
            task = asyncio.create_task(self._handle(entries))
            self._running.add(task)
            task.add_done_callback(self._handled)
        self._changed.set()

    def _pause_over(self) -> None:
        self._pause = None
        self._start_more()

    def _take_waiting(self) -> Iterator[Entry[AsyncMessage]]:
        """Yield the messages that wait, as long as there are any."""
        while self._waiting:
            yield self._waiting.popleft()

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A handler raised what is not an `Exception`: `run` raises it.
            self._failure = self._failure or error
            self._stopped.set()
        self._waiting.extendleft(self._in_flight.unblock())
        self._start_more()

    async def _handle(self, entries: Sequence[Entry[AsyncMessage]]) -> None:
        try:
            await self._guarded(self._run(entries))
        finally:
            for entry in entries:
                if not entry.confirming:
                    self._in_flight.end(entry)
        await self._acks.confirm(self._options.pipelined)

    async def _run(self, entries: Sequence[Entry[AsyncMessage]]) -> None:
        seconds = self._options.timeout
        limit = asyncio.timeout(None)
        failures: Failures

        def begun() -> None:
            if seconds is not None and limit.when() is None:
                limit.reschedule(asyncio.get_running_loop().time() + seconds)

        try:
            async with limit:
                failures = await self._apply(entries, self._acks, begun)
        except (Exception, asyncio.CancelledError) as error:  # it is the outcome of its message, and it is logged
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError):
                if task is None or task.cancelling():
                    raise
                # This task was not cancelled: the handler waited for one that was.
                error = RuntimeError("what the handler waited for was cancelled")
            if limit.expired() and isinstance(error, TimeoutError):
                error = TimeoutError(f"the handler took longer than {seconds:g} s")
            failures = [(entry, error) for entry in entries]
            for entry in entries:
                if entry.open and not entry.confirming and self._failure is None:
                    with suppress(EoqError):  # it is logged, or ends the loop
                        await give_back_async(entry.message, error)
        self._failure_log.ended(entries, failures)

    # ── keeping leases ──────────────────────────────────────────────────────────────────────────────────

    async def _keep(self) -> None:
        next_beat = time.monotonic()
        while True:
            next_beat = max(next_beat + self._options.lease_seconds / BEATS, time.monotonic())
            await asyncio.sleep(next_beat - time.monotonic())
            if receipts := self._in_flight.to_extend():
                extended = await extend_all(self._channel, receipts, self._options.lease_seconds)
                for entry in self._in_flight.extended(extended):
                    log.warning("%s: its lease was lost; it is delivered again", described(entry.message))

    async def _release_waiting(self) -> None:
        receipts = self._in_flight.drop_waiting()
        self._waiting.clear()
        self._changed.set()
        await release_all(self._channel, receipts)

    async def _catch_up(self) -> None:
        """Read all that the daemon has delivered by now, so that the fetching task gives it back."""
        with suppress(EoqError):
            await self._channel.run(calls.query("status"))  # its reply comes after all that was delivered before
