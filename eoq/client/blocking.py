"""The blocking client: the requests of ``calls.py`` over the connection of ``link.py``.

A connection that breaks is made again, and what was under way on it is repeated under the same ids and receipts, which
the daemon recognises.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from ..errors import EoqError, Forbidden, Unavailable
from ..message import Delivery, Message, Outgoing, Result, Sent
from ..protocol import calls
from ..protocol.calls import Call
from ..protocol.codec import Fields
from ..protocol.limits import POLL_SECONDS
from ..system.forks import watch_forks
from ..system.paths import socket_path
from ..transport.connection import GIVE_UP_SECONDS, Connection, ConnectionLost, NotADaemon
from .admin import Admin
from .prefetch import Prefetched

if TYPE_CHECKING:
    from ..inbox.blocking import Handler
    from ..worker.blocking import Processor
    from ..worker.in_flight import Summary
    from .transaction import Transaction

T = TypeVar("T")

PIPELINED: Final = 4
"""Requests of a bulk send that are under way at once."""
RECONNECT_SECONDS: Final = 0.05
"""The first wait between two tries to reach a daemon that went away; it doubles up to a second."""


def connect(socket: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> Client:
    """A client of the daemon on ``socket`` (else ``EOQ_SOCKET``, else the user's default one).

    Connects at the first request; `Unavailable` then says where it looked. ``timeout`` is in seconds: how long a
    request may take beyond its own ``wait``, and how long a daemon that went away may take to come back.
    """
    return Client(socket, timeout=timeout)


class Started(NamedTuple, Generic[T]):
    """A request under way. Without rids it could not be sent, and has to be repeated."""

    call: Call[T]
    link: Connection
    rids: range | None

    def forget(self) -> None:
        if self.rids is not None:
            self.link.forget(self.rids)


class Client(Admin):
    """A blocking client, safe to share between threads. Make it with `connect`.

    Every method may raise `Unavailable` (no daemon, or none that came back in time), `InvalidRequest` (an argument
    out of bounds) and the errors it names.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> None:
        self.path = socket_path(socket)
        self.timeout = timeout
        self._link: Connection | None = None
        self._linking = threading.Lock()
        self._generation = 0
        self._closed = False
        watch_forks(self)

    def forked(self) -> None:
        """In a child a client begins anew, with a connection of its own; bound leases are the parent's."""
        self._linking, self._link = threading.Lock(), None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and with it every bound lease."""
        self._closed = True
        with self._linking:
            if self._link is not None:
                self._link.close()
                self._link = None

    @property
    def reached(self) -> bool:
        """Whether there ever was a connection. If not, nothing that was asked can have happened."""
        return self._generation > 0

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────

    def send(
        self,
        queue: str,
        body: object,
        *,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        group: str | None = None,
        delay: float | None = None,
        at: float | None = None,
        ttl: float | None = None,
    ) -> Sent:
        """Stores a message; when this returns, it is on disk.

        ``body`` is bytes, text, or anything JSON can hold; the other arguments are those of `Outgoing`. The same
        ``id`` with the same content is stored once and answered with ``duplicate``. Raises `IdConflict` for the
        same id with other content, `MessageTooLarge`, `QueueFull` or `StorageFull`; then nothing was stored.
        """
        message = Outgoing(body, id, None, headers, priority, group, delay, at, ttl)
        return self._run(calls.send(queue, message))

    def send_many(self, queue: str, messages: Iterable[object]) -> list[Sent]:
        """Stores many messages, in their order: `Outgoing` values, or bodies as for `send`.

        They travel in requests of up to 250 messages, each stored as a whole or not at all. Where one is refused,
        its error is raised; the requests before it are stored, and some behind it may be. For an endless source
        see `send_stream`.
        """
        return list(self.send_stream(queue, messages))

    def send_stream(self, queue: str, messages: Iterable[object]) -> Iterator[Sent]:
        """`send_many` for sources of any length: yields each confirmation, and holds a few requests at a time."""
        under_way: deque[Started[list[Sent]]] = deque()
        try:
            for batch in calls.send_batches(queue, messages):
                under_way.append(self._start(batch, under_way[-1].link if under_way else None))
                # After a break all that is under way is repeated before anything new, so that the order is kept.
                while len(under_way) == PIPELINED or (under_way and under_way[-1].rids is None):
                    yield from self._finish(under_way.popleft())
            while under_way:
                yield from self._finish(under_way.popleft())
        finally:
            for started in under_way:
                started.forget()

    # ── receiving ───────────────────────────────────────────────────────────────────────────────────────

    def receive(
        self,
        queue: str,
        limit: int = 1,
        wait: float = 0.0,
        *,
        lease: float | None = None,
        bound: bool = False,
    ) -> list[Message]:
        """Leases up to ``limit`` messages (1000 at most); waits up to ``wait`` seconds for the first.

        The lease ends after ``lease`` seconds (30), and a ``bound`` one also when this client's connection ends.
        """
        return self._run(calls.receive(queue, Message, self, limit=limit, wait=wait, lease=lease, bound=bound))

    def consume(
        self, queue: str, *, prefetch: int = 1, lease: float | None = None, idle: float | None = None
    ) -> Iterator[Message]:
        """Yields messages under bound leases, without end, or until none came for ``idle`` seconds.

        Up to ``prefetch`` are fetched at a time. Those that wait here have their leases extended when the loop
        comes back for the next one; whatever is left when the loop ends is given back, uncounted.
        """
        fetched: Prefetched[Message] = Prefetched(lease, prefetch)
        ahead: Started[list[Message]] | None = None
        asked_at = 0.0

        def receive(limit: int, wait: float) -> Call[list[Message]]:
            return calls.receive(queue, Message, self, limit=limit, wait=wait, lease=lease, bound=True)

        try:
            idle_since = time.monotonic()
            while True:
                if ahead is not None and (not fetched or fetched.is_old(asked_at, time.monotonic())):
                    started, ahead = ahead, None
                    messages = self._finish(started)
                    fetched.fill(messages, asked_at, self._generation)
                self._keep_alive(fetched)
                if (message := fetched.next()) is not None:
                    if ahead is None and (room := fetched.room()):
                        # Asked for while the loop is busy, and waited for only when it is needed.
                        asked_at = time.monotonic()
                        ahead = self._start(receive(room, 0.0))
                    yield message
                    idle_since = time.monotonic()
                    continue
                if ahead is not None:
                    continue
                wait = POLL_SECONDS
                if idle is not None:
                    wait = min(wait, max(idle_since + idle - time.monotonic(), 0.0))
                messages = self._run(receive(prefetch, wait))
                fetched.fill(messages, time.monotonic(), self._generation)
                if not messages and idle is not None and time.monotonic() >= idle_since + idle:
                    return
        finally:
            left = fetched.drain(self._generation)
            if ahead is not None and not self._closed:
                with suppress(EoqError):
                    left.extend(message.receipt for message in self._finish(ahead))
            self._give_back(left)

    def _keep_alive(self, fetched: Prefetched[Message]) -> None:
        receipts = fetched.to_extend(time.monotonic(), self._generation)
        if receipts:
            fetched.extended(time.monotonic(), self._extend_all(receipts, fetched.lease))

    def _extend_all(self, receipts: Sequence[str], seconds: float) -> set[str]:
        """Extends leases; returns the receipts of those that have ended."""
        replies = self._exchange([calls.extend(receipt, seconds).fields for receipt in receipts])
        return {receipt for receipt, reply in zip(receipts, replies, strict=True) if isinstance(reply, EoqError)}

    def _give_back(self, receipts: Sequence[str]) -> None:
        if receipts and not self._closed:
            # If it fails, the leases end with the connection, or by themselves.
            with suppress(EoqError):
                for portion in calls.portions(receipts):
                    self._run(calls.release(portion))

    def work(
        self,
        queue: str,
        handler: Callable[[Message], object] | Handler,
        *,
        inbox: Processor | None = None,
        concurrency: int = 1,
        prefetch: int = 0,
        batch: int = 1,
        lease: float | None = None,
        timeout: float | None = None,
        until_empty: bool = False,
        idle: float | None = None,
        stop: threading.Event | None = None,
    ) -> Summary:
        """Handles the messages of ``queue`` until it is told to stop; says what became of them. See ``worker.py``.

        ``handler(message)`` is called for each; what it returns is the result that the ack stores. With an
        ``inbox`` it is ``handler(tx, message)``, called through `Inbox.process`, so that each message takes effect
        once. A handler that raises gives the message back with the error's text, `Reject` makes it a dead letter,
        and `Retry` says when to try again; each is logged, and none ends the loop. A handler may also settle its
        message itself (``message.ack(result, send=[…])``), and is then left alone.

        Leases are bound, and extended while their handlers run. Up to ``concurrency`` handlers run at once, the
        first of them in the calling thread; ``prefetch`` more messages may wait here. While some wait, the loop goes
        on to the next without waiting for the ack of the last: up to 32 are confirmed behind it, and come again should
        it or the daemon be killed meanwhile. An ack that a handler makes itself is waited for. With an inbox, up to
        ``batch`` messages that wait share one transaction (`Inbox.process_many`) and one ack, which is waited for.

        ``timeout`` is in seconds for one run of a handler, or of a whole batch; the wait for the inbox's file does not
        count. A thread cannot be killed: when its
        time is over, the message is given back with an error that says so, and what the handler does later counts
        no more; but it goes on, and keeps its place among ``concurrency``, until it ends. With an inbox its late
        commit may still happen; the message then comes again and is found processed.

        SIGTERM and SIGINT (where this is the main thread) and ``stop`` end the loop cleanly: what runs is finished,
        what waits is given back, uncounted. A second signal does what it would do without eoq. ``until_empty``
        ends it when nothing is ready and nothing of ours runs, ``idle`` when that was so for so many seconds.

        Raises `Unavailable` if the daemon did not come back in time (not where the loop was ending by then), or
        another error of the daemon's (its disk is full, say) that is no message's fault; the handlers that run are
        finished first.
        """
        from ..worker.blocking import work

        return work(
            self,
            queue,
            handler,
            inbox=inbox,
            concurrency=concurrency,
            prefetch=prefetch,
            batch=batch,
            lease=lease,
            timeout=timeout,
            idle=0.0 if until_empty and idle is None else idle,
            stop=stop,
        )

    def _sibling(self) -> Client:
        """A client with a connection of its own, as patient as this one."""
        sibling = Client(self.path, timeout=self.timeout)
        sibling._generation = self._generation
        return sibling

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────

    def ack(self, message: Delivery | str, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        """Settles a message, or the one a receipt names, as done. See `Message.ack`."""
        self._run(calls.ack(message, result, list(send)))

    def ack_many(self, acks: Sequence[tuple[Delivery | str, object]]) -> None:
        """Settles many messages as done, each with its result (or None), in one transaction: all or nothing.

        Raises `LeaseLost` if one of the leases has ended.
        """
        if acks:
            self._run(calls.settle(acks, ()))

    def nack(self, message: Delivery | str, delay: float | None = None, error: str | None = None) -> None:
        """Gives a message back. See `Message.nack`."""
        self._run(calls.nack(message, delay, error))

    def reject(self, message: Delivery | str, error: str | None = None) -> None:
        """Makes a message a dead letter. See `Message.reject`."""
        self._run(calls.reject(message, error))

    def extend(self, message: Delivery | str, seconds: float) -> None:
        """Lets a lease end ``seconds`` from now. See `Message.extend`."""
        self._run(calls.extend(message, seconds))

    def transaction(self) -> Transaction:
        """Acks and sends over any queues, all or nothing, when its ``with`` block ends. See `Transaction`."""
        from .transaction import Transaction

        return Transaction(self)

    # ── once ────────────────────────────────────────────────────────────────────────────────────────────

    def once(
        self,
        key: str,
        function: Callable[[], object],
        *,
        ttl: float | None = None,
        fingerprint: str | None = None,
        wait: float | None = None,
    ) -> bytes:
        """Runs ``function`` unless ``key`` is done already; returns its result as bytes, now or from the first time.

        Of several callers at once the first runs, and the others wait for it: up to ``wait`` seconds, without end
        where it is None; then `Overloaded` is raised. If the function raises, or its process dies, the key is open
        again. ``ttl`` is how many seconds the result is kept; None is for ever. A ``fingerprint`` (1 to 200
        characters) says what the key stands for: `IdConflict` is raised where it was used with another.

        The result is stored once. The function runs again if its process is killed before that: what it does
        elsewhere has to be idempotent under the same key. Raises `LeaseLost` where this caller was cut off from the
        daemon so long that another has run meanwhile, and `MessageTooLarge` for a result of more than 8 MiB, which
        is not kept though the key is done.
        """
        from .once import once

        return once(self, key, function, ttl=ttl, fingerprint=fingerprint, wait=wait)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────

    def result(self, queue: str, id: str, wait: float = 0.0) -> Result | None:
        """How a message ended; waits up to ``wait`` seconds for it. None while it has not, or is not known."""
        deadline = time.monotonic() + wait
        while True:
            left = max(0.0, deadline - time.monotonic())
            found = self._run(calls.result(queue, id, min(left, POLL_SECONDS)))
            if found is not None or left <= POLL_SECONDS:
                return found

    def ask(self, op: str, **fields: Any) -> Fields:
        """Sends a request of PROTOCOL.md that only looks (``status``, ``queues``, ``peek``, ``show``)."""
        return self._run(calls.look(op, **fields))

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, call: Call[T]) -> T:
        reply = self._exchange([call.fields], call.wait)[0]
        if isinstance(reply, EoqError):
            raise reply
        return call.read(reply)

    def _exchange(self, requests: Sequence[Fields], wait: float = 0.0) -> list[Fields | EoqError]:
        """The reply to each request; repeats them all if the connection breaks, until ``timeout`` is over."""
        started = time.monotonic()
        while True:
            link = self._linked(started + self.timeout)
            left = 0.0
            if wait:
                left = max(0.0, started + wait - time.monotonic())
                requests = calls.shortened(requests, left)
            try:
                deadline = time.monotonic() + left + self.timeout
                return link.finish(link.start(requests, deadline), deadline)
            except ConnectionLost as dropped:
                self._unlink(link, "it broke")
                if self._closed or isinstance(dropped, NotADaemon) or time.monotonic() > started + wait + self.timeout:
                    raise self._unavailable(str(dropped)) from dropped
            except TimeoutError as error:
                raise self._unanswered(link, left + self.timeout) from error

    def _tell(self, call: Call[None]) -> None:
        """Sends a request whose outcome does not matter any more, if there is a connection."""
        link = self._link
        if link is not None:
            with suppress(ConnectionLost, TimeoutError):
                link.tell([call.fields], time.monotonic() + GIVE_UP_SECONDS)

    def _start(self, call: Call[T], link: Connection | None = None) -> Started[T]:
        """Sends a request whose reply `_finish` waits for, so that this side can go on meanwhile.

        With a ``link`` it goes over that one or none.
        """
        deadline = time.monotonic() + self.timeout
        link = self._linked(deadline) if link is None else link
        try:
            return Started(call, link, link.start([call.fields], deadline))
        except (ConnectionLost, TimeoutError):
            return Started(call, link, None)

    def _finish(self, started: Started[T]) -> T:
        """The outcome of a request that was started; repeats it if the connection broke."""
        if started.rids is not None:
            seconds = started.call.wait + self.timeout
            try:
                reply = started.link.finish(started.rids, time.monotonic() + seconds)[0]
            except TimeoutError as error:
                raise self._unanswered(started.link, seconds) from error
            except ConnectionLost:
                pass
            else:
                if isinstance(reply, EoqError):
                    raise reply
                return started.call.read(reply)
        self._unlink(started.link, "a request could not be sent")
        return self._run(started.call)

    def _unanswered(self, link: Connection, seconds: float) -> Unavailable:
        """Gives up a connection. Its leases would be held for nobody; the daemon takes them back with it."""
        self._unlink(link, "a request was not answered in time")
        return self._unavailable(f"no answer within {seconds:g} s")

    def _linked(self, deadline: float) -> Connection:
        """The live connection, or a new one. A daemon that was there before may come back until ``deadline``."""
        pause = RECONNECT_SECONDS
        while True:
            with self._linking:
                if self._closed:
                    raise self._unavailable("this client is closed")
                if self._link is not None:
                    return self._link
                try:
                    self._link = Connection(self.path)
                except PermissionError as error:
                    raise Forbidden(
                        f"the socket {self.path} belongs to another user; use your own daemon, or ask its owner"
                    ) from error
                except OSError as error:
                    if self._generation == 0 or time.monotonic() > deadline:
                        raise self._unavailable(error.strerror or str(error)) from error
                else:
                    self._generation += 1
                    return self._link
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _unlink(self, link: Connection, reason: str) -> None:
        with self._linking:
            if self._link is link:
                self._link = None
        link.close(reason)

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(
            f"cannot reach the daemon on {self.path} ({why}); start one with `eoq start`, "
            "or name another socket with --socket or EOQ_SOCKET"
        )
