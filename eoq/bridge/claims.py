"""What waits in the table `eoq_forward`, who has claimed what, and how an operator gives up a lost machine's claims."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import InvalidRequest
from ..postgres.waking import WakingTable
from . import statements


class Holding(NamedTuple):
    """What one machine has of one queue, as counts. ``owner`` is None for what no machine has claimed.

    ``oldest`` is when it claimed the oldest that it has not taken, in seconds since the epoch.
    """

    queue: str
    owner: str | None
    claimed: int
    set_aside: int
    taken: int
    oldest: float | None


class OpenRows(NamedTuple):
    """The rows of a queue in the database between the machines. Each number is at most 10,000."""

    unclaimed: int
    """How many no machine has claimed yet."""
    claimed: int
    """How many are claimed and not stored yet: by this machine, for an ingest; by any, for a forward."""


def open_table(conninfo: str) -> WakingTable:
    """Return the table in the database of a connection string, for the functions of this file."""
    return WakingTable(conninfo, "eoq_forward", "`eoq forward` makes it")


def count_open(table: WakingTable, queue: str, owner: str | None) -> OpenRows:
    """Return what waits of a queue, claimed by ``owner`` or by any machine. Raises the errors of `WakingTable`."""
    with table.transaction() as connection:
        ((unclaimed, claimed),) = connection.execute(statements.WAITING, {"queue": queue, "owner": owner}).fetchall()
        return OpenRows(unclaimed, claimed)


def list_claims(conninfo: str, queue: str | None) -> list[Holding]:
    """Return the claims of all machines, of one queue or of all."""
    table = open_table(conninfo)
    try:
        with table.transaction() as connection:
            return [Holding(*row) for row in connection.execute(statements.CLAIMS, (queue, queue))]
    finally:
        table.close()


def release_claims(conninfo: str, queue: str, owner: str) -> int:
    """Give up the claims of a machine. Return how many other machines may take now.

    Raises `InvalidRequest` while that machine works.
    """
    table = open_table(conninfo)
    try:
        with table.transaction() as connection:
            ((free,),) = connection.execute(statements.LOCK_NAME, (f"{queue} {owner}",)).fetchall()
            if not free:
                raise InvalidRequest(f"{owner!r} takes {queue!r} just now, so it is not lost; stop it first")
            ((waiting,),) = connection.execute(statements.COUNT_CLAIMED, (queue, owner)).fetchall()
            connection.execute(statements.RELEASE, (queue, owner))
            return int(waiting)
    finally:
        table.close()
