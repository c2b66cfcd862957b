"""Hang-ups: which clients have disconnected, of those from whom nothing is read.

The event loop tells of a client that disconnects when it reads from it. It does not read from a client that has closed
its sending side and waits for replies, nor from one whose requests wait. So the system is asked about these now and
then.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterable
from itertools import islice
from typing import Final, Protocol

CHECK_SECONDS: Final = 1.0
"""Seconds between two rounds of questions. A client is asked about after two of these times at most."""
MANY: Final = 50
"""From so many connections on, one client may have left hundreds behind, and the others stand in line behind them."""
CROWDED_SECONDS: Final = 0.1
"""How often to ask while there are many."""
MOST_AT_ONCE: Final = 500
"""How many connections to close in one turn of the event loop."""


class Unread(Protocol):
    """A connection, as it is seen here."""

    def descriptor(self) -> int: ...
    def abort(self) -> None: ...


class HangUps:
    """The connections from which nothing is read."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._new: set[Unread] = set()
        """Those since the last check. A busy client is here for a moment, again and again."""
        self._watched: set[Unread] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._crowded = False

    def watch(self, connection: Unread) -> None:
        """Close this connection when its client has disconnected."""
        self._new.add(connection)
        if self._timer is None:
            self._plan(CHECK_SECONDS)
        elif len(self._new) >= MANY and not self._crowded:
            self._timer.cancel()
            self._crowded = True
            self._plan(CROWDED_SECONDS)

    def leave(self, connection: Unread) -> None:
        """Watch a connection no more: it is read from again, or has ended."""
        self._new.discard(connection)
        self._watched.discard(connection)

    def _plan(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._check)

    def _check(self) -> None:
        self._timer = None
        gone = list(islice(_hung_up(self._watched), MOST_AT_ONCE))
        for connection in gone:
            self.leave(connection)
            connection.abort()
        if len(gone) == MOST_AT_ONCE:
            self._plan(0)
            return
        self._watched |= self._new
        self._new.clear()
        self._crowded = len(self._watched) >= MANY
        if self._watched:
            self._plan(CROWDED_SECONDS if self._crowded else CHECK_SECONDS)


def has_hung_up(descriptor: int) -> bool:
    """Return whether the other end of a connection is closed for reading as well."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _hung_up(connections: Iterable[Unread]) -> Iterable[Unread]:
    poll = select.poll()
    by_descriptor = {connection.descriptor(): connection for connection in connections}
    for descriptor in by_descriptor:
        if descriptor >= 0:  # otherwise it is being closed
            poll.register(descriptor, 0)
    return (by_descriptor[descriptor] for descriptor, event in poll.poll(0) if event & select.POLLHUP)
