"""The server: connections, lines in, replies out, and the limits that keep one client from harming the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, cast

from ...errors import EoqError, MessageTooLarge, Overloaded
from ...protocol.codec import LineBuffer, encode
from ...protocol.limits import MAX_LINE
from ...system.spin import Spin
from .. import requests as ask
from ..locks import Lock, Locked
from ..session import Fields, Handler, Handlers, Session
from .sockets import has_hung_up, identity_of, listen, peer_of

log = logging.getLogger("eoq.daemon")

MAX_CONNECTIONS: Final = 4000
"""Connections at once. One more gets an error, and is closed."""
MAX_IN_FLIGHT: Final = 1000
"""Requests of one connection that have no reply yet. Above it nothing more is read from the connection."""
MAX_WAITING: Final = 256
"""Requests of one connection that wait, for messages or for a result. One more is refused."""
MAX_HEAVY: Final = 16
"""Requests of one connection under way whose replies may have megabytes. The next one starts when one is answered."""
WAITING: Final = (ask.Receive, ask.GetResult, ask.Once, ask.Tail)
HEAVY: Final = (
    *(ask.Receive, ask.GetResult, ask.Once, ask.Queues, ask.Peek, ask.Show, ask.Tail),
    *(ask.ScheduleShow, ask.Schedules),
)
MAX_PARTIAL: Final = 256 * 1024 * 1024
"""Bytes of unfinished lines of all connections together."""
PARTIAL_ALLOWANCE: Final = 256 * 1024
"""Bytes of an unfinished line that a connection may always keep."""
WRITE_HIGH: Final = 1024 * 1024
"""Bytes of replies that a client may leave unread. Above it nothing more is read from the connection."""
HUNG_UP_SECONDS: Final = 1.0
"""How often to check clients that only read, since no event says that one has disconnected."""
SOCKET_SECONDS: Final = 3.0
"""How often to check that the file of the socket is still there. An idle daemon wakes for nothing else."""
SPIN_SECONDS: Final = 0.0003
"""How long the event loop stays awake for the next of several requests in a row. A client sends it sooner."""


class Route(NamedTuple):
    """How one type of request is handled."""

    handle: Handler
    may_wait: bool
    heavy: bool


class Server:
    """The server of a Unix socket. It passes the requests of its connections to the handlers."""

    def __init__(self) -> None:
        self.routes: dict[type, Route] = {}
        self.connections: set[ClientConnection] = set()
        self.partial = 0
        """Bytes of unfinished lines of all connections."""
        self._only_reading: set[ClientConnection] = set()
        self._loop = asyncio.get_running_loop()
        self._spin = Spin(SPIN_SECONDS)
        self._spinning = False
        self._has_answered = False
        """Whether a reply has gone out since the last request."""
        self._server: asyncio.AbstractServer | None = None
        self._path: Path | None = None
        self._identity: tuple[int, int] | None = None
        """Device and number of the socket's file, by which a file of another program is told from it."""

    def add(self, handlers: Handlers) -> None:
        """Pass the requests of these types to these handlers."""
        for kind, handle in handlers.items():
            self.routes[kind] = Route(handle, kind in WAITING, kind in HEAVY)

    async def start(self, path: Path) -> None:
        """Accept connections on ``path``. Replace a stale socket there. Raises `Locked` where one is in use."""
        listening = listen(path)
        self._path, self._identity = path, identity_of(path)
        self._server = await self._loop.create_unix_server(lambda: ClientConnection(self), sock=listening, backlog=1024)

    async def keep_socket(self, lock: Lock) -> None:
        """Make the socket and its lock file again when they were removed, until this task is cancelled.

        That happens: a session ends, and its runtime folder goes; a job cleans /tmp. The folder is made again as well.
        """
        logged = ""
        while True:
            await asyncio.sleep(SOCKET_SECONDS)
            try:
                await self._restore_socket(lock)
            except (EoqError, OSError) as error:
                if logged != str(error):
                    logged = str(error)
                    log.error("no client can connect: %s", error)
            else:
                logged = ""

    async def _restore_socket(self, lock: Lock) -> None:
        path = self._path
        assert path is not None and self._server is not None  # noqa: S101 # it was started
        found = identity_of(path)
        if found is not None and found != self._identity:
            raise Locked(
                f"another program has replaced {path}; remove that file, and this daemon makes its socket again"
            )
        if found is None:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
        if not lock.is_in_place:
            lock.restore()
        if found is None:
            self._server.close()
            await self.start(path)
            log.warning("%s was removed; it is made again", path)

    def remove_socket(self) -> None:
        """Remove the file of the socket, if it is still this daemon's."""
        if self._path is not None and identity_of(self._path) == self._identity:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def asked(self) -> None:
        """Note that a request has arrived."""
        if self._has_answered:
            self._has_answered = False
            self._spin.end()

    def answered(self) -> None:
        """Note that a reply goes out, alone or before others.

        In a row of requests the next one arrives at once, and the event loop stays awake for it.
        """
        if self._has_answered:
            return
        self._has_answered = True
        if self._spin.begin() and not self._spinning:
            self._spinning = True
            self._loop.call_soon(self._stay_awake)

    def _stay_awake(self) -> None:
        self._spinning = self._spin.again()
        if self._spinning:
            self._loop.call_soon(self._stay_awake)

    def only_reads(self, connection: ClientConnection) -> None:
        """Check a client now and then: it has closed its sending side, and waits for replies."""
        if not self._only_reading:
            self._loop.call_later(HUNG_UP_SECONDS, self._abort_hung_up)
        self._only_reading.add(connection)

    def _abort_hung_up(self) -> None:
        self._only_reading &= self.connections
        for connection in self._only_reading:
            connection.abort_if_hung_up()
        if self._only_reading:
            self._loop.call_later(HUNG_UP_SECONDS, self._abort_hung_up)

    def refuse_new(self) -> None:
        """Accept no more connections and read no more requests. Those under way are answered."""
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.stop_reading()

    async def close(self) -> None:
        """Close all connections once their replies are written, or after a second."""
        for connection in tuple(self.connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while self.connections:
                    await next(iter(self.connections)).gone.wait()
        for connection in tuple(self.connections):
            connection.abort()


class ClientConnection(asyncio.Protocol):
    """The connection of one client. It cuts bytes into requests, and slows down a client that sends too fast."""

    def __init__(self, server: Server) -> None:
        self.gone = asyncio.Event()
        self._server = server
        self._session = Session()
        self._lines = LineBuffer(MAX_LINE)
        self._unhandled: deque[bytes] = deque()
        self._counted = 0
        """Bytes of this connection in `Server.partial`."""
        self._in_flight = 0
        self._waiting = 0
        self._heavy = 0
        self._unread_replies = False
        self._unwritten: deque[tuple[ask.Rid, Fields | EoqError]] = deque()
        """Replies that wait until the client has read earlier ones. They are encoded later, as some share fields."""
        self._reading = True
        self._handling = False
        self._stopped = False

    # ── from the event loop ─────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transport of a stream socket is an `asyncio.Transport`, although uvloop's does not inherit from it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        self._session.consumer = peer_of(self._transport.get_extra_info("socket"))
        self._server.connections.add(self)
        if len(self._server.connections) > MAX_CONNECTIONS:
            self._refuse(Overloaded(f"{MAX_CONNECTIONS:,} clients are connected; try again when some have left"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.partial -= self._counted
        self._counted = 0
        self._session.close()
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        if self._stopped:
            return
        self._server.asked()
        self._unhandled.extend(self._lines.feed(data))
        self._handle_lines()
        if self._lines.unfinished != self._counted or self._lines.overflowed:
            self._check_partial_line()

    def eof_received(self) -> bool:
        # A client may close its sending side (`printf … | nc -N -U`) and still read: its replies go out first. A client
        # that was killed reads no more. Its bound leases must be given back now, not at the first reply.
        self._stopped = True
        stays = (self._in_flight > 0 or bool(self._unhandled)) and not self._hung_up()
        if stays:
            self._session.hung_up = self._hung_up
            self._server.only_reads(self)
        return stays

    def pause_writing(self) -> None:
        self._unread_replies = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self._unread_replies = False
        while self._unwritten and not self._unread_replies:
            self._encode(*self._unwritten.popleft())
        self._handle_lines()
        self._close_if_answered()

    def _hung_up(self) -> bool:
        return self._transport.is_closing() or has_hung_up(self._transport.get_extra_info("socket").fileno())

    # ── from the server ─────────────────────────────────────────────────────────────────────────────────

    def stop_reading(self) -> None:
        """Handle no more requests. Those under way are answered."""
        self._stopped = True
        self._unhandled.clear()

    def close(self) -> None:
        """Close the connection when all that was written has been sent. One with unread replies stays open."""
        if not self._unwritten:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    def abort_if_hung_up(self) -> None:
        """Close the connection now if its client reads no more."""
        if self._hung_up():
            self._transport.abort()

    # ── one line ────────────────────────────────────────────────────────────────────────────────────────

    def _full(self) -> bool:
        """Return whether so many requests of this client are under way that its next one has to wait."""
        return self._unread_replies or self._in_flight >= MAX_IN_FLIGHT or self._heavy >= MAX_HEAVY

    def _handle_lines(self) -> None:
        if self._handling:
            return
        self._handling = True
        while self._unhandled and not self._full() and not self._session.closed:
            self._handle(self._unhandled.popleft())
        self._handling = False
        self._read_or_not()

    def _handle(self, line: bytes) -> None:
        try:
            request = ask.decode(line)
        except EoqError as error:
            self._write(ask.rid_of(line), error)
            return
        except Exception as fault:  # noqa: BLE001 # `_fail` logs it
            self._fail(fault)
            return
        route = self._server.routes[type(request)]
        waits = route.may_wait and getattr(request, "wait", 0.0) > 0
        heavy = route.heavy and not waits
        if waits and self._waiting >= MAX_WAITING:
            self._write(request.rid, Overloaded(f"{MAX_WAITING} requests of this connection wait already"))
            return
        self._in_flight += 1
        self._waiting += waits
        self._heavy += heavy
        reply = partial(self._reply, request.rid, waits, heavy)
        try:
            route.handle(self._session, request, reply)
        except EoqError as error:
            reply(error)
        except Exception as fault:  # noqa: BLE001 # `_fail` logs it
            self._fail(fault)

    def _fail(self, fault: Exception) -> None:
        """Close this connection, since eoq failed at a line of it. The daemon and its other clients go on."""
        log.error("a connection is closed: eoq failed at a request", exc_info=fault)
        self._unhandled.clear()
        self._refuse(EoqError(f"the daemon failed at this request, and closed the connection: {fault!r}"))

    def _reply(self, rid: ask.Rid, waited: bool, heavy: bool, outcome: Fields | EoqError) -> None:
        self._in_flight -= 1
        self._waiting -= waited
        self._heavy -= heavy
        self._write(rid, outcome)
        if not self._reading:
            self._handle_lines()
        self._close_if_answered()

    def _close_if_answered(self) -> None:
        if self._stopped and self._in_flight == 0 and not self._unhandled and not self._unwritten:
            self._transport.close()

    def _write(self, rid: ask.Rid, outcome: Fields | EoqError) -> None:
        if self._unread_replies:
            self._unwritten.append((rid, outcome))
        else:
            self._encode(rid, outcome)

    def _encode(self, rid: ask.Rid, outcome: Fields | EoqError) -> None:
        if self._session.closed:
            return
        if isinstance(outcome, EoqError):
            reply: Fields = {"rid": rid, "ok": False, "error": {"code": outcome.code, "message": str(outcome)}}
        else:
            reply = {"rid": rid, "ok": True, **outcome}
        if rid is None:
            del reply["rid"]
        try:
            line = ask.encode(reply)
        except (ValueError, TypeError, OverflowError, RecursionError):
            line = encode(reply)  # it writes paths that are not UTF-8, and very large numbers
        self._transport.write(line)
        self._server.answered()

    # ── limits ──────────────────────────────────────────────────────────────────────────────────────────

    def _check_partial_line(self) -> None:
        unfinished = self._lines.unfinished
        self._server.partial += unfinished - self._counted
        self._counted = unfinished
        if self._lines.overflowed:
            self._refuse(
                MessageTooLarge(
                    f"a line may have {MAX_LINE:,} bytes; the connection is closed, send less in one request"
                )
            )
        elif self._server.partial > MAX_PARTIAL and unfinished > PARTIAL_ALLOWANCE:
            self._refuse(Overloaded("too many long requests at once; the connection is closed, try again later"))

    def _refuse(self, error: EoqError) -> None:
        """Send an error, and close the connection."""
        self._stopped = True
        self._encode(None, error)
        self._transport.close()

    def _read_or_not(self) -> None:
        """Read on only when all requests that were read before are under way."""
        reading = not self._unhandled and not self._full()
        if reading != self._reading and not self._transport.is_closing() and not self._stopped:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
