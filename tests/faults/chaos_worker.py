"""A worker of the chaos test: it applies messages to the ledger through an inbox until it is killed.

python chaos_worker.py SOCKET QUEUE LEDGER consume|work
"""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import suppress
from typing import Final

import eoq

SCHEMA: Final = "pragma journal_mode = wal; create table effect (id text not null, amount integer not null)"
"""The table has no key, so that an effect that happens twice is two rows."""


def apply(tx: sqlite3.Connection, message: eoq.Message) -> None:
    """Make the effect of a message."""
    tx.execute("insert into effect (id, amount) values (?, ?)", (message.id, message.json()["amount"]))


def work(path: str, queue: str, ledger: str, how: str) -> None:
    """Apply messages without end."""
    with eoq.connect(path, timeout=60) as client, eoq.Inbox(ledger) as inbox:
        if how == "work":
            client.work(queue, apply, inbox=inbox, prefetch=20)  # with pipelined acks
        for message in client.consume(queue, prefetch=20):
            with suppress(eoq.LeaseLost):  # the effect is committed; the message is delivered again and only acked
                inbox.process(message, apply)


if __name__ == "__main__":
    while True:
        try:
            work(*sys.argv[1:5])
        except eoq.Unavailable:  # there was no daemon when it started
            time.sleep(0.02)
