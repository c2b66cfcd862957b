"""eoq's daemon with a fault planted into it: what these tests run where a healthy one would not show enough.

    python planted_daemon.py DATABASE SOCKET PLANT        PLANT is a `Plant` as JSON

A fault is put around the real function, never in its place. Names of eoq that are wrapped: the methods and `transact`
of `SqliteStore`, `Claims.store_and_claim`, `Writer.submit`, `Session.close`, `eoq.daemon.main.LoopClock` and
`Settings`; and, of Python, `sqlite3.connect`.
"""

from __future__ import annotations

import configparser  # noqa: F401 # see `_become`
import functools
import importlib
import os
import pkgutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

import msgspec
import platformdirs.unix  # noqa: F401 # see `_become`

from eoq.daemon import main
from eoq.daemon.clock import LoopClock
from eoq.daemon.session import Session
from eoq.daemon.store import commands, schedule_commands
from eoq.daemon.store.sqlite import database as file
from eoq.daemon.store.sqlite.deliveries.claims import Claims
from eoq.daemon.store.sqlite.migration import migrations
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.daemon.store.writer import Writer

COMMANDS: Final[dict[str, type[commands.Command[Any]]]] = {
    "put": commands.Put,
    "claim": commands.Claim,
    "settle": commands.Settle,
    "retry": commands.RetryDeliveries,
    "reject": commands.RejectDelivery,
    "advance": commands.Advance,
    "pause": commands.Pause,
    "purge": commands.Purge,
    "redrive": commands.Redrive,
    "drop": commands.Drop,
    "bind": commands.Bind,
    "unbind": commands.Unbind,
    "once_begin": commands.OnceBegin,
    "once_finish": commands.OnceFinish,
    "once_release": commands.OnceRelease,
    "schedule_add": schedule_commands.ScheduleAdd,
    "schedule_fire": schedule_commands.StoreOccurrences,
}
STORE_AND_CLAIM: Final = "store_and_claim"
"""A put and the claim that waits for it, done as one."""
FULL: Final = 2
"""``pragma synchronous`` of a transaction that waits for the disk."""

Point = Literal["begun", "written", "committed", "replying"]


class Die(msgspec.Struct, frozen=True):
    """``kill -9`` of the daemon by itself, once it has run ``command`` (any command, where it is empty) ``nth`` times.

    begun: its transaction is open, nothing of the command is written
    written: all of the command is written, the transaction is not committed
    committed: the transaction is on disk, no client has its reply
    replying: the reply is with the event loop, which may or may not have sent it
    """

    point: Point
    command: str = ""
    nth: int = 1


class Plant(msgspec.Struct, frozen=True):
    """The faults of one daemon."""

    die: Die | None = None
    quick_commit: float | None = None
    """`Settings.quick_commit`."""
    commit_seconds: float = 0.0
    """How much longer a commit takes that waits for the disk."""
    close_seconds: float = 0.0
    """How long the work for a connection that has ended takes."""
    clock: str | None = None
    """A file with the seconds by which the wall clock is wrong; may change at any time."""
    full: str | None = None
    """A file; while it exists, the database may not grow."""
    paced: str | None = None
    """A folder; while it exists, each commit that has changed something waits for a file ``go`` in it, and removes it.
    Use it with ``quick_commit=0.0``, so that commits wait on their thread."""
    failed_sync: str | None = None
    """A file; while it exists, the sync of each commit fails after the commit is in the log."""
    user: int | None = None
    """The user who runs the daemon."""


def _wrap(owner: type | ModuleType, name: str, around: Callable[[Any], Any]) -> None:
    setattr(owner, name, around(getattr(owner, name)))


def _slow_close(seconds: float, close: Callable[[Session], None]) -> Callable[[Session], None]:
    def slow(session: Session) -> None:
        time.sleep(seconds)
        close(session)

    return slow


