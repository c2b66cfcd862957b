"""The tables ``clock`` and ``clock_jump``: how the wall clock was set, while the daemon ran and while it was stopped.

Two things depend on it. A wait takes the time that it had left. And no id is forgotten early: retention counts only
time that surely passed. While the daemon runs, and as long as the machine is not restarted, the clock that is never set
tells how much passed. Over a restart of the machine nothing tells, so that time does not count for retention.

Waits are stored as the moments of a clock that is never set: the wall clock without `ClockNotes.set_by`. So a million
waits need no change when the wall clock is set, and a kill at that moment finds all of them moved, or none.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ....clock import JUMP
from ....store.commands import NoteClock
from ..database import Database

KEPT: Final = 100
"""How many jumps of the clock are kept one by one."""


class ClockNotes:
    """What is stored about the clock."""

    def __init__(self, database: Database) -> None:
        self._database = database
        row = database.execute("select set_by from clock").fetchone()
        self.set_by = 0.0 if row is None else float(row[0])
        """By how many seconds the wall clock was set since the file was made."""

    def unset(self, moment: float | None) -> float | None:
        """Return a moment of the wall clock as the end of a wait is stored."""
        return None if moment is None else moment - self.set_by

    def note(self, command: NoteClock) -> float:
        """Store what the clocks show. Return by how many seconds the wall clock was set since the last note."""
        row = self._database.execute("select moment, elapsed, boot from clock").fetchone()
        jump = 0.0
        if row is not None and command.starting:
            moment, elapsed, boot = row
            passed = command.now - moment
            if boot == command.boot != "" and command.elapsed >= elapsed:
                jump = passed - (command.elapsed - elapsed)
            elif passed < 0:
                jump = passed
            else:
                self.set_forward(command.now, passed)
        if abs(jump) < JUMP:
            jump = 0.0
        self.set_forward(command.now, jump)
        self.store(command.now, command.elapsed, command.boot, jump)
        return jump

    def store(self, now: float, elapsed: float, boot: str, jump: float) -> None:
        """Store what the clocks show, after the wall clock was set by ``jump`` seconds."""
        self._set(self.set_by + jump)
        self._database.execute(
            """
            insert or replace into clock (only_row, moment, elapsed, boot, set_by)
            values (1, ?, ?, ?, ?)
            """,
            (now, elapsed, boot, self.set_by),
        )

    def _set(self, seconds: float) -> None:
        self._database.on_rollback(partial(setattr, self, "set_by", self.set_by))
        self.set_by = seconds

    def set_forward(self, now: float, seconds: float) -> None:
        """Store that the clock was set forward to ``now``. A clock that was set back only makes records younger."""
        if seconds < JUMP:
            return
        (number,) = self._database.execute(
            "insert into clock_jump (moment, seconds) values (?, ?) returning number", (now, seconds)
        ).fetchone()
        # The oldest ones are added up, as if all had been at the latest of their moments: nothing is forgotten early.
        self._database.execute(
            """
            update clock_jump
            set moment = (select max(moment) from clock_jump where number <= :oldest),
                seconds = (select sum(seconds) from clock_jump where number <= :oldest)
            where number = :oldest
            """,
            {"oldest": number - KEPT},
        )
        self._database.execute("delete from clock_jump where number < ?", (number - KEPT,))

    def uncounted_since(self, moment: float) -> float:
        """Return by how many seconds the wall clock was set forward since ``moment``.

        What was settled before is younger by that. Jumps before that moment do not matter: what was settled before
        them is older than ``moment`` in any case.
        """
        (seconds,) = self._database.execute(
            "select coalesce(sum(seconds), 0) from clock_jump where moment > ?", (moment,)
        ).fetchone()
        return float(seconds)
