"""Bodies in their message's row, or apart in a table of their own: what each costs in SQLite alone.

    python -m tests.bench.apart [--rounds N]

It runs the daemon's statements for a put, a claim and an ack, on its schema and with its settings, in this process, and
counts processor time. Rounds alternate; the table has the medians in microseconds a message, and the ratio of apart to
inline: below 1, apart is quicker. `bodies.py` measures the same through the daemon.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from eoq.daemon.store.sqlite.database import prepare
from eoq.ids import new_ids
from tests.support import memory_folder

SIZES = {100: 100, 1_000: 100, 4_000: 100, 10_000: 100, 20_000: 50, 100_000: 10, 1_000_000: 1}
"""Bytes of a body, and how many messages a transaction has."""
MOST_MESSAGES = 2000
MOST_BYTES = 10_000_000
DIGEST = b"d" * 32
KNOW = "insert into known_id (queue, id, seq, digest) values (1, ?, ?, ?)"
PUT = """
    insert into message
      (seq, queue, id, state, priority, enqueued_at, due_at, fixed, expires_at, digest, "group", headers, body)
    values (?, 1, ?, 'ready', 0, 1.0, null, 0, null, ?, null, null, ?)
    """
CLAIM = """
    select message.seq, id, {body}, headers, attempts, priority, enqueued_at, digest
    from message {join}
    where queue = 1 and state = 'ready' and priority = 0 and message.seq >= ?
    order by priority desc, message.seq
    limit ?
    """
CLAIM_INLINE = CLAIM.format(body="body", join="")
CLAIM_APART = CLAIM.format(body="body.body", join="left join body on body.seq = message.seq")
ACK = """
    insert into outcome (seq, queue, outcome, settled_at, life, delivery)
    select seq, queue, 'done', 1.0, 1, 1
    from message
    where seq between ? and ?
    """

Step: TypeAlias = Callable[[int, int, bytes], None]
"""What is done with some messages: from this seq on, so many, of this body."""


@dataclass
class Candidate:
    """A file, with bodies inline or apart."""

    database: sqlite3.Connection
    apart: bool
    next: int = 1
    figures: dict[tuple[int, str], list[float]] = field(default_factory=dict)

    def put(self, first: int, count: int, body: bytes) -> None:
        """Store messages."""
        ids = list(itertools.islice(new_ids(), count))
        self.database.executemany(KNOW, [(id, first + index, DIGEST) for index, id in enumerate(ids)])
        inline = None if self.apart else body
        self.database.executemany(PUT, [(first + index, id, DIGEST, inline) for index, id in enumerate(ids)])
        if self.apart:
            rows = [(seq, body) for seq in range(first, first + count)]
            self.database.executemany("insert into body (seq, body) values (?, ?)", rows)

    def claim(self, first: int, count: int, body: bytes) -> None:
        """Deliver messages."""
        statement = CLAIM_APART if self.apart else CLAIM_INLINE
        rows = self.database.execute(statement, (first, count)).fetchall()
        self.database.execute("insert into delivery (queue, delivered_at, seqs) values (1, 1.0, '[]')")
        assert [len(row[2]) for row in rows] == [len(body)] * count

    def ack(self, first: int, count: int, body: bytes) -> None:
        """Settle messages."""
        seqs = (first, first + count - 1)
        self.database.execute("delete from delivery")
        self.database.execute(ACK, seqs)
        self.database.execute("delete from message where seq between ? and ?", seqs)
        if self.apart:
            self.database.execute("delete from body where seq between ? and ?", seqs)

    def measure(self, size: int) -> None:
        """Take messages of one size through all steps."""
        batch = SIZES[size]
        count = max(batch, min(MOST_MESSAGES, MOST_BYTES // size) // batch * batch)
        body = os.urandom(size)
        steps: dict[str, Step] = {"put": self.put, "claim": self.claim, "ack": self.ack}
        for name, step in steps.items():
            self.database.execute(f"pragma synchronous = {'normal' if name == 'claim' else 'full'}")
            start = time.process_time()
            for first in range(self.next, self.next + count, batch):
                self.database.execute("begin immediate")
                step(first, batch, body)
                self.database.execute("commit")
            self.figures.setdefault((size, name), []).append((time.process_time() - start) / count * 1e6)
        self.next += count


def open_file(path: Path) -> sqlite3.Connection:
    """Make a file of the daemon, with a table for bodies."""
    database = sqlite3.connect(path, isolation_level=None)
    prepare(database, path)
    database.execute("create table body (seq integer primary key, body blob) strict")
    database.execute("insert into queue (number, name) values (1, 'q')")
    return database


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="default 15")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=memory_folder()) as folder,
        closing(open_file(Path(folder, "inline.db"))) as one,
        closing(open_file(Path(folder, "apart.db"))) as other,
    ):
        inline, apart = Candidate(one, apart=False), Candidate(other, apart=True)
        for number in range(options.rounds):
            for size in SIZES:
                for candidate in (inline, apart) if number % 2 else (apart, inline):
                    candidate.measure(size)
    print(f"{'':9} {'inline':^29} {'apart':^29} {'ratio':^24}")
    steps = f"{'put':>9} {'claim':>9} {'ack':>9}"
    print(f"{'bytes':>9} {steps} {steps} {'put':>12} {'claim+ack':>11}")
    for size in SIZES:
        line = f"{size:9,}"
        puts, takes = [], []
        for candidate in (inline, apart):
            put, claim, ack = (statistics.median(candidate.figures[size, name]) for name in ("put", "claim", "ack"))
            line += f" {put:9.1f} {claim:9.1f} {ack:9.1f}"
            puts.append(put)
            takes.append(claim + ack)
        print(f"{line} {puts[1] / puts[0]:12.2f} {takes[1] / takes[0]:11.2f}")


if __name__ == "__main__":
    main()
