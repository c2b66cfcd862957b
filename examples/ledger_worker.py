"""A worker that books payments in a ledger, each of them once, whatever is killed and whenever.

The booking and the message's id are committed in one transaction of the ledger's own SQLite file (`eoq.Inbox`). A
payment that is delivered again, because this worker or the daemon was killed, is found there and only acked.

    eoq send payments '{"account": "alice", "cents": 500}' --id ledger-1
    python examples/ledger_worker.py --db ledger.db --until-empty
    sqlite3 ledger.db 'select * from account'

Run as many workers as you like. Let a service manager start them again when they end.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass

import eoq

SCHEMA = """
    create table if not exists account (
      name text primary key,
      cents integer not null
    ) strict;
    create table if not exists booking (
      number integer primary key,
      account text not null,
      cents integer not null,
      payment text not null  -- the message's id; not unique, so that the table would show a double booking
    ) strict;
"""
IDLE_SECONDS = 1.0
"""How long no payment may come before `--until-empty` ends."""


@dataclass(frozen=True)
class Payment:
    """A payment that can be booked."""

    account: str
    cents: int

    @classmethod
    def read(cls, message: eoq.Message) -> Payment:
        """The payment in a message; raises `ValueError` where there is none."""
        fields = message.json()
        match fields:
            case {"account": str(account), "cents": int(cents)} if account and abs(cents) < 2**53:
                return cls(account, cents)
        raise ValueError('a payment looks like {"account": "alice", "cents": 500}')

    def book(self, ledger: sqlite3.Connection, message: eoq.Message) -> str:
        """Books it, inside the inbox's transaction. Returns the message's result."""
        ledger.execute(
            "insert into booking (account, cents, payment) values (?, ?, ?)", (self.account, self.cents, message.id)
        )
        (balance,) = ledger.execute(
            """
            insert into account (name, cents) values (?, ?)
            on conflict (name) do update set cents = cents + excluded.cents
            returning cents
            """,
            (self.account, self.cents),
        ).fetchone()
        return f"{self.account} has {balance} cents"


def handle(message: eoq.Message, inbox: eoq.Inbox) -> None:
    """Books one message, or puts it aside for a person where it can never be booked."""
    try:
        try:
            payment = Payment.read(message)
        except ValueError as error:
            message.reject(f"no payment: {error}")
            print(f"{message.id}: rejected, {error}", file=sys.stderr, flush=True)
            return
        result = inbox.process(message, payment.book)
    except eoq.LeaseLost:
        # We were slow, or the daemon was started again. If the payment was booked, it is booked: it comes again, is
        # found in the inbox, and only acked.
        print(f"{message.id}: the lease was lost; it comes again", file=sys.stderr, flush=True)
    else:
        print(f"{message.id}: {(result or b'').decode()}", flush=True)


def work(db: str, queue: str, socket: str | None, until_empty: bool) -> None:
    """Handles payments without end, or until there are no more."""
    with closing(sqlite3.connect(db, timeout=30)) as ledger:
        ledger.executescript(SCHEMA)
    # A daemon that is killed may take a minute to come back; until then the client tries again by itself.
    with eoq.connect(socket, timeout=60) as client, eoq.Inbox(db) as inbox:
        for message in client.consume(queue, prefetch=20, idle=IDLE_SECONDS if until_empty else None):
            # What is raised here (a full disk, a ledger that is locked) ends the worker. It is better started again
            # by its service manager than left to use up the attempts of every payment.
            handle(message, inbox)


def main() -> int:
    """Reads the arguments; returns the exit status."""
    parser = argparse.ArgumentParser(description="Books payments in a ledger, each of them once.")
    parser.add_argument("--db", default="ledger.db", help="the ledger's SQLite file; ledger.db if absent")
    parser.add_argument("--queue", default="payments", help="payments if absent")
    parser.add_argument("--socket", help="the daemon's socket; else EOQ_SOCKET, else the user's default")
    parser.add_argument("--until-empty", action="store_true", help="end when no payment came for a second")
    arguments = parser.parse_args()
    try:
        work(arguments.db, arguments.queue, arguments.socket, arguments.until_empty)
    except eoq.EoqError as error:
        print(f"ledger_worker: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
