"""The inbox in PostgreSQL: what is particular to it. What every inbox does is in test_inboxes.py (G5, G9)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

import eoq
from tests.cases import one_in
from tests.integration.proxies import CommitCutter
from tests.integration.stores import Store
from tests.postgres import Server
from tests.support import PATIENCE, eventually, python_process

Connection = psycopg.Connection[Any]
KINDS = ["url", "connection", "autocommit"]


@pytest.fixture
def store(database: str) -> Store:
    return Store("postgres", database)


@pytest.fixture
def inbox(database: str, store: Store) -> Iterator[eoq.PgInbox]:
    with eoq.PgInbox(database) as inbox:
        yield inbox


class _OfConnection(eoq.PgInbox):
    """An inbox that also closes the application's connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection_of_application = connection
        super().__init__(connection)

    def close(self) -> None:
        self._connection_of_application.close()


def _open(database: str, kind: str) -> eoq.PgInbox:
    if kind == "url":
        return eoq.PgInbox(database)
    return _OfConnection(psycopg.connect(database, autocommit=kind == "autocommit"))


def _receive(client: eoq.Client, queue: str, limit: int = 1, lease: float | None = None) -> list[eoq.Message]:
    messages = client.receive(queue, limit, wait=PATIENCE, lease=lease)
    assert messages
    return messages


def _delivered(client: eoq.Client, queue: str, id: str = "m", lease: float | None = None) -> eoq.Message:
    client.send(queue, {"amount": 5}, id=id)
    (message,) = _receive(client, queue, lease=lease)
    return message


def _deliver_many(client: eoq.Client, queue: str, count: int) -> list[eoq.Message]:
    client.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"{n}") for n in range(count)])
    return _receive(client, queue, count)


def _state(client: eoq.Client, queue: str, id: str = "m") -> str:
    return str(client.ask("show", queue=queue, id=id)["message"]["state"])


# ── handlers that would end the transaction ─────────────────────────────────────────────────────────────────


def _uses_with(tx: Connection) -> None:
    with tx:
        tx.execute("insert into payment (id) values ('inside')")


def _goes_on_after_rollback(tx: Connection) -> None:
    tx.execute("rollback")
    tx.execute("insert into payment (id) values ('after')")


ENDINGS: dict[str, Callable[[Connection], object]] = {
    "commit()": lambda tx: tx.commit(),
    "rollback()": lambda tx: tx.rollback(),
    "execute commit": lambda tx: tx.execute("commit"),
    "execute COMMIT with a comment": lambda tx: tx.execute("/* */ COMMIT -- now"),
    "execute end": lambda tx: tx.execute("end transaction"),
    "execute rollback": lambda tx: tx.execute("rollback"),
    "commit and chain": lambda tx: tx.execute("commit and chain"),
    "goes on after a rollback": _goes_on_after_rollback,
    "with connection": _uses_with,
    "closes": lambda tx: tx.close(),
}


@pytest.mark.parametrize(
    ("ending", "ignores", "kind"),
    one_in(5, [(name, ignores, kind) for kind in KINDS for ignores in (False, True) for name in ENDINGS]),
)
@pytest.mark.first_by_default
def test_a_handler_cannot_end_the_transaction(
    blocking: eoq.Client,
    queue: str,
    database: str,
    store: Store,
    ending: str,
    ignores: bool,
    kind: str,
) -> None:
    """Either nothing of it is stored, or its effect and its id together."""

    def handler(tx: Connection, message: eoq.Message) -> object:
        result = store.apply(tx, message)
        with suppress(*([psycopg.Error] if ignores else [])):
            ENDINGS[ending](tx)
        return result

    with closing(_open(database, kind)) as inbox:
        inbox.process(_delivered(blocking, queue, "good"), store.apply)
        with suppress(psycopg.Error, eoq.InvalidRequest):
            inbox.process(_delivered(blocking, queue), handler)
    # A handler that ignores the refusal of its commit, at the end of `with tx`, has two effects.
    complete = [["good", "m"], ["good", "m", "inside"]]
    with eoq.PgInbox(database) as other:
        assert store.payments() in (complete if other.seen(queue, "m") else [["good"]])
        if not other.seen(queue, "m"):
            other.process(_receive(blocking, queue)[0], store.apply)
    assert store.payments() in complete
    assert blocking.result(queue, "m") == eoq.Result("done", b'{"paid":5}')


