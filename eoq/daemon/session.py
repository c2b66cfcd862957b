"""What all parts of the daemon that answer requests share: a connection, its replies, and the way to the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..errors import EoqError
from .store.commands import Command, R

if TYPE_CHECKING:
    from .broker.leases import Lease
    from .broker.receivers import Waiter

Fields: TypeAlias = dict[str, Any]
Reply: TypeAlias = Callable[["Fields | EoqError"], None]


class Submitter(Protocol):
    """The way to the store: the writer, for whoever changes something."""

    def submit(self, command: Command[R], done: Callable[[R | EoqError], None], durable: bool = True) -> None: ...


class Session:
    """What is known of one connection. ``consumer`` names the program at its other end."""

    def __init__(self, consumer: str | None = None) -> None:
        self.consumer = consumer
        self.closed = False
        self.hung_up: Callable[[], bool] = lambda: False
        """Whether its client reads no more, though nothing has told so: it had said before that it sends no more."""
        self.leases: set[Lease] = set()
        """The bound leases; they end with the connection."""
        self.waiting: set[Waiter] = set()
