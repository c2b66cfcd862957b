"""One connection as the broker and the services see it, the replies to its requests, and the way to the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..errors import EoqError
from .store.commands import Command, R

Fields: TypeAlias = dict[str, Any]
Reply: TypeAlias = Callable[["Fields | EoqError"], None]
"""Answers one request. A handler calls it once."""


class Submitter(Protocol):
    """The way to the store. The writer is one."""

    def submit(self, command: Command[R], done: Callable[[R | EoqError], None], durable: bool = True) -> None: ...


class Peer(NamedTuple):
    """The program at the other end, as the kernel knows it: its user, and its groups when somebody asks for them."""

    user: int
    groups: Callable[[], frozenset[int]]


class Session:
    """One connection, as the broker and the services see it. ``consumer`` names the program at the other end."""

    def __init__(self, consumer: str | None = None) -> None:
        self.consumer = consumer
        self.peer: Peer | None = None
        """The program at the other end. None where the kernel does not say."""
        self.closed = False
        self.hung_up: Callable[[], bool] = lambda: False
        """Return whether the client reads no more. The event of that may come after its last requests were handled, and
        none comes once it has closed its sending side."""
        self.parked: Callable[[object], None] = lambda _request: None
        """A handler tells that a request has nothing to answer yet, and waits. See `ClientConnection`."""
        self._on_close: list[Callable[[], None]] = []

    def on_close(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` when the connection has ended.

        Callbacks run in the order in which they were registered. A receive registers before the leases that it is
        given. So a connection first stops waiting for messages, and then its own messages go back to their queues.
        """
        self._on_close.append(callback)

    def mark_closed(self) -> None:
        """Mark the connection as closed. `close` follows."""
        self.closed = True
        self.hung_up = lambda: True

    def close(self) -> None:
        """Mark the connection as closed, and run the callbacks."""
        self.closed = True
        callbacks, self._on_close = self._on_close, []
        for callback in callbacks:
            callback()


Handler: TypeAlias = Callable[[Session, Any, Reply], None]
"""Acts on one type of request. It calls the reply once, now or later, or raises an `EoqError`, which is the reply."""
Handlers: TypeAlias = Mapping[type, Handler]
"""The handlers of a part, by the type of request."""
