"""Both halves of the results that come back, over the table `eoq_forward_result`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import psycopg

from ...postgres.driver import storable_error
from ...postgres.waking import WakingTable
from ...protocol.forwarding import MessageEnd
from ...protocol.limits import MAX_BATCH
from ..results import DeadLetter
from . import result_statements as statements

OUTCOMES: Final = ("done", "forwarded", "dead", "expired", "dropped", "cancelled")
ADOPT_SECONDS: Final = 600.0
"""How often requests are looked for that no machine has noted as its own: all that wait are read for that."""
NEWEST: Final = DeadLetter(math.inf, "")
"""In front of all dead letters. No date is newer, whoever has written it."""
MOST_BYTES: Final = 1024 * 1024
"""Bytes of the results and reasons of one read, unless the first is longer."""


def _make(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    connection.execute(statements.MAKE)


def _open(conninfo: str) -> WakingTable:
    return WakingTable(conninfo, statements.TABLE, "a forward with results makes it", _make)


class OwedRows:
    """The results that the machine ``owner`` owes, for one queue. See `OwedResults`.

    ``identity`` is that of its daemon's file. If the name has meanwhile gone to another file, nothing is owed here, and
    nothing can be told: `--release` gave it up while this machine was frozen.
    """

    def __init__(self, conninfo: str, queue: str, owner: str, identity: str) -> None:
        self._table = _open(conninfo)
        self._queue = queue
        self._owner = owner
        self._identity = identity
        self._adopted_at = -ADOPT_SECONDS

    def owed(self, limit: int) -> list[str]:
        """Return the ids of messages that this machine has stored, and whose results are waited for."""
        if time.monotonic() >= self._adopted_at + ADOPT_SECONDS:
            with self._table.transaction() as connection:
                connection.execute(statements.ADOPT, (self._queue, self._owner, self._identity))
            self._adopted_at = time.monotonic()
        with self._table.transaction() as connection:
            values = (self._queue, self._owner, self._identity, limit)
            found = connection.execute(statements.OWED, values).fetchall()
        return [id for (id,) in found]

    def dead(self, limit: int, behind: DeadLetter | None) -> list[DeadLetter]:
        """Return those that were dead letters when they were told. See `OwedResults.dead`."""
        with self._table.transaction() as connection:
            values = (self._queue, self._owner, self._identity, *(behind or NEWEST), limit)
            found = connection.execute(statements.DEAD, values).fetchall()
        return [DeadLetter(*row) for row in found]

    def fill(self, ends: Sequence[MessageEnd]) -> None:
        """Tell how messages ended. See `OwedResults.fill`."""
        with self._table.transaction() as connection:
            errors = [None if end.error is None else storable_error(end.error, connection) for end in ends]
            columns = [end.id for end in ends], [end.outcome for end in ends], [end.result for end in ends], errors
            connection.execute(statements.FILL, (*columns, self._queue, self._owner, self._identity))

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        self._table.close()


class AwaitedRows:
    """The results that came back to the daemon whose file is ``origin``. See `AwaitedResults`."""

    def __init__(self, conninfo: str, origin: str) -> None:
        self._table = _open(conninfo)
        self._origin = origin
        self.name = self._table.name

    def read(
        self, queues: Collection[str], without: Collection[str], *, behind_writers: bool
    ) -> list[tuple[str, MessageEnd]]:
        """Return results that are there. See `AwaitedResults.read`."""
        if behind_writers:
            self._table.begin_waiting()
        else:
            self._table.end_waiting()
        values = (self._origin, list(queues), list(without), MAX_BATCH, MOST_BYTES)
        with self._table.transaction() as connection:
            found = connection.execute(statements.READ, values).fetchall()
        return [
            (queue, _end(bytes(id).decode(), outcome, result, error)) for queue, id, outcome, result, error in found
        ]

    def finish(self, queue: str, ends: Sequence[MessageEnd]) -> None:
        """Remove results. See `AwaitedResults.finish`."""
        last = [end for end in ends if end.outcome != "dead"]
        with self._table.transaction() as connection:
            if last:
                connection.execute(statements.FINISH, (queue, self._origin, [end.id for end in last]))
            if len(last) < len(ends):
                dead = [end.id for end in ends if end.outcome == "dead"]
                connection.execute(statements.KEEP_DEAD, (queue, self._origin, dead))

    async def watch(self, wake: Callable[[], None], seconds: float) -> None:
        """Call ``wake`` when there may be a result, until cancelled."""
        await self._table.watch(wake, seconds)

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        self._table.close()


def _end(id: str, outcome: str, result: bytes | None, error: str | None) -> MessageEnd:
    """Return a row as the end of a message. Any program may have written it."""
    if outcome not in OUTCOMES:
        return MessageEnd(id, "forwarded", None, "its row in eoq_forward_result has no outcome of eoq")
    return MessageEnd(id, outcome, None if result is None else bytes(result), error)
