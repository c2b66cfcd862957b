"""Traffic: what all connections take together, so that no client takes what the others need.

The event loop does one thing at a time. So whoever sends many lines, reads many large replies or leaves many waits
behind gets a short turn, and then the others have theirs. And the bytes of replies are limited over all connections.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Protocol

log = logging.getLogger("eoq.daemon")

TURN_SECONDS: Final = 0.008
"""How long the lines of one connection, or the waiting work of all, may take before the event loop goes on."""
QUANTUM: Final = 16
"""Lines that a connection may have handled in one turn in any case."""
MOST_UNDER_WAY: Final = 1000
"""With more requests under way, long lines wait, and the lines of all connections that have some under way."""
MOST_BACKLOG: Final = 4000
"""These lines also wait while the commands of the store that are not finished weigh more than this."""
LIGHT_LINE: Final = 4096
"""Bytes of a light line. A connection with nothing else under way does not wait for that, if its line is light."""
TURN_BYTES: Final = 2 * 1024 * 1024
"""Bytes of large replies to encode before the event loop goes on."""
LARGE_REPLY: Final = 16 * 1024
"""Bytes from which on a reply counts towards `TURN_BYTES`."""
MAX_FETCHING: Final = 64 * 1024 * 1024
"""Bytes of the replies to all requests under way, together. Each counts with the most that it may have."""
SIZES: Final = (2 * 1024 * 1024, 16 * 1024 * 1024)
"""Bytes up to which a reply is large, or very large, or one of few. Each kind has a budget of its own. So a receive
waits neither for the metrics of thousands of queues, which are made at leisure, nor for the outputs of `once`."""
MAX_UNREAD: Final = 128 * 1024 * 1024
"""Bytes of replies that all clients together may leave unread. Above it, clients that do not read are disconnected."""
LOG_SECONDS: Final = 1.0
"""Seconds between two log lines about connections that were closed for that."""


class Member(Protocol):
    """A connection, as the traffic sees it."""

    def handle_some(self) -> bool: ...
    def handle_one_anyway(self) -> bool: ...
    def write_some(self) -> bool: ...
    def handle_lines(self) -> None: ...
    def abort(self) -> None: ...
    def unread_bytes(self) -> int: ...


class _Budget:
    """Bytes that replies under way may have together, and which connections wait for some, in two lines.

    A connection with nothing else under way stands in the quick line. It has three turns of four, so that a client
    with one request at a time does not stand behind hundreds of connections with hundreds of requests each.
    """

    __slots__ = ("_line", "_quick", "_turn", "taken")

    def __init__(self) -> None:
        self.taken = 0
        # Ordered dictionaries serve as queues in which each connection stands once.
        self._quick: OrderedDict[Member, None] = OrderedDict()
        self._line: OrderedDict[Member, None] = OrderedDict()
        self._turn = 0

    def next(self) -> Member | None:
        """Return who has the next turn, or None where nobody waits."""
        line = self._quick if self._quick and (self._turn % 4 or not self._line) else self._line
        return next(iter(line), None)

    def take(self, size: int) -> None:
        """Take bytes. The turn is over."""
        self.taken += size
        self._turn += 1

    def join(self, peer: Member, quick: bool) -> None:
        """Let a connection wait, unless it waits already."""
        if peer not in self._quick and peer not in self._line:
            (self._quick if quick else self._line)[peer] = None

    def leave(self, peer: Member) -> bool:
        """Let a connection wait no more. Return whether others wait."""
        self._quick.pop(peer, None)
        self._line.pop(peer, None)
        return bool(self._quick or self._line)


class Traffic:
    """The turns and the bytes of all connections."""

    def __init__(self, backlog: Callable[[], int]) -> None:
        """``backlog`` returns the weight of the commands of the store that are not finished."""
        self._backlog = backlog
        self.under_way = 0
        """Requests that are neither answered nor waiting."""
        self.held = False
        """Whether lines wait until fewer requests are under way. Then `resume` has to be called at each answer, and
        whenever the backlog may be smaller."""
        self.crowded = False
        """Whether so many bytes were encoded in this turn that further replies have to queue up."""
        self._loop = asyncio.get_running_loop()
        self._budgets = tuple(_Budget() for _ in range(len(SIZES) + 1))
        # Ordered dictionaries serve as queues in which each connection stands once.
        self._with_lines: OrderedDict[Member, None] = OrderedDict()
        """Connections with lines to handle, in the order of their turns."""
        self._with_replies: OrderedDict[Member, None] = OrderedDict()
        """Connections with replies to encode, in the order of their turns."""
        self._closing: deque[Callable[[], None]] = deque()
        self._planned = False
        self._admitted = False
        """Whether a connection that waited for bytes has got a turn since this was last looked at."""
        self._encoded = 0
        self._unread: OrderedDict[Member, int] = OrderedDict()
        """Bytes that each client has not read. Who has read, or got a reply, most recently stands last."""
        self._unread_bytes = 0
        self._logged_at = float("-inf")

    # ── turns ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def busy(self) -> bool:
        """Whether lines of some connection wait for their turn."""
        return bool(self._with_lines)

    @property
    def overloaded(self) -> bool:
        """Whether so much is under way that lines wait, except light ones of connections with nothing under way."""
        return self.under_way >= MOST_UNDER_WAY or self._backlog() >= MOST_BACKLOG

    def turn_end(self) -> float:
        """Return when a turn that begins now ends, in the time of the event loop."""
        return self._loop.time() + TURN_SECONDS

    def is_over(self, end: float) -> bool:
        """Return whether a turn is over."""
        return self._loop.time() >= end

    def has_lines(self, peer: Member) -> None:
        """Give a connection another turn for its lines."""
        self._with_lines[peer] = None
        self._plan()

    def has_replies(self, peer: Member) -> None:
        """Give a connection another turn for its replies."""
        self._with_replies[peer] = None
        self._plan()

    def close_later(self, close: Callable[[], None]) -> None:
        """Run what has to be done for a connection that has ended. Many may end at once, each with many waits."""
        self._closing.append(close)
        self._plan()

    def resume(self) -> None:
        """Handle the lines that were held, if little is under way now."""
        if self.under_way < MOST_UNDER_WAY // 2 and self._backlog() < MOST_BACKLOG // 2:
            self.held = False
            self._plan()

    def admit_one(self) -> None:
        """Let the connection that has waited longest handle a line all the same, so that none waits for ever."""
        if self.held and self._with_lines:
            peer, _ = self._with_lines.popitem(last=False)
            if peer.handle_one_anyway():
                self._with_lines[peer] = None

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._planned = self.crowded = False
        self._encoded = 0
        end = self._loop.time() + TURN_SECONDS / 2
        while self._closing and not self.is_over(end):
            self._closing.popleft()()
        end = self.turn_end()
        self._take_turns(self._with_replies, lambda peer: self.crowded or peer.write_some(), end)
        self._admitted = True
        while self._admitted and not self.is_over(end):  # each of those who wait for bytes lets the next one in
            self._admitted = False
            self._take_turns(self._with_lines, self._handle_some, end)
        if self._closing or self._with_replies or (self._with_lines and not self.held):
            self._plan()

    def _handle_some(self, peer: Member) -> bool:
        if self.overloaded:
            self.held = True
            return True
        return peer.handle_some()

    def _take_turns(self, peers: OrderedDict[Member, None], act: Callable[[Member], bool], end: float) -> None:
        """Let each of ``peers`` ``act`` once, as long as there is time. Who has more to do stands in line again."""
        for _ in range(len(peers)):
            if self.is_over(end):
                return
            peer, _ = peers.popitem(last=False)
            if act(peer):
                peers[peer] = None

    # ── bytes under way ─────────────────────────────────────────────────────────────────────────────────

    def fetch(self, peer: Member, size: int, quick: bool) -> bool:
        """Reserve the bytes of a reply. Return False if ``peer`` has to wait: it then handles its lines again later.

        ``quick``: whether it has nothing else under way. Who waits keeps its place, so each has its turn soon.
        """
        budget = self._budget_of(size)
        is_next = budget.next() in (None, peer)
        if not is_next or (budget.taken and budget.taken + size > MAX_FETCHING):
            budget.join(peer, quick)
            if not is_next:
                self._admit_next(budget)
            return False
        budget.take(size)
        self.pass_over(peer)
        return True

    def fetched(self, size: int) -> None:
        """Give reserved bytes back: the reply was made, or its request waits."""
        budget = self._budget_of(size)
        budget.taken -= size
        self._admit_next(budget)

    def pass_over(self, peer: Member) -> None:
        """Let ``peer`` wait for no bytes any more: it has them, or it handles no lines for now."""
        for budget in self._budgets:
            if budget.next() is not None and budget.leave(peer):
                self._admit_next(budget)

    def _budget_of(self, size: int) -> _Budget:
        return self._budgets[bisect_left(SIZES, size)]

    def _admit_next(self, budget: _Budget) -> None:
        peer = budget.next()
        if peer is not None and budget.taken < MAX_FETCHING:
            self._admitted = True
            self.has_lines(peer)

    # ── replies ─────────────────────────────────────────────────────────────────────────────────────────

    def encoded(self, size: int) -> None:
        """Count the bytes of a large reply that was encoded in this turn."""
        self._encoded += size
        if self._encoded >= TURN_BYTES and not self.crowded:
            self.crowded = True
            self._plan()

    def unread(self, peer: Member, size: int) -> None:
        """Note how many bytes of replies a client has not read. If all have too many, close some connections."""
        self._note_unread(peer, size)
        if self._unread_bytes > MAX_UNREAD:
            self._note_who_read()
        while self._unread_bytes > MAX_UNREAD:
            idle = self._idle_longest()
            self._log_closed(self._unread[idle])
            self._note_unread(idle, 0)
            idle.abort()

    def _note_unread(self, peer: Member, size: int) -> None:
        self._unread_bytes += size - self._unread.pop(peer, 0)
        if size:
            self._unread[peer] = size

    def _note_who_read(self) -> None:
        for peer, noted in list(self._unread.items()):
            size = peer.unread_bytes()
            if size < noted:
                self._note_unread(peer, size)

    def _idle_longest(self) -> Member:
        """Return the client that has not read for the longest time, of those with half of the most unread or more."""
        least = max(self._unread.values()) / 2
        return next(peer for peer, size in self._unread.items() if size >= least)

    def forget(self, peer: Member) -> None:
        """Forget a connection that has ended."""
        self.unread(peer, 0)
        for peers in (self._with_lines, self._with_replies):
            peers.pop(peer, None)
        self.pass_over(peer)

    def _log_closed(self, size: int) -> None:
        now = self._loop.time()
        if now >= self._logged_at + LOG_SECONDS:
            self._logged_at = now
            log.warning(
                "clients leave more than %s bytes of replies unread; closed a connection with %s", MAX_UNREAD, size
            )
