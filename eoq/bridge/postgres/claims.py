"""What waits in the table `eoq_forward`, who has claimed what, and how an operator gives up a lost machine's claims."""

from __future__ import annotations

from ...errors import InvalidRequest
from ...postgres.waking import WakingTable
from ..engine import Holding, OpenRows
from ..patterns import as_regex, is_pattern
from . import result_statements, statements
from .names import take_name


class RowCounts:
    """It counts what waits in the table. All methods raise the errors of `WakingTable`. See `OpenCounts`."""

    def __init__(self, conninfo: str) -> None:
        self._table = _open(conninfo)

    def count(self, queue: str, owner: str | None) -> OpenRows:
        """Return what waits of a queue, claimed by ``owner`` or by any machine."""
        with self._table.transaction() as connection:
            waiting, values = statements.WAITING, {"queue": queue, "owner": owner}
            if is_pattern(queue):
                waiting, values = statements.WAITING_LIKE, {"queue": as_regex(queue), "owner": owner}
            ((unclaimed, claimed),) = connection.execute(waiting, values).fetchall()
            return OpenRows(unclaimed, claimed)

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        self._table.close()


def list_claims(conninfo: str, queue: str | None) -> list[Holding]:
    """Return the claims of all machines, of one queue or of all."""
    table = _open(conninfo)
    try:
        with table.transaction() as connection:
            return [Holding(*row) for row in connection.execute(statements.CLAIMS, (queue, queue))]
    finally:
        table.close()


def release_claims(conninfo: str, queue: str, owner: str) -> int:
    """Give up the claims of a machine. Return how many other machines may take now.

    Raises `InvalidRequest` while that machine works.
    """
    table = _open(conninfo)
    try:
        with table.transaction() as connection:
            if not take_name(connection, queue, owner):
                raise InvalidRequest(f"{owner!r} takes {queue!r} just now, so it is not lost; stop it first")
            ((waiting,),) = connection.execute(statements.COUNT_CLAIMED, (queue, owner)).fetchall()
            connection.execute(statements.RELEASE, (queue, owner))
            if connection.execute(result_statements.IS_THERE).fetchall()[0][0]:
                connection.execute(result_statements.RELEASE, (queue, owner))
            return int(waiting)
    finally:
        table.close()


def _open(conninfo: str) -> WakingTable:
    return WakingTable(conninfo, "eoq_forward", "`eoq forward` makes it")