@pytest.mark.parametrize("ending", ["commit", "end", "commit and chain"])
def test_a_commit_in_sql_is_refused_by_the_database(
    blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store, ending: str
) -> None:
    def handler(tx: Connection, message: eoq.Message) -> None:
        store.apply(tx, message)
        tx.execute(ending)

    with pytest.raises(psycopg.errors.UniqueViolation, match="a handler must not commit"):
        inbox.process(_delivered(blocking, queue), handler)
    assert store.payments() == []
    assert _state(blocking, queue) == "ready"


@pytest.mark.parametrize("ending", one_in(3, [*ENDINGS]))
def test_of_many_one_that_would_end_the_transaction_undoes_only_itself(
    blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store, ending: str
) -> None:
    def handler(tx: Connection, message: eoq.Message) -> None:
        store.apply(tx, message)
        if message.id == "1":
            ENDINGS[ending](tx)

    results = inbox.process_many(_deliver_many(blocking, queue, 3), handler)
    assert [result is None for result in results] == [True, False, True]
    assert store.payments() == ["0", "2"]
    assert [inbox.seen(queue, id) for id in "012"] == [True, False, True]


@pytest.mark.parametrize("many", [False, True])
def test_an_error_of_a_statement_that_the_handler_ignores_undoes_it(
    blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store, many: bool
) -> None:
    """PostgreSQL answers the commit of such a transaction with a rollback, which is no error."""

    def handler(tx: Connection, message: eoq.Message) -> None:
        store.apply(tx, message)
        with suppress(psycopg.Error):
            tx.execute("select no_such_function()")

    if many:
        (result,) = inbox.process_many([_delivered(blocking, queue)], handler)
        assert isinstance(result, eoq.InvalidRequest)
    else:
        with pytest.raises(eoq.InvalidRequest, match="ignored the error"):
            inbox.process(_delivered(blocking, queue), handler)
    assert store.payments() == []
    assert not inbox.seen(queue, "m")
    assert _state(blocking, queue) == "ready"


def test_a_handler_may_use_savepoints(blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store) -> None:
    def handler(tx: Connection, message: eoq.Message) -> object:
        with suppress(psycopg.Error), tx.transaction():
            tx.execute("insert into payment (id) values ('undone')")
            tx.execute("select no_such_function()")
        return store.apply(tx, message)

    assert inbox.process(_delivered(blocking, queue), handler) == b'{"paid":5}'
    assert store.payments() == ["m"]


# ── connections ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("cursors", [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor])
def test_a_connection_of_any_mode_works_and_remains_the_applications(
    blocking: eoq.Client, queue: str, database: str, store: Store, autocommit: bool, cursors: type[psycopg.Cursor[Any]]
) -> None:
    def handler(tx: Connection, message: eoq.Message) -> object:
        return store.apply(psycopg.Cursor(tx), message)

    with psycopg.connect(database, autocommit=autocommit, row_factory=dict_row, cursor_factory=cursors) as connection:
        inbox = eoq.PgInbox(connection)
        assert inbox.process(_delivered(blocking, queue), handler) == b'{"paid":5}'
        assert connection.autocommit is autocommit
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.execute("select 1 as one").fetchone() == {"one": 1}
    assert store.payments() == ["m"]


def test_an_open_transaction_is_refused_and_left_as_it_is(
    blocking: eoq.Client, queue: str, database: str, store: Store
) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("insert into payment (id) values ('mine')")
        with pytest.raises(eoq.InvalidRequest, match="has a transaction open"):
            eoq.PgInbox(connection).process(_delivered(blocking, queue), store.apply)
    assert store.payments() == ["mine"]
    assert _state(blocking, queue) == "ready"


