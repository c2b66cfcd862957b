"""Workers of the chaos test: they apply messages to the ledger through an inbox until they are killed.

    python workers.py consume|work|batch|asyncio SOCKET QUEUE LEDGER
    python workers.py once SOCKET FOLDER NAME

``once`` is a caller of the dedup service. It writes the result of each key to FOLDER/NAME.once. The keys have the
number in FOLDER/generation: a daemon's file that is restored knows nothing of those that were run since its backup.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiosqlite

import eoq

SCHEMA: Final = "pragma journal_mode = wal; create table effect (id text not null, amount integer not null)"
"""The table has no key, so that an effect that happens twice is two rows. Their order is that of the effects."""
INSERT: Final = "insert into effect (id, amount) values (?, ?)"
UNKNOWN: Final = "unknown"
"""In place of the result of a key that another caller still runs."""
PATIENCE: Final = 1.0
"""Seconds for which a caller waits for another one's result."""
LEASE: Final = 2.0
"""Seconds: a worker that is stopped for longer loses its messages."""


def apply(tx: sqlite3.Connection, message: eoq.Message) -> None:
    """Make the effect of a message."""
    tx.execute(INSERT, (message.id, message.json()["amount"]))


async def apply_async(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
    """Make the effect of a message."""
    await tx.execute(INSERT, (message.id, message.json()["amount"]))


def work(how: str, path: str, queue: str, ledger: str) -> None:
    """Apply messages without end."""
    with eoq.connect(path, timeout=60) as client, eoq.Inbox(ledger) as inbox:
        if how == "work":
            client.work(queue, apply, inbox=inbox, prefetch=20, lease=LEASE)  # with pipelined acks
        if how == "batch":
            client.work(queue, apply, inbox=inbox, batch=20, prefetch=20, lease=LEASE)
        for message in client.consume(queue, prefetch=20, lease=LEASE):
            with suppress(eoq.LeaseLost):  # the effect is committed; the message is delivered again and only acked
                inbox.process(message, apply)


async def work_async(path: str, queue: str, ledger: str) -> None:
    """Apply messages without end."""
    async with eoq.connect_async(path, timeout=60) as client, eoq.AsyncInbox(ledger) as inbox:
        await client.work(queue, apply_async, inbox=inbox, prefetch=20, lease=LEASE)


def once(path: str, folder: str, name: str) -> None:
    """Call one key after the other, and write down what came back."""
    record = Path(folder) / f"{name}.once"
    number = record.read_text().count("\n") if record.exists() else 0
    generation = (Path(folder) / "generation").read_text()
    with eoq.connect(path, timeout=60) as client, record.open("a") as file:
        while True:
            key = f"charge-{generation}-{number}"
            try:
                token = client.once(key, lambda: uuid.uuid4().hex, wait=PATIENCE).decode()
            except eoq.Overloaded:
                token = UNKNOWN  # its runner was killed together with the daemon, which keeps the key for it for 30 s
            file.write(f"{key} {token}\n")
            file.flush()
            number += 1
            time.sleep(0.01)


if __name__ == "__main__":
    while True:
        try:
            if sys.argv[1] == "once":
                once(*sys.argv[2:5])
            elif sys.argv[1] == "asyncio":
                asyncio.run(work_async(*sys.argv[2:5]))
            else:
                work(*sys.argv[1:5])
        except (eoq.Unavailable, eoq.LeaseLost):  # there was no daemon when it started, or it slept through its key
            time.sleep(0.02)
