"""``eoq apply`` in a real shell, with PostgreSQL: SQL for each message, exactly once."""

from __future__ import annotations

import shlex
from importlib import import_module

import pytest

import eoq
from tests.integration.stores import Store
from tests.support import Daemon, Ran, Shell

INSERT = "insert into payment (id, amount) values (:id, (:body::jsonb ->> 'amount')::integer)"


@pytest.fixture
def store(database: str) -> Store:
    return Store("postgres", database)


def _apply(shell: Shell, queue: str, database: str, sql: str, options: str = "--json") -> Ran:
    return shell.run(f"eoq apply {queue} --db '{database}' --sql {shlex.quote(sql)} --until-empty {options}")


def _send(daemon: Daemon, queue: str, *bodies: object, first: int = 0) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many(queue, [eoq.Outgoing(body, id=f"{n}") for n, body in enumerate(bodies, first)])


@pytest.mark.slow
def test_each_message_is_applied_once_and_a_bad_one_is_kept(
    shell: Shell, shared_daemon: Daemon, queue: str, database: str, store: Store
) -> None:
    store.execute("alter table payment add check (amount > 0)")
    _send(shared_daemon, queue, {"amount": 1}, {"amount": -1}, {"amount": 3})
    _send(shared_daemon, queue, {"amount": 1})
    ran = _apply(shell, queue, database, INSERT)
    assert ran.status == 0, ran.errors
    assert ran.rows[-1]["done"] == 2
    assert store.execute("select id, amount from payment order by id") == [("0", 1), ("2", 3)]
    assert "payment_amount_check" in shell.run(f"eoq show {queue} 1").text


@pytest.mark.slow
def test_several_statements_with_quotes_comments_and_every_parameter(
    shell: Shell, shared_daemon: Daemon, queue: str, database: str, store: Store
) -> None:
    store.execute("create table seen (a text, b text, c integer, d float, e bytea, f jsonb, g text, h text)")
    _send(shared_daemon, queue, b"\xff\x00", "text\0", "100 %")
    sql = """
        -- a comment; with :id and a % sign
        insert into seen
        values (:id, :queue, :attempt, :enqueued_at, BYTES, :headers, :group, '50 % of :id; ''x''');
        /* another; */ insert into payment (id, amount) select $$a;b %$$ || :id, length(:body::text) where '%' = '%' ;;
    """.replace("BYTES", "convert_to(left(:body::text, 3), 'UTF8')")
    ran = _apply(shell, queue, database, sql)
    assert (ran.status, ran.rows[-1]["done"]) == (0, 3), ran.errors
    assert store.execute("select distinct b, c, f, g, h from seen") == [(queue, 1, {}, None, "50 % of :id; 'x'")]
    assert sorted(store.payments()) == ["a;b %0", "a;b %1", "a;b %2"]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("insert into nowhere values (:id)", "nowhere"),
        ("commit", "`commit` is not allowed"),
        ("insert into payment (id) values (:id); ROLLBACK", "`rollback` is not allowed"),
        (" ; ", "has no statement"),
    ],
)
@pytest.mark.slow
def test_what_cannot_run_is_refused_at_the_start(
    shell: Shell, queue: str, database: str, store: Store, sql: str, said: str
) -> None:
    ran = _apply(shell, queue, database, sql)
    assert ran.status == 2
    assert said in ran.errors


@pytest.mark.slow
def test_the_check_changes_nothing(shell: Shell, queue: str, database: str, store: Store) -> None:
    ran = _apply(shell, queue, database, "create table if not exists made (id text); insert into made values (:id)")
    assert ran.status == 0, ran.errors
    assert store.execute("select to_regclass('made')") == [(None,)]


@pytest.mark.slow
def test_a_password_is_refused_and_an_absent_server_is_named(shell: Shell, queue: str) -> None:
    ran = shell.run(f"eoq apply {queue} --db 'postgresql://shop:secret@127.0.0.1:1/shop' --sql 'select 1'")
    assert ran.status == 65
    assert "PGPASSFILE" in ran.errors
    absent = shell.run(f"PGPASSWORD=secret eoq apply {queue} --db 'postgresql://127.0.0.1:1/shop' --sql 'select 1'")
    assert absent.status == 75
    assert "cannot use postgresql://127.0.0.1:1/shop" in absent.errors
    assert "secret" not in ran.errors + absent.errors


@pytest.mark.parametrize(
    ("sql", "statements"),
    [
        ("select :id", ["select %(id)s::text"]),
        (
            "select ':id', \":id\", E'\\':id', $$:id$$, $a$ $$ :id $a$",
            ["select ':id', \":id\", E'\\':id', $$:id$$, $a$ $$ :id $a$"],
        ),
        ("select x::id, :idea, 5 % 2", ["select x::id, :idea, 5 %% 2"]),
        ("a; b -- ;\n; /* ; */ c", ["a", "b", "c"]),
    ],
)
def test_statements_are_split_and_parameters_found(sql: str, statements: list[str]) -> None:
    split = import_module("eoq.cli.apply_postgres").split
    assert [statement.text for statement in split(sql)] == statements
