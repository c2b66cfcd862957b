"""The request ``status``: which daemon this is, and how much it is doing."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from .... import __version__
from ....protocol.limits import FEATURES, PROTOCOL
from ... import requests as ask
from ...broker.broker import Broker
from ...config.reload import Reloader
from ...measures import all_counters
from ...server.server import Server
from ...session import Fields, Handlers, Reply, Session
from ...store.sqlite.store import SqliteStore
from ..bridges.bridges import Bridges
from ..remembered import RememberedService
from ..spool.spool_reader import SpoolReader


class StatusService:
    """The handler of ``status``, which asks each part of the daemon."""

    def __init__(
        self,
        database: Path,
        socket: Path,
        store: SqliteStore,
        max_attempts: int | None,
        remembered: RememberedService,
        server: Server,
        broker: Broker,
        reloader: Reloader,
        spool: SpoolReader | None,
        bridges: Bridges,
    ) -> None:
        """``max_attempts`` is the setting of a flag or a variable, or None."""
        self._database = database
        self._socket = socket
        self._store = store
        self._identity = store.identity
        self._max_attempts = max_attempts
        self._remembered = remembered
        self._server = server
        self._broker = broker
        self._reloader = reloader
        self._spool = spool
        self._bridges = bridges
        self._started = time.time()
        self.handlers: Handlers = {ask.Status: self._status}

    def _status(self, _session: Session, _request: ask.Status, reply: Reply) -> None:
        reply(self.describe())

    def describe(self) -> Fields:
        """Return the fields of the reply."""
        fields: Fields = {
            "version": __version__,
            "protocol": PROTOCOL,
            "features": FEATURES,
            "identity": self._identity,
            "pid": os.getpid(),
            "sqlite": sqlite3.sqlite_version,
            "started_at": self._started,
            "now": self._broker.clock.wall(),
            "database": str(self._database),
            "socket": str(self._socket),
            "socket_mode": self._server.socket_mode,
            "connections": len(self._server.connections),
            "leased": self._broker.leased,
            "waiting": self._broker.waiting,
            "max_attempts": self._max_attempts,
            "remembers": self._remembered.surely,
            "storage_errors": self._store.storage_errors(),
            **self._store.space.describe(),
            "totals": self._store.totals.all(),
            "since_start": all_counters(self._store.totals.all_since_start()),
            "latencies": self._store.database.latencies.fields(),
            **self._reloader.describe(),
            **self._bridges.describe(),
        }
        if self._spool is not None:
            fields |= self._spool.describe()
        return fields
