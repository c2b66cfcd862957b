"""The relay and a file that changes while a message is on its way: restored, or served by another relay as well (G6).

It removes only the row that it sent, and only the mark of its own try.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import eoq
from eoq.outbox.file import OutboxFile
from eoq.outbox.rows import Row
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


# ── two relays on one file ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An application's file with two messages in its outbox."""
    file = tmp_path / "app.db"
    for body in ("one", "two"):
        _write(file, "q", body)
    return file


@pytest.fixture
def relays(file: Path) -> Iterator[tuple[OutboxFile, OutboxFile]]:
    """The relay that was frozen in a step, and the one that worked meanwhile."""
    with closing(OutboxFile(file)) as frozen, closing(OutboxFile(file)) as other:
        yield frozen, other


def _marks(file: Path) -> list[int]:
    """Return the seqs of the rows that may have been sent."""
    with closing(sqlite3.connect(file, timeout=30)) as database:
        return [seq for (seq,) in database.execute("select seq from eoq_outbox_sending order by seq")]


def _read(relay: OutboxFile) -> list[Row]:
    return relay.read(250, 10**9, resend_within=3600)


def test_a_refusal_removes_the_marks_of_its_own_try(file: Path, relays: tuple[OutboxFile, OutboxFile]) -> None:
    relay, _ = relays
    rows = _read(relay)
    relay.mark(rows)
    relay.unmark(rows)
    assert _marks(file) == []


def test_a_refusal_says_nothing_of_the_tries_before_it_and_of_other_relays(
    file: Path, relays: tuple[OutboxFile, OutboxFile]
) -> None:
    """A try whose reply was lost may have stored the message. Without its mark it would be sent again for ever."""
    frozen, other = relays
    first, second = _read(frozen)
    frozen.mark([first])  # its reply is lost
    frozen.mark([first, second])
    frozen.unmark([first, second])
    assert _marks(file) == [first.seq]
    frozen.mark([second])
    other.mark(_read(other))
    frozen.unmark([second])
    other.unmark([first, second])
    assert _marks(file) == [first.seq, second.seq]


@pytest.mark.parametrize("step", ["remove", "unmark", "set aside"])
def test_a_relay_that_was_frozen_touches_no_row_that_took_the_place_of_its_own(
    file: Path, relays: tuple[OutboxFile, OutboxFile], step: str
) -> None:
    """A backup was restored into the file meanwhile, and another relay sends what has the same seqs there."""
    frozen, other = relays
    rows = _read(frozen)
    frozen.mark(rows)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("update eoq_outbox set id = 'other ' || seq")
        database.execute("delete from eoq_outbox_sending")
    other.mark(_read(other))
    if step == "set aside":
        frozen.set_aside(rows[0], "refused")
    else:
        getattr(frozen, step)(rows)
    assert _marks(file) == [row.seq for row in rows]
    assert [row.key for row in _read(other)] == [b"other 1", b"other 2"]


def test_a_table_of_an_earlier_version_is_brought_over(file: Path, relays: tuple[OutboxFile, OutboxFile]) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("create table eoq_outbox_sending (seq integer primary key, since real not null)")
        database.execute("insert into eoq_outbox_sending values (1, ?)", (time.time(),))
    relay, _ = relays
    rows = _read(relay)
    relay.mark(rows)
    relay.unmark(rows)
    assert _marks(file) == [1]
