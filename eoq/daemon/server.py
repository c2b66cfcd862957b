"""The socket: connections, lines in, replies out, and the limits that keep a stranger from hurting the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from functools import partial
from pathlib import Path
from typing import Final, cast

from ..errors import EoqError, InvalidRequest, MessageTooLarge, Overloaded
from ..protocol import MAX_LINE, LineBuffer
from . import requests as ask
from .broker import Broker, Fields, Session
from .locks import Locked, cannot_use
from .looking import Looker

MAX_CONNECTIONS: Final = 4000
"""Connections at once; one more is told so and closed."""
MAX_IN_FLIGHT: Final = 1000
"""Requests of one connection that have no reply yet; above it nothing more is read from it."""
MAX_RECEIVES: Final = 64
"""Receives of one connection that have no reply yet: each may bring megabytes."""
MAX_PARTIAL: Final = 256 * 1024 * 1024
"""Bytes of unfinished lines of all connections together."""
PARTIAL_ALLOWANCE: Final = 256 * 1024
"""Bytes of an unfinished line that a connection may always keep."""
WRITE_HIGH: Final = 1024 * 1024
"""Bytes of replies that a connection may leave unread; above it nothing more is read from it."""


class Server:
    """Accepts connections on a Unix socket and hands their requests to the broker or the looker."""

    def __init__(self, broker: Broker, looker: Looker) -> None:
        self.broker = broker
        self.looker = looker
        self.connections: set[Connection] = set()
        self.partial = 0
        self._server: asyncio.AbstractServer | None = None
        self._listening: socket.socket | None = None

    async def start(self, path: Path) -> None:
        """Listens on ``path``. A stale socket there is replaced; a live one raises `Locked`."""
        self._listening = _bind(path)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Connection(self), sock=self._listening, backlog=1024)

    def refuse_new(self) -> None:
        """Accepts no more connections and reads no more requests; those under way are answered."""
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.stop_reading()

    async def close(self) -> None:
        """Closes all connections once their replies are written, or after a second."""
        for connection in tuple(self.connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while self.connections:
                    await next(iter(self.connections)).gone.wait()
        for connection in tuple(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client: cuts its bytes into requests, and holds back what it sends too fast."""

    def __init__(self, server: Server) -> None:
        self.gone = asyncio.Event()
        self._server = server
        self._session = Session()
        self._lines = LineBuffer(MAX_LINE)
        self._counted = 0
        self._in_flight = 0
        self._paused_by_load = False
        self._paused_by_writes = False
        self._stopped = False

    # ── from the event loop ─────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream socket's transport is one, though uvloop's does not inherit from it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        self._server.connections.add(self)
        if len(self._server.connections) > MAX_CONNECTIONS:
            self._refuse(Overloaded(f"{MAX_CONNECTIONS:,} clients are connected; try again when some have left"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.partial -= self._counted
        self._counted = 0
        self._server.broker.closed(self._session)
        self._server.looker.closed(self._session)
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        if self._stopped:
            return
        for line in self._lines.feed(data):
            self._handle(line)
        self._check_partial_line()

    def eof_received(self) -> bool:
        # A client may close its sending side (`printf … | nc -N -U`) and still read: its replies go out first. One
        # that was killed reads no more, and what is bound to it must be given back now, not at the first reply.
        self._stopped = True
        return self._in_flight > 0 and not self._hung_up()

    def pause_writing(self) -> None:
        self._paused_by_writes = True
        self._read_or_not()

    def resume_writing(self) -> None:
        self._paused_by_writes = False
        self._read_or_not()

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    # ── from the server ─────────────────────────────────────────────────────────────────────────────────

    def stop_reading(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # ── one line ────────────────────────────────────────────────────────────────────────────────────────

    def _handle(self, line: bytes) -> None:
        try:
            request = ask.decode(line)
        except EoqError as error:
            self._write(ask.rid_of(line), error)
            return
        if isinstance(request, ask.Receive) and len(self._session.waiting) >= MAX_RECEIVES:
            self._write(request.rid, Overloaded(f"{MAX_RECEIVES} receives of this connection wait already"))
            return
        self._in_flight += 1
        reply = partial(self._reply, request.rid)
        try:
            if self._server.looker.handles(request):
                self._server.looker.handle(self._session, request, reply)
            else:
                self._server.broker.handle(self._session, request, reply)
        except EoqError as error:
            reply(error)
        if self._in_flight > MAX_IN_FLIGHT and not self._paused_by_load:
            self._paused_by_load = True
            self._read_or_not()

    def _reply(self, rid: ask.Rid, outcome: Fields | EoqError) -> None:
        self._in_flight -= 1
        self._write(rid, outcome)
        if self._paused_by_load and self._in_flight < MAX_IN_FLIGHT // 2:
            self._paused_by_load = False
            self._read_or_not()
        if self._stopped and self._in_flight == 0:
            self._transport.close()

    def _write(self, rid: ask.Rid, outcome: Fields | EoqError) -> None:
        if self._session.closed:
            return
        reply: Fields = {} if rid is None else {"rid": rid}
        if isinstance(outcome, EoqError):
            reply["ok"] = False
            reply["error"] = {"code": outcome.code, "message": str(outcome)}
        else:
            reply["ok"] = True
            reply.update(outcome)
        self._transport.write(ask.encode(reply))

    # ── limits ──────────────────────────────────────────────────────────────────────────────────────────

    def _check_partial_line(self) -> None:
        kept = len(self._lines)
        self._server.partial += kept - self._counted
        self._counted = kept
        if self._lines.overflowed:
            self._refuse(
                MessageTooLarge(
                    f"a line may have {MAX_LINE:,} bytes; the connection is closed, send less in one request"
                )
            )
        elif self._server.partial > MAX_PARTIAL and kept > PARTIAL_ALLOWANCE:
            self._refuse(Overloaded("too many long requests at once; the connection is closed, try again later"))

    def _refuse(self, error: EoqError) -> None:
        """Says why, and closes the connection."""
        self._stopped = True
        self._write(None, error)
        self._transport.close()

    def _read_or_not(self) -> None:
        if self._transport.is_closing():
            return
        if self._paused_by_load or self._paused_by_writes:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _bind(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            _require_stale(path)
            path.unlink()
        elif path.exists():
            raise InvalidRequest(f"{path} exists and is no socket; give another path with --socket")
        old_mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(old_mask)
    except OSError as error:
        listening.close()
        if "too long" in str(error):
            raise InvalidRequest(
                f"{path} is too long for a socket (about 100 bytes); give a shorter --socket"
            ) from error
        raise cannot_use(path, error) from error
    except BaseException:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def _require_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except TimeoutError:
            pass
    raise Locked(f"another program answers on {path}; stop it (`eoq stop`), or give this daemon another --socket")
