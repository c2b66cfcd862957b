"""The relay sends what commits, once and in order, whichever program wrote it and whatever fails."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import eoq
from eoq.outbox.file import OutboxFile
from eoq.outbox.relay import SWEEP_SECONDS
from eoq.outbox.wal import LARGE_BYTES
from tests.integration.idle import is_idle
from tests.integration.relays import bodies, refusing, relaying, waiting
from tests.support import HAS_PROC, PATIENCE, Daemon, eventually

MODES = ["wal", "delete", "truncate", "persist"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The application's file."""
    return tmp_path / "app.db"


@pytest.fixture
def database(file: Path) -> Iterator[sqlite3.Connection]:
    """The application's connection, with an outbox."""
    with closing(sqlite3.connect(file, timeout=30)) as database:
        database.execute("pragma journal_mode = wal")
        eoq.Outbox(database)
        yield database


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """A client that receives what has arrived."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


def _flush(socket: Path, file: Path, **options: Any) -> int:
    """Send what is in the outbox, and return how many rows are set aside."""

    async def flush() -> int:
        async with eoq.connect_async(socket) as client:
            return await eoq.Relay(file, client, **options).flush()

    return asyncio.run(flush())


# ── waking ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_commit_wakes_the_relay_and_a_rollback_sends_nothing(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, mode: str
) -> None:
    with closing(sqlite3.connect(file, timeout=30)) as database:
        database.execute(f"pragma journal_mode = {mode}")
        database.execute("create table orders (id integer primary key)")
        box = eoq.Outbox(database)
        with relaying(shared_daemon, file):
            for number in range(20):
                with database:
                    database.execute("insert into orders values (?)", (number,))
                    box.send(queue, f"kept {number}")
                with pytest.raises(ZeroDivisionError), database:
                    box.send(queue, "undone")
                    _ = 1 / 0
                # One after the other, so that each commit has to wake the relay again.
                assert bodies(client, queue, 1) == [f"kept {number}"]
            eventually(lambda: waiting(file) == 0)


@pytest.mark.slow
def test_a_commit_that_is_synced_long_after_it_was_written_is_sent(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    """The write to the log wakes the relay. The commit is visible only after the sync, which wakes nothing."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace on this machine")
    script = file.with_name("slow.py")
    script.write_text(
        f"import sqlite3, eoq\ndatabase = sqlite3.connect({str(file)!r})\n"
        f"with database:\n    eoq.Outbox(database).send({queue!r}, 'x')\n"
    )
    slow = f"{strace} -f -qq -o /dev/null -e trace=fdatasync,fsync --inject=fdatasync,fsync:delay_enter=400000"
    with relaying(shared_daemon, file):
        ran = shared_daemon.shell().run(f"{slow} python {script}")
        if ran.status != 0:
            pytest.skip(f"strace may not trace here: {ran.errors}")
        assert len(client.receive(queue, wait=SWEEP_SECONDS / 2)) == 1


