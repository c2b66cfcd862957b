"""The store: runs the commands of ``commands.py`` on the daemon's file.

It is composed of parts with one subject each, in ``tables/``. `SqliteStore` makes them, knows which method runs which
command, and runs all commands of the moment in one transaction.
"""

from __future__ import annotations

import logging
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

from ....errors import EoqError, StorageFailed
from ...config.settings import SettingsOf, StorageSettings, defaults
from .. import commands, schedule_commands
from ..commands import Command
from .batching import Batching
from .database import LOCK_SECONDS, QUICK_COMMIT, Database, FileLocked, storage_error
from .deliveries.acks import Acks
from .deliveries.claims import Claims
from .deliveries.far_results import FarResults
from .deliveries.leased import Leased
from .deliveries.lives import Lives
from .deliveries.record_retention import RecordRetention
from .deliveries.recovery import Recovery
from .deliveries.remembered import RememberedIds
from .deliveries.returns import Returns
from .deliveries.settled import Settled
from .migration import Tell, to_nobody
from .sending.imports import Imports
from .sending.puts import Puts
from .sending.seqs import Seqs
from .sending.setups import Setups
from .space import Space
from .tables.changes import MessageChanges
from .tables.clock import ClockNotes
from .tables.contents import Contents
from .tables.dead_letters import DeadLetters
from .tables.deletion import Deletion
from .tables.groups import Groups
from .tables.messages import Messages
from .tables.once import OnceKeys
from .tables.queues import MAX_QUEUES, Queues
from .tables.schedules import Schedules
from .tables.timers import Timers
from .tables.topics import Bindings
from .totals import MOST_WRITTEN, Totals
from .trouble import FileLost

R = TypeVar("R")

MOST_SECONDS: Final = 0.05
"""How long a transaction goes on to begin commands. Others wait that long, besides the command that is running."""
log: Final = logging.getLogger("eoq.store")


def _new_token() -> str:
    """Return a text that begins the receipts of one life of a daemon."""
    return secrets.token_hex(6)


