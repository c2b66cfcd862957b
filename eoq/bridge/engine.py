"""What a bridge needs of the engine between the machines. Each engine has a folder; `places.py` finds it by its URL.

The engine only carries messages. What keeps them from being doubled is eoq's own memory of ids: a message is offered to
one machine until that machine's daemon knows its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ..client.aio import AsyncClient
from ..message import AsyncMessage
from .results import AwaitedResults

LIMIT: Final = 1000
"""How many messages are claimed or unsettled here at most: what a lost machine can hold back."""
KEEP_SECONDS: Final = 30 * 86400.0
"""How long what was taken is remembered."""
SHORTEST_KEEP: Final = 86400.0


class OpenRows(NamedTuple):
    """What waits of a queue in the engine. Each number is at most 10,000."""

    unclaimed: int
    """How many no machine has claimed yet."""
    claimed: int
    """How many are claimed and not stored yet: by this machine, for an ingest; by any, for a forward."""


class Holding(NamedTuple):
    """What one machine has of one queue, as counts. ``owner`` is None for what no machine has claimed.

    ``oldest`` is when it claimed the oldest that it has not taken, in seconds since the epoch. ``partition`` is that of
    the queue, in an engine that has partitions; such an engine does not count what was taken.
    """

    queue: str
    owner: str | None
    claimed: int
    set_aside: int
    taken: int | None
    oldest: float | None
    partition: int | None = None


@dataclass(frozen=True)
class IngestOptions:
    """How one queue is ingested. ``name`` is that of this machine; by default the identity of the daemon's file."""

    name: str | None = None
    limit: int = LIMIT
    keep: float = KEEP_SECONDS
    results: bool = False
    """Whether the results that are waited for are told to the machines that have sent the messages."""


class Mover(Protocol):
    """One queue on its way in one direction. A `Bridge` makes one for each run."""

    @property
    def owner(self) -> str | None:
        """The name of this machine, for an ingest. Without one it is known once it has begun."""

    @property
    def moved(self) -> int:
        """How many messages were moved, those included that were there already."""

    @property
    def refused(self) -> int:
        """How many messages can never be moved."""

    @property
    def error(self) -> str | None:
        """Why it waits now, or None."""

    async def check(self) -> None:
        """Raise `Unavailable` without a daemon, or `InvalidRequest` if it is too old."""

    async def run(self) -> None:
        """Move messages until this task is cancelled. Wait while the engine or the daemon is away."""

    async def flush(self) -> int:
        """Move what is there now. Return how many can never be moved. Raise what keeps it from going on."""


class ForwardEnd(Protocol):
    """The forwarding half of an engine: it takes messages. One task at a time uses it."""

    @property
    def name(self) -> str:
        """The engine's URL, without user and password."""

    async def publish(
        self, queue: str, messages: Sequence[AsyncMessage], *, origin: str | None = None
    ) -> dict[str, str]:
        """Store messages durably, in their order, each once by its id. What is there already counts as stored.

        ``origin``, the identity of the daemon's file, asks for their results: see `Engine.awaited`.

        Return the ids of those that can never be stored, and why, such as an id that is there with other content. All
        others are on disk. Raise an `EoqError` if any may not be, since the engine is away or full: then all are
        published again.
        """

    async def close(self) -> None:
        """Close the connection. The next use opens it again."""


class OpenCounts(Protocol):
    """What waits in an engine, over a connection that is kept. Any thread may use it, one at a time."""

    def count(self, queue: str, owner: str | None) -> OpenRows:
        """Return what waits of a queue, claimed by ``owner`` or by any machine.

        Raises an `EoqError` while the engine is away, and `NotFound` where it has nothing of eoq yet.
        """

    def close(self) -> None:
        """Close the connection."""


class Engine(Protocol):
    """An engine at one place. Making it connects to nothing."""

    @property
    def name(self) -> str:
        """The URL, without user and password, for logs and people."""

    @property
    def aside(self) -> str:
        """Where an operator finds why messages were set aside."""

    def refuse_password(self) -> None:
        """Raise `InvalidRequest` if the URL has a password: it is on a command line, where all users can read it."""

    def forward_end(self) -> ForwardEnd:
        """Return the forwarding half."""

    def awaited(self, origin: str) -> AwaitedResults:
        """Return the results that come back to the daemon whose file is ``origin``.

        Raises `InvalidRequest` where the engine carries no results.
        """

    def ingester(self, client: AsyncClient, queue: str, options: IngestOptions) -> Mover:
        """Return the ingesting half, for one queue of the daemon of ``client``."""

    def counts(self) -> OpenCounts:
        """Return what counts waiting messages."""

    def list_claims(self, queue: str | None) -> list[Holding]:
        """Return the claims of all machines, of one queue or of all."""

    def release_claims(self, queue: str, owner: str) -> int:
        """Give up the claims of a lost machine. Return how many other machines may take now.

        Raises `InvalidRequest` while that machine works, or where the engine has no such claims.
        """
