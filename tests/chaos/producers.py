"""Producers of the chaos test: they send their plan message by message, and go on where they were killed.

    python producers.py send|outbox|spool SOCKET QUEUE SEED NAME FOLDER

The plan is a function of seed, name and number, so that a new process goes on with the same messages. ``send`` is a
client, ``outbox`` an application with an outbox, and ``spool`` leaves files. Each confirmed id is written to
FOLDER/NAME.sent. A producer ends when FOLDER/stop exists and everything that was begun is confirmed.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import eoq

REPEATED: Final = 0.25
"""The share of the messages that are sent again some time later."""
GROUPED: Final = 0.5
"""The share of the messages that belong to a group, whose order is checked."""
SCHEMA: Final = "create table orders (id text)"
"""What the application has in its file beside the outbox."""
PAUSE: Final = 0.005
"""Seconds between two messages. The workers can handle that many."""

Send: TypeAlias = Callable[[str, str | None], bool]
"""Sends the message of an id, in a group or in none. Returns False if it was sent before, and that is known."""


def amount(seed: int, id: str) -> int:
    """Return the amount in the message ``id``."""
    return random.Random(f"{seed} {id}").randrange(1, 1_000_000)


def group(seed: int, id: str) -> str | None:
    """Return the group of the message ``id``, or None. All messages of a group come from one producer."""
    rng = random.Random(f"group {seed} {id}")
    return f"{id.partition('-')[0]}.{rng.randrange(3)}" if rng.random() < GROUPED else None


def message(seed: int, id: str) -> eoq.Outgoing:
    """Return the message ``id``."""
    return eoq.Outgoing({"amount": amount(seed, id)}, id=id, group=group(seed, id))


@contextmanager
def over_client(path: str, queue: str, seed: int, _folder: Path, _name: str) -> Iterator[Send]:
    """Send with a client."""
    with eoq.connect(path, timeout=60) as client:

        def send(id: str, of: str | None) -> bool:
            return not client.send(queue, {"amount": amount(seed, id)}, id=id, group=of).duplicate

        yield send


@contextmanager
def over_outbox(_path: str, queue: str, seed: int, folder: Path, name: str) -> Iterator[Send]:
    """Send with an outbox, in the transaction that writes an order. Some transactions are rolled back."""
    database = sqlite3.connect(folder / "shop.db", timeout=60)
    box = eoq.Outbox(database)
    rng = random.Random(f"{seed} {name} {time.time()}")

    def send(id: str, of: str | None) -> bool:
        if rng.random() < 0.1:
            with suppress(ZeroDivisionError), database:
                box.send(queue, {"amount": 1}, id=f"undone-{id}")
                raise ZeroDivisionError
        with database:
            database.execute("insert into orders values (?)", (id,))
            box.send(queue, {"amount": amount(seed, id)}, id=id, group=of)
        return True

    yield send


@contextmanager
def over_spool(_path: str, queue: str, seed: int, folder: Path, _name: str) -> Iterator[Send]:
    """Send with files."""
    spool = eoq.Spool(folder / "spool")

    def send(id: str, of: str | None) -> bool:
        spool.send(queue, {"amount": amount(seed, id)}, id=id, group=of)
        return True

    yield send


WAYS: Final[dict[str, Any]] = {"send": over_client, "outbox": over_outbox, "spool": over_spool}


def produce(way: str, path: str, queue: str, seed: int, name: str, folder: Path) -> None:
    """Go on with the plan until FOLDER/stop exists."""
    record = folder / f"{name}.sent"
    # If a kill has cut a line, its message is sent again.
    number = record.read_text().count("\n") if record.exists() else 0
    rng = random.Random(f"{seed} {name} {number}")
    with WAYS[way](path, queue, seed, folder, name) as send, record.open("a") as confirmed:
        confirmed.truncate(_whole_lines(record))
        while True:
            # A killed process may have sent this message and not confirmed it. So send it even if FOLDER/stop exists.
            id = f"{name}-{number}"
            send(id, group(seed, id))
            confirmed.write(f"{id}\n")
            confirmed.flush()
            if rng.random() < REPEATED:
                again = f"{name}-{rng.randrange(number + 1)}"
                is_new = send(again, group(seed, again))
                assert way != "send" or not is_new, f"{again} was confirmed before, and is new"
            number += 1
            if (folder / "stop").exists():
                return
            time.sleep(PAUSE)


def _whole_lines(record: Path) -> int:
    return record.read_bytes().rfind(b"\n") + 1


def main(way: str, path: str, queue: str, seed: str, name: str, folder: str) -> None:
    """Produce, and wait for the daemon if there is none at the start."""
    while True:
        try:
            produce(way, path, queue, int(seed), name, Path(folder))
            break
        except eoq.Unavailable:
            time.sleep(0.02)  # until it is restarted


if __name__ == "__main__":
    main(*sys.argv[1:])
