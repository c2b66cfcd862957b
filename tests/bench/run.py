"""The benchmark: eoq beside raw SQLite at equal durability, in one run, as a table of ratios.

    python tests/bench/run.py [--json] [--rounds N] [--quick | --scale X] [--rows NAME[,NAME…]]

Every rate is in confirmed messages per second (on disk, fsynced), with 100-byte bodies. The ratio is to raw SQLite
in process (WAL, synchronous=FULL) with one insert per commit. Rounds of raw SQLite and eoq alternate, and the median
counts, because the speed of a disk drifts by more than the differences to measure. ``--rows`` measures single rows
(``--list`` prints their names); ratios need ``raw-send`` among them. ``compare.py`` compares two checkouts.

The eoq that is measured is the one of the interpreter that runs this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench import measures
else:
    import measures  # the file beside this one, which runs as a script


@dataclass(frozen=True)
class Place:
    """Where a round takes place: its folder, and the socket of its daemon."""

    folder: Path
    socket: str

    @property
    def raw(self) -> Path:
        """The file of raw SQLite."""
        return self.folder / "raw.db"


@dataclass(frozen=True)
class Row:
    """One line of the table. ``count`` is its number of messages in a full round."""

    name: str
    label: str
    count: int
    measure: Callable[[Place, int], float]
    aim: float | None = None
    receives: bool = False
    queue: str = "bench"
    """Where it receives. The messages of ``bench-1k`` have 1 KiB."""

    @property
    def in_seconds(self) -> bool:
        """Whether the figure is a time, for which less is better, and no rate."""
        return self.label.endswith(", seconds")


RAW = Row("raw-send", "raw send", 3200, lambda at, n: measures.raw_send(at.raw, n, 1))
ROWS = (
    RAW,
    Row("send", "send, 1 producer", 3200, lambda at, n: measures.eoq_send(at.socket, n, 1), 0.75),
    Row("send-8", "send, 8 producers", 12800, lambda at, n: measures.eoq_send(at.socket, n, 8), 3.0),
    RAW,  # measured twice, because every ratio depends on it
    Row("raw-send-100", "raw send, batches of 100", 32000, lambda at, n: measures.raw_send(at.raw, n, 100)),
    Row("send-100", "send, batches of 100", 32000, lambda at, n: measures.eoq_send_batches(at.socket, n), 24.0),
    Row("stream", "send_many of all, pipelined", 32000, lambda at, n: measures.eoq_send_stream(at.socket, n)),
    Row("raw-take", "raw take", 1600, lambda at, n: measures.raw_take(at.raw, n, 1)),
    Row(
        "work",
        "receive+ack, 1 at a time (prefetched)",
        9600,
        lambda at, n: measures.eoq_work_one(at.socket, n),
        0.85,
        True,
    ),
    Row("ack", "the same, each ack waited for", 3200, lambda at, n: measures.eoq_take_one(at.socket, n), receives=True),
    Row("raw-take-100", "raw take, batches of 100", 24000, lambda at, n: measures.raw_take(at.raw, n, 100)),
    Row(
        "ack-100",
        "receive+ack, 100 at a time",
        24000,
        lambda at, n: measures.eoq_take_batches(at.socket, n),
        16.0,
        True,
    ),
    Row(
        "raw-take-100-1k",
        "raw take, batches of 100 of 1 KiB",
        12000,
        lambda at, n: measures.raw_take(at.folder / "raw-1k.db", n, 100, measures.BODY_1K),
    ),
    Row(
        "ack-100-1k",
        "receive+ack, 100 at a time of 1 KiB",
        12000,
        lambda at, n: measures.eoq_take_batches(at.socket, n, "bench-1k"),
        11.0,
        True,
        "bench-1k",
    ),
    Row(
        "inbox",
        "inbox, 1 at a time",
        9600,
        lambda at, n: measures.eoq_work_inbox(at.socket, at.folder / "app.db", n),
        0.4,
        True,
    ),
    Row(
        "inbox-ack",
        "the same, each ack waited for by the inbox",
        3200,
        lambda at, n: measures.eoq_inbox_one(at.socket, at.folder / "app.db", n),
        receives=True,
    ),
    Row(
        "inbox-100",
        "inbox, process_many of 100",
        16000,
        lambda at, n: measures.eoq_inbox_many(at.socket, at.folder / "app.db", n),
        8.0,
        True,
    ),
    Row(
        "outbox", "outbox, relayed", 16000, lambda at, n: measures.eoq_relay_rows(at.socket, at.folder / "outbox.db", n)
    ),
    Row(
        "outbox-latency",
        "outbox row to waiting consumer, seconds",
        200,
        lambda at, n: measures.outbox_to_consumer(at.socket, at.folder / "outbox.db", n),
    ),
    Row("latency", "send to waiting consumer, seconds", 500, lambda at, n: measures.send_to_consumer(at.socket, n)),
    Row("status", "status, seconds", 1000, lambda at, n: measures.status_seconds(at.socket, n)),
    Row("command", "eoq send as a process, seconds", 20, lambda at, n: measures.command_seconds(at.socket, n)),
    Row("fdatasync", "fdatasync, seconds", 500, lambda at, n: measures.fdatasync_seconds(at.folder, n)),
)


def one_round(folder: Path, scale: float, rows: Sequence[Row]) -> dict[str, float]:
    """Measure the rows once, with a new daemon. Return their figures by label."""
    figures: dict[str, list[float]] = {}
    with measures.daemon(folder) as socket:
        for row in rows:
            # Rates need a multiple of 800 messages: 8 producers, batches of 100.
            count = row.count if row.in_seconds else max(800, int(row.count * scale) // 800 * 800)
            if row.receives:
                measures.fill(socket, count, row.queue)
            figures.setdefault(row.label, []).append(row.measure(Place(folder, socket), count))
    return {label: statistics.mean(values) for label, values in figures.items()}


def print_table(rates: dict[str, float], ratios: dict[str, float]) -> None:
    """Print the medians of all rounds."""
    if RAW.label in rates:
        print(f"{'':42} {'per second':>11} {'ratio':>7} {'aim':>6} {'of aim':>7}")
    for row in dict.fromkeys(ROWS):
        if row.label not in rates or row.in_seconds:
            continue
        ratio = ratios.get(row.label)
        against = f" {row.aim:6g} {ratio / row.aim:7.0%}" if row.aim and ratio else ""
        print(f"{row.label:42} {rates[row.label]:11,.0f} {'' if ratio is None else f'{ratio:7.2f}'}{against}")
    for row in ROWS:
        if row.label in rates and row.in_seconds:
            print(f"{row.label.replace('seconds', 'ms'):42} {rates[row.label] * 1e3:11.2f}")
    try:
        floor = rates["fdatasync, seconds"] + rates["status, seconds"]
        print(f"\nsend to waiting consumer: {rates['send to waiting consumer, seconds'] / floor:.1f} times ", end="")
        print("one fdatasync and one round trip; aim 2")
    except KeyError:
        pass  # one of the three rows was not measured


def chosen_rows(names: str | None) -> list[Row]:
    """Return the rows with the given names, separated by commas, in the order of the table; all if None."""
    if names is None:
        return list(ROWS)
    wanted = set(names.split(","))
    if unknown := wanted - {row.name for row in ROWS}:
        sys.exit(f"no such rows: {', '.join(sorted(unknown))}; --list prints their names")
    return [row for row in ROWS if row.name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the medians as one JSON object")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--quick", action="store_true", help="a quarter of the messages, like --scale 0.25")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="factor for the numbers of messages")
    parser.add_argument("--rows", metavar="NAME[,NAME…]", help="measure only these rows")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and exit")
    options = parser.parse_args()
    if options.list:
        for row in dict.fromkeys(ROWS):
            print(f"{row.name:16}{row.label}")
        return
    rows = chosen_rows(options.rows)
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=os.environ.get("EOQ_BENCH_DIR")) as folder:
            rounds.append(one_round(Path(folder), 0.25 if options.quick else options.scale, rows))
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {options.rounds}", end="", file=sys.stderr)
    rates = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    ratios = {}
    if RAW.label in rates:
        ratios = {name: statistics.median(one[name] / one[RAW.label] for one in rounds) for name in rates}
    if options.json:
        print(json.dumps({"rates": rates, "ratios": ratios, "rounds": options.rounds}))
    else:
        print_table(rates, ratios)


if __name__ == "__main__":
    main()