def test_a_commit_to_a_file_behind_a_link_wakes_the_relay(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    link = file.parent / "links" / "linked.db"
    link.parent.mkdir()
    link.symlink_to(file)
    box = eoq.Outbox(database)
    with relaying(shared_daemon, link):
        for number in range(3):
            with database:
                box.send(queue, str(number))
            assert bodies(client, queue, 1) == [str(number)]


@pytest.mark.slow
def test_the_log_stays_small_while_a_backlog_is_sent_beside_an_idle_application(
    shared_daemon: Daemon, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    log = file.with_name("app.db-wal")
    with database:
        for _ in range(3000):
            eoq.Outbox(database).send(queue, b"x" * 6000)
    database.execute("pragma wal_checkpoint(truncate)")
    assert _flush(shared_daemon.socket, file) == 0
    assert waiting(file) == 0
    assert log.stat().st_size <= LARGE_BYTES + 2_000_000, "a batch more than the limit"
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def test_the_relay_leaves_checkpoints_to_an_application_that_writes(
    shared_daemon: Daemon, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    database.execute("pragma wal_autocheckpoint = 0")
    with database:
        for _ in range(2000):
            eoq.Outbox(database).send(queue, b"x" * 4000)
    outbox = OutboxFile(file)
    while rows := outbox.read(250, 10**9, resend_within=10**9):
        with database:
            database.execute("create table if not exists t (a)")
            database.execute("insert into t values (1)")
        outbox.remove(rows)
    outbox.close()
    assert file.with_name("app.db-wal").stat().st_size > 2 * LARGE_BYTES


@pytest.mark.slow
def test_the_relay_does_no_checkpoint_behind_a_reader_and_tries_again_later(
    queue: str, file: Path, database: sqlite3.Connection
) -> None:
    with database:
        for _ in range(2000):
            eoq.Outbox(database).send(queue, b"x" * 4000)
    outbox = OutboxFile(file)
    with closing(sqlite3.connect(file)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from eoq_outbox").fetchone()
        while rows := outbox.read(250, 10**9, resend_within=10**9):
            outbox.remove(rows)
    outbox.close()
    assert waiting(file) == 0


@pytest.mark.slow
def test_a_replaced_file_is_opened_again(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, tmp_path: Path
) -> None:
    def write(path: Path, text: str) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            eoq.Outbox(database).send(queue, text)

    other = tmp_path / "other.db"
    write(file, "before")
    with relaying(shared_daemon, file):
        assert bodies(client, queue, 1) == ["before"]
        eventually(lambda: waiting(file) == 0)
        write(other, "replaced")
        other.rename(file)
        assert bodies(client, queue, 1) == ["replaced"]
        write(file, "after")
        assert bodies(client, queue, 1) == ["after"]


def test_a_file_that_is_moved_away_and_back_is_sent(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(file)) as database:
        eoq.Outbox(database)
    with relaying(shared_daemon, file) as relay:
        file.rename(tmp_path / "away.db")
        eventually(lambda: f"{file} does not exist" in relay.said)
        with closing(sqlite3.connect(tmp_path / "away.db")) as database, database:
            eoq.Outbox(database).send(queue, "meanwhile")
        (tmp_path / "away.db").rename(file)
        assert bodies(client, queue, 1) == ["meanwhile"]
        eventually(lambda: "goes on" in relay.said)


@pytest.mark.slow
def test_a_file_in_a_replaced_folder_is_sent(
    shared_daemon: Daemon, client: eoq.Client, queue: str, tmp_path: Path
) -> None:
    file = tmp_path / "data" / "app.db"

    def write(text: str) -> None:
        file.parent.mkdir(exist_ok=True)
        with closing(sqlite3.connect(file)) as database, database:
            eoq.Outbox(database).send(queue, text)

    write("before")
    with relaying(shared_daemon, file):
        assert bodies(client, queue, 1) == ["before"]
        # A database must not be moved in the middle of a transaction.
        eventually(lambda: waiting(file) == 0)
        file.parent.rename(tmp_path / "old")
        write("restored")
        assert bodies(client, queue, 1) == ["restored"]
        write("after")
        assert bodies(client, queue, 1) == ["after"]


@pytest.mark.slow
def test_the_relay_waits_for_a_table_that_does_not_exist_yet(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table orders (id)")
        with relaying(shared_daemon, file) as relay:
            eventually(lambda: "has no outbox" in relay.said)
            with database:
                eoq.Outbox(database).send(queue, "x")
            assert bodies(client, queue, 1) == ["x"]


@pytest.mark.skipif(not HAS_PROC, reason="needs /proc")
@pytest.mark.slow
def test_an_idle_relay_sleeps(shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        box = eoq.Outbox(database)
        with database:
            box.send(queue, "x")
        with relaying(shared_daemon, file) as relay:
            bodies(client, queue, 1)
            eventually(lambda: waiting(file) == 0)
            pid = int(Path(f"/proc/{relay.process.pid}/stat").read_text().split()[0])
            eventually(lambda: is_idle(pid), what="it sleeps")


# ── order, and failures ─────────────────────────────────────────────────────────────────────────────────────


def test_many_rows_of_many_queues_keep_their_order(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    box = eoq.Outbox(database)
    with database:
        for number in range(3000):
            box.send(f"{queue}.{number % 3}", str(number), group=str(number % 7) if number % 2 else None)
    assert _flush(shared_daemon.socket, file) == 0
    for part in range(3):
        rows: list[Mapping[str, Any]] = []
        for state in ("ready", "blocked"):
            rows += client.ask("peek", queue=f"{queue}.{part}", state=state, limit=1000)["messages"]
        rows.sort(key=lambda row: row["seq"])
        assert [row["body"] for row in rows] == [str(number) for number in range(3000) if number % 3 == part]


@pytest.mark.slow
def test_two_relays_send_each_message_once_while_the_daemon_is_killed(
    daemon: Daemon, file: Path, database: sqlite3.Connection
) -> None:
    box = eoq.Outbox(database)
    with relaying(daemon, file), relaying(daemon, file), eoq.connect(daemon.socket) as client:
        for number in range(200):
            with database:
                box.send("q", str(number))
            if number % 60 == 30:
                daemon.restart()
        eventually(lambda: waiting(file) == 0, PATIENCE * 2)
        assert [message.text for message in client.receive("q", 1000)] == [str(number) for number in range(200)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_the_relay_does_not_disturb_a_busy_writer(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection, count: int
) -> None:
    """The writer writes without a pause and waits only briefly for locks, so the relay must keep its locks short."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        with closing(sqlite3.connect(file, timeout=15)) as busy:
            busy.execute("create table if not exists noise (body)")
            while not stop.is_set():
                try:
                    with busy:
                        busy.execute("insert into noise values (zeroblob(1000))")
                except sqlite3.Error as error:
                    failed.append(error)
                    return

    writer = threading.Thread(target=write)
    with relaying(shared_daemon, file):
        writer.start()
        try:
            box = eoq.Outbox(database)
            for number in range(count):
                with database:
                    box.send(queue, str(number))
            assert bodies(client, queue, count) == [str(number) for number in range(count)]
            eventually(lambda: waiting(file) == 0)
        finally:
            stop.set()
            writer.join()
    assert failed == []


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.slow
def test_the_relay_waits_for_a_locked_file_and_can_still_be_stopped(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, mode: str
) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute(f"pragma journal_mode = {mode}")
        box = eoq.Outbox(database)
        with relaying(shared_daemon, file) as relay:
            database.execute("begin exclusive")
            box.send(queue, "x")
            with closing(sqlite3.connect(file, timeout=0)) as other, pytest.raises(sqlite3.OperationalError):
                other.execute("begin immediate")
            database.execute("commit")
            assert bodies(client, queue, 1) == ["x"]
            eventually(lambda: waiting(file) == 0)
            database.execute("begin exclusive")
            box.send(queue, "y")
            assert relay.stop() == 0
            database.execute("rollback")


@pytest.mark.slow
def test_other_queues_go_on_while_one_is_refused(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    full = threading.Event()
    full.set()

    def refuse(request: Mapping[str, Any]) -> str | None:
        sends = request.get("send", [])
        return "queue_full" if full.is_set() and any(message["queue"] == f"{queue}.full" for message in sends) else None

    box = eoq.Outbox(database)
    with refusing(shared_daemon, refuse) as socket, relaying(shared_daemon, file, socket=socket) as relay:
        with database:
            for number in range(100):
                box.send(f"{queue}.full" if number % 10 == 3 else f"{queue}.free", str(number))
        assert bodies(client, f"{queue}.free", 90) == [str(number) for number in range(100) if number % 10 != 3]
        eventually(lambda: "refused by the test" in relay.said)
        with database:
            box.send(f"{queue}.free", "later")
        assert bodies(client, f"{queue}.free", 1) == ["later"]
        eventually(lambda: waiting(file) == 10)
        # They were refused, so they are certainly not stored, and may wait for any time.
        eventually(lambda: _marks(file) == 0)
        full.clear()
        assert bodies(client, f"{queue}.full", 10) == [str(number) for number in range(3, 100, 10)]
        eventually(lambda: "accepts messages again" in relay.said)
        assert relay.said.count("refused by the test") == 1, "it says a thing once"


@pytest.mark.slow
def test_a_group_keeps_its_order_even_if_the_rest_of_its_batch_takes_long(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    """The queue has room again, and its pause is over, before the rest of the batch is sent."""
    refused_alone = threading.Event()

    def refuse(request: Mapping[str, Any]) -> str | None:
        sends = [message["body"] for message in request.get("send", [])]
        if refused_alone.is_set():
            threading.Event().wait(0.2 if sends else 0)
            return None
        if sends == ["first"]:
            refused_alone.set()
        return "queue_full" if "first" in sends else None

    box = eoq.Outbox(database)
    with refusing(shared_daemon, refuse) as socket, relaying(shared_daemon, file, socket=socket):
        with database:
            box.send(f"{queue}.full", "first", group="g")
            for number in range(2):
                box.send(f"{queue}.free", str(number))
            box.send(f"{queue}.full", "second", group="g")
        assert bodies(client, f"{queue}.full", 2) == ["first", "second"]


@pytest.mark.first_by_default
@pytest.mark.parametrize(
    "code", ["storage_full", "storage_failed", "overloaded", "internal_error", "of a later version"]
)
def test_all_rows_wait_while_the_daemon_refuses_everything(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection, code: str
) -> None:
    refused = threading.Event()
    over = threading.Event()

    def refuse(request: Mapping[str, Any]) -> str | None:
        if request["op"] != "settle" or over.is_set():
            return None
        refused.set()
        return code

    box = eoq.Outbox(database)
    with refusing(shared_daemon, refuse) as socket, relaying(shared_daemon, file, socket=socket):
        with database:
            for number in range(5):
                box.send(queue, str(number))
        assert refused.wait(PATIENCE)
        eventually(lambda: _marks(file) == 0)
        over.set()
        assert bodies(client, queue, 5) == ["0", "1", "2", "3", "4"]
        eventually(lambda: waiting(file) == 0)


def _marks(file: Path) -> int:
    with closing(sqlite3.connect(file, timeout=30)) as database:
        return int(database.execute("select count(*) from eoq_outbox_sending").fetchone()[0])


# ── rows that cannot be sent ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_rows_of_a_trigger_are_sent_and_invalid_rows_are_set_aside(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    database.executescript(
        f"""
        create table orders (number integer, name text);
        create trigger sends after insert on orders
        begin
          insert into eoq_outbox (id, queue, body) values ('order-' || new.number, '{queue}', new.name);
          insert into eoq_outbox (queue, body) values ('{queue}', new.number);
        end;
        insert into orders values (1, 'first');
        insert into eoq_outbox (queue, body) values ('no queue', 'x');
        insert into eoq_outbox (queue, body) values (x'71', 'x');
        insert into eoq_outbox (queue, body, headers) values ('{queue}', 'x', '{{no json');
        insert into eoq_outbox (queue, body, headers) values ('{queue}', 'x', '[1]');
        insert into eoq_outbox (queue, body, headers) values ('{queue}', 'x', '{{"k": 1}}');
        insert into eoq_outbox (queue, body, headers) values ('{queue}', 'x', '{{"k": "\\ud800"}}');
        insert into eoq_outbox (queue, body, headers) values ('{queue}', 'x', '{"[" * 100_000}');
        insert into eoq_outbox (queue, body) values ('{queue}', zeroblob(20000000));
        insert into eoq_outbox (id, queue, body) values ('', '{queue}', 'x');
        insert into eoq_outbox (id, queue, body) values (x'6162', '{queue}', 'x');
        insert into eoq_outbox (id, queue, body) values (hex(zeroblob(500000)), '{queue}', 'x');
        insert into eoq_outbox (id, queue, body) values (cast(x'ff' as text), '{queue}', 'x');
        insert into eoq_outbox (id, queue, body) values (char(0), '{queue}', 'x');
        insert into eoq_outbox (id, queue, body) values ('order-1' || char(0), '{queue}', 'x');
        insert into eoq_outbox (queue, body) values ('{queue}' || char(0), 'x');
        insert into eoq_outbox (queue, body, "group") values ('{queue}', 'stuck', 'g' || char(0));
        insert into eoq_outbox (queue, body) values ('{queue}', 'left' || char(0) || 'right');
        insert into eoq_outbox (queue, body, priority) values ('{queue}', 'x', 'high');
        insert into eoq_outbox (queue, body, priority) values ('{queue}', 'x', 1e300);
        insert into eoq_outbox (queue, body, at) values ('{queue}', 'x', 'tomorrow');
        insert into eoq_outbox (queue, body, at) values ('{queue}', 'x', 9e999);
        insert into eoq_outbox (queue, body, "group") values ('{queue}', 'stuck', x'00');
        insert into eoq_outbox (queue, body) values ('{queue}', cast(x'ff' as text));
        insert into orders values (2, 'last');
        """
    )
    assert _flush(shared_daemon.socket, file) == 21
    sent = [(message.id, message.body) for message in client.receive(queue, 100)]
    assert [body for _, body in sent] == [b"first", b"1", b"left\0right", b"\xff", b"last", b"2"]
    assert [id for id, _ in sent if id.startswith("order-")] == ["order-1", "order-2"]
    rows = database.execute("select error, failed_at from eoq_outbox order by seq").fetchall()
    assert all(isinstance(error, str) and 10 < len(error) <= 4096 for error, _ in rows)
    assert all(failed_at == pytest.approx(time.time(), abs=60) for _, failed_at in rows)
    assert _flush(shared_daemon.socket, file) == 21, "they are left alone"


def test_a_table_with_other_columns_is_an_error(shared_daemon: Daemon, queue: str, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table eoq_outbox (seq integer primary key, queue text, body text)")
    with pytest.raises(eoq.InvalidRequest, match="no such column"):
        _flush(shared_daemon.socket, file)


def test_a_row_without_an_id_or_a_body_is_set_aside(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path
) -> None:
    """Another program may have created the table without the constraints."""
    with closing(sqlite3.connect(file)) as database:
        eoq.Outbox(database)
        columns = "seq integer primary key, id, queue, body, headers, priority, 'group', at, ttl, created_at, error"
        columns += ", failed_at"
        database.executescript(f"drop table eoq_outbox; create table eoq_outbox ({columns})")
        with database:
            database.execute("insert into eoq_outbox (queue, body, priority) values (?, 'x', 0)", (queue,))
            database.execute("insert into eoq_outbox (id, queue, priority) values ('a', ?, 0)", (queue,))
            database.execute("insert into eoq_outbox (id, body, priority) values ('b', 'x', 0)")
            database.execute("insert into eoq_outbox (id, queue, body, priority) values ('c', ?, 'x', 0)", (queue,))
    assert _flush(shared_daemon.socket, file) == 3
    assert [message.id for message in client.receive(queue, 10)] == ["c"]


@pytest.mark.slow
def test_only_its_group_waits_for_a_row_that_is_set_aside(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    client.send(queue, "other content", id="taken")
    box = eoq.Outbox(database)
    with relaying(shared_daemon, file) as relay:
        with database:
            box.send(queue, "1", group="g")
            box.send(queue, "conflict", id="taken", group="g")
            for number in range(2, 400):
                box.send(queue, str(number), group="g")
            box.send(f"{queue}.b", "free", group="g")
            box.send(queue, "free", group="h")
            box.send(queue, "free too")
        assert sorted(bodies(client, queue, 4)) == ["1", "free", "free too", "other content"]
        assert bodies(client, f"{queue}.b", 1) == ["free"]
        eventually(lambda: waiting(file) == 398)
        with database:
            box.send(queue, "400", group="g")
            box.send(queue, "free again")
        assert bodies(client, queue, 1) == ["free again"]
        # The operator corrects the row, and its group goes on at once.
        with database:
            database.execute("update eoq_outbox set id = 'free', error = null where error is not null")
        assert bodies(client, queue, 400) == ["conflict", *map(str, range(2, 401))]
    assert relay.said.count("is set aside") == 1
    assert "other content" in relay.said


@pytest.mark.slow
def test_one_bad_row_among_many_is_found(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    bad = {0, 17, 249, 250, 600}
    client.send_many(queue, [eoq.Outgoing("taken", id=str(number)) for number in bad])
    bodies(client, queue, len(bad))
    box = eoq.Outbox(database)
    with database:
        for number in range(700):
            box.send(queue, str(number), id=str(number))
    assert _flush(shared_daemon.socket, file) == len(bad)
    assert bodies(client, queue, 700 - len(bad)) == [str(number) for number in range(700) if number not in bad]
    left = database.execute("select id from eoq_outbox order by seq").fetchall()
    assert [int(id) for (id,) in left] == sorted(bad)


# ── a relay that was not running for longer than the retention ──────────────────────────────────────────────


def test_a_row_that_was_tried_long_ago_is_left_to_the_operator(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    box = eoq.Outbox(database)
    with database:
        box.send(queue, "tried", id="tried", group="g")
        box.send(queue, "behind", group="g")
        box.send(queue, "never tried", id="never tried")
        # It is old, but it was never tried, so it is sent.
        database.execute("update eoq_outbox set created_at = created_at - 30 * 86400 where id = 'never tried'")
    _leave_a_mark(file, 1)
    with database:
        database.execute("update eoq_outbox_sending set since = since - 6.5 * 86400")
    assert _flush(shared_daemon.socket, file) == 1
    assert bodies(client, queue, 1) == ["never tried"]
    ((error,),) = database.execute("select error from eoq_outbox where error is not null").fetchall()
    assert "was first sent on" in error
    with database:
        database.execute("update eoq_outbox set error = null")
    assert _flush(shared_daemon.socket, file) == 0
    assert bodies(client, queue, 2) == ["tried", "behind"]


def test_a_row_that_was_tried_recently_is_sent_again(
    shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    with database:
        eoq.Outbox(database).send(queue, "tried")
    _leave_a_mark(file, 1)
    with database:
        database.execute("update eoq_outbox_sending set since = since - 5.5 * 86400")
    assert _flush(shared_daemon.socket, file, resend_within=3600) == 1
    with database:
        database.execute("update eoq_outbox set error = null")
    _leave_a_mark(file, 1)
    assert _flush(shared_daemon.socket, file) == 0
    assert bodies(client, queue, 1) == ["tried"]


def _leave_a_mark(file: Path, rows: int) -> None:
    """Leave marks as a relay does that is killed right after it has marked rows."""
    outbox = OutboxFile(file)
    outbox.mark(outbox.read(rows, 1, resend_within=3600))
    outbox.close()


@pytest.mark.slow
def test_a_cancelled_relay_ends_and_closes_its_descriptors(
    shared_daemon: Daemon, file: Path, database: sqlite3.Connection
) -> None:
    async def run() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            task = asyncio.create_task(eoq.Relay(file, client).run())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())  # SQLite keeps a descriptor as long as this process has a lock of the file
    before = _descriptors()
    for _ in range(5):
        asyncio.run(run())
    # watchfiles closes its descriptors on a thread of its own.
    eventually(lambda: _descriptors() <= before, what="all descriptors are closed")


def _descriptors() -> int:
    """Return how many descriptors this process has open, or 0 without /proc."""
    return len(list(Path("/proc/self/fd").iterdir())) if HAS_PROC else 0
