"""A channel to the daemon for asyncio: requests go over a connection, which is replaced when it breaks.

The requests that were in flight on the lost connection are repeated under the same ids and receipts, which the daemon
recognises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from ..backoff import pauses
from ..errors import EoqError, InvalidRequest, Unavailable
from ..protocol import calls
from ..protocol.calls import Call
from ..protocol.codec import Fields
from ..protocol.features import HANDLES, NOT_AFTER, as_repeat, is_limited, stored_until
from ..system.forks import watch_forks
from .aio_connection import AsyncConnection, Replies
from .channel import FIRST_RECONNECT_PAUSE, LONGEST_RECONNECT_PAUSE, ambiguous, forbidden, unavailable
from .connection import ConnectionLost, NotADaemon

T = TypeVar("T")


class AsyncStarted(NamedTuple, Generic[T]):
    """A request in flight. Its replies are None where it could not be sent and has to be repeated."""

    call: Call[T]
    connection: AsyncConnection
    replies: Replies | None
    sent_at: float

    @property
    def was_sent(self) -> bool:
        """Whether the request was sent over its connection."""
        return self.replies is not None

    def forget(self) -> None:
        """Ignore the reply."""
        if self.replies is not None:
            self.connection.forget(self.replies)


class AsyncChannel:
    """The way of an asyncio client's requests to the daemon: over one connection at a time, in one event loop.

    ``path`` is the socket of the daemon. ``timeout`` is in seconds: how long a request may take besides its own
    ``wait``, and how long a daemon that went away may take to come back. ``generation`` counts the connections: a bound
    lease ends with its connection, so it has ended when the generation has changed. ``closed`` says whether `close` was
    called.
    """

    def __init__(self, path: Path, timeout: float, generation: int = 0) -> None:
        self.path = path
        self.timeout = timeout
        self.generation = generation
        self.closed = False
        self._connection: AsyncConnection | None = None
        self._connecting = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._features: frozenset[str] = frozenset()
        self._features_of = 0
        self._remembers = 0.0
        watch_forks(self)

    def forked(self) -> None:
        """Start anew in a child process, with a connection of its own. Bound leases are the parent's."""
        self._connecting, self._connection, self._loop = asyncio.Lock(), None, None
        if self.generation:
            self.generation += 1  # the child must not give back, settle or yield what its parent holds

    async def __aenter__(self) -> AsyncChannel:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, and with it every bound lease."""
        self.closed = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            await asyncio.sleep(0)  # lets the transport close its socket before the loop may end

    def sibling(self) -> AsyncChannel:
        """Return a channel with a connection of its own and the same timeout."""
        return AsyncChannel(self.path, self.timeout, self.generation)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, call: Call[T], sent_at: float | None = None) -> T:
        """Send a request and return its outcome. Raises the error that the daemon answers with, or `Unavailable`.

        ``sent_at`` is when it was sent before, in seconds since the epoch.
        """
        reply = (await self.exchange([call.fields], call.wait, sent_at))[0]
        if isinstance(reply, EoqError):
            raise reply
        return call.read(reply)

    async def exchange(
        self, requests: Sequence[Fields], wait: float = 0.0, sent_at: float | None = None
    ) -> list[Fields | EoqError]:
        """Send requests in one go and return the reply to each.

        If the connection breaks, all of them are repeated, until ``timeout`` seconds have passed besides the ``wait``
        seconds for which they ask. ``sent_at`` is when they were sent before, in seconds since the epoch. Raises
        `Unavailable`.
        """
        started = time.monotonic()
        while True:
            try:
                if sent_at is not None:
                    requests = await self._as_repeats(requests, sent_at)
                connection = await self._connect(started + self.timeout)
            except Unavailable as error:
                if sent_at is not None:
                    raise ambiguous(error, requests) from error
                raise
            left = 0.0
            if wait:
                left = max(0.0, started + wait - time.monotonic())
                requests = calls.shortened(requests, left)
            sent_at = time.time() if sent_at is None else sent_at
            try:
                return await connection.finish(await connection.start(requests, self.timeout), left + self.timeout)
            except ConnectionLost as lost:
                self._discard(connection, "it broke")
                if self.closed or isinstance(lost, NotADaemon) or time.monotonic() > started + wait + self.timeout:
                    raise ambiguous(unavailable(self.path, str(lost)), requests) from lost
            except TimeoutError as error:
                raise ambiguous(self._unanswered(connection, left + self.timeout), requests) from error

    async def knows(self, feature: str) -> bool:
        """Return whether the daemon has a feature of ``protocol/features.py``. Asks once for each connection."""
        if self._features_of != self.generation or not self.generation:
            fields = await self.run(calls.query("status"))
            # The connection last: another thread may read the values as soon as it is the present one.
            self._features, self._remembers = frozenset(fields.get("features", ())), float(fields.get("remembers", 0.0))
            self._features_of = self.generation
        return feature in self._features

    async def remembers(self) -> float | None:
        """Return for how many seconds after a first try the daemon surely knows any id; None for an older daemon."""
        return self._remembers if await self.knows(NOT_AFTER) else None

    async def _as_repeats(self, requests: Sequence[Fields], sent_at: float) -> Sequence[Fields]:
        """Return requests as they are repeated. This process may have slept for longer than ids are remembered."""
        if not any(map(is_limited, requests)):
            return requests
        remembers, handles = await self.remembers(), await self.knows(HANDLES)
        not_after = None if remembers is None else stored_until(sent_at, remembers)
        return [as_repeat(fields, not_after, handles) for fields in requests]

    def tell(self, call: Call[None]) -> None:
        """Send a request whose outcome does not matter any more, if there is a connection."""
        if self._connection is not None:
            self._connection.tell(call.fields)

    async def start(self, call: Call[T], connection: AsyncConnection | None = None) -> AsyncStarted[T]:
        """Send a request whose reply `finish` waits for later.

        With a ``connection``, the request goes over that one or not at all.
        """
        connection = await self._connect(time.monotonic() + self.timeout) if connection is None else connection
        sent_at = time.time()
        try:
            return AsyncStarted(call, connection, await connection.start([call.fields], self.timeout), sent_at)
        except (ConnectionLost, TimeoutError):
            return AsyncStarted(call, connection, None, sent_at)

    async def finish(self, started: AsyncStarted[T]) -> T:
        """Return the outcome of a request that was started. Repeats the request if its connection broke."""
        if started.replies is not None:
            seconds = started.call.wait + self.timeout
            try:
                reply = (await started.connection.finish(started.replies, seconds))[0]
            except TimeoutError as error:
                raise ambiguous(self._unanswered(started.connection, seconds), [started.call.fields]) from error
            except ConnectionLost:
                pass
            else:
                if isinstance(reply, EoqError):
                    raise reply
                return started.call.read(reply)
        self._discard(started.connection, "a request could not be sent")
        try:
            return await self.run(started.call, started.sent_at)
        except Unavailable as error:
            raise ambiguous(error, [started.call.fields]) from error

    # ── the connection ──────────────────────────────────────────────────────────────────────────────────

    async def _connect(self, deadline: float) -> AsyncConnection:
        """Return the live connection, or a new one.

        A daemon that was reached before may come back until ``deadline``. One that was never reached is not waited for.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise InvalidRequest("an asyncio client works in the event loop that it began in; make another one here")
        self._loop = loop
        if self._connection is not None:  # the usual case, without a lock
            return self._connection
        waits = pauses(FIRST_RECONNECT_PAUSE, LONGEST_RECONNECT_PAUSE)
        while True:
            async with self._connecting:
                if self.closed:
                    raise unavailable(self.path, "this client is closed", "make another client")
                if self._connection is not None:
                    return self._connection
                try:
                    _, connection = await loop.create_unix_connection(AsyncConnection, str(self.path))
                    connection.require_own(self.path)
                    if self.closed:  # meanwhile
                        connection.close()
                        continue
                    self._connection = connection
                except PermissionError as error:
                    raise forbidden(self.path) from error
                except OSError as error:
                    if self.generation == 0 or time.monotonic() > deadline:
                        raise unavailable(self.path, error.strerror or str(error)) from error
                else:
                    self.generation += 1
                    return self._connection
            await asyncio.sleep(next(waits))

    def _discard(self, connection: AsyncConnection, reason: str) -> None:
        if self._connection is connection:
            self._connection = None
        connection.close(reason)

    def _unanswered(self, connection: AsyncConnection, seconds: float) -> Unavailable:
        """Close a connection on which a reply is overdue, so that its bound leases end. Return the error to raise."""
        self._discard(connection, "a request was not answered in time")
        return unavailable(self.path, f"no answer within {seconds:g} s")
