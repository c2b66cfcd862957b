"""A connection to the daemon that all tasks of an asyncio client share.

Requests are pipelined on it, and replies come in any order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

from ..errors import EoqError, Forbidden
from ..protocol import calls
from ..protocol.codec import Codec, Fields, LineBuffer
from ..protocol.limits import MAX_LINE
from ..protocol.validation import too_long
from ..system.forks import watch_forks
from .connection import ConnectionLost, NotADaemon
from .peer import require_own

Replies: TypeAlias = "dict[int, asyncio.Future[Fields | EoqError]]"


class AsyncConnection(asyncio.Protocol):
    """One live connection, shared by all tasks of a client."""

    def __init__(self) -> None:
        self._codec = Codec()
        self._lines = LineBuffer(2**63)
        self._replies: dict[int, asyncio.Future[Fields | EoqError]] = {}
        self._last_rid = 0
        self._broken: str | None = None
        self._not_a_daemon = False
        self._writable = asyncio.Event()
        self._writable.set()

    def forked(self) -> None:
        """Replace the child's copy of the socket by one that leads nowhere. The parent's connection stays open."""
        self._broken = "it is the connection of the parent process"
        descriptor = self._transport.get_extra_info("socket").fileno()
        if descriptor >= 0:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, descriptor, inheritable=False)  # the transport closes the descriptor of this number
            os.close(nowhere)

    def require_own(self, path: Path) -> None:
        """Close the connection, and raise `Forbidden`, if the program at the other end is that of another user."""
        try:
            require_own(self._transport.get_extra_info("socket"), path)
        except Forbidden:
            self.close("it is the daemon of another user")
            raise

    async def start(self, requests: Sequence[Fields], seconds: float) -> Replies:
        """Send ``requests`` in one go. Return the futures of their replies, for `finish` or `forget`.

        Raises what `finish` raises.
        """
        self._raise_if_broken()
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._writable.wait()
            except TimeoutError:
                self.close("the daemon took no more requests")
                raise
            self._raise_if_broken()
        loop = asyncio.get_running_loop()
        lines = []
        replies: Replies = {}
        for request in requests:
            self._last_rid += 1
            line = self._codec.encode({"rid": self._last_rid, **request})
            if len(line) > MAX_LINE:
                raise too_long(line)
            lines.append(line)
            replies[self._last_rid] = loop.create_future()
        self._replies.update(replies)
        self._transport.write(b"".join(lines))
        return replies

    async def finish(self, replies: Replies, seconds: float) -> list[Fields | EoqError]:
        """Wait for the replies, ``seconds`` at most. Raises `ConnectionLost` or `TimeoutError`."""
        try:
            async with asyncio.timeout(seconds):
                return [await reply for reply in replies.values()]
        except asyncio.CancelledError:
            self._give_up(replies)
            raise
        finally:
            self.forget(replies)

    def _give_up(self, replies: Replies) -> None:
        """Cancel requests that nothing waits for any more, and give back messages that come nevertheless."""
        for rid, reply in replies.items():
            if not reply.done() or reply.cancelled():  # it is cancelled with the task that waited for it
                self.tell(calls.cancel(rid))
            elif reply.exception() is None:
                self._release(reply.result())

    def _release(self, reply: Fields | EoqError) -> None:
        if isinstance(reply, dict) and (request := calls.release_delivered(reply)) is not None:
            self.tell(request)

    def tell(self, request: Fields) -> None:
        """Send a request and ignore its reply."""
        if self._broken is None:
            self._last_rid += 1
            self._transport.write(self._codec.encode({"rid": self._last_rid, **request}))

    def forget(self, replies: Replies) -> None:
        """Ignore these replies."""
        for rid, reply in replies.items():
            self._replies.pop(rid, None)
            if not reply.cancel() and not reply.cancelled():
                reply.exception()  # retrieved, so that the loop does not warn of it

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise (NotADaemon if self._not_a_daemon else ConnectionLost)(self._broken)

    def close(self, reason: str = "the client was closed") -> None:
        """End the connection. Tasks that wait on it get `ConnectionLost`."""
        self._break(reason)
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transport of a stream socket is an `asyncio.Transport`, although uvloop's does not inherit from it.
        self._transport = cast(asyncio.Transport, transport)
        watch_forks(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(str(exc) if exc else "the daemon closed the connection")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            try:
                rid, reply = self._codec.decode(line)
            except ValueError:
                self._not_a_daemon = True
                self.close("the program that answers there is not an eoq daemon")
                return
            # A reply without a rid concerns the whole connection, which the daemon then closes: it is for all.
            for waiting in list(self._replies) if rid is None else [rid]:
                future = self._replies.get(waiting)
                if future is not None and not future.done():
                    future.set_result(reply)
                else:
                    self._release(reply)

    def _break(self, reason: str) -> None:
        if self._broken is None:
            self._broken = reason
        self._writable.set()
        for future in self._replies.values():
            if not future.done():
                future.set_exception((NotADaemon if self._not_a_daemon else ConnectionLost)(reason))
