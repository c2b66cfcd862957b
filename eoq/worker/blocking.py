"""The worker's loop: messages are fetched, handled by threads and settled, their leases kept alive meanwhile, until
it is told to stop. `Client.work` says what it promises.

Who does what:

    the caller's thread     handles messages, like the ``concurrency - 1`` others; gets the signals
    one thread fetches      waits for room, then for messages
    one thread keeps        extends all leases every third of their length, ends the time of slow handlers

How its messages are settled is in ``settling.py``.

The loop has a connection of its own. So a stop can end the request that waits for messages, without ending the
leases of anybody else, and every lease ends with the loop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..errors import EoqError, LeaseLost, Unavailable
from ..message import Message, Settler
from ..outcomes import give_back
from ..protocol.limits import DEFAULT_LEASE, MAX_BATCH, POLL_SECONDS
from .acks import PipelinedAcks
from .in_flight import Entry, InFlight, Summary
from .options import (
    BEATS,
    LAST_SECONDS,
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
    from ..client.blocking import Client

AnyHandler: TypeAlias = Callable[..., object]
Apply: TypeAlias = Callable[["list[Entry[Message]]", Settler, Callable[[], None]], None]
"""Handles messages, acks them through the settler, and says when the first handler begins: its time runs from then."""


class Processor(Protocol):
    """What the loop needs of an `Inbox`."""

    def process(self, message: Message, handler: AnyHandler, /) -> object: ...
    def process_many(self, messages: Iterable[Message], handler: AnyHandler, /) -> Sequence[object]: ...


class _Mail(Enum):
    """What the keeping thread is told."""

    LOOK = "there is a new deadline"
    STOP = "give back what waits"
    END = "the loop has ended"


def work(
    client: Client,
    queue: str,
    handler: AnyHandler,
    *,
    inbox: Processor | None = None,
    concurrency: int = 1,
    prefetch: int = 0,
    batch: int = 1,
    lease: float | None = None,
    timeout: float | None = None,
    idle: float | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    """See `Client.work`. ``idle`` is None for a loop without end."""
    check_arguments(concurrency, prefetch, lease, timeout, idle)
    check_batch(batch, inbox)
    apply = _plainly(handler) if inbox is None else _through(inbox, handler)
    places = concurrency * batch
    held: InFlight[Message] = InFlight(places + prefetch, min(places, max(1, prefetch // 2)))
    if stop is not None and stop.is_set():
        return Summary()
    with client._sibling() as own:
        return _Worker(own, queue, apply, held, concurrency, batch, lease, timeout, idle, stop).run()


def _plainly(handler: AnyHandler) -> Apply:
    def apply(entries: list[Entry[Message]], behind: Settler, begun: Callable[[], None]) -> None:
        (entry,) = entries
        begun()
        result = handler(entry.message)
        if entry.overdue:
            log.warning("%s: its handler has ended after its time; the result is discarded", described(entry.message))
        elif not entry.settled:
            behind.ack(entry.message.receipt, result)

    return apply


def _through(inbox: Processor, handler: AnyHandler) -> Apply:
    def apply(entries: list[Entry[Message]], behind: Settler, begun: Callable[[], None]) -> None:
        # Until then it waits for its turn at the file, which says nothing of the handler.
        def handle(tx: object, message: Message) -> object:
            begun()
            return handler(tx, message)

        if len(entries) == 1:
            message = entries[0].message
            # The inbox acks behind what follows; the handler, should it settle the message itself, waits for it.
            inbox.process(
                replace(message, settler=behind), lambda tx, given: handle(tx, replace(given, settler=message.settler))
            )
            return
        outcomes = inbox.process_many([entry.message for entry in entries], handle)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, Exception):
                tell(entry, outcome)

    return apply


class _Worker:
    """One run of the loop."""

    def __init__(
        self,
        client: Client,
        queue: str,
        apply: Apply,
        held: InFlight[Message],
        concurrency: int,
        batch: int,
        lease: float | None,
        timeout: float | None,
        idle: float | None,
        stop: threading.Event | None,
    ) -> None:
        self._client = client
        self._queue = queue
        self._apply = apply
        self._held = held
        self._concurrency = concurrency
        self._batch = batch
        self._lease = DEFAULT_LEASE if lease is None else lease
        self._timeout = timeout
        self._idle = idle
        self._stop_event = stop
        self._changed = threading.Condition()
        """Guards what is held. A signal's handler must not touch it; the simple queues are safe there."""
        self._ready: SimpleQueue[Entry[Message] | None] = SimpleQueue()
        self._alone: deque[Entry[Message]] = deque()
        """Of those, the ones that are next, and not to be in a batch;"""
        self._blocked: list[Entry[Message]] = []
        """and those of which an earlier delivery is still being handled."""
        self._mail: SimpleQueue[_Mail] = SimpleQueue()
        self._stopping = False
        self._told = False
        self._over = False
        self._failure: BaseException | None = None
        self._settling = PipelinedAcks(client, held, self._changed, self._fail)

    def run(self) -> Summary:
        """Until it is stopped."""
        stop = self._stop_event
        keeping = self._thread(self._keep, "keeps leases")
        fetching = self._thread(self._fetch, "fetches")
        handling = [self._thread(self._handle, "handles") for _ in range(self._concurrency - 1)]
        watching = [] if stop is None else [self._thread(partial(self._watch, stop), "watches for the stop")]
        try:
            with on_signals(self.stop):
                for thread in (keeping, fetching, *handling, *watching):
                    thread.start()
                self._handle()
                for thread in handling:
                    thread.join()
                self._mail.put(_Mail.END)
                keeping.join(STOP_SECONDS)
                fetching.join(LAST_SECONDS)
        finally:
            self._stopping = self._over = True
            self._mail.put(_Mail.END)
            self._client.close()
            with self._changed:
                self._changed.notify_all()
        keeping.join()
        fetching.join()
        if self._failure is not None and not (self._told and isinstance(self._failure, Unavailable)):
            raise self._failure
        if self._failure is not None:
            log.warning("%s; the loop was ending, and what was not confirmed comes again", self._failure)
        return self._held.summary()

    def stop(self) -> None:
        """Begins the clean end that somebody has asked for. Safe in a signal's handler."""
        self._told = True
        self._end()

    def _end(self) -> None:
        self._stopping = True
        self._mail.put(_Mail.STOP)
        for _ in range(self._concurrency):
            self._ready.put(None)

    def _fail(self, error: BaseException) -> None:
        """Begins the end that raises ``error``."""
        if self._failure is None:
            self._failure = error
        if isinstance(error, Unavailable):
            self._client.close()  # it has been patient already; nobody else need be
        self._end()

    def _thread(self, target: Callable[[], None], does: str) -> threading.Thread:
        def run() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001 # it is raised in the caller's thread
                self._fail(error)

        # Daemons: after a second signal the process may end although handlers run.
        return threading.Thread(target=run, name=f"eoq worker of {self._queue}: {does}", daemon=True)

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(RECHECK_SECONDS):
            if self._over:
                return
        self.stop()

    # ── fetching ────────────────────────────────────────────────────────────────────────────────────────

    def _fetch(self) -> None:
        idle_since = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._held.room())
                if self._stopping:
                    return
                room, busy, ends = self._held.room(), bool(self._held), self._held.ends
            now = time.monotonic()
            idle_since = now if busy else max(idle_since, self._held.ended_at)
            wait = POLL_SECONDS
            if self._idle is not None:
                # While handlers run, their end is what is waited for: it may make more ready, or nothing.
                wait = 0.0 if busy else min(wait, max(idle_since + self._idle - now, 0.0))
            try:
                count = self._take(room, wait)
            except EoqError:
                if self._stopping:
                    return
                raise
            if count or self._idle is None:
                continue
            if busy:
                with self._changed:
                    self._changed.wait_for(partial(self._has_ended, ends), RECHECK_SECONDS)
            elif time.monotonic() >= idle_since + self._idle:
                self.stop()

    def _has_ended(self, before: int) -> bool:
        return self._stopping or self._held.ends != before

    def _take(self, room: int, wait: float) -> int:
        limit = min(room, MAX_BATCH)
        messages = self._client.receive(self._queue, limit, wait, lease=self._lease, bound=True)
        with self._changed:
            if not self._stopping:
                # Settled through this loop.
                messages = [replace(message, settler=self._settling) for message in messages]
                for entry in self._held.add(messages, self._client._generation):
                    self._ready.put(entry)
                return len(messages)
        self._client._give_back([message.receipt for message in messages])
        return 0

    # ── handling ────────────────────────────────────────────────────────────────────────────────────────

    def _handle(self) -> None:
        while (entry := self._next()) is not None:
            entries = self._begin(entry)
            if not entries:
                continue
            try:
                self._run(entries)
            finally:
                with self._changed:
                    for each in entries:
                        if not each.confirming:
                            self._held.end(each)
                    while self._blocked:
                        self._ready.put(self._blocked.pop())
                    self._changed.notify_all()
            self._settling.confirm(UNCONFIRMED)
        self._settling.confirm(0)

    def _next(self) -> Entry[Message] | None:
        """What was received next. Where nothing waits, what was acked is confirmed first."""
        with suppress(IndexError):
            return self._alone.popleft()
        with suppress(Empty):
            return self._ready.get_nowait()
        self._settling.confirm(0)
        return self._ready.get()

    def _begin(self, entry: Entry[Message]) -> list[Entry[Message]]:
        """What runs now: ``entry`` and, in a batch, what waits behind it."""
        entries: list[Entry[Message]] = []
        if self._stop_event is not None and self._stop_event.is_set() and not self._stopping:
            self.stop()  # not when its watcher gets to it: nothing begins after the stop
        with self._changed:
            following: Entry[Message] | None = entry
            while following is not None and not self._stopping:
                if self._held.blocked(following):
                    self._blocked.append(following)
                elif entries and following.message.attempt > 1:
                    # One that was tried before goes alone: it may be the one that takes a whole batch down.
                    self._alone.append(following)
                    break
                elif self._held.begin(following, self._client._generation):
                    entries.append(following)
                    if len(entries) == self._batch or following.message.attempt > 1:
                        break
                try:
                    following = self._ready.get_nowait() if entries else None
                except Empty:
                    break
                if following is None and entries:
                    self._ready.put(None)  # it is for the end of this thread
            self._changed.notify_all()
        return entries

    def _begun(self, entries: list[Entry[Message]]) -> None:
        """Their handler begins, or the first of them does."""
        if self._timeout is None or entries[0].deadline is not None:
            return
        with self._changed:
            for entry in entries:
                entry.deadline = time.monotonic() + self._timeout
        self._mail.put(_Mail.LOOK)

    def _run(self, entries: list[Entry[Message]]) -> None:
        try:
            self._apply(entries, self._settling.behind, partial(self._begun, entries))
        except Exception as error:  # noqa: BLE001 # whatever a handler raises is its message's outcome, and logged
            for entry in entries:
                tell(entry, error)
                if entry.open and not entry.confirming and self._failure is None:
                    with suppress(EoqError):  # it is logged, or ends the loop
                        give_back(entry.message, error)

    # ── keeping leases ──────────────────────────────────────────────────────────────────────────────────

    def _keep(self) -> None:
        next_beat = time.monotonic() + self._lease / BEATS
        while True:
            with self._changed:
                deadline = self._held.next_deadline()
            wake = next_beat if deadline is None else min(next_beat, deadline)
            mail = None
            with suppress(Empty):
                mail = self._mail.get(timeout=max(0.0, wake - time.monotonic()))
            if mail is _Mail.END:
                self._catch_up()
                return
            try:
                if mail is _Mail.STOP:
                    self._release_waiting()
                now = time.monotonic()
                self._end_overdue(now)
                if now >= next_beat:
                    next_beat = now + self._lease / BEATS
                    self._extend()
            except EoqError:
                if self._over or self._failure is not None:
                    return
                raise

    def _release_waiting(self) -> None:
        with self._changed:
            receipts = self._held.drop_waiting()
            self._changed.notify_all()
        self._client._give_back(receipts)

    def _catch_up(self) -> None:
        """Reads all that the daemon has delivered by now, so that the thread which fetches gives it back, uncounted."""
        with suppress(EoqError):
            self._client.ask("status")  # its reply comes behind what was delivered before

    def _extend(self) -> None:
        with self._changed:
            receipts = self._held.to_extend()
        if receipts:
            lost = self._client._extend_all(receipts, self._lease)
            with self._changed:
                news = self._held.lose(lost)
                self._changed.notify_all()
            for entry in news:
                log.warning("%s: its lease was lost; it is delivered again", described(entry.message))

    def _end_overdue(self, now: float) -> None:
        with self._changed:
            overdue = self._held.overtake(now)
            stuck = bool(overdue) and self._held.overdue() >= self._concurrency * self._batch
        for entry in overdue:
            error = f"TimeoutError: the handler took longer than {self._timeout:g} s"
            log.error("%s: %s; given back", described(entry.message), error)
            try:
                self._client.nack(entry.message.receipt, error=error)
            except LeaseLost:
                log.warning("%s: its lease was lost; it is delivered again", described(entry.message))
        if stuck:
            log.error("every place is taken by a handler whose time is over; nothing is handled until one ends")
