"""What machines have claimed of the table `eoq_forward`, and how an operator gives up the claims of a lost one."""

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


def list_claims(conninfo: str, queue: str | None) -> list[Holding]:
    """Return the claims of all machines, of one queue or of all."""
    table = _table(conninfo)
    try:
        with table.transaction() as connection:
            return [Holding(*row) for row in connection.execute(statements.CLAIMS, (queue, queue))]
    finally:
        table.close()


def release_claims(conninfo: str, queue: str, owner: str) -> int:
    """Give up the claims of a machine. Return how many other machines may take now.

    Raises `InvalidRequest` while that machine works.
    """
    table = _table(conninfo)
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


def _table(conninfo: str) -> WakingTable:
    return WakingTable(conninfo, "eoq_forward", "`eoq forward` makes it")
