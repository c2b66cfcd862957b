"""An application that is killed: ``outbox_producer.py FILE COUNT`` adds orders with their messages, and waits.

Every third transaction is rolled back.
"""

from __future__ import annotations

import signal
import sqlite3
import sys

import eoq


def main() -> None:
    file, count = sys.argv[1], int(sys.argv[2])
    database = sqlite3.connect(file, timeout=60)
    outbox = eoq.Outbox(database)
    for _ in range(count):
        (number,) = database.execute("select coalesce(max(number), 0) + 1 from orders").fetchone()
        with database:
            database.execute("insert into orders values (?)", (number,))
            outbox.send("in", str(number), id=f"o{number}")
        if number % 3 == 0:
            database.execute("insert into orders values (?)", (-number,))
            outbox.send("in", "undone", id=f"undone{number}")
            database.rollback()
    print("done", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
