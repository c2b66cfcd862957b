"""A producer of the chaos test: it sends its plan message by message, and goes on where it was killed.

    python chaos_producer.py SOCKET QUEUE SEED NAME FOLDER

The plan is a function of seed and number, so that a new process goes on with the same messages. Each confirmed id is
written to FOLDER/NAME.sent. The producer ends when FOLDER/stop exists and everything that was begun is confirmed.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Final

import eoq

REPEATED: Final = 0.25
"""The share of the messages that are sent again some time later."""
PAUSE: Final = 0.002
"""Seconds between two messages. Two workers can handle that many."""


def amount(seed: int, id: str) -> int:
    """Return the amount in the message ``id``."""
    return random.Random(f"{seed} {id}").randrange(1, 1_000_000)


def produce(path: str, queue: str, seed: int, name: str, folder: Path) -> None:
    """Go on with the plan until FOLDER/stop exists."""
    record = folder / f"{name}.sent"
    # If a kill has cut a line, its message is sent again.
    number = record.read_text().count("\n") if record.exists() else 0
    rng = random.Random(f"{seed} {name} {number}")
    with eoq.connect(path, timeout=60) as client, record.open("a") as confirmed:
        confirmed.truncate(_whole_lines(record))
        while True:
            # A killed process may have sent this message and not confirmed it. So send it even if FOLDER/stop exists.
            id = f"{name}-{number}"
            client.send(queue, {"amount": amount(seed, id)}, id=id)
            confirmed.write(f"{id}\n")
            confirmed.flush()
            if rng.random() < REPEATED:
                again = f"{name}-{rng.randrange(number + 1)}"
                assert client.send(queue, {"amount": amount(seed, again)}, id=again).duplicate
            number += 1
            if (folder / "stop").exists():
                return
            time.sleep(PAUSE)


def _whole_lines(record: Path) -> int:
    return record.read_bytes().rfind(b"\n") + 1


if __name__ == "__main__":
    while True:
        try:
            produce(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
            break
        except eoq.Unavailable:  # there was no daemon when it started
            time.sleep(0.02)
