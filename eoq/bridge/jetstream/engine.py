"""NATS JetStream as the engine of a bridge."""

from __future__ import annotations

from ...client.aio import AsyncClient
from ..engine import Holding, IngestOptions
from ..results import AwaitedResults
from .claims import StreamCounts, list_claims, release_claims
from .ingest import StreamIngester
from .publish import NoResults, StreamPublisher
from .wire.address import Address
from .wire.names import Names, Partitions


class JetStreamEngine:
    """A stream at an address. See `Engine`."""

    def __init__(self, address: Address, partitions: Partitions) -> None:
        self.name = address.name
        self.aside = f"the header Eoq-Error in the stream {Names(address.stream, '').aside}"
        self._address = address
        self._partitions = partitions

    def refuse_password(self) -> None:
        """See `Engine.refuse_password`."""
        self._address.refuse_password()

    def forward_end(self) -> StreamPublisher:
        """See `Engine.forward_end`."""
        return StreamPublisher(self._address, self._partitions)

    def awaited(self, origin: str) -> AwaitedResults:
        """Raise `InvalidRequest`: see `Engine.awaited`."""
        raise NoResults

    def ingester(self, client: AsyncClient, queue: str, options: IngestOptions) -> StreamIngester:
        """See `Engine.ingester`. Raises `InvalidRequest` if it is to tell results."""
        if options.results:
            raise NoResults
        return StreamIngester(client, queue, self._address, self._partitions, options)

    def counts(self) -> StreamCounts:
        """See `Engine.counts`."""
        return StreamCounts(self._address)

    def list_claims(self, queue: str | None) -> list[Holding]:
        """See `Engine.list_claims`."""
        return list_claims(self._address, queue)

    def release_claims(self, queue: str, owner: str) -> int:
        """See `Engine.release_claims`."""
        return release_claims(self._address, queue, owner)
