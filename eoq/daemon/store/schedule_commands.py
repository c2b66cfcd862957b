"""Commands about schedules. What holds of all commands is in `commands.py`."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.settings import SettingsOf
from ..records import DueSchedules, Fired, OccurrencePlan, ScheduleAdded, ScheduleRecord
from ..rules.schedule_rules import Definition
from .commands import Command


class ScheduleAdd(Command[ScheduleAdded], frozen=True):
    """Store a schedule. ``first_at`` is its first occurrence after ``now``.

    It may take a hundredth of a second to find that occurrence, and so it is found outside the transaction.

    Raises `IdConflict` where the name has another definition and ``replace`` is false, `InvalidRequest` where the
    configuration file declares it, `QueueFull` where there are too many.
    """

    now: float
    definition: Definition
    first_at: int
    replace: bool


class ScheduleApply(Command[list[str]], frozen=True):
    """Make the schedules of the configuration file exactly these. The outcome is a log line for each change.

    With each definition stands its first occurrence after ``now``.
    """

    now: float
    definitions: Sequence[tuple[Definition, int]]


class ScheduleRemove(Command[None], frozen=True):
    """Delete a schedule. Raises `NotFound`, or `InvalidRequest` where the configuration file declares it."""

    name: str


class SchedulePause(Command[bool], frozen=True):
    """Pause a schedule, or let it go on with the first occurrence after ``now``. The outcome says whether that changed
    anything. Raises `NotFound`.
    """

    now: float
    name: str
    paused: bool


class ScheduleShow(Command[ScheduleRecord], frozen=True):
    """Return a schedule. Raises `NotFound`."""

    name: str


class ScheduleList(Command[list[ScheduleRecord]], frozen=True):
    """Return all schedules by name, without their contents."""


class ReadDue(Command[DueSchedules], frozen=True):
    """Return up to ``limit`` schedules that are due, and as many that are ahead of a clock that was set back.

    With ``hurry``, schedules whose occurrence was refused are due now, because their queue may have room again.
    """

    now: float
    limit: int
    hurry: bool


class StoreOccurrences(Command[Fired], frozen=True):
    """Store the messages of occurrences, and move their schedules on.

    An occurrence that is refused is tried again at ``retry_at``. One whose id is stored with other content is
    skipped.
    """

    now: float
    plans: Sequence[OccurrencePlan]
    settings: SettingsOf
    retry_at: float
