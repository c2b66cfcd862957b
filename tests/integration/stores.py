"""The databases of applications behind one interface: a SQLite file and PostgreSQL, for tests of every inbox."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol

import eoq

StoreKind = Literal["sqlite", "postgres"]
Handler = Callable[[Any, eoq.Message], object]


class AnyInbox(Protocol):
    """The methods of `Inbox` and `PgInbox`."""

    def __enter__(self) -> AnyInbox: ...
    def __exit__(self, *_exc: object) -> None: ...
    def process(self, message: eoq.Message, handler: Handler) -> bytes | None: ...
    def process_many(self, messages: Iterable[eoq.Message], handler: Handler) -> list[bytes | Exception | None]: ...
    def seen(self, queue: str, id: str) -> bool: ...
    def prune(self) -> int: ...


class Store:
    """An application's database with the table `payment`. ``place`` is the path of a file, or a URL."""

    def __init__(self, kind: StoreKind, place: Path | str) -> None:
        self.kind = kind
        self.place = place
        if kind == "sqlite":
            self.execute("pragma journal_mode = wal")
            self.execute("create table payment (number integer primary key, id text, amount integer)")
        else:
            self.execute("create table payment (number serial primary key, id text, amount integer)")

    def inbox(self, *, keep: float | None = None) -> AnyInbox:
        """Open an inbox of the database."""
        return eoq.Inbox(self.place, keep=keep) if self.kind == "sqlite" else eoq.PgInbox(str(self.place), keep=keep)

    def apply(self, tx: Any, message: eoq.Message) -> object:
        """Book a payment. The number of its rows is the number of times that the effect happened."""
        values = (message.id, message.json()["amount"])
        tx.execute(self.sql("insert into payment (id, amount) values (?, ?)"), values)
        return {"paid": message.json()["amount"]}

    def sql(self, statement: str) -> str:
        """Return a statement with the database's own placeholders in place of question marks."""
        return statement if self.kind == "sqlite" else statement.replace("?", "%s")

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Execute a statement in a transaction of its own, and return its rows."""
        if self.kind == "sqlite":
            with closing(sqlite3.connect(self.place)) as database, database:
                return database.execute(statement, values).fetchall()
        import psycopg

        with psycopg.connect(str(self.place)) as connection:
            cursor = connection.execute(self.sql(statement), values or None)
            return cursor.fetchall() if cursor.description else []

    def payments(self) -> list[str]:
        """Return the ids of the payments, in the order in which they were booked."""
        return [id for (id,) in self.execute("select id from payment order by number")]

    def known(self) -> list[int]:
        """Return the processed ids, which are numbers."""
        return sorted(int(id) for (id,) in self.execute("select id from eoq_processed"))
