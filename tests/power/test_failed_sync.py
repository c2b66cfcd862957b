"""A loss of power after a sync that failed: the pages of that sync are not on the disk, although later syncs succeed.

The system calls them written after the failure, and no later sync writes them. So a log has a hole there, and whatever
stands behind the hole is lost. Nothing may be confirmed or acked that stands there.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import eoq
from tests.faults.daemons import ids_of, planted_daemon, settle_all
from tests.faults.planted_daemon import Plant
from tests.power.cuts import log_of
from tests.support import PATIENCE, running_daemon

LEDGER = "app.db"


class FailingSync(sqlite3.Connection):
    """A connection that fails to sync its next commit when ``fails`` is set, and syncs the others."""

    fails = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        done = super().execute(sql, *parameters)
        if self.fails and sql.startswith("commit"):
            self.fails = False
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return done


def _drop(log: Path, start: int, end: int) -> None:
    """Let the disk have zeros where these bytes of the log were to be."""
    with log.open("r+b") as file:
        file.seek(start)
        file.write(bytes(end - start))


@pytest.mark.slow
@pytest.mark.parametrize("quick_commit", [None, 0.0], ids=["on-the-loop", "on-the-thread"])
def test_what_the_daemon_confirmed_is_there(quick_commit: float | None) -> None:
    with (
        planted_daemon(Plant(quick_commit=quick_commit, failed_sync="failed_sync")) as daemon,
        eoq.connect(daemon.socket, timeout=PATIENCE) as client,
    ):
        confirmed = [client.send("q", "x").id for _ in range(5)]
        log, fails = log_of(daemon.folder), daemon.folder / "failed_sync"
        start = log.stat().st_size
        fails.touch()
        with pytest.raises(eoq.StorageFailed, match="unknown whether this was stored"):
            client.send("q", "x")
        end = log.stat().st_size
        fails.unlink()
        with eoq.connect(daemon.socket, timeout=0.1) as other:
            for _ in range(5):
                try:
                    confirmed.append(other.send("q", "x").id)
                except eoq.EoqError:
                    break  # the daemon has ended
        daemon.kill()
        _drop(log, start, end)
        daemon.start()
        assert set(confirmed) <= set(ids_of(settle_all(client, "q")))


@pytest.mark.slow
def test_what_an_inbox_acked_is_in_the_file_of_the_application(tmp_path: Path) -> None:
    def pay(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("insert into payment values (?)", (message.id,))

    with (
        running_daemon() as daemon,
        eoq.connect(daemon.socket) as client,
        closing(sqlite3.connect(tmp_path / LEDGER, factory=FailingSync, isolation_level=None)) as database,
    ):
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text)")
        inbox, log = eoq.Inbox(database), log_of(tmp_path, LEDGER)
        client.send_many("q", [eoq.Outgoing("x", id=f"{number}") for number in range(6)])
        start = end = 0
        for number, message in enumerate(client.receive("q", 6)):
            database.fails = number == 3
            try:
                inbox.process(message, pay)
            except (sqlite3.OperationalError, eoq.StorageFailed):
                end = end or log.stat().st_size
            else:
                start = log.stat().st_size if number < 3 else start
        acked = {f"{number}" for number in range(6) if client.show("q", f"{number}")["state"] == "done"}
        assert acked == {"0", "1", "2"}
        (tmp_path / "disk").mkdir()  # what the machine finds when it starts again
        for name in (LEDGER, log.name):
            shutil.copy(tmp_path / name, tmp_path / "disk" / name)
        _drop(tmp_path / "disk" / log.name, start, end)
        with closing(sqlite3.connect(tmp_path / "disk" / LEDGER)) as after:
            assert {id for (id,) in after.execute("select id from payment")} == acked
