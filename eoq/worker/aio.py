"""The worker's loop for asyncio: the twin of ``worker.py``, with tasks where that one has threads."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..errors import EoqError, LeaseLost, Unavailable
from ..message import AsyncMessage, AsyncSettler, Outgoing
from ..outcomes import give_back_async
from ..protocol import calls
from ..protocol.limits import DEFAULT_LEASE, MAX_BATCH, POLL_SECONDS
from .in_flight import Entry, InFlight, Summary
from .options import (
    BEATS,
    LAST_SECONDS,
    OF_THE_MESSAGE,
    RECHECK_SECONDS,
    STOP_SECONDS,
    UNCONFIRMED,
    check_arguments,
    check_batch,
    described,
    log,
    on_signals,
    tell,
)

if TYPE_CHECKING:
    from ..client.aio import AsyncClient, Started

AnyHandler: TypeAlias = Callable[..., Awaitable[object]]
Apply: TypeAlias = Callable[["list[Entry[AsyncMessage]]", AsyncSettler, Callable[[], None]], Awaitable[None]]
"""Handles messages, acks them through the settler, and says when the first handler begins: its time runs from then."""


class AsyncProcessor(Protocol):
    """What the loop needs of an inbox."""

    def process(self, message: AsyncMessage, handler: AnyHandler, /) -> Awaitable[object]: ...
    def process_many(self, messages: Iterable[AsyncMessage], handler: AnyHandler, /) -> Awaitable[Sequence[object]]: ...


async def work(
    client: AsyncClient,
    queue: str,
    handler: AnyHandler,
    *,
    inbox: AsyncProcessor | None = None,
    concurrency: int = 1,
    prefetch: int = 0,
    batch: int = 1,
    lease: float | None = None,
    seconds: float | None = None,
    idle: float | None = None,
    stop: asyncio.Event | None = None,
) -> Summary:
    """See `AsyncClient.work`. ``idle`` is None for a loop without end; ``seconds`` is the time of a handler."""
    check_arguments(concurrency, prefetch, lease, seconds, idle)
    check_batch(batch, inbox)
    apply = _plainly(handler) if inbox is None else _through(inbox, handler)
    held: InFlight[AsyncMessage] = InFlight(concurrency * batch + prefetch, max(1, prefetch // 2))
    if stop is not None and stop.is_set():
        return Summary()
    async with client._sibling() as own:
        return await _Worker(own, queue, apply, held, concurrency, batch, lease, seconds, idle, stop).run()


def _plainly(handler: AnyHandler) -> Apply:
    async def apply(entries: list[Entry[AsyncMessage]], behind: AsyncSettler, begun: Callable[[], None]) -> None:
        (entry,) = entries
        begun()
        result = await handler(entry.message)
        if not entry.settled:
            await behind.ack(entry.message.receipt, result)

    return apply


def _through(inbox: AsyncProcessor, handler: AnyHandler) -> Apply:
    async def apply(entries: list[Entry[AsyncMessage]], behind: AsyncSettler, begun: Callable[[], None]) -> None:
        # Until then it waits for its turn at the file, which says nothing of the handler.
        async def handle(tx: object, message: AsyncMessage) -> object:
            begun()
            return await handler(tx, message)

        if len(entries) == 1:
            message = entries[0].message
            await inbox.process(
                replace(message, settler=behind), lambda tx, given: handle(tx, replace(given, settler=message.settler))
            )
            return
        outcomes = await inbox.process_many([entry.message for entry in entries], handle)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, Exception):
                tell(entry, outcome)

    return apply


class _Worker:
    """One run of the loop. Its messages are settled through it, so that it knows how each ended."""

    def __init__(
        self,
        client: AsyncClient,
        queue: str,
        apply: Apply,
        held: InFlight[AsyncMessage],
        concurrency: int,
        batch: int,
        lease: float | None,
        seconds: float | None,
        idle: float | None,
        stop: asyncio.Event | None,
    ) -> None:
        self._client = client
        self._queue = queue
        self._apply = apply
        self._held = held
        self._concurrency = concurrency
        self._batch = batch
        self._lease = DEFAULT_LEASE if lease is None else lease
        self._seconds = seconds
        self._idle = idle
        self._stop_event = stop
        self._waiting: deque[Entry[AsyncMessage]] = deque()
        self._blocked: list[Entry[AsyncMessage]] = []
        """Those of which an earlier delivery is still being handled."""
        self._running: set[asyncio.Task[None]] = set()
        self._confirming: set[asyncio.Task[None]] = set()
        self._behind = _Behind(self)
        self._changed = asyncio.Event()
        """Set whenever a message is held no more; whoever waits for that clears it first."""
        self._stopped = asyncio.Event()
        self._told = False
        self._failure: BaseException | None = None

    async def run(self) -> Summary:
        """Until it is stopped."""
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
                while self._running or self._confirming:
                    await asyncio.wait(self._running | self._confirming)
                catching_up = asyncio.create_task(self._catch_up())
                helpers.append(catching_up)
                await asyncio.wait([releasing, catching_up], timeout=STOP_SECONDS)
                await asyncio.wait([fetching], timeout=LAST_SECONDS)
        finally:
            self._stopped.set()  # a cancelled handler must not make room for the next
            tasks = [*helpers, *self._running, *self._confirming]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None and not (self._told and isinstance(self._failure, Unavailable)):
            raise self._failure
        if self._failure is not None:
            log.warning("%s; the loop was ending, and what was not confirmed comes again", self._failure)
        return self._held.summary()

    def _stop(self) -> None:
        """Begins the clean end that somebody has asked for."""
        self._told = True
        self._stopped.set()

    async def _fail(self, error: BaseException) -> None:
        """Begins the end that raises ``error``."""
        if self._failure is None:
            self._failure = error
        self._stopped.set()
        if isinstance(error, Unavailable):
            await self._client.close()  # it has been patient already; nobody else need be

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
        idle_since = time.monotonic()
        while True:
            while not (room := self._held.room()):
                self._changed.clear()
                await self._changed.wait()
            if self._stopped.is_set():
                return
            busy = bool(self._held)
            now = time.monotonic()
            idle_since = now if busy else max(idle_since, self._held.ended_at)
            wait = POLL_SECONDS
            if self._idle is not None:
                # While handlers run, their end is what is waited for: it may make more ready, or nothing.
                wait = 0.0 if busy else min(wait, max(idle_since + self._idle - now, 0.0))
                self._changed.clear()
            count = await self._take(room, wait)
            if count or self._idle is None:
                continue
            if busy:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), RECHECK_SECONDS)
            elif time.monotonic() >= idle_since + self._idle:
                self._stop()

    async def _take(self, room: int, wait: float) -> int:
        limit = min(room, MAX_BATCH)
        messages = await self._client.receive(self._queue, limit, wait, lease=self._lease, bound=True)
        if self._stopped.is_set():
            await self._client._give_back([message.receipt for message in messages])
            return 0
        # Settled through this loop.
        mine = [replace(message, settler=self) for message in messages]
        self._waiting.extend(self._held.add(mine, self._client._generation))
        self._start_more()
        return len(mine)

    # ── handling ────────────────────────────────────────────────────────────────────────────────────────

    def _start_more(self) -> None:
        if self._stop_event is not None and self._stop_event.is_set():
            self._stop()  # not when its watcher gets to it: nothing begins after the stop
        while self._waiting and len(self._running) < self._concurrency and not self._stopped.is_set():
            if entries := self._begin():
                task = asyncio.create_task(self._handle(entries))
                self._running.add(task)
                task.add_done_callback(self._handled)
        self._changed.set()

    def _begin(self) -> list[Entry[AsyncMessage]]:
        """What runs now: the first that waits and, in a batch, others behind it."""
        entries: list[Entry[AsyncMessage]] = []
        while self._waiting and len(entries) < self._batch:
            alone = self._waiting[0].message.attempt > 1  # it may be the one that takes a whole batch down
            if entries and alone:
                break
            entry = self._waiting.popleft()
            if self._held.blocked(entry):
                self._blocked.append(entry)
            elif self._held.begin(entry, self._client._generation):
                entries.append(entry)
                if alone:
                    break
        return entries

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A handler raised what is no `Exception`: it is raised by `run`.
            self._failure = self._failure or error
            self._stopped.set()
        self._waiting.extendleft(self._blocked)
        self._blocked.clear()
        self._start_more()

    async def _handle(self, entries: list[Entry[AsyncMessage]]) -> None:
        try:
            await self._guarded(self._run(entries))
        finally:
            for entry in entries:
                if not entry.confirming:
                    self._held.end(entry)
        if len(self._confirming) > UNCONFIRMED:
            await asyncio.wait(self._confirming, return_when=asyncio.FIRST_COMPLETED)

    async def _run(self, entries: list[Entry[AsyncMessage]]) -> None:
        limit = asyncio.timeout(None)

        def begun() -> None:
            if self._seconds is not None and limit.when() is None:
                limit.reschedule(asyncio.get_running_loop().time() + self._seconds)

        try:
            async with limit:
                await self._apply(entries, self._behind, begun)
        except (Exception, asyncio.CancelledError) as error:  # whatever a handler raises is its message's outcome
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError):
                if task is None or task.cancelling():
                    raise
                # Nobody has cancelled us: it is of a task that the handler waited for.
                error = RuntimeError("what the handler waited for was cancelled")
            if limit.expired() and isinstance(error, TimeoutError):
                error = TimeoutError(f"the handler took longer than {self._seconds:g} s")
            for entry in entries:
                tell(entry, error)
                if entry.open and not entry.confirming and self._failure is None:
                    with suppress(EoqError):  # it is logged, or ends the loop
                        await give_back_async(entry.message, error)

    # ── keeping leases ──────────────────────────────────────────────────────────────────────────────────

    async def _keep(self) -> None:
        next_beat = time.monotonic()
        while True:
            next_beat = max(next_beat + self._lease / BEATS, time.monotonic())
            await asyncio.sleep(next_beat - time.monotonic())
            if receipts := self._held.to_extend():
                lost = await self._client._extend_all(receipts, self._lease)
                for entry in self._held.lose(lost):
                    log.warning("%s: its lease was lost; it is delivered again", described(entry.message))

    async def _release_waiting(self) -> None:
        receipts = self._held.drop_waiting()
        self._waiting.clear()
        self._blocked.clear()
        self._changed.set()
        await self._client._give_back(receipts)

    async def _catch_up(self) -> None:
        """Reads all that the daemon has delivered by now, so that the task which fetches gives it back, uncounted."""
        with suppress(EoqError):
            await self._client.ask("status")  # its reply comes behind what was delivered before

    # ── settling, for the messages ──────────────────────────────────────────────────────────────────────

    async def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        await self._settle([receipt], "done", self._client.ack(receipt, result, send))

    async def ack_many(self, acks: Sequence[tuple[AsyncMessage, object]]) -> None:
        await self._settle([message.receipt for message, _ in acks], "done", self._client.ack_many(acks))

    async def nack(self, receipt: str, delay: float | None = None, error: str | None = None) -> None:
        await self._settle([receipt], "retried", self._client.nack(receipt, delay, error))

    async def reject(self, receipt: str, error: str | None = None) -> None:
        await self._settle([receipt], "rejected", self._client.reject(receipt, error))

    async def extend(self, receipt: str, seconds: float) -> None:
        await self._client.extend(receipt, seconds)

    async def _settle(self, receipts: list[str], outcome: str, request: Awaitable[None]) -> None:
        for receipt in receipts:
            self._held.settling(receipt)
        try:
            await request
        except BaseException as error:
            # Of many acks one was refused, and nobody knows which: they are tried one by one.
            await self._not_settled(receipts, error, lost=isinstance(error, LeaseLost) and len(receipts) == 1)
            raise
        for receipt in receipts:
            self._held.settled(receipt, outcome)

    async def _not_settled(self, receipts: list[str], error: BaseException, lost: bool) -> None:
        for receipt in receipts:
            self._held.not_settled(receipt, lost)
        if isinstance(error, EoqError) and not isinstance(error, OF_THE_MESSAGE):
            await self._fail(error)

    # ── acks that are waited for later ──────────────────────────────────────────────────────────────────

    async def ack_behind(self, receipt: str, result: object) -> None:
        """Sends an ack, which is confirmed while the next messages are handled."""
        call = calls.ack(receipt, result, ())
        entry = self._held.settling(receipt)
        if entry is None or entry.confirming:
            await self._client.ack(receipt, result)
            return
        try:
            started = await self._client._start(call, None)
        except BaseException as error:
            await self._not_settled([receipt], error, lost=False)
            raise
        self._held.confirming(entry)
        self._changed.set()
        task = asyncio.create_task(self._conclude(entry, started))
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    async def _conclude(self, entry: Entry[AsyncMessage], started: Started[None]) -> None:
        receipt = entry.message.receipt
        try:
            await self._client._finish(started)
        except EoqError as error:
            await self._not_settled([receipt], error, lost=isinstance(error, LeaseLost))
            if isinstance(error, OF_THE_MESSAGE):  # any other is raised by `run`
                tell(entry, error)
        else:
            self._held.settled(receipt, "done")
        finally:
            self._held.end(entry)
            self._changed.set()


class _Behind:
    """The worker as the settler of messages whose ack is not waited for."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker
        self.ack_many = worker.ack_many
        self.nack = worker.nack
        self.reject = worker.reject
        self.extend = worker.extend

    async def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        if send:
            await self._worker.ack(receipt, result, send)
        else:
            await self._worker.ack_behind(receipt, result)
