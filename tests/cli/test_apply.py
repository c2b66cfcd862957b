"""``eoq apply`` in a real shell: SQL for each message, exactly once, in the application's own file."""

from __future__ import annotations

import os
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import eoq
from tests.cases import one_in
from tests.support import (
    PATIENCE,
    Daemon,
    Ran,
    Shell,
    daemon_that_retries_late,
    eventually,
    kill_group,
    short_folder,
)

split = import_module("eoq.cli.apply").split

INSERT = "insert into payment values (:id, :body ->> '$.amount')"


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon_that_retries_late(tmp_path_factory.mktemp("retries")) as daemon:
        yield daemon


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """Return a client, to send messages and to see their states."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


@pytest.fixture
def file() -> Iterator[Path]:
    """Return the application's file, with its tables."""
    with short_folder() as folder:
        with closing(sqlite3.connect(folder / "app.db")) as database:
            database.executescript(
                """
                pragma journal_mode = wal;
                create table payment (id text, amount integer check (amount > 0));
                create table total (amount integer);
                insert into total values (0);
                create table seen (id, queue, attempt, enqueued_at, body, headers, "group");
                """
            )
        yield folder / "app.db"


Apply = Callable[..., Ran]


@pytest.fixture
def apply(shell: Shell, queue: str, file: Path) -> Apply:
    """Return a function that runs ``eoq apply`` on the test's queue until it is empty."""

    def apply(sql: str, options: str = "--json", db: Path = file) -> Ran:
        return shell.run(f"eoq apply {queue} --db {db} --sql {shlex.quote(sql)} --until-empty {options}")

    return apply


def _query(file: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as database:
        return database.execute(sql).fetchall()


def test_each_message_is_applied_once(apply: Apply, client: eoq.Client, queue: str, file: Path) -> None:
    client.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"m{n}") for n in range(1, 301)])
    ran = apply(INSERT)
    assert (ran.status, ran.errors) == (0, "")
    assert ran.rows == [{"done": 300, "retried": 0, "rejected": 0, "lost": 0}]
    assert _query(file, "select count(*), count(distinct id), sum(amount) from payment") == [(300, 300, 45150)]
    assert client.result(queue, "m7") == eoq.Result("done")


def test_the_statements_have_all_parameters(apply: Apply, client: eoq.Client, queue: str, file: Path) -> None:
    client.send(queue, "é", id="text", headers={"k": "v"}, group="g")
    client.send(queue, b"\xff", id="blob")
    apply("insert into seen values (:id, :queue, :attempt, :enqueued_at, :body, :headers, :group)")
    (text, blob) = _query(file, "select * from seen order by id desc")
    assert text[:3] + text[4:] == ("text", queue, 1, "é", '{"k": "v"}', "g")
    assert text[3] > 1e9
    assert (blob[4], blob[6]) == (b"\xff", None)


def test_several_statements_are_one_transaction(apply: Apply, client: eoq.Client, queue: str, file: Path) -> None:
    client.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"m{n}") for n in (1, -1, 2)])
    both = f"update total set amount = amount + (:body ->> '$.amount'); -- ; a comment\n{INSERT};"
    assert apply(both).rows[0] == {"done": 2, "retried": 2, "rejected": 0, "lost": 0}
    assert _query(file, "select amount from total") == [(3,)]
    assert _query(file, "select id from payment order by id") == [("m1",), ("m2",)]
    failed = client.ask("show", queue=queue, id="m-1")["message"]
    assert failed["state"] == "delayed"
    assert "CHECK constraint failed" in failed["error"]


def test_a_statement_that_returns_rows_runs_to_its_end(
    apply: Apply, client: eoq.Client, queue: str, file: Path
) -> None:
    client.send(queue, {"amount": 3}, id="m")
    assert apply(f"{INSERT} returning id; select * from payment").rows[0]["done"] == 1
    assert _query(file, "select id from payment") == [("m",)]


def test_a_statement_may_use_a_table_that_one_before_it_creates(
    apply: Apply, client: eoq.Client, queue: str, file: Path
) -> None:
    client.send(queue, "x", id="m")
    sql = "create table if not exists log (id); insert into log values (:id)"
    assert apply(sql).status == 0
    assert _query(file, "select id from log") == [("m",)]


def test_the_check_changes_nothing(apply: Apply, file: Path) -> None:
    assert (
        apply("create table log (id); insert into payment values ('x', 1); insert into nowhere values (1)").status == 2
    )
    assert _query(file, "select name from sqlite_schema where name in ('log', 'eoq_processed')") == []
    assert _query(file, "select * from payment") == []


def test_sql_from_a_file(apply: Apply, client: eoq.Client, queue: str, file: Path, shell: Shell) -> None:
    client.send(queue, {"amount": 3}, id="m")
    (shell.folder / "payment.sql").write_text(f"/* all of it;\n */\n{INSERT};\n")
    assert apply("@payment.sql").rows[0]["done"] == 1
    assert apply("@nothing.sql").status == 2