class SqliteStore:
    """The store in a SQLite file. Open it with `SqliteStore.open`."""

    def __init__(self, database: Database, storage: Callable[[], StorageSettings]) -> None:
        self.database = database
        self.token = ""
        """Begins each receipt of this life of the daemon."""
        queues = Queues(database)
        latencies = database.latencies
        self.totals = totals = Totals(database, queues)
        self.lives = lives = Lives(database)
        leased = Leased(database, lives)
        clock_notes = ClockNotes(database)
        groups = Groups(database, leased, clock_notes)
        contents = Contents(database)
        settled = Settled(database)
        self._seqs = seqs = Seqs(database)
        messages = Messages(database, queues, groups, contents, settled, totals)
        self.space = Space(database, storage)
        self._puts = Puts(
            *(database, queues, messages, groups, contents, leased, seqs),
            *(self.space, clock_notes, totals),
        )
        claims = Claims(database, queues, messages, leased, self._puts, clock_notes, totals, latencies.waiting)
        returns = Returns(database, messages, groups, leased, lives, clock_notes, totals)
        self._recovery = Recovery(database, queues, messages, groups, contents, lives, totals)
        acks = Acks(
            database,
            queues,
            groups,
            contents,
            leased,
            lives,
            settled,
            self._puts,
            totals,
            latencies.handling,
        )
        timers = Timers(database, queues, messages, leased, clock_notes)
        retention = RecordRetention(database, messages, settled, clock_notes)
        self.methods: dict[type[Command[Any]], Callable[[Any], object]] = {
            commands.Put: self._puts.put,
            commands.Claim: claims.claim,
            commands.Settle: acks.settle,
            commands.TakeResults: FarResults(database, queues).take,
            commands.RetryDeliveries: returns.retry,
            commands.RejectDelivery: returns.reject,
            commands.EndLife: self._end_life,
            commands.StoreTotals: self._store_totals,
            commands.Advance: timers.advance,
            commands.ShiftTimes: timers.shift,
            commands.NoteClock: timers.note_clock,
            commands.Forget: retention.forget,
            commands.Shrink: self.space.shrink,
            **self._administration(queues, messages, groups, contents, leased, settled, clock_notes, retention),
        }
        """The method that runs each type of command."""
        self._batching = Batching(queues, self._puts, claims, totals, self.methods)

    def _administration(
        self,
        queues: Queues,
        messages: Messages,
        groups: Groups,
        contents: Contents,
        leased: Leased,
        settled: Settled,
        clock_notes: ClockNotes,
        retention: RecordRetention,
    ) -> dict[type[Command[Any]], Callable[[Any], object]]:
        """Make the parts for operators, the dedup service and schedules, and return the methods for their commands."""
        database, totals = self.database, self.totals
        dead_letters = DeadLetters(database, queues, messages, groups, contents, leased, self._puts)
        deletion = Deletion(database, queues, settled, contents, leased, retention, totals)
        changes = MessageChanges(database, queues, messages, contents, leased, settled, self.space, clock_notes)
        bindings = Bindings(database, queues)
        once = OnceKeys(database, clock_notes)
        remembered = RememberedIds(database, clock_notes)
        schedules = Schedules(database, self._puts, totals)
        setups = Setups(database, queues, bindings, schedules)
        imports = Imports(
            database, queues, groups, contents, leased, self._seqs, self.space, clock_notes, retention, setups
        )
        return {
            commands.Pause: queues.pause,
            commands.DeleteQueue: deletion.delete,
            commands.DeleteIdleQueues: deletion.delete_idle,
            commands.CancelMessage: changes.cancel,
            commands.EditMessage: changes.edit,
            commands.Import: imports.store,
            commands.Purge: dead_letters.purge,
            commands.Redrive: dead_letters.redrive,
            commands.Drop: dead_letters.drop,
            commands.Bind: bindings.bind,
            commands.Unbind: bindings.unbind,
            commands.ListBindings: bindings.list_all,
            commands.ReadRemembered: remembered.read,
            commands.StoreRemembered: remembered.store,
            commands.OnceBegin: once.begin,
            commands.OnceFinish: once.finish,
            commands.OnceRelease: once.release,
            commands.OnceRunning: once.running,
            commands.OnceForget: once.forget,
            schedule_commands.ScheduleAdd: schedules.add,
            schedule_commands.ScheduleApply: schedules.apply,
            schedule_commands.ScheduleRemove: schedules.remove,
            schedule_commands.SchedulePause: schedules.pause,
            schedule_commands.ScheduleShow: schedules.show,
            schedule_commands.ScheduleList: schedules.list_all,
            schedule_commands.ReadDue: schedules.read_due,
            schedule_commands.StoreOccurrences: schedules.store_occurrences,
        }

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        quick_commit: float = QUICK_COMMIT,
        settings: SettingsOf = defaults,
        storage: Callable[[], StorageSettings] = StorageSettings,
        clock: Callable[[], float] = time.time,
        make_token: Callable[[], str] = _new_token,
        tell: Tell = to_nobody,
    ) -> Self:
        """Open the file as `Database.open` does, and end the leases of the last daemon."""
        store = cls(await Database.open(path, quick_commit=quick_commit, tell=tell), storage)
        store.token = make_token()
        try:
            await store.database.in_thread(partial(store.recover, clock(), settings))
        except EoqError:
            await store.close()
            raise
        return store

    @property
    def lost(self) -> EoqError | None:
        """Why no command can run any more. See `FileLost`."""
        return self.database.lost

    async def close(self) -> None:
        """Close the file."""
        await self.database.close()

    @property
    def quick(self) -> bool:
        """Whether a commit is so fast that `transact` may run on the event loop. Keeping the log short takes longer."""
        return self.database.quick and not self.space.is_tight

    def storage_errors(self) -> list[str]:
        """Return what is wrong with the storage now, one sentence for each trouble."""
        return self.database.trouble.found

    @property
    def identity(self) -> str:
        """The identity of the file, a random text that was chosen when the file was made."""
        (identity,) = self.database.execute("select identity from daemon").fetchone()
        return str(identity)

    def recover(self, now: float, settings: SettingsOf) -> None:
        """Begin a life, end the leases of the last one, and find the next seq. Raises `EoqError`."""

        def begin() -> None:
            clean = self.lives.begin(now, self.token)
            self.totals.start()
            self._recovery.recover(now, settings, clean)

        try:
            self.database.transaction(begin, durable=True)
            self.totals.committed()
            self._seqs.start()
        except Exception as error:
            raise self._failure(error) from error

    def _end_life(self, _command: commands.EndLife) -> None:
        """See `EndLife`."""
        self.totals.write(MAX_QUEUES)
        self.lives.end()
        self._seqs.stop()

    def _store_totals(self, _command: commands.StoreTotals) -> bool:
        """See `StoreTotals`."""
        self.totals.write(MOST_WRITTEN)
        return self.totals.is_behind

    def transact(
        self,
        batch: Sequence[Command[Any]],
        durable: bool = True,
        wait: float = LOCK_SECONDS,
        seconds: float = math.inf,
    ) -> list[object]:
        """Run commands in one transaction, with one sync of the disk where it is to be ``durable``.

        Return the outcome of each, or the `EoqError` it raised. If the transaction fails as a whole, each command runs
        again in a transaction of its own, so that an error reaches only the command that caused it. After ``seconds``
        no further command is begun: the others have no outcome, and are to be run again.

        Raises `FileLocked`, where another program holds the file and ``wait`` is 0.
        """
        end = time.monotonic() + seconds
        try:
            self.space.look()
            outcomes = self.database.transaction(partial(self._batching.run, batch, seconds), durable, wait)
        except FileLocked as error:
            if not wait:
                raise
            return [error] * len(batch)
        except FileLost as error:
            return [error] * len(batch)
        except Exception as error:  # noqa: BLE001 # the transaction was rolled back, and the error is the outcome
            if len(batch) == 1:
                failure = self._failure(error)
                self.totals.failed(batch[0], failure)
                return [failure]
            alone: list[object] = []
            for command in batch:
                alone += self.transact([command], durable)
                if time.monotonic() > end:
                    break
            return alone
        self.totals.committed()
        return outcomes

    def transact_at_once(self, batch: Sequence[Command[Any]], durable: bool = True) -> list[object] | None:
        """Do as `transact_in_thread`, or return None where another program holds the file.

        The event loop must not wait.
        """
        try:
            return self.transact(batch, durable, 0, MOST_SECONDS)
        except FileLocked:
            return None

    async def transact_in_thread(self, batch: Sequence[Command[Any]], durable: bool = True) -> list[object]:
        """Do as `transact` on another thread, so that a slow disk does not block the event loop.

        After `MOST_SECONDS` no further command is begun.
        """
        return await self.database.in_thread(partial(self.transact, batch, durable, seconds=MOST_SECONDS))

    async def execute(self, command: Command[R]) -> R:
        """Run one command in a transaction of its own, and return its outcome. Raises its `EoqError`."""
        (outcome,) = await self.transact_in_thread([command])
        if isinstance(outcome, EoqError):
            raise outcome
        return cast(R, outcome)

    def _failure(self, error: Exception) -> EoqError:
        if isinstance(error, EoqError):
            return error
        if isinstance(error, sqlite3.Error):
            return storage_error(error, self.database.path)
        if isinstance(error, OSError):
            return StorageFailed(
                f"{error.filename or self.database.path} cannot be looked at ({error.strerror}), so nothing was "
                "changed; mend its folder or see to the disk"
            )
        log.exception("a command of the store failed", exc_info=error)
        return EoqError(f"the daemon failed inside, and nothing was changed: {error!r}; see its log")
