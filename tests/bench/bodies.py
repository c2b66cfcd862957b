"""Large bodies: how fast they are sent, and received and acked, in MB per second.

    python -m tests.bench.bodies [--rounds N] [--megabytes N] [--binary]

One daemon, one client. Each round sends bodies of one size in batches, and then receives and acks them in the same
batches; the sizes alternate. The table has the medians, by the clock and by the processor time of both processes: the
latter says the same on a machine that is busy with other things. The ratio is that of receive+ack to send.
``EOQ_BENCH_DIR`` is the folder for the daemon's file: on a RAM disk the disk does not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import eoq
from tests.bench import measures
from tests.support import processor_seconds

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
BATCH_BYTES = 1_000_000
"""Bytes of bodies in one request, with at most 100 messages."""


class Figure(NamedTuple):
    """MB per second: by the clock, and by the processor time."""

    clock: float
    processor: float


def rate(megabytes: float, daemon: int, work: Callable[[], None]) -> Figure:
    """Do some work with the daemon, and return its rate."""
    processor = time.process_time() + processor_seconds(daemon)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return Figure(megabytes / seconds, megabytes / (time.process_time() + processor_seconds(daemon) - processor))


def one_round(client: eoq.Client, daemon: int, size: int, count: int, body: bytes) -> tuple[Figure, Figure]:
    """Return the rates of sending and of receive+ack."""
    batch = max(1, min(100, BATCH_BYTES // size))
    count = max(batch, count // batch * batch)

    def send() -> None:
        for _ in range(count // batch):
            client.send_many("bodies", [body] * batch)

    def take() -> None:
        messages = client.consume("bodies", prefetch=2 * batch)
        for _ in range(count // batch):
            client.ack_many([(message, None) for message in islice(messages, batch)])

    megabytes = count * size / 1e6
    return rate(megabytes, daemon, send), rate(megabytes, daemon, take)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default 7")
    parser.add_argument("--megabytes", type=int, default=50, metavar="N", help="of each size and round, default 50")
    parser.add_argument("--binary", action="store_true", help="bodies that are no text, and so travel in base64")
    options = parser.parse_args()
    found: dict[int, list[tuple[Figure, Figure]]] = {size: [] for size in SIZES}
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("EOQ_BENCH_DIR")) as folder,
        measures.daemon_process(Path(folder)) as (process, socket),
        eoq.connect(socket) as client,
    ):
        for number in range(options.rounds):
            for size in SIZES:
                body = b"\xff" * size if options.binary else b"x" * size
                count = min(20_000, options.megabytes * 1_000_000 // size)
                found[size].append(one_round(client, process.pid, size, count, body))
            if sys.stderr.isatty():
                print(f"\rround {number + 1} of {options.rounds}", end="", file=sys.stderr)
    print(f"{'MB/s':>12}  {'by the clock':^28}  {'by processor time':^28}")
    print(f"{'bytes':>12}  {'send':>8} {'take+ack':>8} {'ratio':>10}  {'send':>8} {'take+ack':>8} {'ratio':>10}")
    for size, rounds in found.items():
        line = f"{size:12,}"
        for part in (0, 1):
            sends, takes = ([figure[part] for figure in figures] for figures in zip(*rounds, strict=True))
            ratio = statistics.median(take / send for send, take in zip(sends, takes, strict=True))
            line += f"  {statistics.median(sends):8.1f} {statistics.median(takes):8.1f} {ratio:10.2f}"
        print(line)


if __name__ == "__main__":
    main()