def test_a_handler_may_ask_and_use_another_inbox_but_not_its_own(
    blocking: eoq.Client, queue: str, database: str, store: Store
) -> None:
    other = queue[:100] + ".other"
    inner = _delivered(blocking, other)

    def handler(tx: Connection, message: eoq.Message) -> object:
        assert not own.seen(queue, message.id)
        with pytest.raises(eoq.InvalidRequest, match="inside the inbox's transaction"):
            own.process(inner, store.apply)
        return store.apply(tx, message)

    with psycopg.connect(database) as connection:
        own = eoq.PgInbox(connection)
        own.process(_delivered(blocking, queue), handler)
    assert store.payments() == ["m"]


def test_a_commit_is_on_disk_whatever_the_database_is_set_to(
    blocking: eoq.Client, queue: str, database: str, store: Store
) -> None:
    seen = []
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        inbox = eoq.PgInbox(connection)
        inbox.process(
            _delivered(blocking, queue), lambda tx, _m: seen.append(tx.execute("show synchronous_commit").fetchone())
        )
        assert seen == [("local",)]
        assert connection.execute("show synchronous_commit").fetchone() == ("off",)


def test_a_handler_may_change_the_search_path(
    blocking: eoq.Client, queue: str, database: str, inbox: eoq.PgInbox, store: Store
) -> None:
    """Also to a schema that has tables of an inbox as well: an id is looked up and stored in the same table."""
    other = store.execute("select current_schema() || '_other'")[0][0]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"create schema {other}")
    try:
        with psycopg.connect(database) as connection, eoq.PgInbox(connection, schema=other):
            connection.commit()

        def handler(tx: Connection, message: eoq.Message) -> None:
            store.apply(tx, message)
            tx.execute(f"set local search_path to {other}")

        message = _delivered(blocking, queue, lease=0.02)
        (again,) = _receive(blocking, queue)
        with pytest.raises(eoq.LeaseLost):
            inbox.process(message, handler)
        inbox.process(again, handler)
        assert store.payments() == ["m"]
        assert store.execute(f"select count(*) from {other}.eoq_processed") == [(0,)]
    finally:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"drop schema {other} cascade")


def test_workers_with_several_threads_have_a_connection_each(
    blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store
) -> None:
    barrier = threading.Barrier(3)

    def handler(tx: Connection, message: eoq.Message) -> Any:
        barrier.wait(PATIENCE)
        return store.apply(tx, message)

    blocking.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"{n}") for n in range(9)])
    summary = blocking.work(queue, handler, inbox=inbox, concurrency=3, until_empty=True)
    assert summary.done == 9
    assert sorted(store.payments()) == [f"{n}" for n in range(9)]


# ── other transactions at the same time ─────────────────────────────────────────────────────────────────────


def test_a_serialization_failure_is_repeated(blocking: eoq.Client, queue: str, database: str, store: Store) -> None:
    runs: list[str] = []
    barrier = threading.Barrier(2)

    def handler(tx: Connection, message: eoq.Message) -> object:
        ((count,),) = tx.execute("select count(*) from payment").fetchall()
        runs.append(message.id)
        if len(runs) <= 2:
            barrier.wait(PATIENCE)
        tx.execute("insert into payment (id, amount) values (%s, %s)", (message.id, count))
        return count

    def process(message: eoq.Message) -> None:
        with psycopg.connect(database) as connection:
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            eoq.PgInbox(connection).process(message, handler)

    with eoq.PgInbox(database):
        pass  # makes the tables
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, _deliver_many(blocking, queue, 2)))
    assert len(runs) > 2
    assert store.execute("select amount from payment order by amount") == [(0,), (1,)]


def test_a_deadlock_is_repeated(blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store) -> None:
    store.execute("insert into payment (id, amount) values ('a', 0), ('b', 0)")
    barrier = threading.Barrier(2)
    runs: list[str] = []

    def handler(tx: Connection, message: eoq.Message) -> None:
        first, second = "ab" if message.id == "0" else "ba"
        tx.execute("set local deadlock_timeout = '50ms'")
        tx.execute("update payment set amount = amount + 1 where id = %s", (first,))
        runs.append(message.id)
        if len(runs) <= 2:
            barrier.wait(PATIENCE)
        tx.execute("update payment set amount = amount + 1 where id = %s", (second,))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda message: inbox.process(message, handler), _deliver_many(blocking, queue, 2)))
    assert len(runs) == 3
    assert store.execute("select amount from payment") == [(2,), (2,)]


