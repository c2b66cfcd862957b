"""One connection: lines in, replies out, and the limits of one client. `traffic.py` has those of all together."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import Any, Final, Protocol, cast

from ...errors import EoqError, MessageTooLarge, Overloaded
from ...protocol.codec import LineBuffer, encode
from ...protocol.limits import MAX_LINE
from .. import requests as ask
from ..request_fields import Rid
from ..session import Fields, Session
from .hang_ups import HangUps, has_hung_up
from .routes import Route
from .sockets import peer_of
from .traffic import LARGE_REPLY, LIGHT_LINE, QUANTUM, Traffic

log = logging.getLogger("eoq.daemon")

MAX_CONNECTIONS: Final = 4000
"""Connections at once. One more gets an error, and is closed."""
MAX_IN_FLIGHT: Final = 1000
"""Requests of one connection that have no reply yet. Above it nothing more is read from the connection."""
MAX_WAITING: Final = 256
"""Requests of one connection that wait, for messages or for a result. One more is refused."""
MAX_HEAVY: Final = 16
"""Requests of one connection under way whose replies may have megabytes. The next one starts when one is answered, or
found nothing and waits."""
MAX_PARTIAL: Final = 256 * 1024 * 1024
"""Bytes of unfinished lines of all connections together."""
PARTIAL_ALLOWANCE: Final = 256 * 1024
"""Bytes of an unfinished line that a connection may always keep."""
WRITE_HIGH: Final = 64 * 1024
"""Bytes of replies that a client may leave unread. Above it nothing more is read from the connection."""


class Host(Protocol):
    """The server, as its connections see it."""

    routes: dict[type, Route]
    connections: set[ClientConnection]
    unended: set[ClientConnection]
    partial: int
    traffic: Traffic
    hang_ups: HangUps

    def asked(self) -> None: ...
    def answered(self) -> None: ...


class ClientConnection(asyncio.Protocol):
    """The connection of one client. It cuts bytes into requests, and slows down a client that sends too fast."""

    def __init__(self, server: Host) -> None:
        self.gone = asyncio.Event()
        self._server = server
        self._traffic = server.traffic
        self._session = Session()
        self._session.parked = self._parked
        self._lines = LineBuffer(MAX_LINE)
        self._unhandled: deque[bytes] = deque()
        self._counted = 0
        """Bytes of this connection in `Server.partial`."""
        self._in_flight = 0
        self._waiting = 0
        self._fetching: dict[int, int] = {}
        """The bytes reserved for the replies of requests under way, by the identity of the request."""
        self._under_way = 0
        """Requests of this connection in `Traffic.under_way`."""
        self._lost = False
        self._unread_replies = False
        self._unwritten_bytes = 0
        """About how many bytes of messages the replies in `_unwritten` have."""
        self._unwritten: deque[tuple[Rid, Fields | EoqError]] = deque()
        """Replies that wait until the client has read earlier ones. They are encoded later, as some share fields."""
        self._reading = True
        self._handling = False
        self._stopped = False

    # ── from the event loop ─────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transport of a stream socket is an `asyncio.Transport`, although uvloop's does not inherit from it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        self._session.hung_up = self._hung_up
        self._session.consumer, self._session.peer = peer_of(self._transport.get_extra_info("socket"))
        self._server.connections.add(self)
        self._server.unended.add(self)
        if len(self._server.connections) > MAX_CONNECTIONS:
            self._refuse(Overloaded(f"{MAX_CONNECTIONS:,} clients are connected; try again when some have left"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.partial -= self._counted
        self._counted = 0
        self._lost = True
        self._server.hang_ups.leave(self)
        self._traffic.under_way -= self._under_way
        for size in self._fetching.values():
            self._traffic.fetched(size)
        self._fetching.clear()
        # Now, and not when Python's collector finds this connection: it may have megabytes.
        self._lines.clear()
        self._unhandled.clear()
        self._unwritten.clear()
        self._traffic.forget(self)
        if self._traffic.held:
            self._traffic.resume()
        self._session.mark_closed()
        self._traffic.close_later(self._end)

    def _end(self) -> None:
        self._session.close()
        self._server.unended.discard(self)
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        if self._stopped:
            return
        self._server.asked()
        self._unhandled.extend(self._lines.feed(data))
        self.handle_lines()
        if self._lines.unfinished != self._counted or self._lines.overflowed:
            self._check_partial_line()

    def eof_received(self) -> bool:
        # A client may close its sending side (`printf … | nc -N -U`) and still read: its replies go out first. A client
        # that was killed reads no more. Its bound leases must be given back now, not at the first reply.
        self._stopped = True
        stays = (self._in_flight > 0 or bool(self._unhandled)) and not self._hung_up()
        if stays:
            self._server.hang_ups.watch(self)
        return stays

    def pause_writing(self) -> None:
        self._unread_replies = True
        self._traffic.unread(self, self.unread_bytes())
        self._read_or_not()

    def resume_writing(self) -> None:
        self._unread_replies = False
        self._traffic.unread(self, self._unwritten_bytes)
        if self.write_some():
            self._traffic.has_replies(self)
        self.handle_lines()
        self._close_if_answered()

    def _hung_up(self) -> bool:
        return self._transport.is_closing() or has_hung_up(self.descriptor())

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

    def unread_bytes(self) -> int:
        """Return about how many bytes of replies the client has not read."""
        return self._transport.get_write_buffer_size() + self._unwritten_bytes

    def descriptor(self) -> int:
        """Return the descriptor of the socket."""
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor

    # ── one line ────────────────────────────────────────────────────────────────────────────────────────

    def _full(self) -> bool:
        """Return whether so many requests of this client are under way that its next one has to wait."""
        return self._unread_replies or self._in_flight >= MAX_IN_FLIGHT or len(self._fetching) >= MAX_HEAVY

    def handle_lines(self) -> None:
        """Handle the lines that were read: all, or as many as a turn has time for."""
        if self._handling:
            return
        if self._traffic.busy:
            # Hundreds of connections may have lines in the same iteration of the event loop. One line of each is quick.
            if self.handle_some(1):
                self._traffic.has_lines(self)
        elif self.handle_some() and not self._handle_until(self._traffic.turn_end()):
            self._traffic.has_lines(self)

    def handle_one_anyway(self) -> bool:
        """Handle a line although so much is under way. Return whether there are more that can be handled."""
        return self.handle_some(1, anyway=True)

    def handle_some(self, most: int = QUANTUM, *, anyway: bool = False) -> bool:
        """Handle a few lines. Return whether more of them can be handled now.

        While the daemon is overloaded, only a light line is handled of a client with nothing else under way, or a line
        in any case (``anyway``).
        """
        self._handling = True
        if not self._unhandled:
            self._traffic.pass_over(self)
        for _ in range(min(most, len(self._unhandled))):
            if self._full() or self._session.closed:
                self._traffic.pass_over(self)
                break
            must_wait = self._under_way or len(self._unhandled[0]) > LIGHT_LINE
            if not anyway and must_wait and self._traffic.overloaded:
                self._handling = False
                self._read_or_not()
                return True
            if not self._handle(self._unhandled.popleft()):
                break
        else:
            self._handling = False
            self._read_or_not()
            return bool(self._unhandled) and not self._full() and not self._session.closed
        self._handling = False
        self._read_or_not()
        return False

    def _handle_until(self, end: float) -> bool:
        """Handle the lines as long as there is time. Return whether that was enough."""
        while self.handle_some():
            if self._traffic.overloaded or self._traffic.is_over(end):
                return False
        return True

    def _handle(self, line: bytes) -> bool:
        """Handle one line. Return False if it has to wait for the replies of others, or if eoq has failed."""
        try:
            request = ask.decode(line)
        except EoqError as error:
            self._write(ask.rid_of(line), error)
            return True
        except Exception as fault:  # noqa: BLE001 # `_fail` logs it
            self._fail(fault)
            return False
        route = self._server.routes[type(request)]
        waits = route.may_wait and getattr(request, "wait", 0.0) > 0
        if waits and self._waiting >= MAX_WAITING:
            self._write(request.rid, Overloaded(f"{MAX_WAITING} requests of this connection wait already"))
            return True
        if route.size:
            if not self._traffic.fetch(self, route.size, not self._under_way):
                self._unhandled.appendleft(line)
                return False
            self._fetching[id(request)] = route.size
        self._in_flight += 1
        self._waiting += waits
        self._under_way += 1
        self._traffic.under_way += 1
        reply = partial(self._reply, request, waits)
        try:
            route.handle(self._session, request, reply)
        except EoqError as error:
            reply(error)
        except Exception as fault:  # noqa: BLE001 # `_fail` logs it
            self._fail(fault)
            return False
        return True

    def _parked(self, request: object) -> None:
        """Note that a request waits. It may do so for long, and then takes nothing from others."""
        size = self._fetching.pop(id(request), 0)
        if size:
            self._under_way -= 1
            self._traffic.under_way -= 1
            self._traffic.fetched(size)
            if self._traffic.held:
                self._traffic.resume()
            if not self._reading:
                self._traffic.has_lines(self)

    def _fail(self, fault: Exception) -> None:
        """Close this connection, since eoq failed at a line of it. The daemon and its other clients go on."""
        log.error("a connection is closed: eoq failed at a request", exc_info=fault)
        self._unhandled.clear()
        self._refuse(EoqError(f"the daemon failed at this request, and closed the connection: {fault!r}"))

    def _reply(self, request: Any, waited: bool, outcome: Fields | EoqError) -> None:
        if self._lost:
            return
        traffic = self._traffic
        self._in_flight -= 1
        self._waiting -= waited
        size = self._fetching.pop(id(request), 0)
        if size or not waited:
            self._under_way -= 1
            traffic.under_way -= 1
        self._write(request.rid, outcome)
        if size:
            traffic.fetched(size)
        if traffic.held:
            traffic.resume()
        if not self._reading:
            self.handle_lines()
        self._close_if_answered()

    def _close_if_answered(self) -> None:
        if self._stopped and self._in_flight == 0 and not self._unhandled and not self._unwritten:
            self._transport.close()

    def _write(self, rid: Rid, outcome: Fields | EoqError) -> None:
        if not self._unread_replies and not self._unwritten and not self._traffic.crowded:
            self._encode(rid, outcome)
        elif not self._session.closed:
            self._unwritten.append((rid, outcome))
            self._unwritten_bytes += _bytes_of(outcome)
            if self._unread_replies:
                self._traffic.unread(self, self.unread_bytes())
            else:
                self._traffic.has_replies(self)

    def write_some(self) -> bool:
        """Encode replies that stand in line. Return whether there are more that can be encoded."""
        while self._unwritten and not self._unread_replies:
            if self._traffic.crowded:
                return True
            rid, outcome = self._unwritten.popleft()
            self._unwritten_bytes -= _bytes_of(outcome)
            self._encode(rid, outcome)
        self._close_if_answered()
        return False

    def _encode(self, rid: Rid, outcome: Fields | EoqError) -> None:
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
        if len(line) >= LARGE_REPLY:
            self._traffic.encoded(len(line))
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
                self._server.hang_ups.leave(self)
            else:
                self._transport.pause_reading()
                self._server.hang_ups.watch(self)


def _bytes_of(outcome: Fields | EoqError) -> int:
    """Return about how many bytes the messages of a reply have. Other large replies exist once for all who wait."""
    if isinstance(outcome, EoqError) or "messages" not in outcome:
        return 0
    return sum(len(message.get("body") or message.get("body_base64") or "") for message in outcome["messages"])
