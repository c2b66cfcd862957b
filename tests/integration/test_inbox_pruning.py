"""Pruning of an inbox with a real daemon: only ids below the watermark and older than ``keep`` are deleted (G9).

That this is safe is the subject of tests/model/test_retention.py.
"""

from __future__ import annotations

import math
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

import eoq
from tests.support import PATIENCE

ROWS = 200
"""How many rows one step reads."""


@pytest.fixture
def file(folder: Path) -> Path:
    """Return the application's file, with its table."""
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text)")
    return folder / "app.db"


@pytest.fixture
def inbox(file: Path) -> Iterator[eoq.Inbox]:
    """Return an inbox that keeps no id for the sake of backups."""
    with eoq.Inbox(file, keep=0) as inbox:
        yield inbox


def _apply(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into payment (id) values (?)", (message.id,))
    return message.id


def _send(client: eoq.Client, queue: str, first: int, count: int) -> None:
    client.send_many(queue, [eoq.Outgoing("x", id=f"{n}") for n in range(first, first + count)])


def _receive(client: eoq.Client, queue: str, limit: int = 1) -> list[eoq.Message]:
    messages = client.receive(queue, limit, wait=PATIENCE)
    assert messages
    return messages


def _process(client: eoq.Client, queue: str, inbox: eoq.Inbox, first: int, count: int = 1) -> None:
    _send(client, queue, first, count)
    inbox.process_many(_receive(client, queue, count), _apply)


def _known(file: Path) -> list[int]:
    with closing(sqlite3.connect(file)) as database:
        return sorted(int(id) for (id,) in database.execute("select id from eoq_processed"))


# ── what is deleted ─────────────────────────────────────────────────────────────────────────────────────────


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────


def _state(client: eoq.Client, queue: str, id: str) -> str:
    return str(client.ask("show", queue=queue, id=id)["message"]["state"])


# ── connections and files ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("isolation_level", ["DEFERRED", None])
def test_a_connection_of_the_application_may_have_any_settings(
    blocking: eoq.Client, queue: str, file: Path, isolation_level: Literal["DEFERRED"] | None
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.isolation_level = isolation_level
        database.row_factory = lambda _cursor, _row: {"odd": True}
        database.text_factory = bytes
        inbox = eoq.Inbox(database, keep=0)
        _process(blocking, queue, inbox, 0, 120)
        blocking.send(queue, "x", id="é'\"")
        assert inbox.process_many(_receive(blocking, queue) * 2, _apply) == ["é'\"".encode()] * 2
        assert inbox.prune() == 120
        assert not database.in_transaction


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has autocommit since Python 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit_of_python_3_12_works_or_is_refused(
    blocking: eoq.Client, queue: str, file: Path, autocommit: bool
) -> None:
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect
    with closing(connect(file, autocommit=autocommit)) as database:
        if not autocommit:
            with pytest.raises(eoq.InvalidRequest, match="autocommit=False"):
                eoq.Inbox(database)
            return
        inbox = eoq.Inbox(database, keep=0)
        _process(blocking, queue, inbox, 0, 3)
        _process(blocking, queue, inbox, 3)
        assert inbox.prune() == 3
    assert _known(file) == [3]


def test_an_open_transaction_is_refused(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        inbox = eoq.Inbox(database)
        database.execute("insert into payment (id) values ('own')")
        with pytest.raises(eoq.InvalidRequest, match="transaction open"):
            inbox.prune()
        assert database.in_transaction


def test_a_file_in_another_encoding(folder: Path, blocking: eoq.Client, queue: str) -> None:
    file = folder / "utf16.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("pragma encoding = 'UTF-16'")
        database.execute("create table payment (id text)")
    for _ in range(2):
        with eoq.Inbox(file, keep=0) as inbox:
            _process(blocking, queue, inbox, 0 if not inbox.seen(queue, "0") else 50, 50)
            inbox.prune()
    assert _known(file) == list(range(50, 100))


def test_a_table_of_an_earlier_version_is_used(blocking: eoq.Client, queue: str, file: Path) -> None:
    """It had neither the index nor the watermarks."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(
            """
            create table eoq_processed (
              queue text not null,
              id text not null,
              seq integer not null,
              result blob,
              processed_at real not null,
              primary key (queue, id)
            ) without rowid
            """
        )
        database.execute("insert into eoq_processed values (?, '0', 0, x'61', 1)", (queue,))
    with eoq.Inbox(file) as inbox:
        assert inbox.seen(queue, "0")
        _process(blocking, queue, inbox, 1)
        assert _known(file) == [1]


@pytest.mark.parametrize("keep", [-1, math.nan, "1", True])
def test_a_keep_that_is_no_number_of_seconds_is_refused(file: Path, keep: float) -> None:
    with pytest.raises(eoq.InvalidRequest, match="keep"):
        eoq.Inbox(file, keep=keep)


@pytest.mark.slow
def test_an_automatic_step_reads_few_rows_even_if_many_are_kept(blocking: eoq.Client, queue: str, file: Path) -> None:
    assert _instructions(blocking, queue, file, 50_000) < 2 * _instructions(blocking, queue, file, 500)


def _instructions(client: eoq.Client, queue: str, file: Path, kept: int) -> int:
    """Return how many hundreds of instructions SQLite runs for one message, with ``kept`` rows below the watermark."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    with closing(sqlite3.connect(file)) as database:
        inbox = eoq.Inbox(database)
        with database:
            database.execute("delete from eoq_processed")
            rows = ((queue, f"kept{n}", n, time.time()) for n in range(kept))
            database.executemany("insert into eoq_processed (queue, id, seq, processed_at) values (?, ?, ?, ?)", rows)
        client.send(queue, "x", id=f"of {kept}")
        message = replace(_receive(client, queue)[0], seq=kept, watermark=kept)
        database.set_progress_handler(tick, 100)
        inbox.process(message, _apply)
        database.set_progress_handler(None, 100)
        assert database.execute("select count(*) from eoq_watermark").fetchone() == (1,), "no step was made"
    return count
