"""A worker that books payments in a ledger, each of them exactly once, even if it is killed at any moment.

The booking and the message's id are committed in one transaction of the ledger's own SQLite file (`eoq.Inbox`). If a
payment is delivered again, because this worker or the daemon was killed, its id is found there and it is only acked.

    eoq send payments '{"account": "alice", "cents": 500}' --id ledger-1
    python examples/ledger_worker.py --db ledger.db --until-empty
    sqlite3 ledger.db 'select * from account'

Run as many workers as you like. Let a service manager restart them when they end.
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
      payment text not null  -- the message's id; not unique, so that a double booking would be visible
    ) strict;
"""
IDLE_SECONDS = 1.0
"""With `--until-empty` the worker ends after so many seconds without a payment."""


@dataclass(frozen=True)
class Payment:
    """A valid payment."""

    account: str
    cents: int

    @classmethod
    def read(cls, message: eoq.Message) -> Payment:
        """Return the payment in a message. Raise `ValueError` if there is none."""
        fields = message.json()
        match fields:
            case {"account": str(account), "cents": int(cents)} if account and abs(cents) < 2**53:
                return cls(account, cents)
        raise ValueError('a payment looks like {"account": "alice", "cents": 500}')

    def book(self, ledger: sqlite3.Connection, message: eoq.Message) -> str:
        """Book the payment inside the inbox's transaction. Return the message's result."""
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
    """Book one message. Reject it if it can never be booked: it is then a dead letter for the operator."""
    try:
        try:
            payment = Payment.read(message)
        except ValueError as error:
            message.reject(f"no payment: {error}")
            print(f"{message.id}: rejected, {error}", file=sys.stderr, flush=True)
            return
        result = inbox.process(message, payment.book)
    except eoq.LeaseLost:
        # This worker was slow, or the daemon was restarted. The message is delivered again. If the payment was booked,
        # the inbox finds its id and only acks it.
        print(f"{message.id}: the lease was lost; the message is delivered again", file=sys.stderr, flush=True)
    else:
        print(f"{message.id}: {(result or b'').decode()}", flush=True)


def work(db: str, queue: str, socket: str | None, until_empty: bool) -> None:
    """Handle payments until the worker is stopped, or until there are no more."""
    with closing(sqlite3.connect(db, timeout=30)) as ledger:
        ledger.executescript(SCHEMA)
    # A daemon that was killed may need a minute to restart. Until then the client retries by itself.
    with eoq.connect(socket, timeout=60) as client, eoq.Inbox(db) as inbox:
        for message in client.consume(queue, prefetch=20, idle=IDLE_SECONDS if until_empty else None):
            # Other errors (a full disk, a locked ledger) end the worker, and its service manager restarts it. If it
            # went on, it would use up the attempts of every payment.
            handle(message, inbox)


def main() -> int:
    """Read the arguments and work; return the exit status."""
    parser = argparse.ArgumentParser(description="Book payments in a ledger, each exactly once.")
    parser.add_argument("--db", default="ledger.db", help="the ledger's SQLite file; the default is ledger.db")
    parser.add_argument("--queue", default="payments", help="the queue; the default is payments")
    parser.add_argument("--socket", help="the daemon's socket; the default is EOQ_SOCKET, else the user's own")
    parser.add_argument("--until-empty", action="store_true", help="end after a second without a payment")
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
