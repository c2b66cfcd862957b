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
from tests.support import PATIENCE, eventually

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


def test_an_id_whose_message_is_done_is_deleted(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    for number in range(5):
        _process(blocking, queue, inbox, number)
    assert _known(file) == [0, 1, 2, 3, 4]
    assert inbox.prune() == 4  # only the next delivery will say that the last one is done
    assert _known(file) == [4]
    assert not inbox.seen(queue, "3")
    assert inbox.prune() == 0


def test_ids_younger_than_keep_stay(blocking: eoq.Client, queue: str, file: Path) -> None:
    with eoq.Inbox(file, keep=3600) as inbox:
        for number in range(5):
            _process(blocking, queue, inbox, number)
        assert inbox.prune() == 0
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("update eoq_processed set processed_at = processed_at - 3601 where id in ('0', '2')")
    with eoq.Inbox(file, keep=3600) as inbox:
        assert inbox.prune() == 2
    assert _known(file) == [1, 3, 4]


def test_keep_may_be_infinite(blocking: eoq.Client, queue: str, file: Path) -> None:
    with eoq.Inbox(file, keep=math.inf) as inbox:
        _process(blocking, queue, inbox, 0, 150)
        _process(blocking, queue, inbox, 150)
        assert inbox.prune() == 0


def test_a_worker_prunes_while_it_processes(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    """Without a call of `prune` the table stays small."""
    for first in range(0, 2000, 50):
        _process(blocking, queue, inbox, first, 50)
        assert len(_known(file)) <= 2 * ROWS
    for number in range(2000, 2250):
        _process(blocking, queue, inbox, number)
    assert len(_known(file)) <= ROWS
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("select count(*), count(distinct id) from payment").fetchone() == (2250, 2250)


def test_workers_that_process_one_message_each_prune_as_well(blocking: eoq.Client, queue: str, file: Path) -> None:
    for number in range(5):
        with eoq.Inbox(file, keep=0) as inbox:
            _process(blocking, queue, inbox, number)
    assert _known(file) == [4]


def test_prune_uses_the_watermarks_that_other_processes_received(blocking: eoq.Client, queue: str, file: Path) -> None:
    with eoq.Inbox(file) as worker:
        _process(blocking, queue, worker, 0, 500)
        _process(blocking, queue, worker, 500, 100)
    with eoq.Inbox(file, keep=0) as inbox:
        assert inbox.prune() == 500
        assert inbox.prune() == 0
    assert _known(file) == list(range(500, 600))


def test_each_queue_has_a_watermark_of_its_own(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    other = queue[:100] + ".other"
    blocking.send(other, "x", id="100", delay=3600)
    blocking.send(other, "x", id="101")
    inbox.process_many(_receive(blocking, other), _apply)
    for number in range(3):
        _process(blocking, queue, inbox, number)
    assert inbox.prune() == 2
    assert _known(file) == [2, 101]


def test_the_ids_of_a_queue_that_has_no_watermark_stay(file: Path, inbox: eoq.Inbox) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("insert into eoq_processed (queue, id, seq, processed_at) values ('q', '1', 1, 0)")
    assert inbox.prune() == 0


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.first_by_default
@pytest.mark.parametrize("state", ["ready", "delayed", "leased", "dead"])
def test_the_id_of_a_message_that_can_be_delivered_again_is_kept(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path, state: str
) -> None:
    """The effect is committed, and the ack was too late. Later messages do not displace the id."""
    _send(blocking, queue, 0, 1)
    (slow,) = blocking.receive(queue, wait=PATIENCE, lease=0.02)
    eventually(lambda: _state(blocking, queue, "0") == "ready")
    with pytest.raises(eoq.LeaseLost):
        inbox.process(slow, _apply)
    if state != "ready":
        (again,) = _receive(blocking, queue)
        if state == "delayed":
            again.nack(delay=3600)
        elif state == "dead":
            again.reject("no")
    assert _state(blocking, queue, "0") == state
    for number in range(1, 300):
        blocking.send(queue, "x", id=f"{number}", priority=1)
        inbox.process(_receive(blocking, queue)[0], _apply)
    assert inbox.prune() == 0
    assert inbox.seen(queue, "0")


def test_a_message_whose_id_was_pruned_is_a_duplicate_for_the_daemon(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    _process(blocking, queue, inbox, 0)
    _process(blocking, queue, inbox, 1)
    inbox.prune()
    assert not inbox.seen(queue, "0")
    assert blocking.send(queue, "x", id="0").duplicate
    assert blocking.receive(queue) == []


def test_a_redelivery_renews_the_date_of_an_id(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    _send(blocking, queue, 0, 1)
    (slow,) = blocking.receive(queue, wait=PATIENCE, lease=0.02)
    eventually(lambda: _state(blocking, queue, "0") == "ready")
    with pytest.raises(eoq.LeaseLost):
        inbox.process(slow, _apply)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("update eoq_processed set processed_at = 1, seq = 0")
    before = time.time()
    inbox.process(_receive(blocking, queue)[0], _apply)
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("select seq, result from eoq_processed").fetchall() == [(slow.seq, b"0")]
        assert database.execute("select processed_at from eoq_processed").fetchone()[0] >= before


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
