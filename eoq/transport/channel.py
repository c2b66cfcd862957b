"""A channel to the daemon: requests go over a connection, which is replaced when it breaks.

The requests that were in flight on the lost connection are repeated under the same ids and receipts, which the daemon
recognises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from ..backoff import pauses
from ..errors import EoqError, Forbidden, Unavailable
from ..protocol import calls
from ..protocol.calls import Call
from ..protocol.codec import Fields
from ..protocol.features import HANDLES, NOT_AFTER, as_repeat, is_limited, stored_until
from ..protocol.holder import advice
from ..protocol.paths import how_to_open
from ..system.forks import watch_forks
from .connection import GIVE_UP_SECONDS, Connection, ConnectionLost, NotADaemon

T = TypeVar("T")

FIRST_RECONNECT_PAUSE: Final = 0.05
LONGEST_RECONNECT_PAUSE: Final = 1.0
"""Seconds between two tries to reach a daemon that went away. The pauses double from the first to the longest."""


def unavailable(path: Path, why: str, hint: str | None = None) -> Unavailable:
    """Return the error for a daemon that cannot be reached, with the reason, and with what to do (``hint``).

    By default the lock of the daemon tells what to do: whether it runs, and in what state it is.
    """
    return Unavailable(f"cannot reach the daemon on {path} ({why}); {advice(path) if hint is None else hint}")


def ambiguous(error: Unavailable, requests: Sequence[Fields]) -> Unavailable:
    """Return an error that names the messages of ``requests``: they were sent, but no answer was received."""
    if error.ids:
        return error
    messages = [message for request in requests for message in _messages_of(request)]
    ids = tuple(str(message["id"]) for message in messages if "id" in message)
    if not ids:
        return error
    if len(ids) == 1:
        what = f"The message may be stored or not: repeat it with the same id, which is {ids[0]}"
    else:
        what = (
            f"{len(ids):,} messages, from id {ids[0]} to id {ids[-1]}, may be stored or not: repeat them with the same "
            "ids (`ids` of the Python error has all)"
        )
    named = Unavailable(f"{error}. {what}")
    named.ids = ids
    return named


def _messages_of(request: Fields) -> Sequence[Fields]:
    """Return the messages that a request stores."""
    if request["op"] == "send":
        return (request,)
    messages: Sequence[Fields] = request.get("messages") or request.get("send") or ()
    return messages


def forbidden(path: Path) -> Forbidden:
    """Return the error for a socket that this user may not open."""
    if (hint := how_to_open(path)) is not None:
        return Forbidden(f"the socket {path} cannot be opened (Permission denied); {hint}")
    return Forbidden(
        f"the socket {path} belongs to another user, and this one may not connect; use your own daemon, or ask its "
        "operator (`socket_mode` and `socket_group` in its configuration)"
    )


class Started(NamedTuple, Generic[T]):
    """A request in flight. Its rids are None where it could not be sent and has to be repeated."""

    call: Call[T]
    connection: Connection
    rids: range | None
    sent_at: float

    @property
    def was_sent(self) -> bool:
        """Whether the request was sent over its connection."""
        return self.rids is not None

    def forget(self) -> None:
        """Ignore the reply."""
        if self.rids is not None:
            self.connection.forget(self.rids)


class Channel:
    """The way of a client's requests to the daemon: over one connection at a time. Safe to share between threads.

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
        self._connection: Connection | None = None
        self._connecting = threading.Lock()
        self._features: frozenset[str] = frozenset()
        self._features_of = 0
        self._remembers = 0.0
        watch_forks(self)

    def forked(self) -> None:
        """Start anew in a child process, with a connection of its own. Bound leases are the parent's."""
        self._connecting, self._connection = threading.Lock(), None
        if self.generation:
            self.generation += 1  # the child must not give back, settle or yield what its parent holds

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and with it every bound lease."""
        self.closed = True
        with self._connecting:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def sibling(self) -> Channel:
        """Return a channel with a connection of its own and the same timeout."""
        return Channel(self.path, self.timeout, self.generation)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────

    def run(self, call: Call[T], sent_at: float | None = None) -> T:
        """Send a request and return its outcome. Raises the error that the daemon answers with, or `Unavailable`.

        ``sent_at`` is when it was sent before, in seconds since the epoch.
        """
        reply = (self.exchange([call.fields], call.wait, sent_at))[0]
        if isinstance(reply, EoqError):
            raise reply
        return call.read(reply)

    def exchange(
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
                    requests = self._as_repeats(requests, sent_at)
                connection = self._connect(started + self.timeout)
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
                deadline = time.monotonic() + left + self.timeout
                return connection.finish(connection.start(requests, deadline), deadline)
            except ConnectionLost as lost:
                self._discard(connection, "it broke")
                if self.closed or isinstance(lost, NotADaemon) or time.monotonic() > started + wait + self.timeout:
                    raise ambiguous(unavailable(self.path, str(lost)), requests) from lost
            except TimeoutError as error:
                raise ambiguous(self._unanswered(connection, left + self.timeout), requests) from error

    def knows(self, feature: str) -> bool:
        """Return whether the daemon has a feature of ``protocol/features.py``. Asks once for each connection."""
        if self._features_of != self.generation or not self.generation:
            fields = self.run(calls.query("status"))
            # The connection last: another thread may read the values as soon as it is the present one.
            self._features, self._remembers = frozenset(fields.get("features", ())), float(fields.get("remembers", 0.0))
            self._features_of = self.generation
        return feature in self._features

    def remembers(self) -> float | None:
        """Return for how many seconds after a first try the daemon surely knows any id; None for an older daemon."""
        return self._remembers if self.knows(NOT_AFTER) else None

    def _as_repeats(self, requests: Sequence[Fields], sent_at: float) -> Sequence[Fields]:
        """Return requests as they are repeated. This process may have slept for longer than ids are remembered."""
        if not any(map(is_limited, requests)):
            return requests
        remembers, handles = self.remembers(), self.knows(HANDLES)
        not_after = None if remembers is None else stored_until(sent_at, remembers)
        return [as_repeat(fields, not_after, handles) for fields in requests]

    def tell(self, call: Call[None]) -> None:
        """Send a request whose outcome does not matter any more, if there is a connection."""
        connection = self._connection
        if connection is not None:
            with suppress(ConnectionLost, TimeoutError):
                connection.tell([call.fields], time.monotonic() + GIVE_UP_SECONDS)

    def start(self, call: Call[T], connection: Connection | None = None) -> Started[T]:
        """Send a request whose reply `finish` waits for later.

        With a ``connection``, the request goes over that one or not at all.
        """
        deadline = time.monotonic() + self.timeout
        connection = self._connect(deadline) if connection is None else connection
        sent_at = time.time()
        try:
            return Started(call, connection, connection.start([call.fields], deadline), sent_at)
        except (ConnectionLost, TimeoutError):
            return Started(call, connection, None, sent_at)

    def finish(self, started: Started[T]) -> T:
        """Return the outcome of a request that was started. Repeats the request if its connection broke."""
        if started.rids is not None:
            seconds = started.call.wait + self.timeout
            try:
                reply = started.connection.finish(started.rids, time.monotonic() + seconds)[0]
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
            return self.run(started.call, started.sent_at)
        except Unavailable as error:
            raise ambiguous(error, [started.call.fields]) from error

    # ── the connection ──────────────────────────────────────────────────────────────────────────────────

    def _connect(self, deadline: float) -> Connection:
        """Return the live connection, or a new one.

        A daemon that was reached before may come back until ``deadline``. One that was never reached is not waited for.
        """
        if (connection := self._connection) is not None:  # the usual case, without a lock
            return connection
        waits = pauses(FIRST_RECONNECT_PAUSE, LONGEST_RECONNECT_PAUSE)
        while True:
            with self._connecting:
                if self.closed:
                    raise unavailable(self.path, "this client is closed", "make another client")
                if self._connection is not None:
                    return self._connection
                try:
                    self._connection = Connection(self.path)
                except PermissionError as error:
                    raise forbidden(self.path) from error
                except OSError as error:
                    if self.generation == 0 or time.monotonic() > deadline:
                        raise unavailable(self.path, error.strerror or str(error)) from error
                else:
                    self.generation += 1
                    return self._connection
            time.sleep(next(waits))

    def _discard(self, connection: Connection, reason: str) -> None:
        with self._connecting:
            if self._connection is connection:
                self._connection = None
        connection.close(reason)

    def _unanswered(self, connection: Connection, seconds: float) -> Unavailable:
        """Close a connection on which a reply is overdue, so that its bound leases end. Return the error to raise."""
        self._discard(connection, "a request was not answered in time")
        return unavailable(self.path, f"no answer within {seconds:g} s")
