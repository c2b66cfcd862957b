"""The relay and a file that is restored while a message is on its way: it removes only the row that it sent (G6)."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import eoq
from tests.integration.relays import bodies, relaying, waiting
from tests.support import Daemon, eventually


def _write(file: Path, queue: str, body: str) -> int:
    """Commit a message to the outbox of a file; return the seq of its row."""
    with closing(sqlite3.connect(file, timeout=30)) as database, database:
        eoq.Outbox(database).send(queue, body)
        (seq,) = database.execute("select max(seq) from eoq_outbox").fetchone()
    return int(seq)


def _being_sent(file: Path) -> bool:
    """Return whether the relay has marked a row as sent, so that only the daemon's confirmation is missing."""
    with closing(sqlite3.connect(file, timeout=30)) as database:
        marks = "select 1 from sqlite_schema where name = 'eoq_outbox_sending'"
        if database.execute(marks).fetchone() is None:
            return False
        return database.execute("select 1 from eoq_outbox_sending").fetchone() is not None


def test_a_row_that_has_the_seq_of_a_sent_one_after_a_restore_is_sent_as_well(daemon: Daemon, tmp_path: Path) -> None:
    file, backup = tmp_path / "app.db", tmp_path / "backup.db"
    with closing(sqlite3.connect(file)) as database:
        eoq.Outbox(database)
    shutil.copyfile(file, backup)
    with eoq.connect(daemon.socket) as client, relaying(daemon, file):
        daemon.signal(signal.SIGSTOP)
        try:
            sent = _write(file, "q", "sent before the restore")
            eventually(lambda: _being_sent(file), what="the row is marked as sent")
            assert _write(backup, "q", "written after the restore") == sent
            backup.rename(file)
        finally:
            daemon.signal(signal.SIGCONT)
        assert bodies(client, "q", 2) == ["sent before the restore", "written after the restore"]
        eventually(lambda: waiting(file) == 0)
