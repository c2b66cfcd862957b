"""The inbox with a real daemon: every message takes effect once in the application's own file (G5)."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

import pytest

import eoq
from tests.support import Daemon, eventually

Handler = Callable[[sqlite3.Connection, eoq.Message], object]


def _apply(tx: sqlite3.Connection, message: eoq.Message) -> object:
    """Book a payment. The number of its rows is the number of times that the effect happened."""
    tx.execute("insert into payment (id, amount) values (?, ?)", (message.id, message.json()["amount"]))
    return {"paid": message.json()["amount"]}


@pytest.fixture
def file(folder: Path) -> Path:
    """Return the application's file, with its table."""
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text, amount integer)")
    return folder / "app.db"


@pytest.fixture
def inbox(file: Path) -> Iterator[eoq.Inbox]:
    """Return an inbox of the file's path."""
    with eoq.Inbox(file) as inbox:
        yield inbox


def _payments(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from payment order by rowid")]


def _receive(client: eoq.Client, queue: str, limit: int = 1, lease: float | None = None) -> list[eoq.Message]:
    messages = client.receive(queue, limit, wait=20, lease=lease)
    assert messages
    return messages


def _delivered(client: eoq.Client, queue: str, id: str = "m", lease: float | None = None) -> eoq.Message:
    client.send(queue, {"amount": 5}, id=id)
    (message,) = _receive(client, queue, lease=lease)
    return message


def _state(client: eoq.Client, queue: str, id: str = "m") -> tuple[str, str | None]:
    shown = client.ask("show", queue=queue, id=id)["message"]
    return shown["state"], shown.get("error")


def test_a_message_is_applied_and_acked_with_its_result(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    assert not inbox.seen(queue, "m")
    assert inbox.process(_delivered(blocking, queue), _apply) == b'{"paid":5}'
    assert inbox.seen(queue, "m")
    assert not inbox.seen(queue + ".other", "m")
    assert _payments(file) == ["m"]
    assert blocking.result(queue, "m") == eoq.Result("done", b'{"paid":5}')


@pytest.mark.parametrize(("returned", "result"), [(None, None), (b"\xff", b"\xff"), ("é", "é".encode()), ([1], b"[1]")])
def test_the_result_is_bytes_now_and_later(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, returned: object, result: bytes | None
) -> None:
    message = _delivered(blocking, queue, lease=0.02)
    again = _receive(blocking, queue)[0]
    with pytest.raises(eoq.LeaseLost):
        inbox.process(message, lambda _tx, _message: returned)
    assert inbox.process(again, _apply) == result
    assert blocking.result(queue, "m") == eoq.Result("done", result)


def test_a_redelivered_message_runs_nothing_and_gives_the_stored_result(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    def slow(tx: sqlite3.Connection, message: eoq.Message) -> object:
        result = _apply(tx, message)
        eventually(lambda: _state(blocking, queue)[0] == "ready")
        return result

    with pytest.raises(eoq.LeaseLost):
        inbox.process(_delivered(blocking, queue, lease=0.05), slow)
    assert _payments(file) == ["m"]
    (again,) = _receive(blocking, queue)
    assert again.attempt == 2
    assert inbox.process(again, slow) == b'{"paid":5}'
    assert _payments(file) == ["m"]
    assert blocking.result(queue, "m") == eoq.Result("done", b'{"paid":5}')


def test_an_ack_that_was_lost_with_the_daemon_is_repeated_without_the_effect(
    daemon: Daemon, inbox: eoq.Inbox, file: Path
) -> None:
    with eoq.connect(daemon.socket) as client:

        def interrupted(tx: sqlite3.Connection, message: eoq.Message) -> object:
            daemon.restart()
            return _apply(tx, message)

        with pytest.raises(eoq.LeaseLost):
            inbox.process(_delivered(client, "q"), interrupted)
        assert inbox.process(_receive(client, "q")[0], _apply) == b'{"paid":5}'
        assert _payments(file) == ["m"]


def test_a_handler_that_raises_is_rolled_back_and_its_message_given_back(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    def fail(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        raise OSError("the bank is closed")

    with pytest.raises(OSError, match="the bank is closed"):
        inbox.process(_delivered(blocking, queue), fail)
    assert _payments(file) == []
    assert not inbox.seen(queue, "m")
    assert _state(blocking, queue) == ("ready", "OSError: the bank is closed")
    assert inbox.process(_receive(blocking, queue)[0], _apply) == b'{"paid":5}'
    assert _payments(file) == ["m"]


def test_an_interrupted_handler_is_rolled_back(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    def interrupted(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        raise KeyboardInterrupt

    message = _delivered(blocking, queue)
    with pytest.raises(KeyboardInterrupt):
        inbox.process(message, interrupted)
    assert _payments(file) == []
    inbox.process(message, _apply)
    assert _payments(file) == ["m"]


@pytest.mark.parametrize("returned", [object(), float("nan")])
def test_a_result_that_cannot_be_stored_undoes_the_effect(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path, returned: object
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> object:
        _apply(tx, message)
        return returned

    with pytest.raises(eoq.InvalidRequest):
        inbox.process(_delivered(blocking, queue), handler)
    assert _payments(file) == []
    assert _state(blocking, queue)[0] == "dead"


def test_a_result_that_is_too_large_undoes_the_effect(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    """If it was committed, it could never be acked: the message would be delivered again until it is dead."""

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> object:
        _apply(tx, message)
        return b"x" * (1024 * 1024 + 1)

    with pytest.raises(eoq.MessageTooLarge):
        inbox.process(_delivered(blocking, queue), handler)
    assert _payments(file) == []
    assert not inbox.seen(queue, "m")
    assert _state(blocking, queue)[0] == "dead"


# ── handlers that would end the transaction ─────────────────────────────────────────────────────────────────


def _uses_with(tx: sqlite3.Connection) -> None:
    with tx:
        tx.execute("insert into payment (id) values ('inside')")


ENDINGS: dict[str, Callable[[sqlite3.Connection], object]] = {
    "commit()": lambda tx: tx.commit(),
    "rollback()": lambda tx: tx.rollback(),
    "execute commit": lambda tx: tx.execute("commit"),
    "execute COMMIT with a comment": lambda tx: tx.execute("/* */ COMMIT -- now"),
    "execute end": lambda tx: tx.execute("end transaction"),
    "execute rollback": lambda tx: tx.execute("rollback"),
    "begin": lambda tx: tx.execute("begin"),
    "executescript": lambda tx: tx.executescript("insert into payment (id) values ('script');"),
    "with connection": _uses_with,
    "attach": lambda tx: tx.execute("attach ':memory:' as other"),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
@pytest.mark.parametrize("kind", ["path", "legacy", "autocommit"])
def test_a_handler_cannot_end_the_transaction(
    blocking: eoq.Client, queue: str, file: Path, ending: Callable[[sqlite3.Connection], object], kind: str
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        ending(tx)

    with closing(_open(file, kind)) as inbox:
        # Twice, and after a good one: a statement that was prepared while it was allowed must not pass.
        inbox.process(_delivered(blocking, queue, "good"), _apply)
        for id in ("a", "b"):
            with pytest.raises(sqlite3.DatabaseError):
                inbox.process(_delivered(blocking, queue, id), handler)
            assert _payments(file) == ["good"]
            assert not inbox.seen(queue, id)
            blocking.reject(_receive(blocking, queue)[0])
        assert inbox.process(_delivered(blocking, queue), _apply) == b'{"paid":5}'
        assert _payments(file) == ["good", "m"]


class _OfConnection(eoq.Inbox):
    """An inbox that also closes the application's connection."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._connection = database
        super().__init__(database)

    def close(self) -> None:
        self._connection.close()


def _open(file: Path, kind: str) -> eoq.Inbox:
    if kind == "path":
        return eoq.Inbox(file)
    database = sqlite3.connect(file)
    if kind == "autocommit":
        database.isolation_level = None
    return _OfConnection(database)


@pytest.mark.parametrize("kind", ["path", "legacy", "autocommit"])
def test_a_handler_that_ignores_the_refusal_still_takes_effect_once(
    blocking: eoq.Client, queue: str, file: Path, kind: str
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> object:
        result = _apply(tx, message)
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            tx.commit()
        return result

    with closing(_open(file, kind)) as inbox:
        assert inbox.process(_delivered(blocking, queue), handler) == b'{"paid":5}'
        assert inbox.seen(queue, "m")
    assert _payments(file) == ["m"]


@pytest.mark.parametrize("kind", ["path", "legacy", "autocommit"])
def test_a_handler_that_closes_the_connection_is_rolled_back_and_gets_an_error(
    blocking: eoq.Client, queue: str, file: Path, kind: str
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        tx.close()

    with closing(_open(file, kind)) as inbox, pytest.raises((eoq.InvalidRequest, sqlite3.ProgrammingError)):
        inbox.process(_delivered(blocking, queue), handler)
    assert _payments(file) == []
    assert _state(blocking, queue)[0] == "ready"
    with eoq.Inbox(file) as fresh:
        fresh.process(_receive(blocking, queue)[0], _apply)
    assert _payments(file) == ["m"]


@pytest.mark.parametrize("kind", ["path", "legacy", "autocommit"])
@pytest.mark.parametrize("many", [False, True])
def test_nothing_is_committed_after_a_statement_has_rolled_back_the_transaction(
    blocking: eoq.Client, queue: str, file: Path, kind: str, many: bool
) -> None:
    """SQLite itself rolls back, and the handler goes on. What it writes then must not be committed by itself."""

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("create unique index if not exists one on payment (id)")
        tx.execute("insert into payment (id) values ('same')")
        with suppress(sqlite3.IntegrityError):
            tx.execute("insert or rollback into payment (id) values ('same')")
        with suppress(sqlite3.DatabaseError):
            tx.execute("insert into payment (id) values ('by itself')")

    with closing(_open(file, kind)) as inbox:
        message = _delivered(blocking, queue)
        with pytest.raises((eoq.InvalidRequest, sqlite3.DatabaseError)):
            if many:
                inbox.process_many([message], handler)
            else:
                inbox.process(message, handler)
    assert _payments(file) == []
    assert _state(blocking, queue)[0] == "ready"


@pytest.mark.parametrize("kind", ["path", "legacy", "autocommit"])
def test_a_handler_may_use_savepoints_and_many_statements(
    blocking: eoq.Client, queue: str, file: Path, kind: str
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("savepoint mine")
        tx.execute("insert into payment (id) values ('undone')")
        tx.execute("rollback to mine")
        tx.execute("release mine")
        tx.executemany("insert into payment (id) values (?)", [("a",), ("b",)])
        tx.execute("create table if not exists made (x)")
        assert tx.execute("select count(*) from payment").fetchone()[0] == 2

    with closing(_open(file, kind)) as inbox:
        inbox.process(_delivered(blocking, queue), handler)
    assert _payments(file) == ["a", "b"]


# ── connections of the application's own ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("isolation_level", ["DEFERRED", "IMMEDIATE", "EXCLUSIVE", None])
def test_a_connection_of_any_mode_works_and_remains_the_applications(
    blocking: eoq.Client, queue: str, file: Path, isolation_level: Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"] | None
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.isolation_level = isolation_level
        inbox = eoq.Inbox(database)
        inbox.process(_delivered(blocking, queue), _apply)
        inbox.close()
        assert not database.in_transaction
        with database:
            database.execute("insert into payment (id) values ('own')")
        assert _payments(file) == ["m", "own"]


@pytest.mark.parametrize("factory", [sqlite3.Row, lambda _cursor, _row: {"odd": True}])
def test_a_row_factory_stays_set_and_does_no_harm(
    blocking: eoq.Client, queue: str, file: Path, factory: Callable[[sqlite3.Cursor, tuple[object, ...]], object]
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.row_factory = factory
        database.text_factory = bytes
        inbox = eoq.Inbox(database)
        old = _delivered(blocking, queue, lease=0.02)
        (again,) = _receive(blocking, queue)
        with pytest.raises(eoq.LeaseLost):
            inbox.process(old, _apply)
        assert inbox.process(again, _apply) == b'{"paid":5}'
        assert database.row_factory is factory
    assert _payments(file) == ["m"]


def test_an_open_transaction_is_refused_and_left_as_it_is(blocking: eoq.Client, queue: str, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        inbox = eoq.Inbox(database)
        database.execute("insert into payment (id) values ('own')")
        with pytest.raises(eoq.InvalidRequest, match="transaction open"):
            inbox.process(_delivered(blocking, queue), _apply)
        assert database.in_transaction
        database.commit()
        assert _payments(file) == ["own"]
        with pytest.raises(eoq.InvalidRequest, match="transaction open"):
            database.execute("insert into payment (id) values ('more')")
            eoq.Inbox(database)


def test_the_message_of_a_refused_call_is_given_back(blocking: eoq.Client, queue: str, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        inbox = eoq.Inbox(database)
        database.execute("insert into payment (id) values ('own')")
        with pytest.raises(eoq.InvalidRequest):
            inbox.process(_delivered(blocking, queue), _apply)
        assert _state(blocking, queue)[0] == "ready"


# ── other writers ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_busy_file_is_waited_for(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("begin immediate")
        timer = threading.Timer(0.5, other.execute, ("commit",))
        timer.start()
        start = time.monotonic()
        inbox.process(_delivered(blocking, queue), _apply)
        assert time.monotonic() - start > 0.3
        timer.join()
    assert _payments(file) == ["m"]


def test_a_file_that_stays_busy_gives_the_message_back(blocking: eoq.Client, queue: str, file: Path) -> None:
    with (
        closing(sqlite3.connect(file, isolation_level=None)) as other,
        closing(sqlite3.connect(file, timeout=0.1)) as database,
    ):
        inbox = eoq.Inbox(database)
        other.execute("begin immediate")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            inbox.process(_delivered(blocking, queue), _apply)
        assert _state(blocking, queue)[0] == "ready"


def test_two_inboxes_with_the_same_message_make_one_effect(
    blocking: eoq.Client, queue: str, file: Path, shared_daemon: Daemon
) -> None:
    for number in range(20):
        old = _delivered(blocking, queue, f"{number}", lease=0.01)
        (new,) = _receive(blocking, queue)
        barrier = threading.Barrier(2)

        def process(message: eoq.Message, barrier: threading.Barrier = barrier) -> bytes | None:
            with eoq.Inbox(file) as inbox:
                barrier.wait(20)
                try:
                    return inbox.process(message, _apply)
                except eoq.LeaseLost:
                    return None

        with ThreadPoolExecutor(2) as pool:
            assert b'{"paid":5}' in list(pool.map(process, (old, new)))
    assert _payments(file) == [f"{number}" for number in range(20)]


def test_threads_share_an_inbox_of_a_path(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    blocking.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"{n}") for n in range(200)])

    def work(_: int) -> None:
        for message in blocking.consume(queue, prefetch=5, idle=0.3):
            inbox.process(message, _apply)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sorted(_payments(file), key=int) == [f"{n}" for n in range(200)]


# ── many ────────────────────────────────────────────────────────────────────────────────────────────────────


def _deliver_many(client: eoq.Client, queue: str, count: int) -> list[eoq.Message]:
    client.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"{n}") for n in range(count)])
    return _receive(client, queue, count)


def test_many_are_applied_together(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    outcomes = inbox.process_many(_deliver_many(blocking, queue, 5), _apply)
    assert outcomes == [f'{{"paid":{n}}}'.encode() for n in range(5)]
    assert _payments(file) == [f"{n}" for n in range(5)]
    assert blocking.result(queue, "3") == eoq.Result("done", b'{"paid":3}')


def test_of_many_a_bad_one_undoes_only_itself(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    def picky(tx: sqlite3.Connection, message: eoq.Message) -> object:
        result = _apply(tx, message)
        if message.id == "1":
            raise ValueError("no such account")
        return result

    outcomes = inbox.process_many(_deliver_many(blocking, queue, 3), picky)
    assert [type(outcome) for outcome in outcomes] == [bytes, ValueError, bytes]
    assert _payments(file) == ["0", "2"]
    assert [_state(blocking, queue, id)[0] for id in ("0", "1", "2")] == ["done", "ready", "done"]
    assert _state(blocking, queue, "1")[1] == "ValueError: no such account"


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_of_many_one_that_would_commit_undoes_only_itself(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path, ending: Callable[[sqlite3.Connection], object]
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        if message.id == "1":
            ending(tx)

    outcomes = inbox.process_many(_deliver_many(blocking, queue, 3), handler)
    assert [outcome is None for outcome in outcomes] == [True, False, True]
    assert isinstance(outcomes[1], sqlite3.DatabaseError)
    assert _payments(file) == ["0", "2"]


def _single(file: Path) -> None:
    """Create a table whose one row makes another insert of it fail."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("create table single (n integer primary key)")
        database.execute("insert into single values (1)")


@pytest.mark.parametrize(
    ("raised", "state"), [(eoq.Reject("no such account"), "dead"), (eoq.Retry(60, "the bank is closed"), "delayed")]
)
def test_of_many_one_that_undoes_the_transaction_decides_only_for_itself(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path, raised: Exception, state: str
) -> None:
    """The writes of all are rolled back, so each is processed alone, and the others count no attempt."""
    _single(file)

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        if message.id == "1":
            with suppress(sqlite3.IntegrityError):
                tx.execute("insert or rollback into single values (1)")
            raise raised

    results = inbox.process_many(_deliver_many(blocking, queue, 3), handler)
    assert [type(result) for result in results] == [type(None), type(raised), type(None)]
    assert [inbox.seen(queue, id) for id in ("0", "1", "2")] == [True, False, True]
    assert _state(blocking, queue, "1") == (state, str(raised))
    assert [_state(blocking, queue, id)[0] for id in ("0", "2")] == ["done", "done"]
    assert _payments(file) == ["0", "2"]


def test_of_many_one_whose_rollback_is_refused_and_that_rejects_undoes_only_itself(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        if message.id == "1":
            with suppress(sqlite3.DatabaseError):
                tx.execute("rollback")
            raise eoq.Reject("no such account")

    results = inbox.process_many(_deliver_many(blocking, queue, 3), handler)
    assert [type(result) for result in results] == [type(None), eoq.Reject, type(None)]
    assert _payments(file) == ["0", "2"]
    assert [_state(blocking, queue, id)[0] for id in ("0", "1", "2")] == ["done", "dead", "done"]


def test_of_many_those_that_were_processed_before_run_nothing(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    messages = _deliver_many(blocking, queue, 3)
    inbox.process(messages[1], _apply)
    assert inbox.process_many(messages, _apply) == [f'{{"paid":{n}}}'.encode() for n in range(3)]
    assert sorted(_payments(file)) == ["0", "1", "2"]


def test_of_many_a_lost_lease_stops_no_other_ack(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    messages = _deliver_many(blocking, queue, 3)
    messages[1].nack()
    with pytest.raises(eoq.LeaseLost):
        inbox.process_many(messages, _apply)
    assert _payments(file) == ["0", "1", "2"]
    assert [_state(blocking, queue, id)[0] for id in ("0", "1", "2")] == ["done", "ready", "done"]
    inbox.process(_receive(blocking, queue)[0], _apply)
    assert _payments(file) == ["0", "1", "2"]


def test_of_many_one_that_is_delivered_twice_takes_effect_once(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    message = _delivered(blocking, queue, lease=0.02)
    (again,) = _receive(blocking, queue)
    with pytest.raises(eoq.LeaseLost):
        inbox.process_many([message, again, message], _apply)
    assert _payments(file) == ["m"]
    assert blocking.result(queue, "m") == eoq.Result("done", b'{"paid":5}')


def test_of_many_one_that_is_delivered_twice_and_fails_first_is_tried_twice(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    message = _delivered(blocking, queue)
    tries = iter([OSError("once"), None])

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> object:
        result = _apply(tx, message)
        if error := next(tries):
            raise error
        return result

    with suppress(eoq.LeaseLost):  # given back after the first try
        inbox.process_many([message, message], handler)
    assert _payments(file) == ["m"]
    assert inbox.seen(queue, "m")


def test_of_many_each_id_is_looked_up_in_its_own_queue(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path
) -> None:
    other = queue[:100] + ".other"
    messages = [_delivered(blocking, name, id) for name in (queue, other) for id in ("a", "b")]
    inbox.process(messages[0], _apply)
    assert inbox.process_many(messages, _apply) == [b'{"paid":5}'] * 4
    assert _payments(file) == ["a", "b", "a", "b"]
    assert [inbox.seen(name, id) for name in (queue, other) for id in ("a", "b")] == [True] * 4


def test_no_messages_are_an_empty_result(inbox: eoq.Inbox) -> None:
    assert inbox.process_many([], _apply) == []


def test_the_table_is_plain_sql(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    before = time.time()
    message = _delivered(blocking, queue)
    inbox.process(message, _apply)
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("select queue, id, seq, result, processed_at from eoq_processed").fetchall()
    ((*row, processed_at),) = rows
    assert row == [queue, "m", message.seq, b'{"paid":5}']
    assert before <= processed_at <= time.time()


def test_a_file_that_is_no_database_is_an_error_and_is_closed(folder: Path) -> None:
    (folder / "app.db").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        eoq.Inbox(folder / "app.db")


def test_a_delivery_is_dated_at_its_request(queue: str, daemon: Daemon) -> None:
    """A worker that is stopped while a message waits in its socket does not take it for a new one (`keep`)."""
    before = time.time()
    with eoq.connect(daemon.socket) as other:
        sending = threading.Timer(0.5, other.send, [queue, "x"])
        sending.start()
        with eoq.connect(daemon.socket) as client:
            (message,) = client.receive(queue, wait=20)
        sending.join()
    assert before <= message.received_at < before + 0.4


_NEXT_STATEMENTS = [
    "savepoint mine",
    "savepoint mine; release mine",
    "with one as (select 'late' as id) insert into payment select id, 1 from one",
    "insert into payment values ('late', 1)",
]


@pytest.mark.parametrize("statements", _NEXT_STATEMENTS)
@pytest.mark.parametrize("owned", [True, False], ids=["path", "connection"])
def test_a_handler_that_goes_on_after_its_transaction_was_undone_fails_and_leaves_nothing(
    blocking: eoq.Client, queue: str, file: Path, statements: str, owned: bool
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table single (n integer primary key)")
        database.execute("insert into single values (1)")
        database.commit()

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        if message.attempt == 1:
            with suppress(sqlite3.IntegrityError):
                tx.execute("insert or rollback into single values (1)")
            for statement in statements.split("; "):
                with suppress(sqlite3.DatabaseError):
                    tx.execute(statement)

    with closing(sqlite3.connect(file)) as database, eoq.Inbox(file if owned else database) as inbox:
        with pytest.raises(eoq.InvalidRequest):
            inbox.process(_delivered(blocking, queue), handler)
        assert _payments(file) == []
        (again,) = _receive(blocking, queue)
        inbox.process(again, handler)
    assert _payments(file) == ["m"]


def test_more_than_fit_in_one_request_are_acked(blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path) -> None:
    blocking.send_many(queue, [eoq.Outgoing({"amount": 1}, id=f"{n}") for n in range(1200)])
    messages = [*_receive(blocking, queue, 1000), *_receive(blocking, queue, 1000)]
    assert len(inbox.process_many(messages, _apply)) == 1200
    assert len(_payments(file)) == 1200
    assert {_state(blocking, queue, id)[0] for id in ("0", "999", "1000", "1199")} == {"done"}


@pytest.mark.parametrize(("stored", "result"), [("paid", b"paid"), (7, b"7")])
def test_a_result_that_another_program_stored_is_returned_as_bytes(
    blocking: eoq.Client, queue: str, inbox: eoq.Inbox, file: Path, stored: object, result: bytes
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute(
            "insert into eoq_processed (queue, id, seq, result, processed_at) values (?, 'm', 1, ?, ?)",
            (queue, stored, time.time()),
        )
        database.commit()
    assert inbox.process(_delivered(blocking, queue), _apply) == result
    assert _payments(file) == []


def test_a_commit_on_an_applications_connection_is_synced(blocking: eoq.Client, queue: str, file: Path) -> None:
    """Afterwards its own setting, by which a loss of power may lose the latest commits, is as before."""
    seen = []

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        seen.append(tx.execute("pragma synchronous").fetchone())

    with closing(sqlite3.connect(file)) as database:
        database.execute("pragma synchronous = normal")
        eoq.Inbox(database).process(_delivered(blocking, queue), handler)
        assert seen == [(3,)]
        assert database.execute("pragma synchronous").fetchone() == (1,)
    with eoq.Inbox(file) as inbox:
        inbox.process(_delivered(blocking, queue, "other"), handler)
    assert seen == [(3,), (3,)]
