"""The seqs of messages: each is above all that were given before, and none is given twice.

They are reserved in blocks, since most messages leave no row behind that would tell how far they have come.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ..database import Database

BLOCK: Final = 10_000
"""How many seqs are reserved at once. A daemon that is killed leaves out the rest of them."""


class Seqs:
    """The seqs that are free."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.next = 1
        """The next seq. It is above that of every stored message, and not above that of any later one."""
        self._reserved = 1
        # Also the next seq: clients get it as their watermark, and no message may be stored below that later.
        database.keep(lambda: partial(self._go_back, self.next, self._reserved))

    def start(self) -> None:
        """Continue above the seqs that were given before."""
        (self.next,) = self._database.execute(
            """
            select max(
              (select coalesce(max(seq), 0) + 1 from message),
              (select coalesce(max(value), 1) from counter where name = 'next_seq')
            )
            """
        ).fetchone()
        self._reserved = self.next

    def take(self, count: int) -> int:
        """Take ``count`` seqs, and return the first."""
        first = self.next
        self.next += count
        if self.next > self._reserved:
            self._reserved = self.next + BLOCK
            self._keep(self._reserved)
        return first

    def stop(self) -> None:
        """Store exactly how far the seqs have come, for a daemon that is started again."""
        if self.next < self._reserved:
            self._keep(self.next)

    def _keep(self, seq: int) -> None:
        self._database.execute(
            """
            insert into counter (name, value)
            values ('next_seq', ?)
            on conflict (name) do update set value = excluded.value
            """,
            (seq,),
        )

    def _go_back(self, next_seq: int, reserved: int) -> None:
        self.next, self._reserved = next_seq, reserved
