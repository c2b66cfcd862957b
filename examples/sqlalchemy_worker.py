"""Book payments in a ledger with SQLAlchemy, each of them exactly once.

    eoq send payments '{"account": "bob", "cents": 700}' --id ledger-2
    python examples/sqlalchemy_worker.py --db ledger.db --until-empty

The booking, the message's id and its result are committed in one transaction of the session. Then the message is
acked. This example needs SQLAlchemy 2; eoq itself does not. Kill the worker or the daemon at any moment, and start it
again: each payment is still booked once.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from typing import cast

from sqlalchemy import create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import eoq

IDLE_SECONDS = 1.0
"""With `--until-empty` the worker ends after so many seconds without a payment."""


class Base(DeclarativeBase):
    """The tables of this example."""


class Account(Base):
    __tablename__ = "account"
    name: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class Booking(Base):
    __tablename__ = "booking"
    number: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str]
    cents: Mapped[int]
    payment: Mapped[str]  # the message's id; not unique, so that a double booking would be visible


def connection_of(session: Session) -> sqlite3.Connection:
    """Return the sqlite3 connection of the session's transaction."""
    return cast(sqlite3.Connection, session.connection().connection.driver_connection)


def sync_fully(connection: sqlite3.Connection, _record: object) -> None:
    """Have each commit on disk when it returns, so that a loss of power takes nothing that was acked."""
    connection.execute("pragma synchronous = extra")


def book(session: Session, message: eoq.Message) -> str:
    """Book one payment. The handler uses the session as usual, but leaves the commit to the inbox."""
    payment = message.json()
    account = session.get(Account, payment["account"]) or Account(name=payment["account"], cents=0)
    account.cents += payment["cents"]
    session.add_all([account, Booking(account=payment["account"], cents=payment["cents"], payment=message.id)])
    return f"{account.name} has {account.cents} cents"


def work(db: str, queue: str, socket: str | None, until_empty: bool) -> None:
    """Handle payments until the worker is stopped, or until there are no more."""
    engine = create_engine(f"sqlite:///{db}", connect_args={"timeout": 30})
    event.listen(engine, "connect", sync_fully)
    Base.metadata.create_all(engine)
    inbox = eoq.GuestInbox(sessionmaker(engine).begin, connection_of)
    with eoq.connect(socket, timeout=60) as client:
        for message in client.consume(queue, prefetch=20, idle=IDLE_SECONDS if until_empty else None):
            try:
                result = inbox.process(message, book)
            except eoq.LeaseLost:
                print(f"{message.id}: the lease was lost; the message is delivered again", file=sys.stderr, flush=True)
            except (ValueError, KeyError, TypeError) as error:
                # The inbox has rolled back and given the message back. After its last attempt it is a dead letter.
                print(f"{message.id}: {error!r}", file=sys.stderr, flush=True)
            else:
                print(f"{message.id}: {(result or b'').decode()}", flush=True)
    engine.dispose()


def main() -> int:
    """Read the arguments and work; return the exit status."""
    parser = argparse.ArgumentParser(description="Book payments in a ledger with SQLAlchemy, each exactly once.")
    parser.add_argument("--db", default="ledger.db", help="the ledger's SQLite file; the default is ledger.db")
    parser.add_argument("--queue", default="payments", help="the queue; the default is payments")
    parser.add_argument("--socket", help="the daemon's socket; the default is EOQ_SOCKET, else the user's own")
    parser.add_argument("--until-empty", action="store_true", help="end after a second without a payment")
    arguments = parser.parse_args()
    try:
        work(arguments.db, arguments.queue, arguments.socket, arguments.until_empty)
    except eoq.EoqError as error:
        print(f"sqlalchemy_worker: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
