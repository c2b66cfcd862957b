"""The asyncio client: sending, receiving, settling, transactions, once. Administration is in ``aio_admin.py``.

A client is a thin face of the requests in ``protocol/``, which its channel carries to the daemon.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from sys import modules
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, overload

from ..errors import EoqError
from ..message import AsyncMessage, Delivery, Outgoing, Payload, Result, SendOptions, Sent
from ..protocol import calls
from ..protocol.codec import Fields
from ..protocol.limits import POLL_SECONDS, REPEAT_SECONDS
from ..protocol.paths import socket_path
from ..spans import API, failed, sending, start_sending, within
from ..transport.aio_channel import AsyncChannel, AsyncStarted
from .aio_admin import AsyncAdmin

if TYPE_CHECKING:
    from ..worker.aio_handlers import AsyncProcessor
    from ..worker.in_flight import Summary
    from ..worker.options import InboxWorkKeywords, WorkKeywords
    from .aio_transaction import AsyncTransaction

T = TypeVar("T")

PIPELINED: Final = 4
"""Requests of a bulk send that are in flight at once."""


def connect_async(socket: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> AsyncClient:
    """Return an asyncio client of the daemon on ``socket`` (else ``EOQ_SOCKET``, else the user's default one).

    The client connects at its first request; `Unavailable` then says where it looked. ``timeout`` is in seconds: how
    long a request may take besides its own ``wait``, and how long a daemon that went away may take to come back.
    """
    return AsyncClient(socket, timeout=timeout)


class AsyncClient(AsyncAdmin):
    """An asyncio client, for the tasks of one event loop. Make it with `connect_async`.

    Every method may raise `Unavailable` (no daemon, or one that did not come back in time), `InvalidRequest` (an
    argument out of bounds) and the errors that its description names.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> None:
        super().__init__(AsyncChannel(socket_path(socket), timeout))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, and with it every bound lease."""
        await self.channel.close()

    @property
    def path(self) -> Path:
        """The socket of the daemon."""
        return self.channel.path

    @property
    def timeout(self) -> float:
        """The seconds that a request may take besides its own ``wait``."""
        return self.channel.timeout

    @property
    def reached(self) -> bool:
        """Whether there ever was a connection. If not, no request of this client can have had an effect."""
        return self.channel.generation > 0

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────

    async def send(self, queue: str, body: object, **options: Unpack[SendOptions]) -> Sent:
        """Store a message. When this returns, the message is on disk.

        ``body`` is bytes, text, or anything that JSON can express, at most 1 MiB. The options, all of them optional:

        - ``id``: the idempotency key, 1 to 200 printable characters. By default it is a new UUIDv7.
        - ``headers``: texts by name, at most 64 KiB as JSON.
        - ``priority``: a whole number, 0 by default. Messages with a higher one are delivered first.
        - ``group``: 1 to 200 printable characters. Messages of one group are delivered one at a time, in order.
        - ``delay``: seconds from now, at most 366 days, before which the message is not delivered.
        - ``at``: the same as a time, in seconds since the epoch. Give ``delay`` or ``at``, not both.
        - ``ttl``: seconds from now. A message that was not delivered by then expires.

        The same ``id`` with the same content is stored once; a repeated send is answered with ``duplicate``. Raises
        `IdConflict` for the same id with other content, `MessageTooLarge`, `QueueFull` or `StorageFull`; then nothing
        was stored.
        """
        message = Outgoing(body, **options)
        if API not in modules:
            return await self.channel.run(calls.send(queue, message))
        with sending(queue) as span:
            sent = await self.channel.run(calls.send(queue, message))
            span.set_attribute("messaging.message.id", sent.id)
        return sent

    async def send_many(self, queue: str, messages: Iterable[object]) -> list[Sent]:
        """Store many messages, in their order: `Outgoing` values, or bodies as for `send`.

        They travel in requests of up to 250 messages, each stored as a whole or not at all. Where a request is refused,
        its error is raised; the requests before it are stored, and some after it may be. For an endless source, use
        `send_stream`.
        """
        return [sent async for sent in self.send_stream(queue, messages)]

    async def send_stream(self, queue: str, messages: Iterable[object]) -> AsyncIterator[Sent]:
        """Store messages from a source of any length, in their order, as `send_many` does.

        Yields each confirmation. Only a few requests are in memory at a time.
        """
        in_flight: deque[AsyncStarted[list[Sent]]] = deque()
        batches = calls.send_batches(queue, messages)
        span = start_sending(queue) if API in modules else None
        try:
            for batch in batches if span is None else within(span, batches):
                in_flight.append(await self.channel.start(batch, in_flight[-1].connection if in_flight else None))
                # After a break, all that is in flight is repeated before anything new, so that the order is kept.
                while len(in_flight) == PIPELINED or (in_flight and not in_flight[-1].was_sent):
                    for sent in await self.channel.finish(in_flight.popleft()):
                        yield sent
            while in_flight:
                for sent in await self.channel.finish(in_flight.popleft()):
                    yield sent
        except EoqError as error:
            failed(span, error)
            raise
        finally:
            for started in in_flight:
                started.forget()
            if span is not None:
                span.end()

    # ── receiving ───────────────────────────────────────────────────────────────────────────────────────

    async def receive(
        self,
        queue: str,
        limit: int = 1,
        wait: float = 0.0,
        *,
        lease: float | None = None,
        bound: bool = False,
    ) -> list[AsyncMessage]:
        """Lease up to ``limit`` messages (1,000 at most), and return them. Wait up to ``wait`` seconds for the first.

        The list is empty if none was ready by then. A lease ends after ``lease`` seconds (30 by default, 12 hours at
        most), and a ``bound`` one also when the connection of this client ends.
        """
        deadline = time.monotonic() + wait
        while True:
            messages = await self.channel.run(
                calls.receive(queue, AsyncMessage, self, limit=limit, wait=wait, lease=lease, bound=bound)
            )
            wait = deadline - time.monotonic()
            if messages or wait <= 0:
                return messages
            await asyncio.sleep(REPEAT_SECONDS)

    def consume(
        self, queue: str, *, prefetch: int = 1, lease: float | None = None, idle: float | None = None
    ) -> AsyncIterator[AsyncMessage]:
        """Yield messages under bound leases, without end, or until none was delivered for ``idle`` seconds.

        Up to ``prefetch`` messages are fetched at a time. The leases of those that wait here (``lease`` seconds long,
        30 by default) are extended when the caller asks for the next message. Messages that still wait when the
        iteration ends are given back, and that does not count as an attempt.
        """
        from .aio_consume import consume

        return consume(self.channel, self, queue, prefetch, lease, idle)

    @overload
    async def work(
        self,
        queue: str,
        handler: Callable[[AsyncMessage], Awaitable[Payload]],
        *,
        inbox: None = None,
        stop: asyncio.Event | None = None,
        **options: Unpack[WorkKeywords],
    ) -> Summary: ...
    @overload
    async def work(
        self,
        queue: str,
        handler: Callable[[T, AsyncMessage], Awaitable[Payload]],
        *,
        inbox: AsyncProcessor[T],
        stop: asyncio.Event | None = None,
        **options: Unpack[InboxWorkKeywords],
    ) -> Summary: ...
    async def work(
        self,
        queue: str,
        handler: Callable[..., Awaitable[object]],
        *,
        inbox: AsyncProcessor[Any] | None = None,
        stop: asyncio.Event | None = None,
        **options: Unpack[InboxWorkKeywords],
    ) -> Summary:
        """Handle the messages of ``queue`` until told to stop. Return how many were done, retried, rejected and lost.

        ``await handler(message)`` is called for each message; what it returns is the result that the ack stores. With
        an ``inbox`` it is ``await handler(tx, message)``, called through `AsyncInbox.process`, so that each message
        takes effect once. If the handler raises, the message is given back with the error's text; `Reject` makes it a
        dead letter, and `Retry` says when to try again. Each is logged, and none ends the loop. A locked file, a full
        disk or an absent daemon counts no attempt: the loop tries again, with pauses of up to 30 seconds. It pauses as
        well where all messages fail alike. A result that cannot be stored makes a dead letter. A handler may also
        settle its message itself (``await message.ack(result, send=[…])``); the loop then leaves the message alone.
        With an inbox it may not, since the transaction is not committed yet.

        The options, all of them optional:

        - ``concurrency``: how many handlers run at once, 1 by default.
        - ``prefetch``: how many more messages may wait here, 0 by default. While some wait, the loop goes on to the
          next message without waiting for the ack of the last: up to 32 acks are in flight. Their messages are
          delivered again if this process or the daemon is killed meanwhile. An ack that a handler makes itself is
          waited for.
        - ``batch``: with an inbox, how many waiting messages share one transaction (`AsyncInbox.process_many`) and one
          ack, 1 by default. That ack is waited for.
        - ``lease``: seconds, 30 by default. Leases are bound, and extended while their handlers run.
        - ``timeout``: seconds for one run of a handler, or of a whole batch; none by default. Waiting for the inbox's
          file does not count.
        - ``until_empty``: whether to end when no message is ready and no handler runs, False by default.
        - ``idle``: seconds. End when no message was ready and no handler ran for this long.

        Handlers of the blocking client run in threads, the first in the calling one. A thread cannot be killed: when
        the ``timeout`` has passed, its message is given back with an error that says so, and the handler's result no
        longer counts. But the handler goes on, and counts among ``concurrency``, until it ends. With an inbox its late
        commit may still happen; the message is then delivered again and found processed. Handlers of the asyncio client
        run as tasks, which are cancelled when the ``timeout`` has passed, and when this call is cancelled. They must
        not block the event loop, since leases could not be extended.

        SIGTERM and SIGINT (in the main thread) and ``stop`` end the loop cleanly: handlers that run are waited for, and
        waiting messages are given back, which does not count as an attempt. A second signal does what it would do
        without eoq.

        Raises `Unavailable` if the daemon did not come back in time (unless the loop was ending already), or another
        error of the daemon that no message caused, such as a full disk. It waits for the running handlers before.
        """
        from ..worker.aio import work
        from ..worker.options import WorkOptions

        return await work(self.channel, queue, handler, WorkOptions(**options), inbox, stop)

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────

    async def ack(self, message: Delivery | str, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        """Settle a message, or the one that a receipt names, as done.

        The daemon stores its ``result`` and all messages of ``send`` in the same transaction: all or nothing. Raises
        `LeaseLost` if the lease has ended; then nothing was changed.
        """
        await self.channel.run(calls.ack(message, result, list(send)))

    async def ack_many(self, acks: Sequence[tuple[Delivery | str, object]]) -> None:
        """Settle many messages as done, each with its result (or None), in one transaction: all or nothing.

        Raises `LeaseLost` if one of the leases has ended.
        """
        if acks:
            await self.channel.run(calls.settle(acks, ()))

    async def nack(self, message: Delivery | str, delay: float | None = None, error: str | None = None) -> None:
        """Give a message back, or the one that a receipt names, to be delivered again after ``delay`` seconds.

        Without a delay, the daemon waits a little longer after each attempt. ``error`` is kept with the message. Raises
        `LeaseLost`.
        """
        await self.channel.run(calls.nack(message, delay, error))

    async def reject(self, message: Delivery | str, error: str | None = None) -> None:
        """Make a message, or the one that a receipt names, a dead letter, kept with ``error``. Raises `LeaseLost`."""
        await self.channel.run(calls.reject(message, error))

    async def release(self, message: Delivery | str) -> None:
        """Give back a message, or the one that a receipt names, at once and without counting an attempt.

        For what is no fault of the message, such as a locked file. A lease that has ended is no error.
        """
        await self.channel.run(calls.release([calls.receipt_of(message)]))

    async def extend(self, message: Delivery | str, seconds: float) -> bool:
        """Let the lease of a message, or of a receipt, end ``seconds`` from now. Raises `LeaseLost`.

        Return whether the message was cancelled meanwhile: unless it is acked, it then ends as ``cancelled``.
        """
        return await self.channel.run(calls.extend(message, seconds))

    def transaction(self) -> AsyncTransaction:
        """Return a transaction: acks and sends over any queues, committed when its ``async with`` block ends."""
        from .aio_transaction import AsyncTransaction

        return AsyncTransaction(self.channel)

    # ── once ────────────────────────────────────────────────────────────────────────────────────────────

    async def once(
        self,
        key: str,
        function: Callable[[], Awaitable[object]],
        *,
        ttl: float | None = None,
        fingerprint: str | None = None,
        wait: float | None = None,
    ) -> bytes:
        """Run ``await function()`` unless ``key`` is done. Return its result as bytes, now or from the first time.

        Of several callers at once the first runs, and the others wait for it, at most ``wait`` seconds; then they get
        `Overloaded`. By default they wait without end. If the function raises, or its process dies, the key is open
        again. The result is kept for ``ttl`` seconds, by default for ever. A ``fingerprint`` (1 to 200 characters) says
        what the key stands for: `IdConflict` is raised where the key was used with another one.

        The result is stored once. The function runs again if its process is killed before that, so its effects
        elsewhere must be idempotent under the same key. Raises `LeaseLost` where this caller was cut off from the
        daemon for so long that another one has run meanwhile, and `MessageTooLarge` for a result of more than 8 MiB,
        which is not kept although the key is done.
        """
        from .aio_once import once

        return await once(self.channel, key, function, ttl=ttl, fingerprint=fingerprint, wait=wait)

    # ── queries ─────────────────────────────────────────────────────────────────────────────────────────

    async def result(self, queue: str, id: str, wait: float = 0.0) -> Result | None:
        """Return how a message ended. Wait up to ``wait`` seconds for that.

        Return None while it has not ended, and where the daemon does not know the message.
        """
        deadline = time.monotonic() + wait
        while True:
            left = max(0.0, deadline - time.monotonic())
            found = await self.channel.run(calls.result(queue, id, min(left, POLL_SECONDS)))
            if found is not None or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(REPEAT_SECONDS)

    async def ask(self, op: str, **fields: Any) -> Fields:
        """Send a request of PROTOCOL.md, and return the fields of its reply. It is repeated if the connection breaks.

        For requests without a method of their own, such as ``status``. Raises the error that the daemon answers with.
        """
        return await self.channel.run(calls.query(op, **fields))
