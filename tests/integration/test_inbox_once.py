"""The inbox with a real daemon: every message takes effect once in the application's own file (G5)."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

import pytest

import eoq
from tests.support import PATIENCE, Daemon, eventually

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
@pytest.mark.first_by_default
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
        start = time.monotonic()
        timer.start()
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


# ── many ────────────────────────────────────────────────────────────────────────────────────────────────────


def _deliver_many(client: eoq.Client, queue: str, count: int) -> list[eoq.Message]:
    client.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"{n}") for n in range(count)])
    return _receive(client, queue, count)


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


def test_a_file_that_is_no_database_is_an_error_and_is_closed(folder: Path) -> None:
    (folder / "app.db").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        eoq.Inbox(folder / "app.db")


def test_a_delivery_is_dated_at_its_request(queue: str, daemon: Daemon) -> None:
    """A worker that is stopped while a message waits in its socket does not take it for a new one (`keep`)."""
    waits_at: list[float] = []

    def send() -> None:
        eventually(lambda: daemon.ask(op="status")["waiting"] == 1)
        waits_at.append(time.time())
        daemon.ask(op="send", queue=queue, body="x")

    before = time.time()
    sending = threading.Thread(target=send)
    sending.start()
    with eoq.connect(daemon.socket) as client:
        (message,) = client.receive(queue, wait=PATIENCE)
    sending.join()
    assert before <= message.received_at <= waits_at[0]


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
