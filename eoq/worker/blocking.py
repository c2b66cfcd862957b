"""The worker's loop: it fetches messages, handles them in threads and keeps their leases, until it is stopped.

`Client.work` says what it promises. The threads:

    the caller's thread     handles messages, like ``concurrency - 1`` other threads, and gets the signals
    one thread fetches      waits for room, then for messages
    one thread keeps        extends all leases every third of their length, and gives back messages of slow handlers

The loop has a channel of its own. So a stop can end the request that waits for messages without ending leases of the
rest of the program, and every lease ends with the loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import EoqError, LeaseLost, Unavailable
from ..message import Message
from ..outcomes import give_back
from ..protocol import calls
from ..protocol.features import HANDLES
from ..protocol.limits import MAX_BATCH
from ..transport.channel import Channel
from ..transport.leases import extend_all, release_all
from .acks import LoopSettler, MessageSettler, PipelinedAcks
from .handlers import Apply, Processor, applying
from .idle import IdleRule
from .in_flight import Entry, InFlight, Summary
from .options import BEATS, LAST_SECONDS, PAUSE_STEP, RECHECK_SECONDS, STOP_SECONDS, WorkOptions
from .reports import FailureLog, Failures, described, log
from .signals import on_signals


class _Notice(Enum):
    """What other threads tell the thread that keeps the leases."""

    DEADLINE = "there is a new deadline"
    STOP = "give back the messages that wait"
    END = "the loop has ended"


def work(
    channel: Channel,
    queue: str,
    handler: Callable[..., object],
    options: WorkOptions,
    inbox: Processor[Any] | None,
    stop: threading.Event | None,
) -> Summary:
    """Handle the messages of ``queue``. See `Client.work`."""
    options.check_inbox(inbox)
    if stop is not None and stop.is_set():
        return Summary()
    with channel.sibling() as own:
        return _Worker(own, queue, applying(handler, inbox), options, stop).run()


class _Worker:
    """One run of the loop."""

    def __init__(
        self, channel: Channel, queue: str, apply: Apply, options: WorkOptions, stop: threading.Event | None
    ) -> None:
        self._channel = channel
        self._queue = queue
        self._apply = apply
        self._options = options
        self._stop_event = stop
        self._in_flight: InFlight[Message] = InFlight(
            options.places + options.prefetch,
            min(options.places, max(1, options.prefetch // 2)),
            options.suspects,
        )
        self._failure_log = FailureLog()
        self._changed = threading.Condition()
        """Guards the messages in flight. A signal handler must not use it; it may use the simple queues."""
        self._waiting: SimpleQueue[Entry[Message] | None] = SimpleQueue()
        """Messages to be handled. None wakes a thread at the end."""
        self._notices: SimpleQueue[_Notice] = SimpleQueue()
        settler = LoopSettler(channel, self._in_flight, self._changed, self._fail)
        self._acks = PipelinedAcks(settler, channel, self._in_flight, self._changed)
        self._settler = MessageSettler(settler, self._acks)
        self._stopping = False
        self._stop_requested = False
        self._ended = False
        self._failure: BaseException | None = None

    def run(self) -> Summary:
        """Work until the loop is stopped."""
        stop = self._stop_event
        keeping = self._thread(self._keep, "keeps leases")
        fetching = self._thread(self._fetch, "fetches")
        handling = [self._thread(self._handle, "handles") for _ in range(self._options.concurrency - 1)]
        watching = [] if stop is None else [self._thread(partial(self._watch, stop), "watches for the stop")]
        try:
            with on_signals(self.stop):
                for thread in (keeping, fetching, *handling, *watching):
                    thread.start()
                self._handle()
                for thread in handling:
                    thread.join()
                self._notices.put(_Notice.END)
                keeping.join(STOP_SECONDS)
                fetching.join(LAST_SECONDS)
        finally:
            self._stopping = self._ended = True
            self._notices.put(_Notice.END)
            self._channel.close()
            with self._changed:
                self._changed.notify_all()
        keeping.join()
        fetching.join()
        if self._failure is not None and not (self._stop_requested and isinstance(self._failure, Unavailable)):
            raise self._failure
        if self._failure is not None:
            log.warning("%s; the loop was ending, and what was not confirmed is delivered again", self._failure)
        return self._in_flight.summary()

    def stop(self) -> None:
        """Begin the clean end. Safe in the handler of a signal."""
        self._stop_requested = True
        self._begin_end()

    def _begin_end(self) -> None:
        self._stopping = True
        self._notices.put(_Notice.STOP)
        for _ in range(self._options.concurrency):
            self._waiting.put(None)

    def _fail(self, error: BaseException) -> None:
        """Begin the end that raises ``error``."""
        if self._failure is None:
            self._failure = error
        if isinstance(error, Unavailable):
            self._channel.close()  # the daemon was waited for already; other requests need not wait as long again
        self._begin_end()

    def _thread(self, target: Callable[[], None], task: str) -> threading.Thread:
        def run() -> None:
            try:
                target()
            except BaseException as error:  # noqa: BLE001 # it is raised in the caller's thread
                self._fail(error)

        # Daemon threads: after a second signal the process may end although handlers run.
        return threading.Thread(target=run, name=f"eoq worker of {self._queue}: {task}", daemon=True)

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(RECHECK_SECONDS):
            if self._ended:
                return
        self.stop()

    # ── fetching ────────────────────────────────────────────────────────────────────────────────────────

    def _fetch(self) -> None:
        idle = IdleRule(self._options.idle_seconds)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._in_flight.room())
                if self._stopping:
                    return
                room, busy, ends = self._in_flight.room(), bool(self._in_flight), self._in_flight.ends
                wait = idle.wait(self._in_flight)
            try:
                count = self._receive(room, wait)
            except EoqError:
                if self._stopping:
                    return
                raise
            if count or not idle.may_end:
                continue
            if busy:
                with self._changed:
                    self._changed.wait_for(partial(self._one_ended, ends), RECHECK_SECONDS)
            elif idle.is_over():
                self.stop()

    def _one_ended(self, before: int) -> bool:
        return self._stopping or self._in_flight.ends != before

    def _receive(self, room: int, wait: float) -> int:
        """Receive messages, which are settled through this loop. Return how many."""
        lease = self._options.lease_seconds
        limit = min(room, MAX_BATCH)
        handles = min(self._options.places, MAX_BATCH) if self._channel.knows(HANDLES) else None
        request = calls.receive(
            self._queue, Message, self._settler, limit=limit, wait=wait, lease=lease, bound=True, handles=handles
        )
        messages = self._channel.run(request)
        back: Sequence[Message] = messages
        with self._changed:
            if not self._stopping:
                kept, back = self._in_flight.sift(messages)
                for entry in self._in_flight.add(kept, self._channel.generation):
                    self._waiting.put(entry)
        release_all(self._channel, [message.receipt for message in back])
        return len(messages) - len(back)

    # ── handling ────────────────────────────────────────────────────────────────────────────────────────

    def _handle(self) -> None:
        while not self._stopping:
            if self._failure_log.until:
                self._pause()
            entries = self._next_batch(())
            if not entries:
                # No message waits: the acks are confirmed before one is waited for.
                self._acks.confirm(0)
                entry = self._waiting.get()
                entries = [] if entry is None else self._next_batch((entry,))
            if not entries:
                continue
            try:
                self._run(entries)
            finally:
                with self._changed:
                    for entry in entries:
                        if not entry.confirming:
                            self._in_flight.end(entry)
                    for entry in self._in_flight.unblock():
                        self._waiting.put(entry)
                    self._changed.notify_all()
            self._acks.confirm(self._options.pipelined)
        self._acks.confirm(0)

    def _pause(self) -> None:
        """Wait while nothing is to be handled, because of failures. A stop ends it."""
        self._acks.confirm(0)
        while (seconds := self._failure_log.seconds_left()) and not self._is_told_to_stop():
            time.sleep(min(seconds, PAUSE_STEP))  # a signal may set no condition, and the queues have other uses

    def _is_told_to_stop(self) -> bool:
        return self._stopping or (self._stop_event is not None and self._stop_event.is_set())

    def _next_batch(self, first: Iterable[Entry[Message]]) -> list[Entry[Message]]:
        """Return what this thread handles now: ``first``, and in a batch the messages that wait after it."""
        if self._stop_event is not None and self._stop_event.is_set() and not self._stopping:
            self.stop()  # not when the watching thread sees it: no handler begins after the stop
        with self._changed:
            if self._stopping:
                return []
            entries = self._in_flight.next_batch(
                chain(first, self._take_waiting()), self._options.batch, self._channel.generation
            )
            self._changed.notify_all()
        return entries

    def _take_waiting(self) -> Iterator[Entry[Message]]:
        """Yield the messages that wait, as long as there are any."""
        with suppress(Empty):
            while (entry := self._waiting.get_nowait()) is not None:
                yield entry
            self._waiting.put(None)  # it is for the end of a thread

    def _run(self, entries: Sequence[Entry[Message]]) -> None:
        failures: Failures
        try:
            failures = self._apply(entries, self._acks, partial(self._begun, entries))
        except Exception as error:  # noqa: BLE001 # it is the outcome of its message, and it is logged
            failures = [(entry, error) for entry in entries]
            for entry in entries:
                if entry.open and not entry.confirming and self._failure is None:
                    with suppress(EoqError):  # it is logged, or ends the loop
                        give_back(entry.message, error)
        self._failure_log.ended(entries, failures)

    def _begun(self, entries: Sequence[Entry[Message]]) -> None:
        """Start the timeout of a batch, when its first handler begins."""
        if self._options.timeout is None or entries[0].deadline is not None:
            return
        with self._changed:
            for entry in entries:
                entry.deadline = time.monotonic() + self._options.timeout
        self._notices.put(_Notice.DEADLINE)

    # ── keeping leases ──────────────────────────────────────────────────────────────────────────────────

    def _keep(self) -> None:
        next_beat = time.monotonic() + self._options.lease_seconds / BEATS
        while True:
            with self._changed:
                deadline = self._in_flight.next_deadline()
            wake = next_beat if deadline is None else min(next_beat, deadline)
            notice = None
            with suppress(Empty):
                notice = self._notices.get(timeout=max(0.0, wake - time.monotonic()))
            if notice is _Notice.END:
                self._catch_up()
                return
            try:
                if notice is _Notice.STOP:
                    self._release_waiting()
                now = time.monotonic()
                self._expire_overdue(now)
                if now >= next_beat:
                    next_beat = now + self._options.lease_seconds / BEATS
                    self._extend()
            except EoqError:
                if self._ended or self._failure is not None:
                    return
                raise

    def _release_waiting(self) -> None:
        with self._changed:
            receipts = self._in_flight.drop_waiting()
            self._changed.notify_all()
        release_all(self._channel, receipts)

    def _catch_up(self) -> None:
        """Read all that the daemon has delivered by now, so that the fetching thread gives it back."""
        with suppress(EoqError):
            self._channel.run(calls.query("status"))  # its reply comes after all that was delivered before

    def _extend(self) -> None:
        with self._changed:
            receipts = self._in_flight.to_extend()
        if receipts:
            extended = extend_all(self._channel, receipts, self._options.lease_seconds)
            with self._changed:
                entries = self._in_flight.extended(extended)
                self._changed.notify_all()
            for entry in entries:
                log.warning("%s: its lease was lost; it is delivered again", described(entry.message))

    def _expire_overdue(self, now: float) -> None:
        """Give back the messages whose handlers have run for too long."""
        with self._changed:
            overdue = self._in_flight.expire_overdue(now)
            stuck = bool(overdue) and self._in_flight.overdue() >= self._options.places
        for entry in overdue:
            error = f"TimeoutError: the handler took longer than {self._options.timeout:g} s"
            log.error("%s: %s; given back", described(entry.message), error)
            try:
                self._channel.run(calls.nack(entry.message.receipt, None, error))
            except LeaseLost:
                log.warning("%s: its lease was lost; it is delivered again", described(entry.message))
        if stuck:
            log.error(
                "all places have handlers that passed their timeout; no message is handled until one of them ends"
            )
