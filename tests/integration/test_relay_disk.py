"""A sync of the outbox's file that fails: the relay sends nothing more, since a loss of power could take the rows."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import eoq
from eoq.outbox.file import OutboxFile
from eoq.outbox.rows import Row
from eoq.outbox.wal import LARGE_BYTES


class FailingSync(sqlite3.Connection):
    """A connection to a disk that fails to sync at the statements that begin with ``failing``."""

    failing = "nothing"

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        done = super().execute(sql, *parameters)
        if sql.startswith(FailingSync.failing):
            FailingSync.failing = "nothing"
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return done


@pytest.fixture
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OutboxFile:
    """Return the relay's end of an outbox with two rows, on a disk whose syncs can fail."""
    file = tmp_path / "app.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("pragma journal_mode = wal")
        for body in ("a", "b"):
            eoq.Outbox(database).send("q", body)
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, **options, factory=FailingSync))
    return OutboxFile(file)


def _read(outbox: OutboxFile) -> list[Row]:
    return outbox.read(10, 1 << 20, resend_within=1e6)


@pytest.mark.parametrize("step", ["mark", "remove"])
def test_after_a_failed_sync_nothing_is_read_or_sent(outbox: OutboxFile, step: str) -> None:
    rows = _read(outbox)
    FailingSync.failing = "commit"
    with pytest.raises(eoq.StorageFailed, match="sync"):
        getattr(outbox, step)(rows)
    for again in (lambda: _read(outbox), lambda: outbox.mark(rows)):
        with pytest.raises(eoq.StorageFailed, match="end all programs"):
            again()


def test_nor_after_a_checkpoint_whose_sync_failed(outbox: OutboxFile) -> None:
    outbox.remove(_read(outbox)[:1])  # so that the next commit is not the first that it sees
    with closing(sqlite3.connect(outbox.path)) as database, database:
        database.execute("create table filler (body)")
        database.execute("insert into filler values (zeroblob(?))", (LARGE_BYTES,))
        FailingSync.failing = "pragma wal_checkpoint"
        rows = _read(outbox)
        database.commit()
        outbox.remove([])  # another connection has committed: no checkpoint yet
        with pytest.raises(eoq.StorageFailed, match="sync"):
            outbox.remove(rows)
        with pytest.raises(eoq.StorageFailed, match="sync"):
            _read(outbox)


@pytest.mark.slow
def test_the_log_is_not_moved_into_the_file(outbox: OutboxFile) -> None:
    code = """
import sqlite3, sys
from pathlib import Path
from tests.integration.test_relay_disk import FailingSync
from eoq.outbox.file import OutboxFile

connect = sqlite3.connect
sqlite3.connect = lambda *given, **options: connect(*given, **options, factory=FailingSync)
outbox = OutboxFile(Path(sys.argv[1]))
rows = outbox.read(10, 1 << 20, resend_within=1e6)
FailingSync.failing = "commit"
try:
    outbox.mark(rows)
except Exception:
    outbox.close()
"""
    subprocess.run(
        [sys.executable, "-c", code, str(outbox.path)], check=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert outbox.path.with_name("app.db-wal").stat().st_size > 0