class _Death:
    """Counts the runs of a command, and ends the process where the plan says."""

    def __init__(self, plan: Die) -> None:
        self._plan = plan
        self._runs = 0

    def plant(self) -> None:
        _wrap(SqliteStore, "__init__", self._around_init)
        _wrap(SqliteStore, "transact", self._around_transact)
        _wrap(Claims, STORE_AND_CLAIM, functools.partial(self._around, STORE_AND_CLAIM))
        _wrap(Writer, "submit", self._around_submit)

    def _around_init(self, init: Callable[..., None]) -> Callable[..., None]:
        def planting(store: SqliteStore, *arguments: Any, **named: Any) -> None:
            init(store, *arguments, **named)
            for name, command in COMMANDS.items():
                store.methods[command] = self._around(name, store.methods[command])

        return planting

    def _around(self, name: str, method: Callable[..., object]) -> Callable[..., object]:
        def dying(*arguments: Any) -> object:
            self._runs += self._plan.command in ("", name)
            self._reached("begun")
            outcome = method(*arguments)
            self._reached("written")
            return outcome

        return dying

    def _around_transact(self, transact: Callable[..., object]) -> Callable[..., object]:
        def dying(own: SqliteStore, *arguments: Any, **named: Any) -> object:
            outcomes = transact(own, *arguments, **named)
            self._reached("committed")
            return outcomes

        return dying

    def _around_submit(self, submit: Callable[..., None]) -> Callable[..., None]:
        def dying(
            writer: Writer,
            command: commands.Command[Any],
            done: Callable[[object], None],
            *arguments: Any,
            **named: Any,
        ) -> None:
            def done_and_dead(outcome: object) -> None:
                done(outcome)
                self._reached("replying")

            submit(writer, command, done_and_dead, *arguments, **named)

        return dying

    def _reached(self, point: Point) -> None:
        if point == self._plan.point and self._runs >= self._plan.nth:
            os.kill(os.getpid(), signal.SIGKILL)


class _Connection(sqlite3.Connection):
    """A connection to a disk that is slow, or full."""

    plant = Plant()
    _changes = 0

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("begin"):
            self._changes = self.total_changes
            if self.plant.full is not None:
                pages = 1 if Path(self.plant.full).exists() else 2**31  # never less than there are
                super().execute(f"pragma max_page_count = {pages}")
        if sql == "commit" and self.total_changes > self._changes and self.plant.paced is not None:
            _await_turn(Path(self.plant.paced))
        syncs = sql == "commit" and self.total_changes > self._changes and self._waits()
        if syncs:
            time.sleep(self.plant.commit_seconds)
        done = super().execute(sql, *parameters)
        if syncs and self.plant.failed_sync is not None and Path(self.plant.failed_sync).exists():
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return done

    def _waits(self) -> bool:
        (synchronous,) = super().execute("pragma synchronous").fetchone()
        return bool(synchronous == FULL)


def _await_turn(folder: Path) -> None:
    while folder.exists():
        with suppress(FileNotFoundError):
            (folder / "go").unlink()
            return
        time.sleep(0.001)  # between two looks


def _plant_clock(file: Path) -> None:
    class WrongClock(LoopClock):
        """A wall clock that is wrong by what the file says."""

        def __init__(self) -> None:
            super().__init__()
            right = self.wall
            self.wall = lambda: right() + float(file.read_text())

    _wrap(main, "LoopClock", lambda _: WrongClock)


def _become(user: int) -> None:
    # All that may be imported later: the other user need not be able to read where Python is.
    for package in map(importlib.import_module, ("eoq", "eoq.cli")):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    scripts = migrations()
    _wrap(file, "migrations", lambda _: lambda: scripts)
    os.setgid(user)
    os.setuid(user)


def run(database: str, socket: str, plant: Plant) -> None:
    """``eoq daemon`` with its faults."""
    if plant.die is not None:
        _Death(plant.die).plant()
    if plant.quick_commit is not None:
        _wrap(main, "Settings", lambda real: functools.partial(real, quick_commit=plant.quick_commit))
    if plant.commit_seconds or any(file is not None for file in (plant.full, plant.paced, plant.failed_sync)):
        _Connection.plant = plant
        _wrap(sqlite3, "connect", lambda real: functools.partial(real, factory=_Connection))
    if plant.close_seconds:
        _wrap(Session, "close", functools.partial(_slow_close, plant.close_seconds))
    if plant.clock is not None:
        _plant_clock(Path(plant.clock))
    if plant.user is not None:
        _become(plant.user)
    options = ["--db", database, "--socket", socket, "--max-attempts", "1000"]
    importlib.import_module("eoq.cli").main(["daemon", *options], prog_name="eoq")


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], msgspec.json.decode(sys.argv[3], type=Plant))
