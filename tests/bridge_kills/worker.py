"""A worker of a destination: it books each message in its ledger through an inbox. Killed and started again at will.

python -m tests.bridge_kills.worker SOCKET LEDGER
"""

from __future__ import annotations

import sqlite3
import sys

import eoq


def book(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into payment (id, grp) values (?, ?)", (message.id, message.group))
    return f"booked {message.id}"


def main() -> None:
    socket, ledger = sys.argv[1:]
    with eoq.connect(socket, timeout=600) as client, eoq.Inbox(ledger) as inbox:
        client.work("q", book, inbox=inbox, batch=20, prefetch=20)


if __name__ == "__main__":
    main()