@pytest.mark.parametrize(
    ("sql", "word"),
    one_in(
        2,
        [
            ("insert into nowhere values (:id)", "no such table: nowhere"),
            ("insert into payment values (:id)", "2 columns but 1 values"),
            ("insert into payment values (:id, :amount)", ":amount"),
            ("insert into payment values (?, 1)", "no name"),
            ("insert into payment values (:id, 1", "incomplete"),
            ("commit", "`commit`"),
            ("select 1; COMMIT; select 2", "`commit`"),
            ("-- harmless\n end", "`end`"),
            ("rollback", "`rollback`"),
            ("begin", "`begin`"),
            ("release eoq_message", "`release`"),
            ("savepoint s", "`savepoint`"),
            ("/* */ attach ':memory:' as other", "`attach`"),
            ("vacuum", "`vacuum`"),
            ("pragma foreign_keys = off", "`pragma`"),
            ("", "no statement"),
            (" ; -- nothing\n;", "no statement"),
        ],
    ),
)
@pytest.mark.first_by_default
def test_sql_that_cannot_run_is_2_before_any_message_is_leased(
    apply: Apply, client: eoq.Client, queue: str, sql: str, word: str
) -> None:
    client.send(queue, "x", id="m")
    ran = apply(sql)
    assert (ran.status, ran.text) == (2, "")
    assert word in ran.errors
    assert client.ask("show", queue=queue, id="m")["message"]["deliveries"] == 0


@pytest.mark.parametrize(
    ("sql", "statements"),
    [
        ("a; b", ["a", "b"]),
        ("select ';'; select \";\"", ["select ';'", 'select ";"']),
        ("create trigger t after insert on x begin select 1; select 2; end; select 3",
         ["create trigger t after insert on x begin select 1; select 2; end", "select 3"]),
        ("select 1 /* ; */; -- ;\nselect 2", ["select 1 /* ; */", "select 2"]),
        ("a;;; ;b;", ["a", "b"]),
        ("/* open", []),
    ],
)  # fmt: skip
def test_statements_are_split_where_sqlite_would(sql: str, statements: list[str]) -> None:
    assert list(split(sql)) == statements


def test_a_missing_file_is_2_and_is_not_created(apply: Apply, file: Path) -> None:
    ran = apply(INSERT, db=file.with_name("typo.db"))
    assert ran.status == 2
    assert "there is no file" in ran.errors
    assert not file.with_name("typo.db").exists()


def test_a_file_that_is_no_database_is_65(apply: Apply, file: Path) -> None:
    file.with_name("text").write_text("no database, but a text that is long enough\n" * 100)
    ran = apply(INSERT, db=file.with_name("text"))
    assert ran.status == 65
    assert "no SQLite file" in ran.errors


def test_a_message_that_rolls_back_the_transaction_does_no_harm_to_the_others(
    apply: Apply, client: eoq.Client, queue: str, file: Path
) -> None:
    client.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"m{n}") for n in (1, 2, -1, 3, 4)])
    assert apply(INSERT.replace("insert", "insert or rollback")).rows[0]["done"] == 4
    assert _query(file, "select sum(amount) from payment") == [(10,)]


def test_a_file_that_cannot_grow_ends_the_command_and_does_not_use_up_the_attempts(
    client: eoq.Client, queue: str, file: Path, shell: Shell
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute(
            "create trigger full before insert on payment begin insert into total values (randomblob(9e5)); end"
        )
    client.send(queue, {"amount": 1}, id="m")
    script = f"ulimit -f 400; exec eoq apply {queue} --db {file} --sql {shlex.quote(INSERT)}"
    ran = shell.run(f"trap '' XFSZ; {script}")
    assert ran.status == 75, ran.errors
    assert str(file) in ran.errors
    shown = client.ask("show", queue=queue, id="m")["message"]
    assert (shown["state"], shown["attempts"]) == ("ready", 0)


def test_a_signal_stops_the_command_and_gives_back_the_waiting_messages(
    shell: Shell, shared_daemon: Daemon, client: eoq.Client, queue: str, file: Path
) -> None:
    process = shell.start(
        f"exec eoq apply {queue} --db {file} --sql {shlex.quote(INSERT)} --json", stdout=subprocess.PIPE
    )
    try:
        client.send(queue, {"amount": 1}, id="m")
        eventually(lambda: client.result(queue, "m"))
        # This lock makes its transaction wait, so that one batch runs and other messages wait behind it.
        with closing(sqlite3.connect(file, isolation_level=None)) as database:
            database.execute("begin immediate")
            client.send_many(queue, [eoq.Outgoing({"amount": 1}, id=f"n{n}") for n in range(500)])
            eventually(lambda: _counts(client, queue)["leased"] > 100)
            os.kill(process.pid, signal.SIGTERM)
            database.execute("rollback")
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        kill_group(process)
        process.wait()
    assert process.returncode == 0
    done = len(_query(file, "select id from payment"))
    assert out.startswith(b'{"done": %d, "retried": 0' % done)
    assert 1 <= done <= 101  # with the batch, if it had begun when the signal came
    assert _counts(client, queue)["ready"] == 501 - done


def _counts(client: eoq.Client, queue: str) -> dict[str, Any]:
    return next(row for row in client.ask("queues")["queues"] if row["name"] == queue)


def test_without_a_daemon_it_is_69_at_once(file: Path) -> None:
    ran = Shell(file.parent / "none", file.parent).run(f"eoq apply q --db {file} --sql 'select 1'")
    assert ran.status == 69
    assert "eoq start" in ran.errors


@pytest.mark.slow
def test_foreign_keys_are_enforced_where_it_is_asked_for(
    client: eoq.Client, queue: str, apply: Apply, file: Path
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table account (id text primary key)")
        database.execute("create table booking (account text not null references account (id))")
    insert = "insert into booking values (:body)"
    client.send(queue, "nobody", id="m")
    assert "--foreign-keys enforces foreign keys" in apply(f"pragma foreign_keys = on; {insert}").errors
    assert apply(insert, "--foreign-keys --json").rows[0]["done"] == 0
    shown = client.ask("show", queue=queue, id="m")["message"]
    assert "FOREIGN KEY constraint failed" in shown["error"]
    assert _query(file, "select * from booking") == []
