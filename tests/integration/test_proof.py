"""`eoq.testing.prove` passes handlers whose effects are exactly once, and finds each planted fault with its place."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

import eoq
from eoq.testing import CannotProve, PrivateDaemon, ProofFailed, Report, make_message, prove
from eoq.testing.proof.proving import chosen
from eoq.testing.proof.ptrace import can_trace
from eoq.testing.proof.report import Point
from examples import ledger_worker, sqlalchemy_worker

PAYMENT = {"account": "alice", "cents": 500}


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table booking (payment text, at text default current_timestamp)")
        database.executescript(ledger_worker.SCHEMA.replace("create table if not exists booking", "create table book"))
    return path


def book(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into booking (payment) values (?)", (message.id,))
    return "booked"


def failure(handler: Callable[..., object], db: Path, **options: Any) -> str:
    """Return what the proof of a handler with a fault says."""
    before = db.read_bytes()
    with pytest.raises(ProofFailed) as raised:
        prove(handler, [make_message(PAYMENT, id="p-1")], db, **options)
    assert db.read_bytes() == before
    assert not raised.value.report.ok
    return str(raised.value)


# ── handlers whose effects are exactly once ─────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_handler_of_an_inbox_passes(db: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    report = prove(book, [PAYMENT, eoq.Outgoing("x", id="p-2")], db, progress=lambda *step: steps.append(step))
    assert report.ok and report.messages == 2
    assert report.points > (50 if can_trace() else 20)
    assert str(report).startswith(f"{report.points} crash points, 0 differences\n")
    assert report.not_compared == ["booking.at"], "a time differs without a kill as well"
    assert steps[-1][1] == steps[-1][2]
    with closing(sqlite3.connect(db)) as database:
        assert database.execute("select count(*) from booking").fetchone() == (0,)


@pytest.mark.slow
def test_it_passes_with_a_rollback_journal_as_well(db: Path) -> None:
    with closing(sqlite3.connect(db)) as database:
        database.execute("pragma journal_mode = delete")
    assert prove(book, ["x"], db).ok


@pytest.mark.slow
def test_an_asyncio_handler_passes(db: Path) -> None:
    async def book_async(tx: Any, message: eoq.AsyncMessage) -> None:
        await tx.execute("insert into booking (payment, at) values (?, '')", (message.id,))

    assert prove(book_async, ["x"], db).points > 10


@pytest.mark.slow
def test_an_outbox_in_the_transaction_passes(db: Path) -> None:
    def order(tx: sqlite3.Connection, message: eoq.Message) -> None:
        book(tx, message)
        eoq.Outbox(tx).send("receipts", {"to": message.id})  # under a new id each time

    report = prove(order, ["x"], db, traced=False)
    assert "eoq_outbox.id" in report.not_compared


@pytest.mark.slow
def test_the_ledger_worker_passes(db: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "own.db"
    with closing(sqlite3.connect(ledger)) as database:
        database.executescript(ledger_worker.SCHEMA)

    def handle(path: Path, message: eoq.Message) -> None:
        with eoq.Inbox(path) as inbox:
            ledger_worker.handle(message, inbox)

    assert prove(handle, [PAYMENT], ledger, inbox=None).points > 30


@pytest.mark.slow
def test_the_worker_with_sqlalchemy_passes(tmp_path: Path) -> None:
    ledger = tmp_path / "own.db"
    engine = create_engine(f"sqlite:///{ledger}")
    sqlalchemy_worker.Base.metadata.create_all(engine)
    engine.dispose()

    def inbox(path: Path) -> eoq.GuestInbox[Any]:
        return eoq.GuestInbox(sessionmaker(create_engine(f"sqlite:///{path}")).begin, sqlalchemy_worker.connection_of)

    assert prove(sqlalchemy_worker.book, [PAYMENT], ledger, inbox=inbox, traced=False).points > 10


@pytest.mark.slow
def test_without_ptrace_it_kills_at_statements_and_says_so(db: Path) -> None:
    report: Report = prove(book, ["x"], db, traced=False)
    assert report.ok and report.points < 30
    assert "ptrace is not used" in report.method


# ── planted faults ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_handler_that_commits_by_itself_is_found(db: Path, eoq_daemon: PrivateDaemon) -> None:
    """A daemon in a thread of this process does not matter to the forks."""

    def commits(path: Path, message: eoq.Message) -> None:
        with closing(sqlite3.connect(path)) as own:
            own.execute("insert into booking values (?, '')", (message.id,))
            own.commit()

    text = failure(commits, db, inbox=None, traced=False)
    assert "4 crash points, 1 difference" in text
    assert "'p-1', killed at statement 4: the ack: booking: 1 row more than without a kill, such as ('p-1', '')" in text
    eoq_daemon.client.send("q", "it still answers")


def _recovers_badly(path: Path, message: eoq.Message) -> None:
    """Survive a kill: a redelivery takes back what was begun. But a kill between its two steps takes it back twice."""
    with closing(sqlite3.connect(path, isolation_level=None)) as own:
        if own.execute("select 1 from booking").fetchone():
            return
        if own.execute("select 1 from pending").fetchone():
            own.execute("update purse set cents = cents - 5")
            own.execute("delete from pending")
        own.execute("begin")
        own.execute("insert into pending values (?)", (message.id,))
        own.execute("update purse set cents = cents + 5")
        own.execute("commit")
        own.execute("begin")
        own.execute("insert into booking values (?, '')", (message.id,))
        own.execute("delete from pending")
        own.execute("commit")


@pytest.mark.slow
def test_a_handler_that_survives_one_kill_and_not_two_is_found(db: Path) -> None:
    with closing(sqlite3.connect(db)) as database:
        database.executescript(
            """
            create table pending (payment text);
            create table purse (cents integer);
            insert into purse values (0);
            """
        )
    text = failure(_recovers_badly, db, inbox=None, traced=False)
    assert ", and the redelivery at statement 4: delete from pending: purse: " in text
    report = prove(_recovers_badly, ["x"], db, inbox=None, traced=False, second_kills=0)
    assert (report.ok, report.second_kills) == (True, 0), "it survives one kill"


@pytest.mark.slow
def test_second_kills_are_bounded_and_counted(db: Path) -> None:
    report = prove(book, ["x", "y"], db, traced=False, second_kills=3)
    assert report.second_kills == 6
    assert "second kills, of the redelivery: 6" in str(report)
    assert report.as_json()["second_kills"] == 6


def test_second_kills_are_before_the_ack_at_commits_and_between() -> None:
    points = [Point("statement", number, place) for number, place in enumerate(["x"] * 5 + ["COMMIT"] + ["y"] * 94)]
    points += [Point("statement", 100, "the ack")]
    some = chosen(points, 10)
    assert len(some) == 10
    assert {"COMMIT", "the ack"} <= {point.place for point in some}
    assert some == sorted(some, key=lambda point: point.number)
    assert max(later.number - one.number for one, later in pairwise(some)) <= 30
    assert (chosen(points[:3], 10), chosen(points, 1)) == (points[:3], points[-1:])


def test_a_commit_inside_the_transaction_of_an_inbox_is_found(db: Path) -> None:
    def commits(tx: sqlite3.Connection, message: eoq.Message) -> None:
        book(tx, message)
        tx.commit()

    assert "without a kill: the message was retried (DatabaseError: not authorized)" in failure(commits, db)


def test_a_handler_that_writes_to_a_second_file_is_found(db: Path, tmp_path: Path) -> None:
    def logs(tx: sqlite3.Connection, message: eoq.Message) -> None:
        with (tmp_path / "second.log").open("a") as second:
            second.write(message.id)
        book(tx, message)

    assert f"writes to a second file, {tmp_path}/second.log" in failure(logs, db)


@pytest.mark.slow
def test_a_second_file_that_may_differ_can_be_ignored(db: Path, tmp_path: Path) -> None:
    def logs(tx: sqlite3.Connection, message: eoq.Message) -> None:
        with (tmp_path / "second.log").open("a") as second:
            second.write(message.id)
        book(tx, message)

    assert prove(logs, ["x"], db, ignore=["*/second.log"], traced=False).ok


@pytest.mark.slow
@pytest.mark.parametrize("sqlite", [False, True])
def test_a_second_file_beside_the_database_is_compared(db: Path, sqlite: bool) -> None:
    def beside(path: Path, message: eoq.Message) -> None:
        if sqlite:
            with closing(sqlite3.connect(path.with_name("second.db"))) as second, second:
                second.execute("create table if not exists t (x)")
                second.execute("insert into t values (1)")
        else:
            with path.with_name("second.log").open("a") as log:
                log.write("x")
        with eoq.Inbox(path) as inbox:
            inbox.process(message, book)

    assert f"the second file second.{'db' if sqlite else 'log'} differs" in failure(beside, db, inbox=None)


def test_a_handler_that_depends_on_the_attempt_is_found(db: Path) -> None:
    def first_or_again(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("insert into booking values (?, ?)", (message.id, "first" if message.attempt == 1 else "again"))

    text = failure(first_or_again, db)
    assert "1 row missing, such as ('p-1', 'first'); 1 row more than without a kill, such as ('p-1', 'again')" in text
    assert "depends on the attempt" in text


@pytest.mark.slow
def test_a_handler_that_calls_out_before_it_writes_is_found(db: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bank:
        port = bank.getsockname()[1]
        threading.Thread(target=_accept_all, args=(bank,), daemon=True).start()

        def charges(tx: sqlite3.Connection, message: eoq.Message) -> None:
            socket.create_connection(("127.0.0.1", port)).close()
            book(tx, message)

        text = failure(charges, db)
        assert f"`connect to 127.0.0.1 port {port}` happened 2 times, and once without a kill" in text
        assert "insert into booking" in text, "the first statement after the call"
        assert prove(charges, ["x"], db, ignore=["connect to 127.0.0.1 *"], traced=False).ok


@pytest.mark.slow
def test_a_program_that_is_started_is_a_call_to_the_outside(db: Path) -> None:
    def starts(tx: sqlite3.Connection, message: eoq.Message) -> None:
        book(tx, message)
        subprocess.run(["true"], check=True)

    assert "`run ['true']` happened 2 times" in failure(starts, db, traced=False)


@pytest.mark.slow
def test_a_handler_that_does_not_do_the_same_twice_is_found(db: Path) -> None:
    def unsteady(tx: sqlite3.Connection, message: eoq.Message) -> None:
        for _ in range(int(time.time()) % 17):  # no run takes so many seconds
            book(tx, message)

    assert "does not do the same twice without a kill: booking has" in failure(unsteady, db, traced=False)


def test_a_handler_that_always_fails_is_found(db: Path) -> None:
    def fails(_tx: sqlite3.Connection, _message: eoq.Message) -> None:
        raise ValueError("no account")

    assert "without a kill: the message was retried (ValueError: no account)" in failure(fails, db)


def test_a_handler_that_hangs_is_ended(db: Path) -> None:
    def hangs(_tx: sqlite3.Connection, _message: eoq.Message) -> None:
        threading.Event().wait()

    assert "it took longer than 0.2 s" in failure(hangs, db, timeout=0.2)


@pytest.mark.parametrize("traced", [False, None])
def test_a_handler_that_uses_the_file_itself_is_stopped_before_it_does(db: Path, traced: bool | None) -> None:
    def itself(_tx: sqlite3.Connection, message: eoq.Message) -> None:
        with closing(sqlite3.connect(db)) as own, own:
            own.execute("insert into booking values (?, '')", (message.id,))

    with pytest.raises(CannotProve, match=r"opens .*ledger\.db itself, and not the copy"):
        prove(itself, ["x"], db, traced=traced)
    with closing(sqlite3.connect(db)) as database:
        assert database.execute("select count(*) from booking").fetchone() == (0,)


@pytest.mark.skipif(not can_trace(), reason="this system does not allow ptrace")
def test_a_connection_from_before_the_run_is_stopped_as_well(db: Path) -> None:
    with closing(sqlite3.connect(db, isolation_level=None)) as earlier:
        earlier.execute("select * from booking").fetchall()

        def itself(_tx: sqlite3.Connection, message: eoq.Message) -> None:
            earlier.execute("insert into booking values (?, '')", (message.id,))

        with pytest.raises(CannotProve, match="itself, and not the copy"):
            prove(itself, ["x"], db)
        assert earlier.execute("select count(*) from booking").fetchone() == (0,)


def test_what_cannot_be_proved_is_refused(db: Path, tmp_path: Path) -> None:
    with pytest.raises(eoq.InvalidRequest, match="needs a message"):
        prove(book, [], db)
    with pytest.raises(eoq.InvalidRequest, match="cannot be read"):
        prove(book, ["x"], tmp_path / "absent.db")
    with pytest.raises(eoq.InvalidRequest, match="signature"):
        prove(lambda message: None, ["x"], db)
    assert not (tmp_path / "absent.db").exists()


def _accept_all(server: socket.socket) -> None:
    try:
        while True:
            server.accept()[0].close()
    except OSError:
        return