@pytest.mark.parametrize("isolation", [None, psycopg.IsolationLevel.REPEATABLE_READ])
def test_the_same_message_twice_at_once_takes_effect_once(
    blocking: eoq.Client, queue: str, database: str, store: Store, isolation: psycopg.IsolationLevel | None
) -> None:
    """The second waits for the first at its end, fails, and finds the id."""
    old = _delivered(blocking, queue, lease=0.02)
    (new,) = _receive(blocking, queue)
    barrier = threading.Barrier(2)
    runs: list[str] = []

    def handler(tx: Connection, message: eoq.Message) -> object:
        runs.append(message.receipt)
        barrier.wait(PATIENCE)
        return store.apply(tx, message)

    def process(message: eoq.Message) -> None:
        with psycopg.connect(database) as connection:
            connection.isolation_level = isolation
            with suppress(eoq.LeaseLost):
                eoq.PgInbox(connection).process(message, handler)

    with eoq.PgInbox(database):
        pass  # makes the tables
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, (old, new)))
    assert len(runs) == 2
    assert store.payments() == ["m"]


@pytest.mark.parametrize("isolation", [None, psycopg.IsolationLevel.REPEATABLE_READ])
def test_an_id_that_was_stored_and_pruned_meanwhile_is_not_applied_again(
    blocking: eoq.Client, queue: str, database: str, store: Store, isolation: psycopg.IsolationLevel | None
) -> None:
    """A worker is so slow that its message is applied by another, and forgotten, before its own transaction ends."""
    slow = _delivered(blocking, queue, "slow", lease=0.02)
    (again,) = _receive(blocking, queue)
    inside, go_on = threading.Event(), threading.Event()

    def handler(tx: Connection, message: eoq.Message) -> object:
        inside.set()
        assert go_on.wait(PATIENCE)
        return store.apply(tx, message)

    def process_slowly() -> None:
        with psycopg.connect(database) as connection:
            connection.isolation_level = isolation
            eoq.PgInbox(connection, keep=0).process(slow, handler)

    with eoq.PgInbox(database, keep=0) as inbox, ThreadPoolExecutor(1) as pool:
        running = pool.submit(process_slowly)
        assert inside.wait(PATIENCE)
        inbox.process(again, store.apply)
        for id in "ab":
            inbox.process(_delivered(blocking, queue, id), store.apply)
        inbox.prune()
        assert not inbox.seen(queue, "slow")
        go_on.set()
        with pytest.raises(eoq.LeaseLost, match="may have been processed and pruned"):
            running.result(PATIENCE)
    assert store.payments() == ["slow", "a", "b"]


# ── a database that goes away ───────────────────────────────────────────────────────────────────────────────


def test_a_connection_that_is_lost_counts_no_attempt_and_is_replaced(
    blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store
) -> None:
    def handler(tx: Connection, message: eoq.Message) -> None:
        store.apply(tx, message)
        store.execute("select pg_terminate_backend(?)", tx.info.backend_pid)
        tx.execute("select 1")

    message = _delivered(blocking, queue)
    with pytest.raises(psycopg.OperationalError):
        inbox.process(message, handler)
    (again,) = _receive(blocking, queue)
    assert again.attempt == message.attempt
    inbox.process(again, store.apply)
    assert store.payments() == ["m"]


@pytest.mark.parametrize("many", [False, True])
def test_a_commit_whose_answer_is_lost_is_found_at_the_next_delivery(
    blocking: eoq.Client, queue: str, database: str, postgres: Server, store: Store, many: bool
) -> None:
    """The database commits, and the connection breaks before it says so."""
    with CommitCutter(postgres.folder) as cutter, eoq.PgInbox(cutter.through(database)) as inbox:
        cutter.cut_at_commit()
        with pytest.raises(psycopg.OperationalError):
            if many:
                inbox.process_many([_delivered(blocking, queue)], store.apply)
            else:
                inbox.process(_delivered(blocking, queue), store.apply)
        eventually(lambda: store.payments() == ["m"])
        (again,) = _receive(blocking, queue)
        assert again.attempt == 1
        assert inbox.process(again, store.apply) == b'{"paid":5}'
    assert store.payments() == ["m"]


