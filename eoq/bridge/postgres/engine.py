"""PostgreSQL as the engine of a bridge."""

from __future__ import annotations

from ...client.aio import AsyncClient
from ...postgres.driver import refuse_password, shown
from ..engine import Holding, IngestOptions
from .claims import RowCounts, list_claims, release_claims
from .ingest import Ingester
from .publish import RowPublisher
from .results import AwaitedRows


class PostgresEngine:
    """The table `eoq_forward` in the database of a connection string. See `Engine`."""

    def __init__(self, conninfo: str) -> None:
        self.name = shown(conninfo)
        self.aside = "the column `error` of eoq_forward"
        self._conninfo = conninfo

    def refuse_password(self) -> None:
        """See `Engine.refuse_password`."""
        refuse_password(self._conninfo)

    def forward_end(self) -> RowPublisher:
        """See `Engine.forward_end`."""
        return RowPublisher(self._conninfo)

    def awaited(self, origin: str) -> AwaitedRows:
        """See `Engine.awaited`."""
        return AwaitedRows(self._conninfo, origin)

    def ingester(self, client: AsyncClient, queue: str, options: IngestOptions) -> Ingester:
        """See `Engine.ingester`."""
        return Ingester(client, queue, self._conninfo, options)

    def counts(self) -> RowCounts:
        """See `Engine.counts`."""
        return RowCounts(self._conninfo)

    def list_claims(self, queue: str | None) -> list[Holding]:
        """See `Engine.list_claims`."""
        return list_claims(self._conninfo, queue)

    def release_claims(self, queue: str, owner: str) -> int:
        """See `Engine.release_claims`."""
        return release_claims(self._conninfo, queue, owner)
