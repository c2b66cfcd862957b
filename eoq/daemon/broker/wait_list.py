"""Requests that wait: for a message, for a result, or for the run of another client.

Joining, leaving, cancelling a request and closing a connection take the same time however many requests wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Generic, TypeVar

from msgspec import Struct

from ..clock import Clock, Timer
from ..session import Reply, Session


class Waiter(Struct, eq=False, kw_only=True):
    """A request that has not been answered."""

    session: Session
    reply: Reply
    key: Hashable
    """What it waits for. Waiters for one key stand in one line."""
    name: Hashable = None
    """The name by which its client ends the wait. Several waiters may have one name."""
    timer: Timer | None = None
    joined: bool = False
    """Whether it is in its `WaitList`."""


W = TypeVar("W", bound=Waiter)


class WaitList(Generic[W]):
    """Waiters in lines, one line for each key, first in first out."""

    def __init__(self, clock: Clock, expired: Callable[[W], None], emptied: Callable[[W], None] | None = None) -> None:
        """``expired`` is called with a waiter whose wait has ended, ``emptied`` with the last one that left a line."""
        self.count = 0
        """How many requests wait."""
        self._clock = clock
        self._expired = expired
        self._emptied = emptied
        # Ordered dictionaries serve as ordered sets. In a plain dictionary, Python finds the first entry only by
        # passing over every entry that was removed before it.
        self._lines: dict[Hashable, OrderedDict[W, None]] = {}
        self._by_session: dict[Session, dict[W, None]] = {}
        self._by_name: dict[Hashable, dict[W, None]] = {}

    def join(self, waiter: W, *, first: bool = False) -> None:
        """Put a waiter at the end of its line, or ``first`` in it. It leaves when its connection ends."""
        line = self._lines.get(waiter.key)
        if line is None:
            line = self._lines[waiter.key] = OrderedDict()
        line[waiter] = None
        if first:
            line.move_to_end(waiter, last=False)
        mine = self._by_session.get(waiter.session)
        if mine is None:
            mine = self._by_session[waiter.session] = {}
            waiter.session.on_close(partial(self._close, waiter.session))
        mine[waiter] = None
        if waiter.name is not None:
            self._by_name.setdefault(waiter.name, {})[waiter] = None
        waiter.joined = True
        self.count += 1

    def start_timer(self, waiter: W, seconds: float) -> None:
        """End the wait of a waiter in ``seconds``, unless it leaves before."""
        waiter.timer = self._clock.call_later(seconds, partial(self._expired, waiter))

    def leave(self, waiter: W) -> bool:
        """Remove a waiter, and stop its timer. Return False where it is not in the list."""
        if waiter.timer is not None:
            waiter.timer.cancel()
            waiter.timer = None
        if not waiter.joined:
            return False
        waiter.joined = False
        self.count -= 1
        del self._by_session[waiter.session][waiter]
        if waiter.name is not None:
            same = self._by_name[waiter.name]
            del same[waiter]
            if not same:
                del self._by_name[waiter.name]
        line = self._lines[waiter.key]
        del line[waiter]
        if not line:
            del self._lines[waiter.key]
            if self._emptied is not None:
                self._emptied(waiter)
        return True

    def pop_first(self, key: Hashable) -> W | None:
        """Remove the first waiter of a line, and return it. Its timer goes on."""
        line = self._lines.get(key)
        if line is None:
            return None
        waiter = next(iter(line))
        timer, waiter.timer = waiter.timer, None
        self.leave(waiter)
        waiter.timer = timer
        return waiter

    def line(self, key: Hashable) -> Collection[W]:
        """Return the waiters for a key, in their order. The collection changes as they join and leave."""
        return self._lines.get(key, ())

    def named(self, name: Hashable) -> list[W]:
        """Return the waiters of one name."""
        return list(self._by_name.get(name, ()))

    def all_waiters(self) -> list[W]:
        """Return all waiters."""
        return [waiter for line in self._lines.values() for waiter in line]

    def _close(self, session: Session) -> None:
        for waiter in list(self._by_session[session]):
            self.leave(waiter)
        del self._by_session[session]
