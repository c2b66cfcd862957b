"""Ctrl-C at any line of an inbox: the next message is processed as if nothing had happened."""

from __future__ import annotations

import gc
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import eoq
from tests.support import Daemon

INBOX = str(Path(eoq.__file__).parent / "inbox")
"""The folder whose lines are interrupted."""


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = off")  # an interrupted test need not survive a loss of power
        database.execute("create table payment (id text)")
    return folder / "app.db"


def _apply(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into payment values (?)", (message.id,))
    return "paid"


def _interrupted(call: Callable[[], object], at: int) -> bool:
    """Raise `KeyboardInterrupt` in ``call`` at the line number ``at``, counted as they run. Return whether it ran."""
    count = 0

    def trace(frame: FrameType, _event: str, _argument: object) -> Any:
        return lines if frame.f_code.co_filename.startswith(INBOX) else None

    def lines(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        if event == "line" and count == at:
            sys.settrace(None)
            raise KeyboardInterrupt
        return lines

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except (KeyboardInterrupt, sqlite3.DatabaseError):
        pass  # SQLite turns what is raised in an authorizer into an error of its own
    finally:
        sys.settrace(before)
    return count >= at


def _inbox(kind: str, file: Path, database: sqlite3.Connection) -> Any:
    @contextmanager
    def begin() -> Iterator[sqlite3.Connection]:
        with database:
            yield database

    match kind:
        case "path":
            return eoq.Inbox(file)
        case "connection":
            return eoq.Inbox(database)
        case _:
            return eoq.GuestInbox(begin, lambda connection: connection)


# A connection that was being opened when the interruption came is closed by Python, which says so since 3.13.
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("outcome", ["returns", "raises"])
@pytest.mark.parametrize(
    ("kind", "count"), [("path", 1), ("path", 2), ("connection", 1), ("connection", 2), ("library", 1)]
)
@pytest.mark.slow
def test_after_an_interruption_at_any_line_the_next_message_is_processed(
    shared_daemon: Daemon, queue: str, file: Path, kind: str, count: int, outcome: str
) -> None:
    def fail(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        raise eoq.Retry(0)

    with closing(sqlite3.connect(file)) as database, eoq.connect(shared_daemon.socket) as client:
        inbox = _inbox(kind, file, database)
        first, call = (_apply if outcome == "returns" else fail), inbox.process if count == 1 else inbox.process_many

        def process(handler: Any, messages: list[eoq.Message]) -> None:
            with suppress(eoq.Retry, eoq.LeaseLost):  # it was given back for an error in the authorizer
                call(messages[0] if count == 1 else messages, handler)

        at, goes_on = 0, True
        while goes_on:
            at += 1
            ids = [f"{at} {number}" for number in range(count)]
            client.send_many(queue, [eoq.Outgoing("x", id=id) for id in ids])
            messages = client.receive(queue, count)
            goes_on = _interrupted(lambda messages=messages: process(first, messages), at)  # type: ignore[misc] # a default binds the loop's variable
            others = [f"other {at} {number}" for number in range(count)]
            client.send_many(queue, [eoq.Outgoing("x", id=id, priority=1) for id in others])
            process(_apply, client.receive(queue, count))
            if outcome == "returns":
                process(_apply, messages)
            done = [id for (id,) in database.execute("select id from payment where id like ?", (f"%{at} _",))]
            assert sorted(done) == sorted([*others, *(ids if outcome == "returns" else [])])
            assert not database.in_transaction
            while waiting := client.receive(queue, 100):
                client.ack_many([(message, None) for message in waiting])
        assert at > 20
        assert (database.isolation_level, database.execute("pragma synchronous").fetchone()) == ("", (2,))
        if kind == "path":
            inbox.close()
    gc.collect()