# ── forks ───────────────────────────────────────────────────────────────────────────────────────────────────


def _in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked child, and return its exit status."""
    pid = os.fork()
    if not pid:
        status = 1
        with suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_has_connections_of_its_own(
    blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store
) -> None:
    inbox.process(_delivered(blocking, queue, "parent"), store.apply)

    def work() -> None:
        inbox.process(_delivered(blocking, queue, "child"), store.apply)

    assert _in_child(work) == 0
    inbox.process(_delivered(blocking, queue, "after"), store.apply)
    assert store.payments() == ["parent", "child", "after"]


def test_a_forked_child_refuses_a_connection_of_its_parent(
    blocking: eoq.Client, queue: str, database: str, store: Store
) -> None:
    with psycopg.connect(database) as connection:
        inbox = eoq.PgInbox(connection)
        inbox.process(_delivered(blocking, queue, "parent"), store.apply)

        def work() -> None:
            with pytest.raises(eoq.InvalidRequest, match="forked"):
                inbox.seen(queue, "parent")

        assert _in_child(work) == 0
        inbox.process(_delivered(blocking, queue, "after"), store.apply)
    assert store.payments() == ["parent", "after"]


def test_a_fork_inside_a_handler_leaves_the_transaction_to_the_parent(
    blocking: eoq.Client, queue: str, inbox: eoq.PgInbox, store: Store
) -> None:
    parent = os.getpid()
    children: list[int] = []

    def handler(tx: Connection, message: eoq.Message) -> object:
        result = store.apply(tx, message)
        children.append(os.fork())
        return result

    message = _delivered(blocking, queue)
    try:
        result = inbox.process(message, handler)
    except BaseException as error:
        if os.getpid() == parent:
            raise
        os._exit(0 if isinstance(error, (eoq.InvalidRequest, psycopg.OperationalError)) else 1)
    if os.getpid() != parent:
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert result == b'{"paid":5}'
    assert store.payments() == ["m"]


# ── credentials, and a driver that is absent ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://shop:se%zzcret@127.0.0.1:1/shop",
        "postgresql://shop:se/cret@127.0.0.1:1/shop",
        "postgresql://shop:se@cret@127.0.0.1:1/shop",
        "postgresql://shop:secret@127.0.0.1:1/shop?nonsense=1",
        "postgresql://shop:secret@127.0.0.1:1/shop",
        "host=127.0.0.1 port=1 password=secret dbname=shop",
        "host=127.0.0.1 password=se cret",
    ],
)
def test_no_error_shows_a_password(conninfo: str) -> None:
    error: BaseException | None = None
    try:
        eoq.PgInbox(conninfo).seen("q", "m")
    except (eoq.EoqError, psycopg.Error) as raised:
        error = raised
    assert error is not None
    while error is not None:
        assert "cret" not in str(error)
        error = error.__cause__ or error.__context__


def test_without_the_driver_a_sentence_says_what_to_install() -> None:
    code = """
import sys
sys.modules["psycopg"] = None
import eoq
from eoq import *
eoq.Inbox, eoq.Outbox, eoq.Relay, eoq.AsyncInbox, eoq.GuestInbox
try:
    eoq.PgInbox
except ImportError as error:
    assert isinstance(error, eoq.EoqError)
    print(error)
"""
    with python_process(code) as process:
        stdout, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert b"pip install 'eoq[postgres]'" in stdout


def test_the_library_imports_no_driver_by_itself() -> None:
    code = """
import sys
import eoq
eoq.Inbox, eoq.Outbox, eoq.Relay, eoq.AsyncInbox, eoq.GuestInbox, eoq.connect
print([name for name in sys.modules if name.startswith("psycopg")])
"""
    with python_process(code) as process:
        stdout, _ = process.communicate(timeout=PATIENCE)
    assert stdout == b"[]\n"
