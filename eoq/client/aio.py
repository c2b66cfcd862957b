"""The asyncio client: the twin of ``client.py``, around the same requests of ``calls.py``."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ..errors import EoqError, Forbidden, InvalidRequest, Unavailable
from ..message import AsyncMessage, Delivery, Outgoing, Result, Sent
from ..protocol import calls
from ..protocol.calls import Call
from ..protocol.codec import Fields
from ..protocol.limits import POLL_SECONDS
from ..system.forks import watch_forks
from ..system.paths import socket_path
from ..transport.aio_connection import AsyncConnection, Replies
from ..transport.connection import ConnectionLost, NotADaemon
from .admin import AsyncAdmin
from .blocking import PIPELINED, RECONNECT_SECONDS
from .prefetch import Prefetched

if TYPE_CHECKING:
    from ..worker.aio import AsyncProcessor
    from ..worker.in_flight import Summary
    from .transaction import AsyncTransaction

T = TypeVar("T")


def connect_async(socket: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> AsyncClient:
    """An asyncio client of the daemon on ``socket``; the arguments are those of `connect`."""
    return AsyncClient(socket, timeout=timeout)


class Started(NamedTuple, Generic[T]):
    """A request under way. Without replies it could not be sent, and has to be repeated."""

    call: Call[T]
    link: AsyncConnection
    replies: Replies | None


class AsyncClient(AsyncAdmin):
    """An asyncio client. Make it with `connect_async`; its methods do what those of `Client` do."""

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> None:
        self.path: Path = socket_path(socket)
        self.timeout = timeout
        self._link: AsyncConnection | None = None
        self._linking = asyncio.Lock()
        self._generation = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        watch_forks(self)

    def forked(self) -> None:
        """See `Client.forked`."""
        self._linking, self._link, self._loop = asyncio.Lock(), None, None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection, and with it every bound lease."""
        self._closed = True
        if self._link is not None:
            self._link.close()
            self._link = None
            await asyncio.sleep(0)  # lets the transport close its socket before the loop may end

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────

    async def send(
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
        """See `Client.send`."""
        message = Outgoing(body, id, None, headers, priority, group, delay, at, ttl)
        return await self._run(calls.send(queue, message))

    async def send_many(self, queue: str, messages: Iterable[object]) -> list[Sent]:
        """See `Client.send_many`."""
        return [sent async for sent in self.send_stream(queue, messages)]

    async def send_stream(self, queue: str, messages: Iterable[object]) -> AsyncIterator[Sent]:
        """See `Client.send_stream`."""
        under_way: deque[Started[list[Sent]]] = deque()
        try:
            for batch in calls.send_batches(queue, messages):
                under_way.append(await self._start(batch, under_way[-1].link if under_way else None))
                # After a break all that is under way is repeated before anything new, so that the order is kept.
                while len(under_way) == PIPELINED or (under_way and under_way[-1].replies is None):
                    for sent in await self._finish(under_way.popleft()):
                        yield sent
            while under_way:
                for sent in await self._finish(under_way.popleft()):
                    yield sent
        finally:
            for started in under_way:
                if started.replies is not None:
                    started.link.forget(started.replies)

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
        """See `Client.receive`."""
        return await self._run(
            calls.receive(queue, AsyncMessage, self, limit=limit, wait=wait, lease=lease, bound=bound)
        )

    async def consume(
        self, queue: str, *, prefetch: int = 1, lease: float | None = None, idle: float | None = None
    ) -> AsyncIterator[AsyncMessage]:
        """See `Client.consume`."""
        fetched: Prefetched[AsyncMessage] = Prefetched(lease, prefetch)
        ahead: asyncio.Task[list[AsyncMessage]] | None = None
        asked_at = 0.0
        try:
            idle_since = time.monotonic()
            while True:
                if ahead is not None and (not fetched or fetched.is_old(asked_at, time.monotonic())):
                    messages = await ahead
                    ahead = None
                    fetched.fill(messages, asked_at, self._generation)
                await self._keep_alive(fetched)
                if (message := fetched.next()) is not None:
                    if ahead is None and (room := fetched.room()):
                        # Asked for while the loop is busy, and waited for only when it is needed.
                        asked_at = time.monotonic()
                        ahead = asyncio.create_task(self.receive(queue, room, lease=lease, bound=True))
                    yield message
                    idle_since = time.monotonic()
                    continue
                if ahead is not None:
                    continue
                wait = POLL_SECONDS
                if idle is not None:
                    wait = min(wait, max(idle_since + idle - time.monotonic(), 0.0))
                messages = await self.receive(queue, prefetch, wait, lease=lease, bound=True)
                fetched.fill(messages, time.monotonic(), self._generation)
                if not messages and idle is not None and time.monotonic() >= idle_since + idle:
                    return
        finally:
            left = fetched.drain(self._generation)
            if ahead is not None and not ahead.cancelled():  # with us; then its link gives back what comes
                with suppress(EoqError):
                    left.extend(message.receipt for message in await ahead)
            await self._give_back(left)

    async def _keep_alive(self, fetched: Prefetched[AsyncMessage]) -> None:
        receipts = fetched.to_extend(time.monotonic(), self._generation)
        if receipts:
            fetched.extended(time.monotonic(), await self._extend_all(receipts, fetched.lease))

    async def _extend_all(self, receipts: Sequence[str], seconds: float) -> set[str]:
        """Extends leases; returns the receipts of those that have ended."""
        replies = await self._exchange([calls.extend(receipt, seconds).fields for receipt in receipts])
        return {receipt for receipt, reply in zip(receipts, replies, strict=True) if isinstance(reply, EoqError)}

    async def _give_back(self, receipts: Sequence[str]) -> None:
        if receipts and not self._closed:
            # If it fails, the leases end with the connection, or by themselves.
            with suppress(EoqError):
                for portion in calls.portions(receipts):
                    await self._run(calls.release(portion))

    async def work(
        self,
        queue: str,
        handler: Callable[..., Awaitable[object]],
        *,
        inbox: AsyncProcessor | None = None,
        concurrency: int = 1,
        prefetch: int = 0,
        batch: int = 1,
        lease: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 # it is the handler's, not the loop's
        until_empty: bool = False,
        idle: float | None = None,
        stop: asyncio.Event | None = None,
    ) -> Summary:
        """`Client.work` with ``await handler(message)``, or ``await handler(tx, message)`` with an ``inbox``.

        Up to ``concurrency`` handlers run as tasks. One whose ``timeout`` is over is cancelled, and its message
        given back with an error that says so. If this call is cancelled itself, so are the handlers, and their
        messages are delivered again. A handler must not block the loop: the leases could not be extended.
        """
        from ..worker.aio import work

        return await work(
            self,
            queue,
            handler,
            inbox=inbox,
            concurrency=concurrency,
            prefetch=prefetch,
            batch=batch,
            lease=lease,
            seconds=timeout,
            idle=0.0 if until_empty and idle is None else idle,
            stop=stop,
        )

    def _sibling(self) -> AsyncClient:
        """A client with a connection of its own, as patient as this one."""
        sibling = AsyncClient(self.path, timeout=self.timeout)
        sibling._generation = self._generation
        return sibling

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────

    async def ack(self, message: Delivery | str, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        """See `Client.ack`."""
        await self._run(calls.ack(message, result, list(send)))

    async def ack_many(self, acks: Sequence[tuple[Delivery | str, object]]) -> None:
        """See `Client.ack_many`."""
        if acks:
            await self._run(calls.settle(acks, ()))

    async def nack(self, message: Delivery | str, delay: float | None = None, error: str | None = None) -> None:
        """See `Client.nack`."""
        await self._run(calls.nack(message, delay, error))

    async def reject(self, message: Delivery | str, error: str | None = None) -> None:
        """See `Client.reject`."""
        await self._run(calls.reject(message, error))

    async def extend(self, message: Delivery | str, seconds: float) -> None:
        """See `Client.extend`."""
        await self._run(calls.extend(message, seconds))

    def transaction(self) -> AsyncTransaction:
        """See `Client.transaction`; used with ``async with``."""
        from .transaction import AsyncTransaction

        return AsyncTransaction(self)

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
        """See `Client.once`; ``function`` is awaited."""
        from .once import once_async

        return await once_async(self, key, function, ttl=ttl, fingerprint=fingerprint, wait=wait)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────

    async def result(self, queue: str, id: str, wait: float = 0.0) -> Result | None:
        """See `Client.result`."""
        deadline = time.monotonic() + wait
        while True:
            left = max(0.0, deadline - time.monotonic())
            found = await self._run(calls.result(queue, id, min(left, POLL_SECONDS)))
            if found is not None or left <= POLL_SECONDS:
                return found

    async def ask(self, op: str, **fields: Any) -> Fields:
        """See `Client.ask`."""
        return await self._run(calls.look(op, **fields))

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, call: Call[T]) -> T:
        reply = (await self._exchange([call.fields], call.wait))[0]
        if isinstance(reply, EoqError):
            raise reply
        return call.read(reply)

    async def _exchange(self, requests: Sequence[Fields], wait: float = 0.0) -> list[Fields | EoqError]:
        """The reply to each request; repeats them all if the connection breaks, until ``timeout`` is over."""
        started = time.monotonic()
        while True:
            link = await self._linked(started + self.timeout)
            left = 0.0
            if wait:
                left = max(0.0, started + wait - time.monotonic())
                requests = calls.shortened(requests, left)
            try:
                return await link.finish(await link.start(requests, self.timeout), left + self.timeout)
            except ConnectionLost as dropped:
                self._unlink(link, "it broke")
                if self._closed or isinstance(dropped, NotADaemon) or time.monotonic() > started + wait + self.timeout:
                    raise self._unavailable(str(dropped)) from dropped
            except TimeoutError as error:
                raise self._unanswered(link, left + self.timeout) from error

    def _tell(self, call: Call[None]) -> None:
        """Sends a request whose outcome does not matter any more, if there is a connection."""
        if self._link is not None:
            self._link.tell(call.fields)

    async def _start(self, call: Call[T], link: AsyncConnection | None) -> Started[T]:
        """Sends a request whose reply `_finish` waits for, over ``link`` or, without one, over the live one."""
        link = await self._linked(time.monotonic() + self.timeout) if link is None else link
        try:
            return Started(call, link, await link.start([call.fields], self.timeout))
        except (ConnectionLost, TimeoutError):
            return Started(call, link, None)

    async def _finish(self, started: Started[T]) -> T:
        """The outcome of a request that was started; repeats it if the connection broke."""
        if started.replies is not None:
            seconds = started.call.wait + self.timeout
            try:
                reply = (await started.link.finish(started.replies, seconds))[0]
            except TimeoutError as error:
                raise self._unanswered(started.link, seconds) from error
            except ConnectionLost:
                pass
            else:
                if isinstance(reply, EoqError):
                    raise reply
                return started.call.read(reply)
        self._unlink(started.link, "a request could not be sent")
        return await self._run(started.call)

    def _unanswered(self, link: AsyncConnection, seconds: float) -> Unavailable:
        """Gives up a connection. Its leases would be held for nobody; the daemon takes them back with it."""
        self._unlink(link, "a request was not answered in time")
        return self._unavailable(f"no answer within {seconds:g} s")

    async def _linked(self, deadline: float) -> AsyncConnection:
        """The live connection, or a new one. A daemon that was there before may come back until ``deadline``."""
        pause = RECONNECT_SECONDS
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise InvalidRequest("an asyncio client works in the event loop that it began in; make another one here")
        self._loop = loop
        while True:
            async with self._linking:
                if self._closed:
                    raise self._unavailable("this client is closed")
                if self._link is not None:
                    return self._link
                try:
                    _, link = await loop.create_unix_connection(AsyncConnection, str(self.path))
                    if self._closed:  # meanwhile
                        link.close()
                        continue
                    self._link = link
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
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _unlink(self, link: AsyncConnection, reason: str) -> None:
        if self._link is link:
            self._link = None
        link.close(reason)

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(
            f"cannot reach the daemon on {self.path} ({why}); start one with `eoq start`, "
            "or name another socket with --socket or EOQ_SOCKET"
        )
