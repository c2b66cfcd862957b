"""A producer of the chaos test: sends its plan, message by message, wherever it was killed before.

    python chaos_producer.py SOCKET QUEUE SEED NAME FOLDER

The plan is a function of seed and number, so that a new process goes on with the same messages. FOLDER/NAME.sent
gets each id once it is confirmed. It ends when FOLDER/stop exists, with everything begun confirmed.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Final

import eoq

REPEATED: Final = 0.25
"""The part of the messages that is sent once more, some time later."""
PAUSE: Final = 0.002
"""Seconds between two messages: what is sent, two workers can handle."""


def amount(seed: int, id: str) -> int:
    """What the message ``id`` is worth."""
    return random.Random(f"{seed} {id}").randrange(1, 1_000_000)


def produce(path: str, queue: str, seed: int, name: str, folder: Path) -> None:
    """Goes on with the plan until it is told to stop."""
    record = folder / f"{name}.sent"
    # A line that was cut by a kill is a message that is sent again.
    number = record.read_text().count("\n") if record.exists() else 0
    rng = random.Random(f"{seed} {name} {number}")
    with eoq.connect(path, timeout=60) as client, record.open("a") as confirmed:
        confirmed.truncate(_whole_lines(record))
        while True:
            # The one before may have sent this message and not lived to confirm it: also when told to stop, first this.
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
        except eoq.Unavailable:  # it was started while there was no daemon
            time.sleep(0.02)
