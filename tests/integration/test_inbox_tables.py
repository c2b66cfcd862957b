"""The inbox's tables: those of earlier versions are brought up to date, rows are small, and each daemon has its own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.ids import new_id
from tests.support import PATIENCE, Daemon, running_daemon

EARLIER: Final = """
    create table eoq_processed (
      queue text not null,
      id text not null,
      seq integer not null,
      result blob,
      processed_at real not null,
      primary key (queue, id)
    ) without rowid;
    create index eoq_processed_by_seq on eoq_processed (queue, seq, processed_at);
    create table eoq_watermark (
      queue text not null primary key,
      watermark integer not null,
      seen_at real not null
    ) without rowid;
    """
"""The tables as the first version made them."""
EARLIER_INSERT: Final = "insert into eoq_processed (queue, id, seq, result, processed_at) values (?, ?, ?, ?, ?)"
EARLIER_STORE: Final = """
    insert into eoq_watermark (queue, watermark, seen_at)
    values (?, ?, ?)
    on conflict (queue) do update set watermark = excluded.watermark, seen_at = excluded.seen_at
    """


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text)")
    return folder / "app.db"


def _apply(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into payment values (?)", (message.id,))
    return "paid"


def _payments(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from payment order by id")]


def _schema(file: Path) -> dict[str, str]:
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("select name, sql from sqlite_schema where name like 'eoq_%' and sql is not null")
        return {name: " ".join(sql.split()) for name, sql in rows}


def _make_earlier(file: Path, queue: str) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.executescript(EARLIER)
        database.execute(EARLIER_INSERT, (queue, "m", 1, b"earlier", time.time()))
        database.execute(EARLIER_STORE, (queue, 5, time.time()))
        # Renaming a table fails with such a view.
        database.execute("create view broken as select * from nowhere")


def _one(client: eoq.Client, queue: str, id: str = "m", body: str = "x") -> eoq.Message:
    client.send(queue, body, id=id)
    return client.receive(queue, wait=PATIENCE)[0]


# ── earlier versions ────────────────────────────────────────────────────────────────────────────────────────


def test_tables_of_an_earlier_version_are_brought_up_to_date(blocking: eoq.Client, queue: str, file: Path) -> None:
    _make_earlier(file, queue)
    with eoq.Inbox(file) as inbox:
        assert inbox.process(_one(blocking, queue), _apply) == b"earlier"
        assert inbox.process(_one(blocking, queue, "n"), _apply) == b"paid"
    assert _payments(file) == ["n"]
    assert "eoq_processed_by_seq" not in _schema(file)
    with closing(sqlite3.connect(file)) as database:
        watermarks = database.execute("select source, forgotten_to < seen_at from eoq_watermark").fetchall()
        assert [row for row in watermarks if row[0] == ""] == [("", 1)]
        digests = database.execute("select length(digest) from eoq_processed").fetchall()
        assert digests == [(16,), (16,)], "a redelivery brings the digest of an earlier row"


def test_a_guest_inbox_brings_them_up_to_date_in_the_transaction_of_its_library(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    _make_earlier(file, queue)
    with closing(sqlite3.connect(file)) as database:
        inbox = eoq.GuestInbox(lambda: database, lambda connection: connection)
        assert inbox.process(_one(blocking, queue, "n"), _apply) == b"paid"
        assert inbox.seen(queue, "m")
    assert "forgotten_to" in _schema(file)["eoq_watermark"]


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_statement_leaves_the_old_tables_or_the_new_ones(
    queue: str, folder: Path
) -> None:
    new = folder / "new.db"
    with eoq.Inbox(new):
        pass
    for at in range(1, 40):
        file = folder / f"{at}.db"
        _make_earlier(file, queue)
        before = _schema(file)
        child = os.fork()
        if child == 0:
            _die_at(at, lambda file=file: eoq.Inbox(file).close())  # type: ignore[misc] # a lambda with a default
        _pid, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status) == 0
        after = _schema(file)
        assert ended or after == before or "forgotten_to" in after["eoq_watermark"]
        with eoq.Inbox(file) as inbox:
            assert inbox.seen(queue, "m")
        assert _schema(file)["eoq_watermark"] == _schema(new)["eoq_watermark"]
        if ended:
            return
    raise AssertionError("it never ended")


def _die_at(statement: int, work: Callable[[], object]) -> None:
    """Do ``work`` and exit with 0, or die before a statement, counted from 1."""
    count = 0
    connect = sqlite3.connect

    def trace(_sql: str) -> None:
        nonlocal count
        count += 1
        if count == statement:
            os.kill(os.getpid(), 9)

    def traced(*arguments: object, **options: object) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*arguments, **options)  # type: ignore[call-overload] # handed on
        database.set_trace_callback(trace)
        return database

    sqlite3.connect = traced  # type: ignore[assignment] # only in this child, to see its statements
    work()
    os._exit(0)


def test_an_earlier_library_beside_a_newer_one_doubles_nothing(blocking: eoq.Client, queue: str, file: Path) -> None:
    """It finds ids and writes them. It can forget none, since it cannot store its watermark."""
    with eoq.Inbox(file) as inbox, closing(sqlite3.connect(file)) as earlier:
        inbox.process(_one(blocking, queue), _apply)
        found = earlier.execute("select cast(result as blob) from eoq_processed where queue = ?", (queue,)).fetchall()
        assert found == [(b"paid",)]
        with earlier:
            earlier.execute(EARLIER_INSERT, (queue, "n", 2, b"earlier", time.time()))
        assert inbox.process(_one(blocking, queue, "n"), _apply) == b"earlier"
        with pytest.raises(sqlite3.OperationalError, match="ON CONFLICT"):
            earlier.execute(EARLIER_STORE, (queue, 5, time.time()))
    assert _payments(file) == ["m"]


def test_a_daemon_that_sends_neither_source_nor_digest_is_served_as_before(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    with eoq.Inbox(file, keep=0) as inbox:
        for id in ("a", "b", "c"):
            message = _one(blocking, queue, id)
            inbox.process(replace(message, source="", digest="", retention=None), _apply)
        assert inbox.prune() == 2
    assert _payments(file) == ["a", "b", "c"]


# ── what is stored ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_costs_at_most_100_bytes_beside_its_id(blocking: eoq.Client, queue: str, file: Path) -> None:
    count, name = 5000, "payments"
    blocking.send_many(name, [eoq.Outgoing(b"x", id=new_id()) for _ in range(count)])
    with eoq.Inbox(file) as inbox:
        done = 0
        while done < count:
            done += len(inbox.process_many(blocking.receive(name, 500), lambda _tx, _message: None))
    with closing(sqlite3.connect(file)) as database:
        database.execute("vacuum")
        (ids,) = database.execute("select total(length(id)) from eoq_processed").fetchone()
        (size,) = database.execute("select page_count * page_size from pragma_page_count, pragma_page_size").fetchone()
    assert (size - ids) / count <= 100


def test_ids_are_kept_for_the_retention_of_their_queue(folder: Path, file: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text('[queues.short]\nretention = 1000\n[queues."*"]\nretention = 100000\n')
    with (
        running_daemon("--config", str(config)) as daemon,
        eoq.connect(daemon.socket) as client,
        eoq.Inbox(file) as inbox,
    ):
        for queue in ("short", "long"):
            for id in ("a", "b"):
                inbox.process(_one(client, queue, id), _apply)
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("update eoq_processed set processed_at = processed_at - 2000")
        assert inbox.prune() == 1
        assert [inbox.seen("short", "a"), inbox.seen("long", "a")] == [False, True]


@pytest.mark.slow
def test_a_late_repeat_after_a_restored_backup_takes_effect_once(folder: Path, file: Path) -> None:
    """The restored daemon does not know the id. The inbox keeps it as long as the daemon would have known it."""
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client, eoq.Inbox(file) as inbox:
        inbox.process(_one(client, "q", "before"), _apply)
        assert daemon.terminate() == 0
        shutil.copy(daemon.db, folder / "backup")
        daemon.start()
        inbox.process(_one(client, "q", "order-17"), _apply)
        assert daemon.terminate() == 0
        shutil.copy(folder / "backup", daemon.db)
        daemon.start()
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("update eoq_processed set processed_at = processed_at - 6 * 86400")  # the default is 7
        for number in range(5):
            inbox.process(_one(client, "q", f"after {number}"), _apply)
        inbox.prune()
        late = _one(client, "q", "order-17")  # the daemon stores it as a new message
        assert inbox.process(late, _apply) == b"paid"
        assert _payments(file).count("order-17") == 1


def test_the_watermark_of_one_daemon_deletes_no_ids_of_another(shared_daemon: Daemon, queue: str, file: Path) -> None:
    with (
        running_daemon() as other,
        eoq.connect(shared_daemon.socket) as here,
        eoq.connect(other.socket) as there,
        eoq.Inbox(file, keep=0) as inbox,
    ):
        there.send(queue, "x", id="there")
        inbox.process(there.receive(queue, lease=600)[0], _apply)
        for number in range(10):
            inbox.process(_one(here, queue, f"here {number}"), _apply)
        assert inbox.prune() == 9
        assert inbox.seen(queue, "there")
        here.send(queue, "x", id="there")
        inbox.process(here.receive(queue, wait=PATIENCE)[0], _apply)
    assert _payments(file).count("there") == 1


# ── an id that is used again ────────────────────────────────────────────────────────────────────────────────


def _forgetful(folder: Path) -> list[str]:
    config = folder / "eoq.toml"
    config.write_text('[queues."*"]\nretention = 0.05\n')
    return ["--config", str(config)]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.slow
def test_an_id_with_other_content_is_a_dead_letter_and_not_acked_with_the_old_result(
    folder: Path, file: Path, many: bool
) -> None:
    with (
        running_daemon(*_forgetful(folder)) as daemon,
        eoq.connect(daemon.socket) as client,
        eoq.Inbox(file, keep=3600) as inbox,
    ):
        inbox.process(_one(client, "rent", "rent", "january"), _apply)
        message = _sent_anew(client, "rent", "february")
        if many:
            other = _one(client, "rent", "other")
            rejection, result = inbox.process_many([message, other], _apply)
            assert isinstance(rejection, eoq.Reject)
            assert result == b"paid"
        else:
            with pytest.raises(eoq.Reject, match="other content was processed before"):
                inbox.process(message, _apply)
        shown = client.ask("show", queue="rent", id="rent")["message"]
        assert shown["state"] == "dead"
        assert "send it under an id of its own" in shown["error"]
        # The same content is only acked.
        client.drop("rent", ["rent"])
        assert inbox.process(_sent_anew(client, "rent", "january"), _apply) == b"paid"
    assert _payments(file) == ["other", "rent"] if many else ["rent"]


def _sent_anew(client: eoq.Client, queue: str, body: str) -> eoq.Message:
    """Send a message under the id of a settled one, as soon as the daemon has forgotten it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if not client.send(queue, body, id="rent").duplicate:
                return client.receive(queue, wait=PATIENCE)[0]
        except eoq.IdConflict:
            pass  # not forgotten yet
        time.sleep(0.02)  # between two tries
    raise AssertionError("the daemon forgets no id")


async def test_an_asyncio_inbox_rejects_other_content_as_well(shared_daemon: Daemon, queue: str, file: Path) -> None:
    async def apply(_tx: object, _message: eoq.AsyncMessage) -> str:
        return "paid"

    async with eoq.connect_async(shared_daemon.socket) as client, eoq.AsyncInbox(file) as inbox:
        await client.send(queue, "x", id="m")
        (message,) = await client.receive(queue, wait=PATIENCE)
        await inbox.process(message, apply)
        other = replace(message, digest="00" * 16)
        (outcome,) = await inbox.process_many([other], apply)
        assert isinstance(outcome, eoq.Reject)
        with pytest.raises(eoq.Reject, match="other content"):
            await inbox.process(other, apply)
